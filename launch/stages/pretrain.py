"""Shards to a base model."""

import jax

from data.tokens.shards import pack_documents
from eval.text import bits_per_byte
from launch import shard_plan
from launch.job import Job, lm_rows
from launch.stages.texts import read_first
from model.transformer import Params, init
from train.checkpoint import params_hash
from train.lm import lm_loss
from train.step import LossFn


def run(job: Job) -> dict:
    """Shards to a base model."""
    config, num_rows = job.section, job.section.loop.num_steps * job.section.loop.batch_size
    planned = shard_plan.of_run(job.settings, job.run, num_rows * config.seq_len, job.progress.note)
    loader = job.loader(
        planned.sources(job.run),
        lm_rows(job.settings.mesh, config.seq_len),
        planned.stage_rows(config.seq_len, num_rows),
    )
    loss, seed = lm_loss(job.model, config.z_loss), jax.random.key(job.settings.seed)
    state = job.train(
        loss,
        job.start_params() if job.settings.start else init(job.model, seed, job.mesh),
        loader,
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=_text_evaluators(job, loss),
    )
    return {
        "mixture": planned.table(loader.realised_rows()),
        "params_sha256": params_hash(state.params),
    }


def _text_evaluators(job: Job, loss: LossFn) -> dict:
    """Loss and bits per byte of the first few held-out documents of each domain, while training."""
    config, count = job.section, job.settings.eval.num_heldout
    few = read_first(job, count) if count else {}
    if not few:
        return {}
    tokenizer = job.tokenizer
    ids = tokenizer.encode_batch([text for texts in few.values() for text in texts])
    rows = list(pack_documents(ids, config.seq_len, tokenizer.bos_id, tokenizer.eos_id))

    def evaluate(params: Params) -> dict:
        bits = bits_per_byte(
            job.model,
            params,
            tokenizer,
            few,
            seq_len=config.seq_len,
            batch_size=job.settings.eval.batch_size,
        )
        return {domain: row["bits_per_byte"] for domain, row in bits.items()}

    heldout = job.heldout(loss, {"": rows}, lm_rows(job.settings.mesh, config.seq_len))
    return {**heldout, "heldout_bits_per_byte": evaluate}
