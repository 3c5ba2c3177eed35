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
# Metrics that the step and the loop make; no named sum may take their place.
RESERVED = (
    *("step", "loss", "grad_norm", "param_growth"),
    *("lr", "train_secs", "tokens_per_sec", "mfu"),
)


class Sums(NamedTuple):
    """What a loss makes of a batch, each summed over the batch's rows.

    `objective` is what is descended, over `weight`. `loss` is what is reported under that name, if
    the objective has terms beside it; `named` are further metrics, numbers or arrays.
    """

    objective: jax.Array
    weight: jax.Array
    named: dict[str, jax.Array]
    loss: jax.Array | None = None


LossFn = Callable[[Params, Batch], Sums]


class TrainState(NamedTuple):
    """What a step changes: number of steps done, parameters, optimizer state."""

    step: jax.Array
    params: Params
    opt_state: Any


def init_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """State at step 0, placed by `shardings` (see `state_shardings`).

    The parameters are donated: they become the state's, and no second copy of them is ever made.
    Who wants to keep them passes a copy.
    """
    create = jax.jit(
        lambda params: TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return create(jax.device_put(params, shardings.params))


def state_shardings(
    optimizer: optax.GradientTransformation,
    config: TransformerConfig,
    params: Params,
    mesh: Mesh,
) -> TrainState:
    """A TrainState of shardings: moments lie where their weights lie, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    weights = sharding.weight_shardings(declare(config), mesh)

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)  # of weights that are another optimizer's

    moments = optax.tree_map_params(
        optimizer,
        lambda moment, place: moment if is_masked(moment) else place,
        jax.eval_shape(optimizer.init, params),
        weights,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_masked,
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
    the global weight: a mean of means would be biased where microbatches carry unequal weight. A
    batch without any weight leaves parameters and optimizer state, the schedule's count included,
    as they are, and its loss, gradient norm and sums are 0.

    Args:
      loss_fn: (params, batch) -> Sums.
      optimizer: any optax transformation.
      num_microbatches: parts into which the batch's rows are split, one after another.
      shardings: from `state_shardings`; the new state stays where the old one was, so that the
        second step finds what the first was compiled for.

    Returns:
      step(state, batch) -> (new state, metrics); the old state is donated. Metrics are loss,
      grad_norm (of the objective, before clipping), param_growth (norm of all parameters after the
      update over that before it), and each named sum over the weight.

    Raises, when the step is first called:
      ValueError: a named sum has a reserved name.
    """
    grad_fn = jax.value_and_grad(_with_sums(loss_fn), has_aux=True)

    def step(state: TrainState, batch: Batch):
        if num_microbatches == 1:
            (_, sums), grads = grad_fn(state.params, batch)
        else:
            sums, grads = _accumulate(grad_fn, state.params, _split(batch, num_microbatches))
        has_weight = sums.weight > 0
        divisor = jnp.where(has_weight, sums.weight, 1.0)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        loss = sums.objective if sums.loss is None else sums.loss
        metrics = {name: total / divisor for name, total in {**sums.named, "loss": loss}.items()}
        metrics["grad_norm"] = optax.tree.norm(_without_balance(grads))

        def update():
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state

        # Not jnp.where, which would keep old moments beside new ones.
        params, opt_state = jax.lax.cond(
            has_weight, update, lambda: (state.params, _pass_over(state.opt_state))
        )
        # Of what is read and written anyway; the update's own norm would keep a copy of it.
        growth = optax.tree.norm(params) / optax.tree.norm(state.params)
        metrics["param_growth"] = jnp.where(has_weight, growth, 1.0)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _pass_over(opt_state: optax.OptState) -> optax.OptState:
    """The same moments; only the schedule counts the step, so that its last rate stays the last."""

    def is_schedule(node) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def count(node):
        return optax.ScaleByScheduleState(node.count + 1) if is_schedule(node) else node

    return jax.tree.map(count, opt_state, is_leaf=is_schedule)


def _without_balance(grads: Params) -> list[jax.Array]:
    """The gradients that are gradients: a router's bias has its load's surplus in their place."""
    return [leaf for path, leaf in jax.tree.leaves_with_path(grads) if path[-1].key != BALANCE]


def _with_sums(loss_fn: LossFn):
    def objective(params: Params, batch: Batch) -> tuple[jax.Array, Sums]:
        sums = loss_fn(params, batch)
        if taken := set(RESERVED) & set(sums.named):
            raise ValueError(f"a loss names sums {sorted(taken)}; {RESERVED} are taken")
        return sums.objective, sums

    return objective


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
