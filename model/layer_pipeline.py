"""Pipeline parallelism over the mesh axis 'stage': a circular schedule in one scan.

Layers are split into repeats x stages x layers of a stage. Microbatch w enters the first stage at
iteration w. In every iteration each stage runs its layers on one microbatch and sends it to the
next stage; after the last stage it returns to the first one for the next repeat, or is done. The
stages are a vmapped dim that XLA splits over the axis, and sending is a rotation of that dim.

Beside README's letters: S stages, U repeats, W microbatches. Share of idle time:
(S - 1) / (U W + S - 1).
Source: arXiv 1811.06965 (GPipe), arXiv 2104.04473, section 2.2 (interleaved stages).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model import sharding
from model.config import TransformerConfig


def check(config: TransformerConfig, num_layers: int, num_stages: int, num_rows: int) -> None:
    """Refuses a split of layers and rows that a pipeline cannot have.

    Args:
      config: has the number of repeats and of microbatches.
      num_layers: repeats of the longest stack of layers.
      num_stages: size of the mesh axis 'stage'.
      num_rows: rows that pass through the model at once.

    Raises:
      ValueError: names the numbers that clash.
    """
    repeats, parts = config.layout.stage_repeats, config.layout.stage_microbatches
    if num_layers % (num_stages * repeats):
        raise ValueError(
            f"mesh.stage is {num_stages} and layout.stage_repeats {repeats}, but the longest stack "
            f"has {num_layers} repeated layers; their product must divide it"
        )
    if parts < num_stages and repeats > 1:
        raise ValueError(
            f"layout.stage_microbatches is {parts}; with layout.stage_repeats = {repeats} it must "
            f"be at least mesh.stage = {num_stages}"
        )
    if num_rows % parts:
        raise ValueError(
            f"layout.stage_microbatches is {parts}; it must divide the {num_rows} rows of a batch"
        )


def run(config: TransformerConfig, step: Callable, carry: Any, layers: Any) -> Any:
    """Runs `carry, _ = step(carry, layer)` over all layers, stage by stage.

    Args:
      config: stage_microbatches W and stage_repeats U.
      step: one layer, as for jax.lax.scan.
      carry: arrays whose first dim is B; rows must not depend on each other.
      layers: tree of arrays whose first dim is X, in order.

    Returns:
      The carry after the last layer, as a scan over `layers` would give.

    Raises:
      ValueError: the numbers do not divide.
    """
    U, W = config.layout.stage_repeats, config.layout.stage_microbatches
    S = sharding.axis_size("stage")
    X, B = jax.tree.leaves(layers)[0].shape[0], jax.tree.leaves(carry)[0].shape[0]
    check(config, X, S, B)
    # Layer u S k + s k + j is the j-th of stage s in repeat u.
    layers_SU = jax.tree.map(
        lambda x: _pin(jnp.swapaxes(x.reshape(U, S, X // (U * S), *x.shape[1:]), 0, 1)), layers
    )
    # Part w has every W-th row, so that no row moves to another device.
    held = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(B // W, W, *x.shape[1:]), 1, 0), carry)
    stages = jax.tree.map(lambda x: jnp.zeros((S, *x.shape[1:]), x.dtype), held)

    def run_stage(layers_U, repeat, rows):
        return jax.lax.scan(step, rows, jax.tree.map(lambda x: x[repeat], layers_U))[0]

    run_stages = jax.vmap(run_stage, spmd_axis_name="stage")

    def iterate(state, t):
        held, stages = state
        # After the last microbatch zeros enter: padding, which no statistic counts.
        entering = jax.tree.map(lambda x: jnp.where(t < W * U, x[t % W], 0), held)
        stages = jax.tree.map(
            lambda x, first: _pin(jnp.roll(x, 1, 0).at[0].set(first)), stages, entering
        )
        repeat_S = jnp.clip((t - jnp.arange(S)) // W, 0, U - 1)
        stages = jax.tree.map(_pin, run_stages(layers_SU, repeat_S, stages))
        left = t - (S - 1)
        held = jax.tree.map(
            lambda all_rows, x: jnp.where(left >= 0, all_rows.at[left % W].set(x[-1]), all_rows),
            held,
            stages,
        )
        return (held, stages), None

    (held, _), _ = jax.lax.scan(iterate, (held, stages), jnp.arange(W * U + S - 1))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, *x.shape[2:]), held)


def _pin(x: jax.Array) -> jax.Array:
    """Splits the leading dim over the stages and leaves the others as they are."""
    free = [jax.sharding.PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec("stage", *free))
