"""The training step: forward, backward, divide once, update. Every stage trains through it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model import sharding
from model.config import TransformerConfig
from model.transformer import Params, declare
from train.optimizer import BALANCE

Batch = Mapping[str, jax.Array]
# loss_fn(params, batch) -> (loss sum, weight sum, {name: sum}), each summed over the batch's rows.
LossFn = Callable[[Params, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """What a step changes: number of steps done, parameters, optimizer state."""

    step: jax.Array
    params: Params
    opt_state: Any


def init_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """State at step 0, placed by `shardings` (see `state_shardings`).

    The parameters are copied, since the step donates its state and the caller may keep them.
    """
    create = jax.jit(
        lambda params: TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
        out_shardings=shardings,
    )
    return create(jax.tree.map(jnp.copy, params))


def state_shardings(
    optimizer: optax.GradientTransformation,
    config: TransformerConfig,
    params: Params,
    mesh: Mesh,
) -> TrainState:
    """A TrainState of shardings: moments lie where their weights lie, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    weights = sharding.weight_shardings(declare(config), mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, params),
        weights,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, weights, moments)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    num_microbatches: int,
    shardings: TrainState,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles a training step for a loss.

    Losses, gradients and named sums are added up over microbatches and devices and divided once by
    the global weight: a mean of means would be biased where microbatches carry unequal weight.

    Args:
      loss_fn: see LossFn.
      optimizer: any optax transformation.
      num_microbatches: parts into which the batch's rows are split, one after another.
      shardings: from `state_shardings`; the new state stays where the old one was, so that the
        second step finds what the first was compiled for.

    Returns:
      step(state, batch) -> (new state, metrics); the old state is donated. Metrics are loss,
      grad_norm, and each named sum (a number, or an array) over the weight.
    """
    grad_fn = jax.value_and_grad(_sums_of(loss_fn), has_aux=True)

    def step(state: TrainState, batch: Batch):
        if num_microbatches == 1:
            (_, sums), grads = grad_fn(state.params, batch)
        else:
            sums, grads = _accumulate(grad_fn, state.params, _split(batch, num_microbatches))
        weight = sums.pop("weight")
        grads = jax.tree.map(lambda g: g / weight, grads)
        metrics = {name: total / weight for name, total in sums.items()}
        metrics["grad_norm"] = optax.tree.norm(_without_balance(grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _without_balance(grads: Params) -> list[jax.Array]:
    """The gradients that are gradients: a router's bias has its load's surplus in their place."""
    return [leaf for path, leaf in jax.tree.leaves_with_path(grads) if path[-1].key != BALANCE]


def _sums_of(loss_fn: LossFn):
    def sums(params, batch):
        loss, weight, named = loss_fn(params, batch)
        return loss, {"loss": loss, "weight": weight, **named}

    return sums


def _split(batch: Batch, parts: int) -> Batch:
    """(B, ...) to (parts, B / parts, ...); part i takes every parts-th row, so that rows sharded
    over devices stay on them."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )


def _accumulate(grad_fn, params: Params, batches: Batch):
    def add(total, batch):
        (_, sums), grads = grad_fn(params, batch)
        return jax.tree.map(jnp.add, total, (sums, grads)), None

    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], batches))
    (_, sums), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, (sums, grads), batches)[0]
