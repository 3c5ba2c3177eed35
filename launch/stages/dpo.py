"""Preference pairs straight to a policy."""

from alignment import dpo
from launch.job import Job
from launch.stages import pairs
from train.checkpoint import params_hash


def run(job: Job) -> dict:
    """Trains the policy on the pairs, against the model that it starts from."""
    config, seq_len, reference = job.section, job.settings.reward.seq_len, job.start_params()
    made, batch_size = pairs.make(job, reference), job.settings.eval.batch_size
    rows, num_long = pairs.to_rows(job, made["train"])
    heldout, _ = pairs.to_rows(job, made["heldout"])
    rows, heldout = (
        dpo.with_reference(job.model, reference, x, batch_size) for x in (rows, heldout)
    )
    loss = dpo.dpo_loss(job.model, config)
    state = job.train(
        loss,
        reference,
        job.loader({"pairs": (rows, 1.0)}),
        step_tokens=config.loop.batch_size * 2 * seq_len,
        seq_len=seq_len,
        evaluators=job.heldout(loss, heldout),
    )
    return {
        "train_pairs": len(rows),
        "too_long_pairs": num_long,
        "params_sha256": params_hash(state.params),
    }
