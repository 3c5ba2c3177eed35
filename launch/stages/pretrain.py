"""Shards to a base model."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data.errors import BadInput
from data.shards import pack_documents
from eval.text import bits_per_byte
from launch import load, shard_plan
from launch.job import Job, lm_rows
from launch.schema import to_dict
from launch.stages.texts import read_first
from launch.store.rundir import RunDir
from model import sharding
from model.config import TransformerConfig
from model.interop.hf_config import COMPUTED, TRAINED
from model.transformer import Params, declare, init
from train import checkpoint
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
    loss = lm_loss(job.model, config.z_loss)
    state = job.train(
        loss,
        _first_params(job),
        loader,
        step_tokens=config.loop.batch_size * config.seq_len,
        seq_len=config.seq_len,
        evaluators=_text_evaluators(job, loss),
    )
    return {
        "mixture": planned.table(loader.realised_rows()),
        "params_sha256": params_hash(state.params),
    }


def _first_params(job: Job) -> Params:
    """Fresh parameters, or those of the imported run that `start` names."""
    if job.settings.start:
        return load_start(job)
    return init(job.model, jax.random.key(job.settings.seed), job.mesh)


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

    heldout = job.heldout(loss, rows, lm_rows(job.settings.mesh, config.seq_len))
    return {**heldout, "heldout_bits_per_byte": evaluate}


def load_start(job: Job) -> Params:
    """Parameters of the run that `start` names, with the vocabulary padded as this run's is.

    Raises:
      BadInput: its model is another function than this run's.
    """
    config, mesh, start = job.model, job.mesh, RunDir(Path(job.settings.start))

    def abstract(saved: dict) -> Any:
        found = load.saved_config(saved)
        _refuse_other_model(found, config, start.path)
        # Its vocabulary may not divide by the mesh's axes: such a dim is read whole, then padded.
        return load.abstract_params(
            found, sharding.weight_shardings(declare(found), mesh, strict=False)
        )

    _, params = checkpoint.load(start.checkpoints("import"), abstract)
    job.refuse_changed_files()

    def pad(x: jax.Array, place: Any, weight: sharding.Weight) -> jax.Array:
        more = [(0, now - was) for was, now in zip(x.shape, weight.shape, strict=True)]
        return jax.device_put(jnp.pad(x, more), place) if x.shape != weight.shape else x

    wanted = declare(config)
    return jax.tree.map(pad, params, sharding.weight_shardings(wanted, mesh), wanted)


def _refuse_other_model(found: TransformerConfig, wanted: TransformerConfig, start: Path) -> None:
    free = {*COMPUTED, *(f"moe.{name}" for name in TRAINED)}
    was, now = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): value
            for path, value in jax.tree.leaves_with_path(
                to_dict(config), is_leaf=lambda x: not isinstance(x, dict)
            )
        }
        for config in (found, wanted)
    )
    for key in was:
        if key not in free and was[key] != now[key]:
            raise BadInput(
                f"model.{key} is {now[key]!r}; it must be {was[key]!r}, as in start={start}"
            )
