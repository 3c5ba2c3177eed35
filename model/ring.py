"""Ring attention: rows are split over the context axis, around which keys and values are passed.

Each device keeps its queries and attends to one block of keys after another, tile by tile, with
the online softmax of flash attention, forward and backward. The mask follows from positions and
segments, so that packed rows and windows need no code of their own; pairs of tiles that are masked
everywhere are skipped. Source: arXiv 2310.01889.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model.attention import TokenIndex, softcap, visible
from model.config import TransformerConfig

# Queries and keys whose scores are held at a time, for each row and head.
TILE_L, TILE_M = 512, 1024
# With smaller tiles the loop would take longer than the products.
MIN_TILE = 32
HIDDEN = -1e30


def balanced_order(length: int, num_shards: int) -> np.ndarray:
    """Order of a row's tokens in memory that gives every shard equal work under a causal mask.

    The row is cut into 2 n chunks and shard i takes chunks i and 2 n - 1 - i.

    Args:
      length: tokens a row, a multiple of 2 num_shards.
      num_shards: size of the context axis; 1 leaves the order as it is.

    Returns:
      indices_L: position j in memory holds token indices[j].

    Raises:
      ValueError: length does not divide.

    Source: the head-tail order of arXiv 2407.21783, section 3.3.2.
    """
    if num_shards == 1:
        return np.arange(length)
    if length % (2 * num_shards):
        raise ValueError(
            f"seq_len is {length}; it must divide by 2 x mesh.context = {2 * num_shards}"
        )
    chunks = np.arange(length).reshape(2 * num_shards, -1)
    pairs = [(i, 2 * num_shards - 1 - i) for i in range(num_shards)]
    return np.concatenate([chunks[i] for pair in pairs for i in pair])


def text_order(x: jax.Array, axis: int, num_shards: int) -> jax.Array:
    """Undoes `balanced_order` along a dim that is not split."""
    if num_shards == 1:
        return x
    chunks = jnp.split(x, 2 * num_shards, axis)
    order = np.argsort(balanced_order(2 * num_shards, num_shards))
    return jnp.concatenate([chunks[i] for i in order], axis)


def attention(
    config: TransformerConfig,
    q_BLNH: jax.Array,
    k_BKMH: jax.Array,
    v_BKMH: jax.Array,
    tokens: TokenIndex,
    window: int,
    scale: float,
    sink_N: jax.Array | None,
) -> jax.Array:
    """As model/kernel.py's attention, with L and M both split over the mesh axis 'context'.

    Args are those of `attention.attend`, with `tokens` of both queries and keys; `refusal` tells
    which lengths are supported.
    """
    num_shards = sharding.axis_size("context")
    K, num_tensor = k_BKMH.shape[1], sharding.axis_size("tensor")
    if K % num_tensor:  # repeat kv heads, which are fewer than the devices along the axis
        k_BKMH, v_BKMH = (jnp.repeat(x, q_BLNH.shape[2] // K, axis=1) for x in (k_BKMH, v_BKMH))
    rows = sharding.activation_spec("BL", tokens.positions_BL.shape)
    batch, heads = rows[0], sharding.activation_spec("N", (q_BLNH.shape[2],))[0]
    queries = jax.sharding.PartitionSpec(batch, "context", heads, None)
    keys = jax.sharding.PartitionSpec(batch, heads, "context", None)
    sink_N = jnp.full(q_BLNH.shape[2], HIDDEN) if sink_N is None else sink_N
    local = functools.partial(_local, _Ring(num_shards, window, config.attention_softcap), scale)
    specs = (queries, keys, keys, rows, jax.sharding.PartitionSpec(heads))
    run = sharding.on_each_device(local, specs, queries)
    return run(q_BLNH, k_BKMH, v_BKMH, tokens, sink_N)


def refusal(length: int, num_shards: int) -> str | None:
    """Why rows of this length cannot use the ring, for the log; None if they can."""
    local = length // num_shards
    if length % num_shards:
        return f"rows are {length} long, and {num_shards} context shards do not divide them"
    if _tile(local, TILE_L) < min(_half(local), MIN_TILE):
        return f"rows are {length} long, and a shard's {local} cannot be cut into tiles"
    return None


class _Ring(NamedTuple):
    """Static arguments."""

    num_shards: int
    window: int
    softcap: float


class _Keys(NamedTuple):
    """Tiles of keys, with values and token indices."""

    k: jax.Array
    v: jax.Array
    tokens: TokenIndex


def _local(ring: _Ring, scale, q_BLNH, k_BKMH, v_BKMH, tokens: TokenIndex, sink_N) -> jax.Array:
    """One device's part: its queries against each block of keys, one after another."""
    B, L, N, H = q_BLNH.shape
    K = k_BKMH.shape[1]
    q_BKGLH = jnp.moveaxis(q_BLNH.reshape(B, L, K, N // K, H), 1, 3)
    q_BKGLH = q_BKGLH * jnp.asarray(scale, q_BLNH.dtype)
    mixed_BKGLH = _attend(ring, q_BKGLH, k_BKMH, v_BKMH, sink_N.reshape(K, N // K), tokens)
    return jnp.moveaxis(mixed_BKGLH, 3, 1).reshape(B, L, N, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: _Ring, q_BKGLH, k_BKMH, v_BKMH, sink_KG, tokens: TokenIndex) -> jax.Array:
    return _attend_forward(ring, q_BKGLH, k_BKMH, v_BKMH, sink_KG, tokens)[0]


def _attend_forward(ring: _Ring, q_BKGLH, k_BKMH, v_BKMH, sink_KG, tokens: TokenIndex):
    """The output, and residuals with the logarithm of each query's softmax sum."""
    B, K, G, L, _ = q_BKGLH.shape
    # The sink is a key without a value: the online softmax starts with its logit.
    top_BKGL = jnp.broadcast_to(sink_KG.astype(jnp.float32)[None, ..., None], (B, K, G, L))
    sum_BKGL = jnp.where(top_BKGL > HIDDEN, 1.0, 0.0)
    mixed_BKGLH = jnp.zeros((B, K, G, L, v_BKMH.shape[-1]))
    state = tuple(_tiles(x, 3, TILE_L) for x in (top_BKGL, sum_BKGL, mixed_BKGLH))
    queries = _tiles(q_BKGLH, 3, TILE_L), _tiles(tokens, 1, TILE_L)
    block = _key_tiles(k_BKMH, v_BKMH, tokens)

    def attend_to_block(state, block):
        def row(item):  # one tile of queries against every tile of the block
            return jax.lax.scan(functools.partial(_update, ring, *item[0]), item[1], block)[0]

        return jax.lax.map(row, (queries, state))

    def next_block(carry, _):
        state, block = carry
        return (attend_to_block(state, block), _send_to_next(ring, block)), None

    (state, block), _ = jax.lax.scan(next_block, (state, block), None, length=ring.num_shards - 1)
    top, total, mixed = attend_to_block(state, block)
    out_BKGLH = _whole(mixed / total[..., None], 3)
    lse_BKGL = _whole(top + jnp.log(total), 3)
    # The output in float32: rounded to 16 bits it would double the error of the queries' gradient.
    residuals = (q_BKGLH, k_BKMH, v_BKMH, sink_KG, tokens, out_BKGLH, lse_BKGL)
    return out_BKGLH.astype(q_BKGLH.dtype), residuals


def _update(ring: _Ring, q_BKGLH, queries: TokenIndex, state, keys: _Keys):
    """Online-softmax update with one tile of keys."""

    def update(state):
        top_BKGL, sum_BKGL, mixed_BKGLH = state
        score_BKGLM = jnp.where(mask, _scores(ring, q_BKGLH, keys.k), HIDDEN)
        new_top_BKGL = jnp.maximum(top_BKGL, score_BKGLM.max(-1))
        weight_BKGLM = jnp.where(mask, jnp.exp(score_BKGLM - new_top_BKGL[..., None]), 0.0)
        decay_BKGL = jnp.exp(top_BKGL - new_top_BKGL)
        mixed = _product("BKGLM,BKMH->BKGLH", weight_BKGLM.astype(keys.v.dtype), keys.v)
        mixed_BKGLH = mixed_BKGLH * decay_BKGL[..., None] + mixed
        return new_top_BKGL, sum_BKGL * decay_BKGL + weight_BKGLM.sum(-1), mixed_BKGLH

    mask = visible(queries, keys.tokens, ring.window)[:, None, None]
    return jax.lax.cond(mask.any(), update, lambda state: state, state), None


def _attend_backward(ring: _Ring, residuals, grad_BKGLH):
    """Passes the blocks around once more, together with the gradients of their keys and values.

    A tile's weights are p = exp(score - lse), and a score's gradient p (gradient v - delta), where
    delta is the product of output and its gradient. Source: arXiv 2205.14135, appendix B.
    """
    q_BKGLH, k_BKMH, v_BKMH, sink_KG, tokens, out_BKGLH, lse_BKGL = residuals
    delta_BKGL = (out_BKGLH * grad_BKGLH.astype(jnp.float32)).sum(-1)
    sink_weight_BKGL = jnp.exp(sink_KG.astype(jnp.float32)[None, ..., None] - lse_BKGL)
    sink_grad_KG = -(sink_weight_BKGL * delta_BKGL).sum((0, 3)).astype(sink_KG.dtype)
    rows = (q_BKGLH, lse_BKGL, grad_BKGLH, delta_BKGL)
    queries = (*(_tiles(x, 3, TILE_L) for x in rows), _tiles(tokens, 1, TILE_L))
    block = _key_tiles(k_BKMH, v_BKMH, tokens)

    def next_block(carry, _):
        q_grads, key_grads, block = carry

        def row(key_grads, item):
            query, q_grad = item
            step = functools.partial(_accumulate_gradients, ring, query)
            q_grad, key_grads = jax.lax.scan(step, q_grad, (block, key_grads))
            return key_grads, q_grad

        key_grads, q_grads = jax.lax.scan(row, key_grads, (queries, q_grads))
        return (q_grads, *_send_to_next(ring, (key_grads, block))), None

    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape))  # float32 sums
    start = (zeros(queries[0]), zeros((block.k, block.v)), block)
    (q_grads, key_grads, _), _ = jax.lax.scan(next_block, start, None, length=ring.num_shards)
    k_grad_BKMH, v_grad_BKMH = (_whole(x, 2) for x in key_grads)
    grads = (_whole(q_grads, 3), k_grad_BKMH, v_grad_BKMH)
    grads = [g.astype(x.dtype) for g, x in zip(grads, (q_BKGLH, k_BKMH, v_BKMH), strict=True)]
    return (*grads, sink_grad_KG, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _accumulate_gradients(ring: _Ring, query, q_grad_BKGLH, item):
    """Accumulates the gradients of one (query tile, key tile) pair."""
    q_BKGLH, lse_BKGL, grad_BKGLH, delta_BKGL, queries = query
    keys, key_grads = item
    mask = visible(queries, keys.tokens, ring.window)[:, None, None]

    def add(grads):
        score_BKGLM, pull = jax.vjp(functools.partial(_scores, ring), q_BKGLH, keys.k)
        # Masked before the exponential, which a hidden score might overflow.
        weight_BKGLM = jnp.exp(jnp.where(mask, score_BKGLM - lse_BKGL[..., None], HIDDEN))
        v_grad_BKMH = _product("BKGLM,BKGLH->BKMH", weight_BKGLM.astype(keys.v.dtype), grad_BKGLH)
        weight_grad_BKGLM = _product("BKGLH,BKMH->BKGLM", grad_BKGLH, keys.v)
        found = *pull(weight_BKGLM * (weight_grad_BKGLM - delta_BKGL[..., None])), v_grad_BKMH
        return jax.tree.map(lambda total, g: total + g.astype(total.dtype), grads, found)

    grads = (q_grad_BKGLH, *key_grads)
    q_grad_BKGLH, *key_grads = jax.lax.cond(mask.any(), add, lambda grads: grads, grads)
    return q_grad_BKGLH, tuple(key_grads)


def _scores(ring: _Ring, q_BKGLH, k_BKMH) -> jax.Array:
    return softcap(_product("BKGLH,BKMH->BKGLM", q_BKGLH, k_BKMH), ring.softcap)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _send_to_next(ring: _Ring, block):
    to_next = [(i, (i + 1) % ring.num_shards) for i in range(ring.num_shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "context", to_next), block)


def _key_tiles(k_BKMH, v_BKMH, tokens: TokenIndex) -> _Keys:
    k, v = (_tiles(x, 2, TILE_M) for x in (k_BKMH, v_BKMH))
    return _Keys(k, v, _tiles(tokens, 1, TILE_M))


def _tiles(tree: Any, dim: int, most: int) -> Any:
    """Splits a dim of arrays into (number of tiles, tile), and moves the first to the front."""

    def split(x):
        tile = _tile(x.shape[dim], most)
        return jnp.moveaxis(x.reshape(*x.shape[:dim], -1, tile, *x.shape[dim + 1 :]), dim, 0)

    return jax.tree.map(split, tree)


def _tile(length: int, most: int) -> int:
    """The largest tile that divides half the length.

    In the balanced order the halves of a shard are far apart, and often one of them is masked.
    """
    half = _half(length)
    return next(size for size in range(min(half, most), 0, -1) if half % size == 0)


def _half(length: int) -> int:
    return length // 2 if length % 2 == 0 else length


def _whole(tiles: jax.Array, dim: int) -> jax.Array:
    """Undoes `_tiles`."""
    x = jnp.moveaxis(tiles, 0, dim)
    return x.reshape(*x.shape[:dim], -1, *x.shape[dim + 2 :])
