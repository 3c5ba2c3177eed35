"""Pipeline parallelism over the mesh axis 'stage': a circular schedule in one scan.

Layers are cut into repeats x stages x layers of one visit. Microbatch m enters the first stage at
iteration m; every iteration each stage runs its layers on what it holds and hands it to the next;
what leaves the last stage comes back for its next repeat, or is done. The stages are one vmapped
dim that XLA splits over the axis, and the hand-over is a rotation of it.

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
    """Raises ValueError, with the numbers that clash, if the split is impossible."""
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
      carry: arrays that lead with B; rows must not depend on each other.
      layers: tree of arrays that lead with X, in order.

    Returns:
      The carry after the last layer, as a scan over `layers` would give.

    Raises:
      ValueError: the numbers do not divide.
    """
    S, U, W = (
        sharding.axis_size("stage"),
        config.layout.stage_repeats,
        config.layout.stage_microbatches,
    )
    X, B = jax.tree.leaves(layers)[0].shape[0], jax.tree.leaves(carry)[0].shape[0]
    check(config, X, S, B)
    # Layer u S k + s k + j is the j-th of stage s in repeat u.
    layers_SU = jax.tree.map(
        lambda x: _pin(jnp.swapaxes(x.reshape(U, S, X // (U * S), *x.shape[1:]), 0, 1)), layers
    )
    # Part w takes every W-th row, so that rows split over devices stay on them.
    held = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(B // W, W, *x.shape[1:]), 1, 0), carry)
    stages = jax.tree.map(lambda x: jnp.zeros((S, *x.shape[1:]), x.dtype), held)

    def visit(layers_U, repeat, rows):
        return jax.lax.scan(step, rows, jax.tree.map(lambda x: x[repeat], layers_U))[0]

    visit_all = jax.vmap(visit, spmd_axis_name="stage")

    def iterate(state, t):
        held, stages = state
        # What enters after the last microbatch is zeros: padding, which counts for nothing.
        entering = jax.tree.map(lambda x: jnp.where(t < W * U, x[t % W], 0), held)
        stages = jax.tree.map(
            lambda x, first: _pin(jnp.roll(x, 1, 0).at[0].set(first)), stages, entering
        )
        repeat_S = jnp.clip((t - jnp.arange(S)) // W, 0, U - 1)
        stages = jax.tree.map(_pin, visit_all(layers_SU, repeat_S, stages))
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
