"""Demonstrations to a model that answers."""

from pathlib import Path

from alignment import sft
from data import instruct
from launch.job import Job, lm_rows
from launch.stages import conversations
from train.checkpoint import params_hash
from train.lm import lm_loss


def run(job: Job) -> dict:
    """Trains on demonstrations; the loss is on the assistant's tokens alone."""
    config = job.section
    examples = instruct.build(job.settings.instruct)["train"]
    own, broken = _own_examples(job)
    rows, counts = sft.pack_demonstrations(examples + own, job.tokenizer, config.seq_len)
    job.progress.log(f"{counts['num_examples']} conversations in {counts['num_rows']} rows")
    heldout = conversations.heldout(job)
    heldout_rows = (
        sft.pack_demonstrations(heldout, job.tokenizer, config.seq_len)[0] if heldout else []
    )
    transform = lm_rows(job.settings.mesh, config.seq_len)
    loss = lm_loss(job.model, config.z_loss)
    state = job.train(
        loss,
        job.start_params(),
        job.loader({"instruct": (rows, 1.0)}, transform),
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=job.heldout(loss, heldout_rows, transform),
    )
    return {
        **counts,
        "own_examples": len(own),
        "broken_lines": len(broken),
        "params_sha256": params_hash(state.params),
    }


def _own_examples(job: Job) -> tuple[list[instruct.Example], list[dict]]:
    """The user's own conversations, and the lines of them that could not be read."""
    path = job.settings.instruct.path
    if not path:
        return [], []
    own, broken = instruct.load(Path(path))
    job.refuse_changed_files()
    job.progress.note(f"{path}: {len(own)} conversations, {len(broken)} broken lines")
    for line in broken[:3]:
        job.progress.note(f"{path}: {line}")
    return own, broken
