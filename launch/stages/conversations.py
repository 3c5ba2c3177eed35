"""The conversations of a stage, built in and of the user's own, and a model's answers to them."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data.quickstart import instruct
from data.quickstart.instruct import Example
from eval import dialog
from launch import own_sets
from launch.job import Job
from model.transformer import Params

BUILT_IN = "instruct"


class Sets(NamedTuple):
    """Conversations by the name of their set, and each set's weight in training."""

    train: dict[str, list[Example]]
    heldout: dict[str, list[Example]]
    weights: dict[str, float]


def read(job: Job) -> Sets:
    """The built-in conversations and the sets of the stage's own section."""
    built = instruct.build(job.settings.instruct)
    found = own_sets.read(job.settings, job.stage, job.progress.note)
    if found:
        job.refuse_changed_files()
    train = {BUILT_IN: built["train"]} | {name: made.train for name, made in found.items()}
    heldout = {BUILT_IN: built["heldout"]} | {name: made.heldout for name, made in found.items()}
    sets = own_sets.sets_of(job.settings, job.stage)
    weights = {key.rpartition(".")[2]: own.weight for key, own in sets.items()}
    return Sets(
        {name: examples for name, examples in train.items() if examples},
        heldout,
        {BUILT_IN: 1.0} | weights,
    )


def first(examples: Iterable[Example], count: int) -> list[Example]:
    """The first so many conversations of each kind."""
    seen, chosen = collections.Counter(), []
    for example in examples:
        seen[example.kind] += 1
        if seen[example.kind] <= count:
            chosen.append(example)
    return chosen


def answer(
    job: Job,
    params: Params,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[dialog.Response]:
    """A model's answers to examples."""
    return dialog.respond(
        job.model,
        params,
        job.tokenizer,
        [example.messages for example in examples],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=job.settings.eval.batch_size,
        log=job.progress.log,
    )
