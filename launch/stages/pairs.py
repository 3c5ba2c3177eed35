"""Preference pairs: the starting model's answers to prompts, labelled."""

from collections.abc import Sequence

import numpy as np

from alignment import preference
from data import instruct
from data.loader import Batch
from launch.job import Job, refuse_unknown_ids
from launch.schema import identity
from launch.stages import conversations
from launch.store.rundir import digest
from model.transformer import Params


def make(job: Job, policy: Params) -> dict[str, list[preference.Pair]]:
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
    paths = {split: out / f"{split}.jsonl" for split in ("train", "heldout")}
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


def to_rows(job: Job, pairs: Sequence[preference.Pair]) -> tuple[list[Batch], int]:
    """Arrays of pairs, and the number of those that are too long and left out."""
    rows, num_long = preference.pair_rows(pairs, job.settings.reward.seq_len, job.tokenizer.pad_id)
    tokens_B2L = np.stack([row["tokens"] for row in rows])
    refuse_unknown_ids(tokens_B2L, job.model.vocab_size, ["pairs"])
    return rows, num_long
