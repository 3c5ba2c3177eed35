"""The conversations of a run: what is measured while training, and a model's answers to them."""

import collections
from collections.abc import Sequence

from data import instruct
from data.instruct import Example
from eval import dialog
from launch.job import Job
from model.transformer import Params


def heldout(job: Job) -> list[Example]:
    """The first held-out conversations of each kind, which are measured while training."""
    count, seen, chosen = job.settings.eval.num_heldout, collections.Counter(), []
    for example in instruct.build(job.settings.instruct)["heldout"]:
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
