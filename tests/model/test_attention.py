"""Rotary positions, masks and grouped-query attention, against loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import attention
from model.attention import TokenIndex, visible
from model.config import RopeConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

F32_RTOL = 1e-5  # float32 against float64
F32_ATOL = 2e-6
ROPE_ATOL = 1e-5  # float32 angles of some thousand radians in the largest case
BF16_ATOL = 0.03  # bfloat16 has 8 bits of mantissa: 0.4% of values of a few units
THETA = 10_000.0


def rng_array(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def complex_rope(x_BLNH, positions_BL, theta):
    """Rotation of x_i + j x_(i + H/2) by e^(j position theta^(-2i/H)), in complex128."""
    half = x_BLNH.shape[-1] // 2
    z = x_BLNH[..., :half].astype(np.float64) + 1j * x_BLNH[..., half:]
    frequency_H = theta ** (-2 * np.arange(half) / (2 * half))
    turned = z * np.exp(1j * positions_BL[..., None, None] * frequency_H)
    return np.concatenate([turned.real, turned.imag], -1)


def loop_attention(q_BLNH, k_BKMH, v_BKMH, mask_BLM):
    """One query, one head at a time, in float64."""
    B, L, N, H = q_BLNH.shape
    group = N // k_BKMH.shape[1]
    out = np.zeros((B, L, N, H))
    for b, query, n in np.ndindex(B, L, N):
        keys, values = k_BKMH[b, n // group], v_BKMH[b, n // group]
        score = keys.astype(np.float64) @ q_BLNH[b, query, n] / np.sqrt(H)
        weight = np.where(mask_BLM[b, query], np.exp(score - score.max()), 0.0)
        out[b, query, n] = weight @ values / weight.sum()
    return out


def plain_attention(q_BLNH, k_BKMH, v_BKMH, mask_BLM):
    """Keys repeated for each query head, softmax spelt out; its gradients are autodiff's."""
    group = q_BLNH.shape[2] // k_BKMH.shape[1]
    k, v = jnp.repeat(k_BKMH, group, 1), jnp.repeat(v_BKMH, group, 1)
    score = jnp.einsum("blnh,bnmh->bnlm", q_BLNH, k) / q_BLNH.shape[-1] ** 0.5
    weight = jnp.where(mask_BLM[:, None], jnp.exp(score), 0)
    return jnp.einsum("bnlm,bnmh->blnh", weight / weight.sum(-1, keepdims=True), v)


def make_qkv(num_heads=6, num_kv_heads=2, num_keys=5, num_queries=5):
    q_BLNH = rng_array(0, 2, num_queries, num_heads, 4)
    k_BKMH, v_BKMH = (rng_array(seed, 2, num_kv_heads, num_keys, 4) for seed in (1, 2))
    mask_BLM = np.random.default_rng(3).random((2, num_queries, num_keys)) < 0.6
    mask_BLM[:, :, 0] = True
    return q_BLNH, k_BKMH, v_BKMH, mask_BLM


def rope(x_BLNH, positions_BL, theta):
    return attention.rope(x_BLNH, positions_BL, RopeConfig(theta=theta))


def attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM, **options):
    scale = q_BLNH.shape[-1] ** -0.5
    return attention.attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM, scale, **options)


def test_rope_by_hand():
    """H = 4: pairs (0, 2) and (1, 3) turn by position and position / 100."""
    x = np.array([1.0, 1.0, 0.0, 0.0], np.float32).reshape(1, 1, 1, 4)
    expected = [np.cos(3.0), np.cos(0.03), np.sin(3.0), np.sin(0.03)]
    got = rope(x, np.array([[3]]), THETA)[0, 0, 0]
    np.testing.assert_allclose(got, expected, F32_RTOL, F32_ATOL)


@pytest.mark.parametrize("theta", [100.0, THETA, 500_000.0])
def test_rope_is_a_complex_rotation(theta):
    x_BLNH = rng_array(0, 2, 7, 3, 8)
    positions_BL = np.random.default_rng(1).integers(0, 200, (2, 7))
    expected = complex_rope(x_BLNH, positions_BL, theta)
    np.testing.assert_allclose(rope(x_BLNH, positions_BL, theta), expected, atol=ROPE_ATOL * 10)
    position_0 = rope(x_BLNH, np.zeros((2, 7), np.int32), theta)
    np.testing.assert_array_equal(position_0, x_BLNH)


