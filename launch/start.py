"""The model that `start` names: its parameters and moments for a stage of another run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from data.errors import BadInput
from launch import load
from launch.schema import to_dict
from launch.store.rundir import flatten
from model import sharding
from model.config import TransformerConfig
from model.interop.hf_config import COMPUTED, TRAINED
from model.transformer import Params, declare
from train import checkpoint
from train.step import map_count


def load_params(start: load.Start, config: TransformerConfig, mesh: Mesh) -> Params:
    """Its parameters, with the vocabulary padded as this run's is.

    Raises:
      BadInput: its model computes another function than that of `config`.
    """

    def abstract(saved: dict) -> Any:
        load.refuse_other_tokenizer(start.run, start.stage, saved)
        found = load.saved_config(saved)
        refuse_other_model(found, config, start.run.path)
        # Its vocabulary may not divide by the mesh's axes: such a dim is read whole, then padded.
        places = sharding.weight_shardings(declare(found), mesh, strict=False)
        return load.abstract_params(found, places)

    _, params = checkpoint.load(start.run.checkpoints(start.stage), abstract, start.step)

    def pad(x: jax.Array, place: Any, weight: sharding.Weight) -> jax.Array:
        more = [(0, now - was) for was, now in zip(x.shape, weight.shape, strict=True)]
        return jax.device_put(jnp.pad(x, more), place) if x.shape != weight.shape else x

    wanted = declare(config)
    return jax.tree.map(pad, params, sharding.weight_shardings(wanted, mesh), wanted)


def load_moments(start: load.Start, opt_state: optax.OptState) -> optax.OptState:
    """Its optimizer's moments in place of fresh ones; the schedule starts over.

    Raises:
      BadInput: the optimizer was another one, or there is none, as of an imported model.
    """
    if start.stage == load.IMPORTED:
        raise BadInput("start_optimizer is True; an imported model has no optimizer's moments")
    like = {"step": jnp.zeros((), jnp.int32), "opt_state": opt_state}
    found = checkpoint.load_rest(start.run.checkpoints(start.stage), start.step, like)
    return map_count(jnp.zeros_like, found["opt_state"])


def refuse_other_model(found: TransformerConfig, wanted: TransformerConfig, start: Path) -> None:
    """Raises BadInput if two models differ in more than how they are computed and trained."""
    free = {*COMPUTED, *(f"moe.{name}" for name in TRAINED)}
    was, now = flatten(to_dict(found)), flatten(to_dict(wanted))
    for key in was:
        if key not in free and was[key] != now[key]:
            raise BadInput(
                f"model.{key} is {now[key]!r}; it must be {was[key]!r}, as in start={start}"
            )
