"""The decoder against a plain numpy one in float64, and the properties that packing relies on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import sharding, transformer
from model.config import HEADS, TransformerConfig
from model.transformer import declare, forward
from tests.marks import by_default
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

F64_RTOL = 1e-4  # float32 through two layers against float64
F64_ATOL = 2e-5
SLOPE_RTOL = 1e-3  # a float32 gradient against a float64 difference quotient
SAME_ATOL = 5e-6  # the same sums, taken in another order
BF16_ATOL = 0.15  # logits of a few units through two layers of 8-bit mantissas

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="untied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
VARIANTS = {
    "untied": CONFIG,
    "tied": dataclasses.replace(CONFIG, head="tied", qk_norm="none"),
    "scalar": dataclasses.replace(CONFIG, head="scalar", num_kv_heads=4, norm_eps=1e-2),
}


def make_params(config, seed=0):
    """Random weights, norm scales included, so that none of them is a bystander."""
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.25 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


def make_row(*lengths, padding=0, seed=0):
    """Tokens, positions and segments of documents of these lengths, one after another."""
    rng = np.random.default_rng(seed)
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    tokens = rng.integers(1, 64, len(segments))
    return [np.pad(x, (0, padding))[None] for x in (tokens, positions, segments)]


run = jax.jit(forward, static_argnums=0, static_argnames="tail")


# ------------------------------------------------------------ an independent decoder


def numpy_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def numpy_turn(x_NH, position, theta):
    half = x_NH.shape[-1] // 2
    z = (x_NH[:, :half] + 1j * x_NH[:, half:]) * np.exp(
        1j * position * theta ** (-np.arange(half) / half)
    )
    return np.concatenate([z.real, z.imag], -1)


def numpy_attention(config, weights, x_LD, positions_L, segments_L):
    q, k, v = (np.einsum("ld,dnh->lnh", x_LD, weights[name]) for name in "qkv")
    if config.qk_norm == "head":
        q = numpy_norm(q, weights["q_norm"]["scale"], config.norm_eps)
        k = numpy_norm(k, weights["k_norm"]["scale"], config.norm_eps)
    turn, length = functools.partial(numpy_turn, theta=config.rope.theta), len(positions_L)
    q, k = (np.stack([turn(x[i], positions_L[i]) for i in range(length)]) for x in (q, k))
    mixed = np.zeros(q.shape)
    for at, head in np.ndindex(len(x_LD), config.num_heads):
        kv_head = head // (config.num_heads // config.num_kv_heads)
        seen = [m for m in range(at + 1) if segments_L[m] == segments_L[at]]
        weight = np.exp(k[seen, kv_head] @ q[at, head] / np.sqrt(config.head_dim))
        mixed[at, head] = weight @ v[seen, kv_head] / weight.sum()
    return np.einsum("lnh,nhd->ld", mixed, weights["out"])


def numpy_feed_forward(weights, x_LD):
    gate = x_LD @ weights["gate"]
    return (gate / (1 + np.exp(-gate)) * (x_LD @ weights["up"])) @ weights["down"]


def numpy_forward(config, params, tokens_L, positions_L, segments_L):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x_LD = params["embedding"][tokens_L] * np.sqrt(config.d_model)
    for layer in range(config.num_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["stack0"]["layer0"])
        y_LD = numpy_norm(x_LD, block["attention_norm"]["scale"], config.norm_eps)
        x_LD = x_LD + numpy_attention(config, block["attention"], y_LD, positions_L, segments_L)
        y_LD = numpy_norm(x_LD, block["feed_forward_norm"]["scale"], config.norm_eps)
        x_LD = x_LD + numpy_feed_forward(block["feed_forward"], y_LD)
    x_LD = numpy_norm(x_LD, params["norm"]["scale"], config.norm_eps)
    return x_LD @ (params["embedding"].T if config.head == "tied" else params["head"])


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_numpy_decoder(name):
    config, (tokens, positions, segments) = VARIANTS[name], make_row(5, 1, 6)
    params = make_params(config)
    got = run(config, params, tokens, positions, segments)
    expected = numpy_forward(config, params, tokens[0], positions[0], segments[0])
    assert got.dtype == jnp.float32 and got.shape == (1, *expected.shape)
    np.testing.assert_allclose(got[0], expected, F64_RTOL, F64_ATOL)


# Logits of words 0 .. 3 after tokens 0, 2 and 5, from transformers 5.23.0 (torch 2.13.0, CPU, eager
# attention) given these weights; its embedding is ours times sqrt(D).
PEERS = {
    "Qwen3ForCausalLM": [
        [-1.42282, 0.0904453, 1.25139, -2.46238],
        [0.813622, -2.09089, 3.14955, -3.8789],
        [3.76314, -4.12502, 4.05559, -3.56213],
    ],
    "LlamaForCausalLM": [
        [1.67034, -0.583525, -1.84933, 0.016247],
        [-1.22446, 0.1332, 1.26532, 0.254932],
        [1.26244, -0.229473, -1.33283, -0.179369],
    ],
}


@pytest.mark.parametrize("name", PEERS)
def test_forward_is_that_of_transformers(name):
    config = dataclasses.replace(CONFIG, qk_norm="head" if name.startswith("Qwen3") else "none")
    params = make_params(config)
    params["blocks"] = params.pop("stack0")  # the order in which the peers were given them
    leaves, tree = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        around = 1.0 if abs(leaf.mean() - 1) < 0.5 else 0.0  # norm scales
        leaves[i] = around + 0.5 * np.sin(0.7 * np.arange(leaf.size) * (i + 1) + i)
        leaves[i] = leaves[i].reshape(leaf.shape).astype(np.float32)
    tokens = np.array([[3, 41, 5, 62, 17, 9]])
    row = (tokens, np.arange(6)[None], np.ones_like(tokens))
    params = jax.tree.unflatten(tree, leaves)
    params["stack0"] = params.pop("blocks")
    got = run(config, params, *row)
    np.testing.assert_allclose(got[0, [0, 2, 5], :4], PEERS[name], F64_RTOL, 5 * F64_ATOL)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_is_the_slope_of_the_numpy_decoder(name):
    """Along a random direction of each weight by itself."""
    config, row = VARIANTS[name], make_row(4, 3)
    params, rng = make_params(config), np.random.default_rng(5)
    upstream = rng.normal(size=run(config, params, *row).shape)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(forward(config, p, *row) * np.float32(upstream))))(
        params
    )
    leaves, tree = jax.tree.flatten(params)
    for index, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        direction = rng.normal(size=leaf.shape)

        def along(step, index=index, leaf=leaf, direction=direction):
            moved = [*leaves[:index], leaf + step * direction, *leaves[index + 1 :]]
            out = numpy_forward(config, jax.tree.unflatten(tree, moved), *(x[0] for x in row))
            return np.sum(out * upstream[0])

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(grad * direction), slope, SLOPE_RTOL, 1e-3)


def test_norm_by_hand():
    with nnx.use_eager_sharding(False):
        norm = transformer.Norm(dataclasses.replace(CONFIG, d_model=2), "D", nnx.Rngs(params=0))
    norm.scale[...] = jnp.array([1.0, 10.0])
    got = norm(jnp.array([[3.0, 4.0]]))  # root mean square: sqrt(12.5)
    np.testing.assert_allclose(got, [[3 / 12.5**0.5, 40 / 12.5**0.5]], F64_RTOL)


def test_product_is_einsum_and_refuses_other_orders():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4, 5), (4, 5, 6)))
    expected = np.einsum("BLNH,NHD->BLD", x, w)
    np.testing.assert_allclose(transformer.product("BLNH,NHD->BLD", x, w), expected, F64_RTOL)
    with pytest.raises(AssertionError):
        transformer.product("BLNH,HND->BLD", x, w)


# ------------------------------------------------------------ properties


def test_no_logit_depends_on_a_later_token():
    """By gradient: each token is another word, so that its embedding row is its alone."""
    params, length = make_params(CONFIG), 8
    tokens, positions, segments = make_row(length)
    tokens[0] = np.arange(10, 10 + length)

    @jax.jit
    @jax.jacobian
    def influence(embedding):
        logits = forward(CONFIG, {**params, "embedding": embedding}, tokens, positions, segments)
        return jnp.sum(logits[0] ** 2, -1)

    by_row = np.abs(influence(params["embedding"])).sum(-1)[:, 10 : 10 + length]
    late = np.triu(np.ones((length, length), bool), 1)
    assert np.all(by_row[late] == 0) and np.all(by_row[~late] > 0)


def test_packed_documents_do_not_see_each_other():
    params, lengths = make_params(CONFIG), (5, 1, 6)
    row = make_row(*lengths)
    packed = run(CONFIG, params, *row)[0]
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        tokens, positions, _ = (x[:, start:end] for x in row)
        alone = run(CONFIG, params, tokens, positions, np.ones_like(tokens))[0]
        np.testing.assert_allclose(packed[start:end], alone, atol=SAME_ATOL)
    unaware = run(CONFIG, params, *row[:2], np.ones_like(row[2]))[0]
    assert np.abs(unaware - packed)[5:].max() > 0.1  # without segments they would


@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (2, 3)])
def test_padding_on_either_side_changes_nothing(left, right):
    params, row = make_params(CONFIG), make_row(7)
    expected = run(CONFIG, params, *row)
    padded = [np.pad(x, ((0, 0), (left, right))) for x in row]
    for pad_token in (0, 33):
        padded[0][padded[2] == 0] = pad_token
        got = run(CONFIG, params, *padded)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[:, left : left + 7], expected, atol=SAME_ATOL)


def test_positions_count_within_a_document_only():
    """Logits depend on distances, so that a shift of all positions changes nothing."""
    params, (tokens, positions, segments) = make_params(CONFIG), make_row(7)
    expected = run(CONFIG, params, tokens, positions, segments)
    shifted = run(CONFIG, params, tokens, positions + 50, segments)
    np.testing.assert_allclose(shifted, expected, atol=SAME_ATOL * 10)
    stretched = run(CONFIG, params, tokens, positions * 3, segments)
    assert np.abs(stretched - expected).max() > 0.05


@pytest.mark.parametrize("qk_norm", ["head", "none"])
def test_qk_norm_takes_the_size_out_of_queries(qk_norm):
    config = dataclasses.replace(CONFIG, qk_norm=qk_norm)
    attention = declare(config)["stack0"]["layer0"]["attention"]
    assert ("q_norm" in attention) == (qk_norm == "head")
    params, row = make_params(config), make_row(7)
    expected = run(config, params, *row)
    params["stack0"]["layer0"]["attention"]["q"] = params["stack0"]["layer0"]["attention"]["q"] * 8
    change = np.abs(run(config, params, *row) - expected).max()
    assert change < 1e-3 if qk_norm == "head" else change > 0.1


def test_rows_do_not_see_each_other():
    params, row, other = make_params(CONFIG), make_row(7), make_row(3, 4, seed=1)
    both = run(CONFIG, params, *(np.concatenate(pair) for pair in zip(row, other, strict=True)))
    np.testing.assert_allclose(both[1:], run(CONFIG, params, *other), atol=SAME_ATOL)


def test_tail_is_the_end_of_the_whole():
    params, row = make_params(CONFIG), make_row(7)
    whole = run(CONFIG, params, *row)
    np.testing.assert_allclose(run(CONFIG, params, *row, tail=3), whole[:, -3:], atol=SAME_ATOL)


@functools.cache
def loss_and_grads(config):
    row, upstream = make_row(5, 4, padding=1), np.random.default_rng(3).normal(size=(1, 10, 64))

    def loss(params):
        return jnp.sum(forward(config, params, *row) * np.float32(upstream))

    return jax.jit(jax.value_and_grad(loss))(make_params(config))


@pytest.mark.parametrize(
    "changes", by_default([{"remat": "full"}, {"remat": "dots"}, {"scan_layers": False}], 1, 2)
)
def test_remat_and_unrolling_change_no_number(changes):
    loss, grads = loss_and_grads(replace(CONFIG, **changes))
    expected_loss, expected_grads = loss_and_grads(CONFIG)
    np.testing.assert_allclose(loss, expected_loss, F64_RTOL)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(got, expected, F64_RTOL, F64_ATOL)


def test_bfloat16_is_close_and_keeps_float32_outside():
    config, row = dataclasses.replace(CONFIG, dtype="bfloat16"), make_row(7)
    params = make_params(config)
    got, expected = run(config, params, *row), run(CONFIG, params, *row)
    assert got.dtype == jnp.float32
    assert 1e-4 < np.abs(got - expected).max() < BF16_ATOL
    grads = jax.eval_shape(jax.grad(lambda p: jnp.sum(forward(config, p, *row))), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_remat_saves_less():
    def saved(config):
        total = functools.partial(jax.vjp, lambda p: jnp.sum(forward(config, p, *make_row(8))))
        _, backward = jax.eval_shape(total, make_params(config))
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    sizes = [saved(replace(CONFIG, remat=name)) for name in ("full", "dots", "none")]
    assert sizes[0] < sizes[1] < sizes[2], sizes


# ------------------------------------------------------------ parameters


@pytest.fixture(scope="module")
def fresh():
    config = dataclasses.replace(CONFIG, vocab_size=256, d_model=64, d_ff=128)
    return config, transformer.init(config, jax.random.key(0))


def test_fresh_parameters_are_what_is_declared(fresh):
    config, params = fresh
    shapes = jax.tree.map(lambda declared: declared.shape, declare(config))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_fresh_parameters_have_the_stated_deviations(fresh):
    _, params = fresh
    block = params["stack0"]["layer0"]
    attention, feed_forward = block["attention"], block["feed_forward"]
    stated = {
        64**-0.5: [
            *(params["embedding"], feed_forward["gate"], feed_forward["up"]),
            *(attention[name] for name in "qkv"),
        ],
        1 / 64: [params["head"]],
        (32 * 4) ** -0.5: [attention["out"]],
        (128 * 4) ** -0.5: [feed_forward["down"]],
    }
    for std, leaves in stated.items():
        for leaf in leaves:
            np.testing.assert_allclose(np.std(leaf), std, rtol=0.06)
    assert np.all(params["norm"]["scale"] == 1) and np.all(attention["q_norm"]["scale"] == 1)
    first, second = attention["q"]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1  # layers differ


def test_fresh_parameters_do_not_depend_on_the_mesh(fresh):
    config, params = fresh
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    spread = transformer.init(config, jax.random.key(0), mesh)
    jax.tree.map(np.testing.assert_array_equal, spread, params)
    placed = jax.tree.map(lambda leaf: leaf.sharding, spread)
    assert placed == sharding.weight_shardings(declare(config), mesh)


@pytest.mark.parametrize("head", HEADS)
def test_only_an_own_head_is_a_weight(head):
    declared = declare(dataclasses.replace(CONFIG, head=head))
    letters = {"tied": None, "untied": "DV", "scalar": "D"}[head]
    assert declared["head"].letters == letters if letters else "head" not in declared
    assert declared["stack0"]["layer0"]["attention"]["q"] == sharding.Weight("XDNH", (2, 16, 4, 8))


def test_there_is_nothing_beyond_learned_positions():
    config = dataclasses.replace(CONFIG, positions="learned", max_positions=8)
    params, tokens_BL = make_params(config), np.ones((2, 9), np.int32)
    with pytest.raises(ValueError, match="tokens_BL is 9 long; model.max_positions is 8"):
        forward(config, params, tokens_BL)
    positions_BL = np.stack([np.r_[np.arange(5), np.arange(4)], np.arange(9)])
    segments_BL = np.stack([np.r_[np.full(5, 1), np.full(4, 2)], np.full(9, 1)])
    logits_BLV = forward(config, params, tokens_BL, positions_BL, segments_BL)
    assert np.isfinite(logits_BLV[0]).all() and np.isnan(logits_BLV[1]).all()


def test_forward_compiles_once_for_each_shape():
    params, tokens_BL = make_params(CONFIG), np.ones((2, 5), np.int32)
    forward(CONFIG, params, tokens_BL)
    before = forward._cache_size()
    forward(CONFIG, params, tokens_BL + 1)
    assert forward._cache_size() == before