def test_gradient_of_rope_is_the_rotation_back():
    x_BLNH, upstream = rng_array(0, 2, 5, 3, 8), rng_array(1, 2, 5, 3, 8)
    positions_BL = np.arange(10).reshape(2, 5)
    _, backward = jax.vjp(lambda x: rope(x, positions_BL, THETA), x_BLNH)
    expected = complex_rope(upstream, -positions_BL, THETA)
    np.testing.assert_allclose(backward(upstream)[0], expected, atol=ROPE_ATOL)


@pytest.mark.parametrize("shift", [1, 17, 400])
def test_rope_knows_relative_positions_only(shift):
    q, k = rng_array(0, 1, 6, 2, 8), rng_array(1, 1, 6, 2, 8)
    positions_BL = np.array([[0, 1, 5, 9, 30, 31]])

    def scores(offset):
        q_at, k_at = (rope(x, positions_BL + offset, THETA) for x in (q, k))
        return jnp.einsum("blnh,bmnh->bnlm", q_at, k_at)

    np.testing.assert_allclose(scores(shift), scores(0), atol=ROPE_ATOL * 30)
    only_queries = jnp.einsum("blnh,bmnh->bnlm", rope(q, positions_BL + shift, THETA), k)
    assert np.abs(only_queries - scores(0)).max() > 0.1  # moving the queries alone does count


def test_rope_keeps_the_type_and_turns_in_float32():
    x_BLNH, positions_BL = rng_array(0, 1, 4, 2, 8), np.array([[0, 100, 1000, 3000]])
    got = rope(x_BLNH.astype(jnp.bfloat16), positions_BL, THETA)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(np.float32), complex_rope(x_BLNH, positions_BL, THETA), atol=BF16_ATOL
    )


def test_visible_by_hand():
    tokens = TokenIndex(np.array([[0, 1, 0, 1, 0, 1]]), np.array([[1, 1, 2, 2, 0, 0]]))
    mask_LM = visible(tokens, tokens, 0)[0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert mask_LM.astype(int).tolist() == expected


def test_a_window_counts_the_query_itself_and_order_in_memory_means_nothing():
    positions = np.array([[3, 0, 2, 1, 4]])
    tokens = TokenIndex(positions, np.ones_like(positions))
    mask_LM = visible(tokens, tokens, 2)[0]
    back = positions[0][:, None] - positions[0][None]
    np.testing.assert_array_equal(mask_LM, (back == 0) | (back == 1))


def test_softcap_and_sinks_are_those_of_the_loop():
    """One query over three keys, two heads on one kv head, worked out in float64."""
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(1, 1, 2, 4)), rng.normal(size=(1, 1, 3, 4)), np.eye(3)[None, None]
    sink, cap = np.array([0.7, -0.4]), 0.8
    got = attend(
        *(x.astype(np.float32) for x in (q, k, v)),
        np.ones((1, 1, 3), bool),
        cap=cap,
        sink_N=sink.astype(np.float32),
    )
    for head in range(2):
        score = cap * np.tanh(k[0, 0] @ q[0, 0, head] / 2 / cap)
        weight = np.exp(score) / (np.exp(score).sum() + np.exp(sink[head]))
        np.testing.assert_allclose(got[0, 0, head], weight, F32_RTOL, F32_ATOL)


def test_stretched_frequencies_by_hand():
    """theta 10,000, H = 8: wavelengths 2 pi 10^i tokens, i = 0 .. 3."""
    kept = 10.0 ** -np.arange(4)
    linear = RopeConfig(scaling="linear", factor=4.0)
    np.testing.assert_allclose(attention.frequencies(linear, 8, False), kept / 4, F32_RTOL)
    # 628.3 tokens hold 100, 10, 1 and 0.1 turns.
    stretch = dict(factor=4.0, original_len=628, slow=2.0, fast=18.0)
    llama3 = attention.frequencies(RopeConfig(scaling="llama3", **stretch), 8, False)
    blend = (628 / (2 * np.pi * 10) - 2) / 16
    expected = [1.0, 0.1 * (blend + (1 - blend) / 4), 0.01 / 4, 0.001 / 4]
    np.testing.assert_allclose(llama3, expected, F32_RTOL)
    # YaRN: fast is reached at dim 2 log10(100 / 18) / 2 = 0.745, slow at 1.7: bounds 0 and 2.
    yarn = attention.frequencies(RopeConfig(scaling="yarn", **stretch), 8, False)
    expected = [1.0, 0.1 * (0.5 + 0.5 / 4), 0.01 / 4, 0.001 / 4]
    np.testing.assert_allclose(yarn, expected, F32_RTOL)
    local = RopeConfig(local_theta=100.0, scaling="linear", factor=4.0)
    np.testing.assert_allclose(attention.frequencies(local, 8, True), kept**0.5, F32_RTOL)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 4), (4, 1)])
