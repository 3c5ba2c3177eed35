"""Preference pairs: the starting model's answers to prompts, labelled, and the user's own."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignment import preference
from alignment.preference import Pair
from data.conversations import PairText
from data.errors import BadInput
from data.mixture.loader import Batch
from data.quickstart import instruct
from data.tokens import chat
from launch import own_sets
from launch.job import Job, refuse_unknown_ids
from launch.schema import identity
from launch.stages import conversations
from launch.store.rundir import digest
from model.transformer import Params

MADE = "pairs"  # the set of pairs that are made here
SPLITS = ("train", "heldout")


class Rows(NamedTuple):
    """Rows of pairs by the name of their set, '' of those made here in `heldout`.

    `sources` has each set's weight beside its rows; `counts` are numbers for the summary.
    """

    sources: dict[str, tuple[list[Batch], float]]
    heldout: dict[str, list[Batch]]
    counts: dict[str, int]


def load(job: Job, policy: Params) -> Rows:
    """The pairs that a stage learns from: those made of the policy's answers, and own sets."""
    found = own_sets.read(job.settings, job.stage, job.progress.note)
    if found:
        job.refuse_changed_files()
    config, sets = job.settings.reward, {}
    if config.pairs.num_prompts:
        sets[MADE] = (_make(job, policy), 1.0)
    for name, read in found.items():
        split = {"train": _encode(job, read.train), "heldout": _encode(job, read.heldout)}
        sets[name] = (split, config.data[name].weight)
    sources, heldout, num_long = {}, {}, 0
    for name, (split, weight) in sets.items():
        rows, long = _to_rows(job, name, split["train"])
        if not rows:
            raise BadInput(
                f"{name}: none of {len(split['train'])} pairs fits into reward.seq_len, which is "
                f"{config.seq_len}"
            )
        sources[name], num_long = (rows, weight), num_long + long
        if kept := _to_rows(job, f"{name}, held out", split["heldout"])[0]:
            heldout[name.removeprefix(MADE)] = kept
    num_train = sum(len(rows) for rows, _ in sources.values())
    return Rows(sources, heldout, {"train_pairs": num_train, "too_long_pairs": num_long})


def _make(job: Job, policy: Params) -> Mapping[str, list[Pair]]:
    """Pairs of the policy's own answers, by split; made once, then read.

    Their folder is named by all that they depend on, so that each stage that wants the same pairs
    finds them.
    """
    config, settings = job.settings.reward.pairs, job.settings
    key = {
        "parent": job.inputs["upstream"][job.parent],
        "pairs": identity(config),
        "instruct": identity(settings.instruct),
        "seed": settings.seed,
    }
    out = job.run.cache("pairs") / digest(key)
    paths = {split: out / f"{split}.jsonl" for split in SPLITS}
    if not all(path.exists() for path in paths.values()):
        examples = instruct.build(settings.instruct)["train"][: config.num_prompts]
        repeated = [example for example in examples for _ in range(config.samples_per_prompt)]
        answers = conversations.answer(
            job,
            policy,
            repeated,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=settings.seed + 1,
        )
        size = config.samples_per_prompt
        samples = [answers[i : i + size] for i in range(0, len(answers), size)]
        pairs = preference.make_pairs(config, examples, samples, job.tokenizer, settings.seed)
        out.mkdir(parents=True, exist_ok=True)
        for split, path in paths.items():
            preference.write_pairs(path, pairs[split])
    return {split: preference.read_pairs(path) for split, path in paths.items()}


def _encode(job: Job, pairs: Sequence[PairText]) -> list[Pair]:
    """Pairs of texts as token ids."""

    def ids(pair: PairText, text: str) -> tuple[int, ...]:
        return tuple(chat.render_answer(job.tokenizer, pair.messages, text).tolist())

    return [
        Pair(
            tuple(chat.render_prompt(job.tokenizer, pair.messages).tolist()),
            ids(pair, pair.chosen),
            ids(pair, pair.rejected),
            0.0,
        )
        for pair in pairs
    ]


def _to_rows(job: Job, name: str, pairs: Sequence[Pair]) -> tuple[list[Batch], int]:
    """Arrays of pairs, and the number of those that are too long, which are left out."""
    seq_len = job.settings.reward.seq_len
    rows, num_long = preference.pair_rows(pairs, seq_len, job.tokenizer.pad_id)
    if rows:
        tokens_B2L = np.stack([row["tokens"] for row in rows])
        refuse_unknown_ids(tokens_B2L, job.model.vocab_size, [name])
    if num_long:
        lost = own_sets.share(num_long, len(pairs))
        job.progress.note(f"{name}: {lost} pairs longer than reward.seq_len = {seq_len}, left out")
    return rows, num_long
