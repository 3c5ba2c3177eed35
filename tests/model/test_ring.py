"""Ring attention against the float32 reference, tile by tile; the balanced order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ring, sharding
from model.attention import TokenIndex, attend, visible
from model.config import Layout, TransformerConfig
from tests.marks import by_default

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L, N, K, H, HV = 2, 64, 4, 2, 8, 6
NAMES = ("mixed", "dq", "dk", "dv", "dsink")


def make_config(softcap=0.0):
    return TransformerConfig(
        vocab_size=16,
        num_layers=1,
        d_model=8,
        num_heads=N,
        num_kv_heads=K,
        head_dim=H,
        d_ff=8,
        layout=Layout(context="ring"),
        attention_softcap=softcap,
    )


def make_tokens(packed, order):
    positions, segments = np.tile(np.arange(L), (B, 1)), np.ones((B, L), np.int64)
    if packed:
        for row, cut in enumerate((20, 47)):
            positions[row, cut:] -= cut
            segments[row, cut:] = 2
        segments[1, 60:] = 0  # padding
    return TokenIndex(jnp.asarray(positions[:, order]), jnp.asarray(segments[:, order]))


def make_arrays(length=L, num_kv_heads=K, rows=B):
    keys = jax.random.split(jax.random.key(0), 5)
    heads = num_kv_heads
    shapes = ((rows, length, N, H), (rows, heads, length, H), (rows, heads, length, HV), (N,))
    shapes += ((rows, length, N, HV),)
    return [3 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def run(call, tokens, q, k, v, sink, probe):
    """Outputs of real tokens, and gradients of a weighted sum of them."""
    real = (tokens.segments_BL > 0)[..., None, None]

    def total(q, k, v, sink):
        mixed = call(q, k, v, sink)
        return (jnp.where(real, mixed, 0) * probe).sum(), mixed

    wanted = (0, 1, 2) if sink is None else (0, 1, 2, 3)
    gradients, mixed = jax.jit(jax.grad(total, wanted, has_aux=True))(q, k, v, sink)
    return [jnp.where(real, mixed, 0), *gradients]


@pytest.mark.parametrize(
    ("tiles", "layout"),
    by_default(
        [((512, 1024), "balanced"), ((4, 2), "balanced"), ((1, 8), "text"), ((4, 2), "any")], 1
    ),
)
@pytest.mark.parametrize(
    ("window", "softcap", "sinks", "packed", "sizes", "num_kv_heads"),
    [
        (0, 0.0, False, False, {"context": 8}, K),
        (11, 4.0, True, True, {"context": 4, "data": 2}, K),
        (0, 4.0, False, True, {"context": 2, "tensor": 4}, K),
        (9, 0.0, True, False, {"context": 2, "fsdp": 2, "tensor": 2}, 1),
    ],
)
def test_ring_is_the_reference(
    monkeypatch, tiles, layout, window, softcap, sinks, packed, sizes, num_kv_heads
):
    monkeypatch.setattr(ring, "TILE_L", tiles[0])
    monkeypatch.setattr(ring, "TILE_M", tiles[1])
    order = {
        "balanced": ring.balanced_order(L, sizes["context"]),
        "text": np.arange(L),
        "any": np.random.default_rng(0).permutation(L),
    }[layout]
    tokens = make_tokens(packed, order)
    q, k, v, sink, probe = make_arrays(num_kv_heads=num_kv_heads)
    sink = sink if sinks else None
    mask = visible(tokens, tokens, window)
    wanted = run(
        lambda q, k, v, sink: attend(q, k, v, mask, 0.3, softcap, sink),
        *(tokens, q, k, v, sink, probe),
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        found = run(
            lambda q, k, v, sink: ring.attention(
                make_config(softcap), q, k, v, tokens, window, 0.3, sink
            ),
            *(tokens, q, k, v, sink, probe),
        )
    for name, a, b in zip(NAMES, found, wanted, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * jnp.abs(b).max(), err_msg=name)
    assert len(found) == len(wanted)


def test_no_scores_stand_whole_in_memory():
    """Temporaries of a gradient grow as the row does, not as its square."""
    mesh = sharding.make_mesh(sharding.MeshConfig(context=2), jax.devices()[:2])

    def bytes_of(length):
        q, k, v, _, _ = make_arrays(length=length, rows=1)
        ones = jnp.ones((1, length), jnp.int32)
        tokens = TokenIndex(jnp.arange(length)[None], ones, balanced=True)

        def total(q, k, v):
            mixed = ring.attention(make_config(), q, k, v, tokens, 0, 0.3, None)
            return mixed.sum()

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = bytes_of(8192), bytes_of(32_768)
    scores = 4 * N * 16_384 * 16_384
    assert long < 4 * short and long < scores / 20


def test_balanced_order_gives_every_shard_the_same_work():
    """Pairs of tiles in which somebody sees somebody, of each device with all keys."""
    order, num_shards, tile = ring.balanced_order(L, 4), 4, 4
    queries, keys = order.reshape(num_shards, -1, tile), order.reshape(-1, tile)
    seen = (queries.max(-1)[:, :, None] >= keys.min(-1)).sum((1, 2))
    assert len(set(seen)) == 1 and seen[0] * num_shards == 16 * 17 / 2


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_text_order_undoes_the_balanced_order(num_shards):
    x = np.random.default_rng(0).integers(0, 99, (3, 16, 2))
    laid_out = x[:, ring.balanced_order(16, num_shards)]
    np.testing.assert_array_equal(ring.text_order(laid_out, 1, num_shards), x)


@pytest.mark.parametrize(
    ("length", "num_shards", "words"),
    [
        (64, 4, None),
        (2 * 4096, 2, None),
        (2 * 31, 2, None),  # one tile
        (95, 2, "95 long, and 2 context shards do not divide"),
        (2 * 1042, 2, "a shard's 1042 cannot be cut into tiles"),
    ],
)
def test_what_cannot_go_round_is_said(length, num_shards, words):
    reason = ring.refusal(length, num_shards)
    assert reason is None if words is None else words in reason


def test_gradients_in_bfloat16_keep_their_differences_in_float32():
    """Values with a common offset: the gradient of a score is a small difference of large sums."""
    tokens = make_tokens(False, np.arange(L))
    q, k, v, _, probe = make_arrays()
    narrow = [x.astype(jnp.bfloat16) for x in (q / 3, k / 3 + 1, v / 3 + 4, probe / 3 + 1)]
    wide = [x.astype(jnp.float32) for x in narrow]
    mask = visible(tokens, tokens, 0)

    def plainly(q, k, v, _):
        return attend(q, k, v, mask, 0.3)

    def error(call, q, k, v, probe):
        wanted = run(
            lambda q, k, v, _: attend(q, k, v, mask, 0.3), tokens, *wide[:3], None, wide[3]
        )
        found = run(call, tokens, q, k, v, None, probe)[1].astype(jnp.float32)
        return jnp.linalg.norm(found - wanted[1]) / jnp.linalg.norm(wanted[1])

    def by_ring(q, k, v, _):
        return ring.attention(make_config(), q, k, v, tokens, 0, 0.3, None)

    plain = error(plainly, *narrow)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(context=2), jax.devices()[:2])):
        found = error(by_ring, *narrow)
    assert found < 1.5 * plain