def test_attention_is_the_loop_over_heads(num_heads, num_kv_heads):
    inputs = make_qkv(num_heads, num_kv_heads)
    np.testing.assert_allclose(attend(*inputs), loop_attention(*inputs), F32_RTOL, F32_ATOL)


def test_attention_of_one_query_over_a_cache():
    inputs = make_qkv(num_queries=1, num_keys=9)
    np.testing.assert_allclose(attend(*inputs), loop_attention(*inputs), F32_RTOL, F32_ATOL)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 4)])
def test_gradients_of_attention_are_those_of_plain_attention(num_heads, num_kv_heads):
    *qkv, mask_BLM = make_qkv(num_heads, num_kv_heads)
    upstream = rng_array(9, *qkv[0].shape)

    def grads(attention):
        total = jax.grad(lambda *x: jnp.sum(attention(*x, mask_BLM) * upstream), (0, 1, 2))
        return jax.jit(total)(*qkv)

    for got, expected in zip(grads(attend), grads(plain_attention), strict=True):
        np.testing.assert_allclose(got, expected, F32_RTOL, F32_ATOL)


def test_as_many_kv_heads_as_heads_is_plain_attention():
    """Against jax.nn.dot_product_attention, which has the same letters."""
    q_BLNH, k_BKMH, v_BKMH, mask_BLM = make_qkv(num_heads=4, num_kv_heads=4)
    k_BMKH, v_BMKH = (np.moveaxis(x, 1, 2) for x in (k_BKMH, v_BKMH))
    expected = jax.nn.dot_product_attention(q_BLNH, k_BMKH, v_BMKH, mask=mask_BLM[:, None])
    np.testing.assert_allclose(
        attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM), expected, F32_RTOL, F32_ATOL
    )


def test_grouped_heads_are_repeated_keys():
    q_BLNH, k_BKMH, v_BKMH, mask_BLM = make_qkv(num_heads=6, num_kv_heads=2)
    repeated = (np.repeat(x, 3, axis=1) for x in (k_BKMH, v_BKMH))
    np.testing.assert_allclose(
        attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM),
        attend(q_BLNH, *repeated, mask_BLM),
        F32_RTOL,
        F32_ATOL,
    )


def test_masked_keys_have_no_influence_at_all():
    q_BLNH, k_BKMH, v_BKMH, mask_BLM = make_qkv()
    mask_BLM[:, :, 3] = False
    grads = jax.grad(lambda k, v: jnp.sum(attend(q_BLNH, k, v, mask_BLM) ** 2), (0, 1))
    for grad in grads(k_BKMH, v_BKMH):
        assert np.all(grad[:, :, 3] == 0) and np.abs(grad[:, :, 0]).max() > 0
    changed = [x.copy() for x in (k_BKMH, v_BKMH)]
    for x in changed:
        x[:, :, 3] = 1e6
    np.testing.assert_array_equal(
        attend(q_BLNH, *changed, mask_BLM), attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM)
    )


def test_scores_of_any_size_stay_finite():
    q_BLNH, k_BKMH, v_BKMH, mask_BLM = make_qkv()
    out = attend(1e4 * q_BLNH, 1e4 * k_BKMH, v_BKMH, mask_BLM)
    assert np.isfinite(out).all()


def test_softmax_of_bfloat16_inputs_is_in_float32():
    """4096 equal keys: in bfloat16 the sum of exponentials would stop growing at 256."""
    q, k = jnp.zeros((1, 1, 1, 4), jnp.bfloat16), jnp.zeros((1, 1, 4096, 4), jnp.bfloat16)
    v = jnp.ones((1, 1, 4096, 4), jnp.bfloat16)
    out = attend(q, k, v, jnp.ones((1, 1, 4096), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), 1.0, atol=BF16_ATOL)
