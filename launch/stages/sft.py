"""Demonstrations to a model that answers."""

import collections

from alignment import sft
from launch import own_sets
from launch.job import Job, lm_rows
from launch.stages import conversations
from launch.stages.conversations import BUILT_IN
from train.checkpoint import params_hash
from train.lm import lm_loss


def run(job: Job) -> dict:
    """Trains on demonstrations; the loss is on the assistant's tokens alone."""
    config, sets = job.section, conversations.read(job)
    sources, totals = {}, collections.Counter()
    for name, examples in sets.train.items():
        rows, counts = sft.pack_demonstrations(examples, job.tokenizer, config.seq_len)
        sources[name] = (rows, sets.weights[name])
        totals.update(counts)
        dropped = own_sets.share(counts["num_dropped"], len(examples))
        job.progress.note(
            f"{name}: {counts['num_examples']} conversations in {counts['num_rows']} rows; "
            f"{dropped} longer than sft.seq_len = {config.seq_len} and left out"
        )
    heldout = {
        name.removeprefix(BUILT_IN): sft.pack_demonstrations(few, job.tokenizer, config.seq_len)[0]
        for name, examples in sets.heldout.items()
        if (few := conversations.first(examples, job.settings.eval.num_heldout))
    }
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
