"""Losses with backward passes of their own, against float64 and against autodiff."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import sharding
from model.config import TransformerConfig
from model.loss import head_sums, token_logprobs
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

VALUE_RTOL = 2e-6  # float32 against float64
GRAD_RTOL = 1e-5
GRAD_ATOL = 1e-7
# Relative error (norms) of a gradient whose factors are rounded to bfloat16, 2^-9 each.
BF16_ERROR = 5e-3
TEMPERATURES = (0.5, 1.0, 1.7)


def make_inputs(scale=3.0):
    rng = np.random.default_rng(0)
    logits_BLV = (scale * rng.normal(size=(3, 5, 11))).astype(np.float32)
    return logits_BLV, rng.integers(0, 11, (3, 5)), rng.normal(size=(3, 5)).astype(np.float32)


def float64_logprobs(logits_BLV, targets_BL, temperature):
    logits_BLV = logits_BLV.astype(np.float64) / temperature
    chosen_BL = np.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
    return chosen_BL - np.log(np.exp(logits_BLV).sum(-1))


def plain_loss(logits_BLV, targets_BL, z_loss):
    """jax.nn's own functions; its gradient is autodiff's."""
    lse_BL = jax.nn.logsumexp(logits_BLV, -1)
    onehot_BLV = jax.nn.one_hot(targets_BL, logits_BLV.shape[-1])
    nll_BL = -jnp.sum(jax.nn.log_softmax(logits_BLV) * onehot_BLV, -1)
    return nll_BL + z_loss * lse_BL**2


def plain_logprobs(logits_BLV, targets_BL, temperature):
    return -plain_loss(logits_BLV / temperature, targets_BL, 0.0)


def weighted_grad(logprobs, logits_BLV, targets_BL, upstream_BL, temperature=1.0):
    return jax.grad(lambda x: jnp.sum(logprobs(x, targets_BL, temperature) * upstream_BL))(
        logits_BLV
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_values_are_those_of_float64(temperature):
    logits_BLV, targets_BL, _ = make_inputs()
    got = token_logprobs(logits_BLV, targets_BL, temperature)
    assert got.dtype == jnp.float32
    expected = float64_logprobs(logits_BLV, targets_BL, temperature)
    np.testing.assert_allclose(got, expected, VALUE_RTOL if temperature == 1 else VALUE_RTOL * 5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_are_those_of_autodiff(temperature):
    got, expected = (
        weighted_grad(logprobs, *make_inputs(), temperature)
        for logprobs in (token_logprobs, plain_logprobs)
    )
    np.testing.assert_allclose(got, expected, GRAD_RTOL, GRAD_ATOL)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_are_those_of_finite_differences(temperature):
    logits_BLV, targets_BL, upstream_BL = make_inputs()
    grad_BLV = weighted_grad(token_logprobs, logits_BLV, targets_BL, upstream_BL, temperature)
    direction_BLV = np.random.default_rng(1).normal(size=logits_BLV.shape)

    def along(step):
        moved = logits_BLV.astype(np.float64) + step * direction_BLV
        return np.sum(float64_logprobs(moved, targets_BL, temperature) * upstream_BL)

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(grad_BLV * direction_BLV), slope, GRAD_RTOL)


def test_value_by_hand():
    """Logits log 1, log 2, log 5: the sum is 8, the second word has probability 1/4."""
    logits = np.log(np.array([[[1.0, 2.0, 5.0]]], np.float32))
    got = token_logprobs(logits, np.array([[1]]), 1.0)
    np.testing.assert_allclose(got, [[-np.log(4.0)]], VALUE_RTOL)


@pytest.mark.parametrize("shift", [-3e4, 0.0, 3e4])
def test_logits_of_any_size_stay_finite(shift):
    logits_BLV, targets_BL, upstream_BL = make_inputs(scale=300.0)
    logits_BLV += np.float32(shift)
    logp_BL = np.asarray(token_logprobs(logits_BLV, targets_BL, 1.0))
    grad = weighted_grad(token_logprobs, logits_BLV, targets_BL, upstream_BL)
    assert np.isfinite(logp_BL).all() and np.isfinite(grad).all() and (logp_BL <= 0).all()


def test_zero_weight_leaves_no_gradient():
    logits_BLV, targets_BL, upstream_BL = make_inputs()
    upstream_BL[1] = 0
    grad_BLV = weighted_grad(token_logprobs, logits_BLV, targets_BL, upstream_BL)
    assert np.all(grad_BLV[1] == 0) and np.all(grad_BLV[0] != 0)


def test_gradients_pass_through_jit_remat_and_scan():
    logits_BLV, targets_BL, upstream_BL = make_inputs()
    expected = weighted_grad(token_logprobs, logits_BLV, targets_BL, upstream_BL, 0.8)

    @functools.partial(jax.jit)
    @jax.grad
    def by_scan(logits_BLV):
        def row(total, x):
            logits_LV, targets_L, upstream_L = x
            logp = jax.checkpoint(lambda x: token_logprobs(x[None], targets_L[None], 0.8)[0])
            return total + jnp.sum(logp(logits_LV) * upstream_L), None

        return jax.lax.scan(row, 0.0, (logits_BLV, jnp.array(targets_BL), upstream_BL))[0]

    np.testing.assert_allclose(by_scan(logits_BLV), expected, GRAD_RTOL, GRAD_ATOL)


def test_temperature_zero_reads_the_untempered_distribution():
    logits_BLV, targets_BL, _ = make_inputs()
    np.testing.assert_array_equal(
        token_logprobs(logits_BLV, targets_BL, 0.0), token_logprobs(logits_BLV, targets_BL, 1.0)
    )


def test_probabilities_of_all_words_sum_to_one():
    logits_BLV, targets_BL, _ = make_inputs()
    each_V = [token_logprobs(logits_BLV, np.full_like(targets_BL, v), 0.8) for v in range(11)]
    np.testing.assert_allclose(np.exp(each_V).sum(0), 1.0, VALUE_RTOL)


VOCAB, PADDED = 13, 16
SCALE = 1.7  # the cotangent of the loss, other than 1


def make_head_config(cap):
    return TransformerConfig(
        vocab_size=VOCAB,
        num_layers=1,
        d_model=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        d_ff=8,
        vocab_multiple=PADDED,
        logit_softcap=cap,
    )


def make_head_inputs(rows=4, length=6, dtype=jnp.float32):
    """Activations, head, targets, and weights, which are 0 on some tokens and on one row."""
    rng = np.random.default_rng(0)
    x_BLD = jnp.asarray(rng.normal(size=(rows, length, 8)), dtype)
    head_DV = jnp.asarray(rng.normal(size=(8, PADDED)), jnp.float32)
    weights_BL = np.float32(rng.uniform(0.2, 2.0, (rows, length)))
    weights_BL[1, 2:4], weights_BL[2] = 0, 0
    return x_BLD, head_DV, rng.integers(0, VOCAB, (rows, length)), weights_BL


def plain_head_loss(config, z_loss, x_BLD, head_DV, targets_BL, weights_BL):
    """The formula on all logits at once, without the padding; its gradients come from autodiff."""
    logits_BLV, cap = (x_BLD @ head_DV)[..., :VOCAB], config.logit_softcap
    logits_BLV = cap * jnp.tanh(logits_BLV / cap) if cap else logits_BLV
    return jnp.sum(plain_loss(logits_BLV, targets_BL, z_loss) * weights_BL)


def head_loss(*inputs):
    """The total, a scalar that can be differentiated."""
    return head_sums(*inputs)[0]


def measure(loss, x_BLD, head_DV, targets_BL, weights_BL):
    """(SCALE x loss, (gradient of x_BLD, gradient of head_DV))."""
    measured = jax.value_and_grad(lambda *x: SCALE * loss(*x, targets_BL, weights_BL), (0, 1))
    fast_compile = {"xla_backend_optimization_level": 0}
    return jax.jit(measured, compiler_options=fast_compile)(x_BLD, head_DV)


def assert_measures(got, expected):
    np.testing.assert_allclose(got[0], expected[0], VALUE_RTOL)
    for one, other in zip(got[1], expected[1], strict=True):
        limit = GRAD_RTOL * np.abs(other).max()
        np.testing.assert_allclose(one, other, GRAD_RTOL, limit)


@pytest.mark.parametrize(
    ("cap", "z_loss", "chunk_tokens"),  # of 24 tokens
    [(0.0, 0.0, 24), (0.0, 0.1, 6), (3.0, 0.0, 5), (3.0, 0.1, 1), (3.0, 0.1, 100)],
)
def test_head_loss_is_the_plain_formula(cap, z_loss, chunk_tokens):
    config, inputs = make_head_config(cap), make_head_inputs()
    loss = functools.partial(head_loss, replace(config, chunk_tokens=chunk_tokens), z_loss)
    got = measure(loss, *inputs)
    assert_measures(got, measure(functools.partial(plain_head_loss, config, z_loss), *inputs))
    # Without gradients the code takes another path.
    np.testing.assert_allclose(SCALE * jax.jit(loss)(*inputs), got[0], VALUE_RTOL)
    x_grad, head_grad = got[1]
    assert not x_grad[inputs[3] == 0].any() and not head_grad[:, VOCAB:].any()
    assert np.all(np.abs(x_grad).max(-1)[inputs[3] > 0] > 0)


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_head_loss_of_bfloat16_is_near_the_formula_in_float32(cap):
    """Logits, loss and sums over tokens are float32; factors of products are bfloat16."""
    config, inputs = make_head_config(cap), make_head_inputs(dtype=jnp.bfloat16)
    loss, (x_grad, head_grad) = measure(
        functools.partial(head_loss, replace(config, chunk_tokens=5), 0.1), *inputs
    )
    assert (loss.dtype, x_grad.dtype, head_grad.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    wide = [jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in inputs[:2]]
    formula = functools.partial(plain_head_loss, config, 0.1)
    expected, grads = measure(formula, *wide, *inputs[2:])
    np.testing.assert_allclose(loss, expected, VALUE_RTOL)
    for one, other in zip((x_grad.astype(jnp.float32), head_grad), grads, strict=True):
        assert np.linalg.norm(one - other) < BF16_ERROR * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("sizes", "chunk_tokens"),
    [
        (dict(tensor=8), 5),
        (dict(fsdp=4, tensor=2), 4),
        (dict(expert=2, context=2, tensor=2), 100),
    ],
    ids=str,
)
def test_head_loss_on_a_mesh_is_the_plain_formula(sizes, chunk_tokens):
    """Rows, lengths and the vocabulary split; the last device's words are padding in part."""
    config, inputs = make_head_config(3.0), make_head_inputs(rows=8)
    expected = measure(functools.partial(plain_head_loss, config, 0.1), *inputs)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(**sizes))):
        got = measure(
            functools.partial(head_loss, replace(config, chunk_tokens=chunk_tokens), 0.1), *inputs
        )
    assert_measures(got, expected)


def test_head_loss_never_holds_all_logits():
    """Temporary memory of value and gradients is that of a chunk, not of all tokens."""
    num_tokens, num_words = 4096, 1024
    config = dataclasses.replace(make_head_config(3.0), vocab_size=num_words)
    shapes = ((1, num_tokens, 8), (8, num_words), (1, num_tokens), (1, num_tokens))
    arrays = [jnp.zeros(s, t) for s, t in zip(shapes, "ffif", strict=True)]
    loss = functools.partial(head_loss, replace(config, chunk_tokens=64), 0.1)
    for step in (loss, jax.value_and_grad(loss, (0, 1))):
        compiled = jax.jit(step).lower(*arrays).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * num_tokens * num_words / 8
