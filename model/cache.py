"""What the rows of a batch have read: keys and values, written at an index of each row's own."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.attention import TokenIndex
from model.config import DTYPES, TransformerConfig, stacks
from model.self_attention import cache_dims


class KeysValues(NamedTuple):
    """Keys and values of one place in a stack.

    The values of latent attention are the first dims of its keys: v has none of its own.
    """

    k_XBKMH: jax.Array
    v_XBKMH: jax.Array


class Cache(NamedTuple):
    """What each row has read: its tokens stand in slots first_B to index_B - 1, in order.

    layers: by stack and place in it; first_B: the slots before it are padding; index_B: the slot
    that is written next. What stands there and after it is seen by no token.
    """

    layers: dict[tuple[int, int], KeysValues]
    first_B: jax.Array
    index_B: jax.Array


def empty_cache(config: TransformerConfig, num_rows: int, num_slots: int) -> Cache:
    """A cache of rows that have read nothing, with room for `num_slots` tokens each."""
    num_heads, *sizes = cache_dims(config)

    def zeros(repeats: int, size: int) -> jax.Array:
        return jnp.zeros((repeats, num_rows, num_heads, num_slots, size), DTYPES[config.dtype])

    layers = {
        (number, place): KeysValues(*(zeros(stack.repeats, size) for size in sizes))
        for number, stack in enumerate(stacks(config))
        for place in range(len(stack.layers))
    }
    return Cache(layers, *jnp.zeros((2, num_rows), jnp.int32))


def insert(cache: Cache, row: int | jax.Array, other: Cache) -> Cache:
    """Puts the rows of another cache in the place of rows `row` and after, and of all they held.

    A prompt that comes while other rows are being generated is read into a small cache by
    `prefill` and put in: nothing else moves.

    Args:
      cache: of B rows.
      row: the first that is replaced.
      other: a cache of no more rows and no more slots.
    """

    def put(old, new, axis):
        # Padded with zeros, not left as it was: a NaN in a slot that nothing sees, times its
        # weight of 0, is NaN.
        short = [(0, 0)] * new.ndim
        if new.ndim > 1:
            short[3] = (0, old.shape[3] - new.shape[3])
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.pad(new, short), row, axis)

    layers = jax.tree.map(functools.partial(put, axis=1), cache.layers, other.layers)
    return Cache(layers, *map(functools.partial(put, axis=0), cache[1:], other[1:]))


def locate(cache: Cache, real_BL: jax.Array, num_new_B: jax.Array) -> tuple[TokenIndex, TokenIndex]:
    """Positions and segments of new tokens, and of what the slots hold or will hold.

    Args:
      cache: before they are written.
      real_BL: 1 on tokens, 0 on padding.
      num_new_B: columns up to each row's last token.

    Returns:
      Those of the new tokens, and those of all slots.
    """
    num_old_B1 = (cache.index_B - cache.first_B)[:, None]
    positions_BL = num_old_B1 + jnp.arange(real_BL.shape[1], dtype=jnp.int32)[None]
    # Padding has its neighbour's position: beyond a learned table it would be NaN.
    positions_BL = jnp.minimum(positions_BL, num_old_B1 + num_new_B[:, None] - 1)
    num_slots = cache.layers[0, 0].k_XBKMH.shape[3]
    positions_BM = jnp.arange(num_slots, dtype=jnp.int32)[None] - cache.first_B[:, None]
    # Slots to be written have later positions than any query before them: none sees them.
    keys = TokenIndex(jnp.maximum(positions_BM, 0), (positions_BM >= 0).astype(jnp.int32))
    return TokenIndex(jnp.maximum(positions_BL, 0), real_BL), keys


def write(
    cache_XBKMH: jax.Array,
    new_BKLH: jax.Array,
    layer: int | jax.Array,
    index_B: jax.Array,
    aligned: bool,
) -> jax.Array:
    """Writes the keys or the values of one layer, each row's from its own index on.

    A scatter, which is what vmap makes of it, costs a CPU a third of its decoding speed (LOG.md);
    there rows are written one by one.

    Args:
      cache_XBKMH: of one place in a stack.
      new_BKLH: what L tokens have, in the dtype of the cache.
      layer: which of X.
      index_B: slot of each row's first new token; there is room for L from there on.
      aligned: all rows have the index of the first.

    Returns:
      The cache with the new tokens in it.
    """
    put = jax.lax.dynamic_update_slice
    if aligned:
        return put(cache_XBKMH, new_BKLH[None], (layer, 0, 0, index_B[0], 0))

    def one_by_one(cache_XBKMH):
        for row in range(len(new_BKLH)):
            new_1BKLH = new_BKLH[None, row : row + 1]
            cache_XBKMH = put(cache_XBKMH, new_1BKLH, (layer, row, 0, index_B[row], 0))
        return cache_XBKMH

    def scattered(cache_XBKMH):
        def put_row(cache_XKMH, new_KLH, index):
            return put(cache_XKMH, new_KLH[None], (layer, 0, index, 0))

        return jax.vmap(put_row, (1, 0, 0), 1)(cache_XBKMH, new_BKLH, index_B)

    return jax.lax.platform_dependent(cache_XBKMH, cpu=one_by_one, default=scattered)
