"""Schedules at hand-computed points, the weight-decay mask, clipping, and AdamW in numpy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import MoEConfig, TransformerConfig
from model.transformer import declare
from tests.ranges import check_ranges
from train.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule

RATE_RTOL = 1e-5  # float32 schedules
STEP_RTOL = 1e-4  # float32 square roots and divisions against float64
STEP_ATOL = 1e-8

CONFIG = OptimizerConfig(
    schedule="cosine",
    peak_lr=0.01,
    warmup_steps=4,
    decay_fraction=0.25,
    final_lr_fraction=0.1,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip_norm=1.0,
)
SHAPE = TransformerConfig(
    vocab_size=16,
    num_layers=2,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_ff=12,
    head="untied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)


def rates(config, num_steps, steps):
    schedule = make_schedule(config, num_steps)
    return [float(schedule(step)) for step in steps]


WARMUP = [0.002, 0.004, 0.006, 0.008, 0.01]  # fifths of the peak: the first step is not lost


def test_warmup_reaches_the_peak_after_its_steps():
    for schedule in ("cosine", "wsd"):
        config = dataclasses.replace(CONFIG, schedule=schedule)
        np.testing.assert_allclose(rates(config, 20, range(5)), WARMUP, RATE_RTOL)


def test_cosine_at_hand_computed_points():
    """16 updates after the one at the peak, from 0.01 to 0.001: half way 0.0055, a quarter of the
    way 0.001 + 0.009 (1 + cos 45 degrees) / 2."""
    expected = [0.01, 0.001 + 0.0045 * (1 + 0.5**0.5), 0.0055, 0.001 + 0.0045 * (1 - 0.5**0.5)]
    np.testing.assert_allclose(rates(CONFIG, 21, (4, 8, 12, 16)), expected, RATE_RTOL)
    np.testing.assert_allclose(rates(CONFIG, 21, (20, 21, 30)), [0.001] * 3, RATE_RTOL)


def test_wsd_holds_the_peak_and_falls_linearly():
    """A quarter of 20 updates is 5: the last five fall from 0.01 to 0.001."""
    config = dataclasses.replace(CONFIG, schedule="wsd")
    np.testing.assert_allclose(rates(config, 20, (4, 9, 13, 14)), [0.01] * 4, RATE_RTOL)
    expected = [0.0082, 0.0064, 0.0046, 0.0028, 0.001, 0.001]
    np.testing.assert_allclose(rates(config, 20, range(15, 21)), expected, RATE_RTOL)


@pytest.mark.parametrize(
    ("fraction", "steps", "expected"),
    [(0.0, (4, 18, 19), [0.01, 0.01, 0.001]), (1.0, (4, 12, 20), [0.01, 0.0055, 0.001])],
)
def test_wsd_with_no_decay_or_nothing_else(fraction, steps, expected):
    config = dataclasses.replace(CONFIG, schedule="wsd", decay_fraction=fraction)
    np.testing.assert_allclose(rates(config, steps[-1] + 1, steps), expected, RATE_RTOL)


def closed_form(config, num_steps):
    """The rates of all updates in float64; the last one is at the final rate whatever else."""
    peak, final = config.peak_lr, config.peak_lr * config.final_lr_fraction
    left = num_steps - 1 - config.warmup_steps
    if config.schedule == "wsd":
        left = min(left, max(1, round(num_steps * config.decay_fraction)))
    found = []
    for number in range(1, num_steps + 1):
        before_end = num_steps - number
        if before_end == 0:
            found.append(final)
        elif number <= config.warmup_steps:
            found.append(peak * number / (config.warmup_steps + 1))
        elif before_end >= left:
            found.append(peak)
        elif config.schedule == "wsd":
            found.append(final + (peak - final) * before_end / left)
        else:
            found.append(final + (peak - final) * (1 - np.cos(np.pi * before_end / left)) / 2)
    return found


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 30])
def test_every_update_has_the_rate_of_the_closed_form_and_the_last_the_final(num_steps):
    warmups = range(num_steps) if num_steps < 30 else (0, 1, 15, 29)
    shapes = [("cosine", 0.2), *(("wsd", part) for part in (0.0, 0.2, 0.5, 1.0))]
    for warmup, (schedule, part), final in itertools.product(warmups, shapes, (0.0, 0.1)):
        config = dataclasses.replace(
            CONFIG,
            schedule=schedule,
            warmup_steps=warmup,
            decay_fraction=part,
            final_lr_fraction=final,
        )
        got = make_schedule(config, num_steps)(np.arange(num_steps + 3))
        expected = closed_form(config, num_steps) + [0.01 * final] * 3
        message = f"{schedule} num_steps={num_steps} warmup={warmup} decay={part} final={final}"
        np.testing.assert_allclose(got, expected, RATE_RTOL, 1e-9, err_msg=message)


@pytest.mark.parametrize("resumed_at", [None, 1, 5])
def test_the_optimizer_updates_by_the_rates_of_its_schedule_resumed_or_not(resumed_at):
    """Under a constant gradient of ones, Adam's step is the rate itself."""
    config = dataclasses.replace(CONFIG, weight_decay=0.0, clip_norm=1e9, warmup_steps=2)
    params = make_params(0)
    optimizer, grads, moved = (
        make_optimizer(config, SHAPE, 7),
        jax.tree.map(np.ones_like, params),
        [],
    )
    state = optimizer.init(params)
    for number in range(7):
        if number == resumed_at:
            optimizer, state = make_optimizer(config, SHAPE, 7), jax.tree.map(np.asarray, state)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        moved.append(-float(updates["embedding"][0, 0]))
    np.testing.assert_allclose(moved, closed_form(config, 7), STEP_RTOL)
    np.testing.assert_allclose(moved[-1], 0.001, STEP_RTOL)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_without_warmup_the_first_step_is_at_the_peak(schedule):
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_steps=0)
    np.testing.assert_allclose(rates(config, 20, (0,)), [0.01], RATE_RTOL)


