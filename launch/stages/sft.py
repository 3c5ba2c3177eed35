"""Demonstrations to a model that answers."""

import collections
from collections.abc import Sequence

from alignment import sft
from data.errors import BadInput
from data.mixture.loader import Batch
from data.quickstart.instruct import Example
from launch import own_sets
from launch.job import Job, lm_rows
from launch.stages import conversations
from launch.stages.conversations import BUILT_IN
from train.checkpoint import params_hash
from train.lm import lm_loss


def run(job: Job) -> dict:
    """Trains on demonstrations; the loss is on the assistant's tokens alone."""
    config, sets = job.section, conversations.read(job)
    sources, heldout, totals = {}, {}, collections.Counter()

    def pack(name: str, examples: Sequence[Example]) -> tuple[list[Batch], dict[str, int]]:
        rows, counts = sft.pack_demonstrations(examples, job.tokenizer, config.seq_len)
        dropped = own_sets.share(counts["num_dropped"], len(examples))
        job.progress.note(
            f"{name}: {counts['num_examples']} conversations in {counts['num_rows']} rows; "
            f"{dropped} longer than sft.seq_len = {config.seq_len} and left out"
        )
        return rows, counts

    for name, examples in sets.train.items():
        rows, counts = pack(name, examples)
        if not counts["num_tokens"]:
            raise BadInput(
                f"{name}: no assistant message of {len(examples)} conversations fits into "
                f"sft.seq_len, which is {config.seq_len}"
            )
        sources[name] = (rows, sets.weights[name])
        totals.update(counts)
    for name, examples in sets.heldout.items():
        few = conversations.first(examples, job.settings.eval.num_heldout)
        rows, counts = pack(f"{name}, held out", few) if few else ([], {})
        if counts.get("num_tokens"):
            heldout[name.removeprefix(BUILT_IN)] = rows
    transform = lm_rows(job.settings.mesh, config.seq_len)
    loss = lm_loss(job.model, config.z_loss)
    state = job.train(
        loss,
        job.start_params(),
        job.loader(sources, transform),
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=job.heldout(loss, heldout, transform),
    )
    return {**totals, "params_sha256": params_hash(state.params)}
