"""The training step: forward, backward, divide once, update. Every stage trains through it."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model import sharding
from model.config import TransformerConfig
from model.transformer import Params, declare
from train.optimizer import BALANCE, OptimizerConfig, make_optimizer, split

Batch = Mapping[str, jax.Array]
# Metrics that the step and the loop make; no named sum may take their place.
RESERVED = (
    *("step", "loss", "grad_norm", "param_growth"),
    *("lr", "train_secs", "tokens_per_sec", "mfu"),
)


class Sums(NamedTuple):
    """The sums that a loss computes of a batch, each over the batch's rows.

    `objective` is what is descended, over `weight`. `loss` is what is reported under that name, if
    the objective has terms beside it; `named` are further metrics, numbers or arrays.
    """

    objective: jax.Array
    weight: jax.Array
    named: dict[str, jax.Array]
    loss: jax.Array | None = None


LossFn = Callable[[Params, Batch], Sums]


class TrainState(NamedTuple):
    """A model in training: steps done, what a step changes, the optimizer's state of that, and the
    parameters that stay as they are."""

    step: jax.Array
    trainable: Params
    opt_state: Any
    frozen: Params = {}

    @property
    def params(self) -> Params:
        """All parameters of the model."""
        return merge(self.trainable, self.frozen)

    def with_params(self, params: Params) -> "TrainState":
        """The same state of other parameters, split as these are."""
        trainable, frozen = (_pick(params, like) for like in (self.trainable, self.frozen))
        return self._replace(trainable=trainable, frozen=frozen)


StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def merge(trainable: Params, frozen: Params) -> Params:
    """One tree of two that have no leaf in common."""
    parts = [traverse_util.flatten_dict(tree) for tree in (trainable, frozen)]
    return traverse_util.unflatten_dict(parts[0] | parts[1])


def _pick(params: Params, like: Params) -> Params:
    """The leaves at the paths that `like` has."""
    flat, wanted = traverse_util.flatten_dict(params), traverse_util.flatten_dict(like)
    return traverse_util.unflatten_dict({path: flat[path] for path in wanted})


def make_training(
    loss_fn: LossFn,
    optimizer_config: OptimizerConfig,
    config: TransformerConfig,
    num_updates: int,
    num_microbatches: int,
    mesh: Mesh,
) -> tuple[Callable[[Params], TrainState], StepFn]:
    """What trains one model on one loss.

    Args:
      loss_fn: of all parameters.
      optimizer_config: of the trainable ones, and which they are.
      config: shape of the model.
      num_updates: length of the learning rate's schedule.
      num_microbatches: as in `make_step`.
      mesh: device mesh.

    Returns:
      begin(params), the state at step 0 (see `init_state`), and `make_step`'s step.
    """
    optimizer = make_optimizer(optimizer_config, config, num_updates)
    shardings = state_shardings(optimizer, config, mesh, optimizer_config.frozen)
    begin = functools.partial(init_state, optimizer=optimizer, shardings=shardings)
    return begin, make_step(loss_fn, optimizer, num_microbatches, shardings)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """State at step 0, placed by `shardings` (see `state_shardings`).

    Args:
      params: all of them, donated: they become the state's, and no second copy of them is ever
        made. Pass a copy to keep them.
      optimizer: of the trainable ones.
      shardings: says where each leaf goes, and which parameters are frozen.
    """

    def create(params: Params) -> TrainState:
        trainable = _pick(params, shardings.trainable)
        opt_state, step = optimizer.init(trainable), jnp.zeros((), jnp.int32)
        return TrainState(step, trainable, opt_state, _pick(params, shardings.frozen))

    place = jax.jit(create, out_shardings=shardings, donate_argnums=0)
    return place(jax.device_put(params, shardings.params))


def state_shardings(
    optimizer: optax.GradientTransformation,
    config: TransformerConfig,
    mesh: Mesh,
    frozen: Collection[str] = (),
) -> TrainState:
    """A TrainState of shardings: moments are placed like their weights, counters replicated.

    Args:
      optimizer: of the trainable parameters.
      config: shape of the model, which declares how each weight is split.
      mesh: device mesh.
      frozen: as of OptimizerConfig; it splits the parameters.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    declared = declare(config)
    weights, kept = split(sharding.weight_shardings(declared, mesh), frozen)
    shapes = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, "float32"), declared)

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)  # of weights that another optimizer updates

    moments = optax.tree_map_params(
        optimizer,
        lambda moment, place: moment if is_masked(moment) else place,
        jax.eval_shape(optimizer.init, split(shapes, frozen)[0]),
        weights,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_masked,
    )
    return TrainState(everywhere, weights, moments, kept)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    num_microbatches: int,
    shardings: TrainState,
) -> StepFn:
    """Compiles a training step for a loss.

    Losses, gradients and named sums are added up over microbatches and devices and divided once by
    the global weight: a mean of means would be biased where microbatches carry unequal weight. A
    batch without any weight leaves parameters and optimizer state, the schedule's count included,
    as they are, and its loss, gradient norm and sums are 0. Frozen parameters reach the loss like
    all others, and have neither gradients nor moments.

    Args:
      loss_fn: (params, batch) -> Sums; of all parameters.
      optimizer: any optax transformation.
      num_microbatches: parts into which the batch's rows are split, one after another.
      shardings: from `state_shardings`; the new state stays where the old one was, so that the
        second step finds what the first was compiled for.

    Returns:
      step(state, batch) -> (new state, metrics); the old state is donated. Metrics are loss,
      grad_norm (of the objective, before clipping), param_growth (norm of what is trained after the
      update over that before it), and each named sum over the weight.

    Raises, when the step is first called:
      ValueError: a named sum has a reserved name.
    """
    objective = _with_sums(loss_fn)

    def step(state: TrainState, batch: Batch):
        grad_fn = jax.value_and_grad(
            lambda trainable, part: objective(merge(trainable, state.frozen), part), has_aux=True
        )
        if num_microbatches == 1:
            (_, sums), grads = grad_fn(state.trainable, batch)
        else:
            sums, grads = _accumulate(grad_fn, state.trainable, _split(batch, num_microbatches))
        has_weight = sums.weight > 0
        divisor = jnp.where(has_weight, sums.weight, 1.0)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        loss = sums.objective if sums.loss is None else sums.loss
        metrics = {name: total / divisor for name, total in {**sums.named, "loss": loss}.items()}
        metrics["grad_norm"] = optax.tree.norm(_without_balance(grads))

        def update():
            updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
            return optax.apply_updates(state.trainable, updates), opt_state

        def skip():  # the schedule counts the step, so that its last rate stays the last
            return state.trainable, map_count(lambda count: count + 1, state.opt_state)

        trainable, opt_state = jax.lax.cond(has_weight, update, skip)  # where() would hold both
        # Of what is read and written anyway; the update's own norm would keep a copy of it.
        growth = optax.tree.norm(trainable) / optax.tree.norm(state.trainable)
        metrics["param_growth"] = jnp.where(has_weight, growth, 1.0)
        return TrainState(state.step + 1, trainable, opt_state, state.frozen), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def map_count(fn: Callable[[jax.Array], jax.Array], opt_state: optax.OptState) -> optax.OptState:
    """The same moments, with `fn` of the number of updates that the schedule has counted."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def change(node: Any) -> Any:
        return optax.ScaleByScheduleState(fn(node.count)) if is_schedule(node) else node

    return jax.tree.map(change, opt_state, is_leaf=is_schedule)


def _without_balance(grads: Params) -> list[jax.Array]:
    """The true gradients: a router's bias has its load's surplus in place of one."""
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