@pytest.mark.parametrize("num_steps", [3, 4])
def test_warmup_must_end_before_training(num_steps):
    with pytest.raises(ValueError, match=f"warmup_steps is 4; .* below num_steps = {num_steps}"):
        make_schedule(CONFIG, num_steps)


@pytest.mark.parametrize("head", ["tied", "untied", "scalar"])
def test_matrices_decay_and_norms_and_a_scalar_head_do_not(head):
    mask = decay_mask(dataclasses.replace(SHAPE, head=head))
    by_name = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(mask)
    }
    spared = {name for name, decays in by_name.items() if not decays}
    norms = {name for name in by_name if name.endswith("scale")}
    assert len(norms) == 5 and spared == norms | ({"head"} if head == "scalar" else set())
    assert by_name["embedding"]


def make_params(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda weight: (scale * rng.normal(size=weight.shape)).astype(np.float32),
        declare(SHAPE),
    )


def numpy_adamw(params, grads_of_steps, mask):
    """Decoupled weight decay, bias-corrected moments, gradients clipped together; float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    first, second = ([np.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    for step, grads in enumerate(grads_of_steps):
        grads = [np.asarray(grad, np.float64) for grad in jax.tree.leaves(grads)]
        norm = np.sqrt(sum((grad**2).sum() for grad in grads))
        grads = [grad * min(1.0, CONFIG.clip_norm / norm) for grad in grads]
        rate = WARMUP[step]
        for i, (grad, decays) in enumerate(zip(grads, jax.tree.leaves(mask), strict=True)):
            first[i] = CONFIG.beta1 * first[i] + (1 - CONFIG.beta1) * grad
            second[i] = CONFIG.beta2 * second[i] + (1 - CONFIG.beta2) * grad**2
            mean = first[i] / (1 - CONFIG.beta1 ** (step + 1))
            square = second[i] / (1 - CONFIG.beta2 ** (step + 1))
            update = mean / (np.sqrt(square) + CONFIG.eps)
            leaves[i] = leaves[i] - rate * (update + CONFIG.weight_decay * decays * leaves[i])
    return leaves


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(CONFIG, SHAPE, 20)


@pytest.mark.parametrize("scale", [10.0, 1e-3])  # clipped, not clipped
def test_three_steps_are_adamw_in_numpy(scale, optimizer):
    params = make_params(0)
    grads_of_steps = [make_params(seed, scale * seed) for seed in (1, 2, 3)]
    expected = numpy_adamw(params, grads_of_steps, decay_mask(SHAPE))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in grads_of_steps:
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for got, wanted in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(got, wanted, STEP_RTOL, STEP_ATOL)


def test_clipping_takes_the_size_and_leaves_the_direction(optimizer):
    """Beyond the clip norm, a gradient of any size makes the same step."""
    params = make_params(0)
    steps = [
        jax.jit(optimizer.update)(make_params(1, scale), optimizer.init(params), params)[0]
        for scale in (5.0, 5e4)
    ]
    for one, other in zip(*map(jax.tree.leaves, steps), strict=True):
        np.testing.assert_allclose(one, other, STEP_RTOL, STEP_ATOL)


RANGES = {
    "kind": (("adamw", "muon"), ("sgd",)),
    "schedule": (("cosine", "wsd"), ("linear",)),
    "peak_lr": ((1e-9,), (0.0, -0.1)),
    "warmup_steps": ((0, 1), (-1,)),
    "decay_fraction": ((0.0, 1.0), (-0.1, 1.1)),
    "final_lr_fraction": ((0.0, 1.0), (-0.1, 1.1)),
    "weight_decay": ((0.0, 0.1), (-0.1,)),
    "beta1": ((0.0, 0.99), (-0.1, 1.0)),
    "beta2": ((0.0, 0.99), (-0.1, 1.0)),
    "eps": ((1e-12,), (0.0, -1e-8)),
    "clip_norm": ((1e-3,), (0.0, -1.0)),
    "frozen": (((), ("embedding",)), ()),
}


def test_each_number_is_taken_in_its_range_alone():
    assert RANGES.keys() == {field.name for field in dataclasses.fields(OptimizerConfig)}
    check_ranges(CONFIG, RANGES)


def test_a_balancing_bias_moves_by_the_sign_of_its_surplus_alone():
    """Neither clipping nor moments nor decay touch it, nor does it touch them."""
    moe = MoEConfig(num_experts=4, top_k=2, d_ff=8, balance_bias=True, bias_rate=0.01)
    shape = dataclasses.replace(SHAPE, moe=moe)
    optimizer = make_optimizer(dataclasses.replace(CONFIG, clip_norm=0.5), shape, 20)
    params = jax.tree.map(
        lambda declared: jnp.ones(declared.shape),
        declare(shape),
    )
    grads = jax.tree.map(jnp.ones_like, params)
    experts = grads["stack0"]["layer0"]["feed_forward"]
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for surplus in ([1e6, -3.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]):
        experts["balance_bias"] = jnp.broadcast_to(
            jnp.asarray(surplus), experts["balance_bias"].shape
        )
        updates, _ = update(grads, state, params)
        moved = updates["stack0"]["layer0"]["feed_forward"].pop("balance_bias")
        np.testing.assert_allclose(moved[0], -0.01 * np.sign(surplus))
        found.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *found)
