"""Preference pairs straight to a policy."""

import functools

from alignment import dpo
from launch.job import Job
from launch.stages import pairs
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Trains the policy on the pairs, against the model that it starts from."""
    config, seq_len, reference = job.section, job.settings.reward.seq_len, job.start_params()
    found = pairs.load(job, reference)
    job.progress.log("log-probabilities of the pairs by the model that it starts from")
    refer = functools.partial(
        dpo.with_reference, job.model, reference, batch_size=job.settings.eval.batch_size
    )
    sources = {name: (refer(rows), weight) for name, (rows, weight) in found.sources.items()}
    heldout = {name: refer(rows) for name, rows in found.heldout.items()}
    loss = dpo.dpo_loss(job.model, config)
    state = job.train(
        loss,
        reference,
        job.loader(sources),
        step_tokens=config.loop.batch_size * 2 * seq_len,
        seq_len=seq_len,
        evaluators=job.heldout(loss, heldout),
    )
    return {**found.counts, "params_sha256": params_hash(state.params)}
