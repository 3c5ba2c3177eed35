"""AdamW and Muon with a weight-decay mask, gradient clipping, and learning-rate schedules."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import traverse_util

from model.config import TransformerConfig, require
from model.layer import is_matrix
from model.transformer import declare

BALANCE = "balance_bias"  # the one weight whose gradient is none: see make_optimizer
SCHEDULES = ("cosine", "wsd")
KINDS = ("adamw", "muon")
# Matrices that map token ids to vectors, or vectors to ids: AdamW's under Muon too.
TABLES = ("embedding", "position_table", "head")
# Root mean square of Muon's updates, which is about AdamW's: one learning rate fits both.
MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101) or Muon (arXiv 2502.16982).

    Muon moves matrices between activations by its momentum (`beta1`, Nesterov) made orthogonal, at
    the root mean square of AdamW's updates; token tables, head, norms and biases stay AdamW's.
    """

    kind: str = "adamw"  # adamw or muon
    peak_lr: float = 3e-4  # highest learning rate
    warmup_steps: int = 0  # steps
    schedule: str = "cosine"  # cosine or wsd (warmup, stable, decay)
    decay_fraction: float = 0.2  # wsd: share of updates that decay; 1: linear, 0: the last alone
    final_lr_fraction: float = 0.1  # of the peak: the rate of the last update
    weight_decay: float = 0.1  # of matrices
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    clip_norm: float = 1.0  # global gradient norm
    frozen: tuple[str, ...] = ()  # names in paths of weights that stay as they are, as 'embedding'

    def __post_init__(self):
        require(
            self,
            kind=(self.kind in KINDS, f"one of {KINDS}"),
            schedule=(self.schedule in SCHEDULES, f"one of {SCHEDULES}"),
            peak_lr=(self.peak_lr > 0, "above 0"),
            warmup_steps=(self.warmup_steps >= 0, "0 or more"),
            decay_fraction=(0 <= self.decay_fraction <= 1, "in [0, 1]"),
            final_lr_fraction=(0 <= self.final_lr_fraction <= 1, "in [0, 1]"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            beta1=(0 <= self.beta1 < 1, "in [0, 1)"),
            beta2=(0 <= self.beta2 < 1, "in [0, 1)"),
            eps=(self.eps > 0, "above 0"),
            clip_norm=(self.clip_norm > 0, "above 0"),
        )


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of an update as a function of the number of updates before it.

    The rate rises linearly over `warmup_steps` updates, is at its peak in the next one, unless that
    is the last, and is peak_lr * final_lr_fraction in the last of the `num_steps` updates (and in
    any after it).
    'cosine' falls along half a cosine between the two. 'wsd' (warmup, stable, decay) holds the peak
    and falls linearly over the last `decay_fraction` of the updates: 1 is a linear fall from the
    warmup on, 0 holds the peak up to the last update.

    Args:
      config: shape of the schedule.
      num_steps: total updates, warmup included; more than warmup_steps.

    Raises:
      ValueError: the warmup is as long as training.

    Source: cosine arXiv 1608.03983; WSD arXiv 2404.06395, section 4.
    """
    if num_steps <= config.warmup_steps:
        raise ValueError(
            f"warmup_steps is {config.warmup_steps}; it must be below num_steps = {num_steps}"
        )
    peak, final = config.peak_lr, config.peak_lr * config.final_lr_fraction
    warmup = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    num_decay = num_steps - 1 - config.warmup_steps  # updates after the one at the peak
    if config.schedule == "wsd":
        num_decay = min(num_decay, max(1, round(num_steps * config.decay_fraction)))
    if num_decay == 0:
        decay = optax.constant_schedule(final)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, num_decay, config.final_lr_fraction)
    else:
        decay = optax.linear_schedule(peak, final, num_decay)
    boundaries = [config.warmup_steps, num_steps - 1 - num_decay]
    parts = [warmup, optax.constant_schedule(peak), decay]
    return _promoting(optax.join_schedules(parts, boundaries))


def _promoting(fn: Callable) -> Callable:
    """`fn` of optax under strict promotion: it mixes a count of int32 with floats."""

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args)

    return call


def split(params: Any, frozen: Collection[str]) -> tuple[Any, Any]:
    """(trainable, frozen) of a tree of parameters: frozen is what has one of the names in its path.

    Raises:
      ValueError: a name that no path has, or nothing is left to train.
    """
    flat = traverse_util.flatten_dict(params)
    known = {name for path in flat for name in path}
    for name in frozen:
        if name not in known:
            raise ValueError(f"frozen has {name!r}; allowed: {', '.join(sorted(known))}")
    parts = [{}, {}]
    for path, leaf in flat.items():
        parts[not set(frozen).isdisjoint(path)][path] = leaf
    if not parts[0]:
        raise ValueError(f"frozen is {frozen}; it must leave a weight to train")
    return tuple(traverse_util.unflatten_dict(part) for part in parts)


def decay_mask(model_config: TransformerConfig, frozen: Collection[str] = ()) -> Any:
    """True for weights that decay: matrices do; scales, biases and a scalar head do not."""
    return _by_leaf(model_config, is_matrix, frozen)


def make_optimizer(
    config: OptimizerConfig, model_config: TransformerConfig, num_steps: int
) -> optax.GradientTransformation:
    """Clip, AdamW or Muon, schedule; a router's balancing bias moves by its own rule.

    Its gradient is the surplus of each expert's load (model/moe.py), and it takes a step of
    `moe.bias_rate` against the sign. Source: arXiv 2408.15664, algorithm 1.

    Args:
      config: hyperparameters.
      model_config: tells which weights are matrices, and bias_rate.
      num_steps: length of the schedule in optimizer steps.
    """
    schedule = make_schedule(config, num_steps)
    optimizer = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask(model_config, config.frozen),
    )
    if config.kind == "muon":
        optimizer = _add_muon(optimizer, config, model_config, schedule)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    optimizer = optimizer._replace(update=_promoting(optimizer.update))
    if not model_config.moe.balance_bias:
        return optimizer
    is_balance = _by_leaf(model_config, lambda name, _: name == BALANCE, config.frozen)

    def update(grads, state, params):
        still = jax.tree.map(lambda g, other: jnp.zeros_like(g) if other else g, grads, is_balance)
        updates, state = optimizer.update(still, state, params)
        rate = model_config.moe.bias_rate
        moved = jax.tree.map(
            lambda u, g, other: -rate * jnp.sign(g) if other else u, updates, grads, is_balance
        )
        return moved, state

    return optax.GradientTransformation(optimizer.init, update)


def muon_dims(name: str, letters: str) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dims of a weight are a matrix's rows and columns for Muon; None for AdamW's weights.

    All heads together are one matrix; stacked layers, and experts, are matrices of their own.

    Args:
      name: of the weight.
      letters: its dims. Those that a product sums over come first.
    """
    if name in TABLES or not is_matrix(name, letters):
        return None
    places = [place for place, letter in enumerate(letters) if letter != "X"]
    if letters[places[0]] == "E":
        places = places[1:]
    # Back to the residual stream all but D is summed over; into it, the first dim.
    cut = len(places) - 1 if letters[places[-1]] == "D" else 1
    return optax.contrib.MuonDimensionNumbers(tuple(places[:cut]), tuple(places[cut:]))


def _add_muon(
    adamw: optax.GradientTransformation,
    config: OptimizerConfig,
    model_config: TransformerConfig,
    schedule: optax.Schedule,
) -> optax.GradientTransformation:
    """Muon for matrices between activations, and `adamw` for the rest."""
    is_none, frozen = optax.MaskedNode(), config.frozen
    dims = _by_leaf(model_config, lambda *weight: muon_dims(*weight) or is_none, frozen)
    labels = _by_leaf(
        model_config, lambda *weight: "muon" if muon_dims(*weight) else "adamw", frozen
    )

    def scale(update: jax.Array, dims: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        """An orthogonal matrix has a root mean square of max(rows, columns)^-1/2."""
        rows, columns = (math.prod(update.shape[dim] for dim in side) for side in dims)
        return MUON_RMS * math.sqrt(max(rows, columns)) * update

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=config.beta1, weight_dimension_numbers=dims),
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates, dims)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"adamw": adamw, "muon": muon}, labels)


def _by_leaf(
    model_config: TransformerConfig, fn: Callable[[str, str], Any], frozen: Collection[str]
) -> Any:
    """fn(name, letters) of every weight that is trained, as a tree like the trainable ones."""
    return jax.tree.map_with_path(
        lambda path, weight: fn(path[-1].key, weight.letters),
        split(declare(model_config), frozen)[0],
    )
