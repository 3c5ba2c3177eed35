"""Ring attention: rows longer than a device, keys and values passed around the context axis.

Each device keeps its queries and sees every block of keys once; partial softmaxes are joined as in
flash attention. Who sees whom follows positions and segments, so packed rows, windows and the
balanced order below need nothing of their own. Source: arXiv 2310.01889.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model.attention import Places, softcap, visible
from model.config import TransformerConfig


def balanced_order(length: int, num_shards: int) -> np.ndarray:
    """The order in which a row's tokens are laid out so that causal work is even over the shards.

    The row is cut into 2 n chunks and shard i takes chunks i and 2 n - 1 - i.

    Args:
      length: tokens a row, a multiple of 2 num_shards.
      num_shards: size of the context axis; 1 leaves the order as it is.

    Returns:
      indices_L: token indices[j] stands at place j.

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


def attention(
    config: TransformerConfig,
    q_BLNH: jax.Array,
    k_BKMH: jax.Array,
    v_BKMH: jax.Array,
    places: Places,
    window: int,
    scale: float,
    sink_N: jax.Array | None,
) -> jax.Array:
    """As model/kernel.py's attention, with L and M both split over the mesh axis 'context'.

    Args are those of `attention.attend`, with `places` of queries and keys alike.

    Raises:
      ValueError: L does not divide by the axis.
    """
    num_shards, L = sharding.axis_size("context"), q_BLNH.shape[1]
    if L % num_shards:
        raise ValueError(f"rows are {L} long; they must divide by mesh.context = {num_shards}")
    K, num_tensor = k_BKMH.shape[1], sharding.axis_size("tensor")
    if K % num_tensor:  # heads of queries are split further than those of keys: repeat these
        k_BKMH, v_BKMH = (jnp.repeat(x, q_BLNH.shape[2] // K, axis=1) for x in (k_BKMH, v_BKMH))
    rows = sharding.activation_spec("BL", places.positions_BL.shape)
    batch, heads = rows[0], sharding.activation_spec("N", (q_BLNH.shape[2],))[0]
    queries = jax.sharding.PartitionSpec(batch, "context", heads, None)
    keys = jax.sharding.PartitionSpec(batch, heads, "context", None)
    sink_N = jnp.full(q_BLNH.shape[2], -1e30) if sink_N is None else sink_N
    return jax.shard_map(
        functools.partial(_ring, num_shards, window, scale, config.attention_softcap),
        in_specs=(queries, keys, keys, Places(rows, rows), jax.sharding.PartitionSpec(heads)),
        out_specs=queries,
        check_vma=False,
    )(q_BLNH, k_BKMH, v_BKMH, places, sink_N)


def _ring(num_shards, window, scale, cap, q_BLNH, k_BKMH, v_BKMH, places, sink_N) -> jax.Array:
    """One device's part: its own queries against each block of keys in turn."""
    B, L, N, _ = q_BLNH.shape
    K = k_BKMH.shape[1]
    q_BKGLH = jnp.moveaxis(q_BLNH.reshape(B, L, K, N // K, -1), 1, 3)
    q_BKGLH = q_BKGLH * jnp.asarray(scale, q_BLNH.dtype)
    shift = [(i, (i + 1) % num_shards) for i in range(num_shards)]

    @jax.checkpoint
    def see(state, block):
        top_BKGL, sum_BKGL, mixed_BKGLH = state
        k_BKMH, v_BKMH, keys = block
        score = jnp.einsum("BKGLH,BKMH->BKGLM", q_BKGLH, k_BKMH, preferred_element_type=jnp.float32)
        mask = visible(places, keys, window)[:, None, None]
        score = jnp.where(mask, softcap(score, cap), jnp.float32(-1e30))
        new_top = jnp.maximum(top_BKGL, score.max(-1))
        weight = jnp.where(mask, jnp.exp(score - new_top[..., None]), 0.0)
        decay = jnp.exp(top_BKGL - new_top)
        mixed = jnp.einsum(
            "BKGLM,BKMH->BKGLH",
            weight.astype(v_BKMH.dtype),
            v_BKMH,
            preferred_element_type=jnp.float32,
        )
        return new_top, sum_BKGL * decay + weight.sum(-1), mixed_BKGLH * decay[..., None] + mixed

    def turn(carry, _):
        state, block = carry
        state = see(state, block)
        block = jax.tree.map(lambda x: jax.lax.ppermute(x, "context", shift), block)
        return (state, block), None

    # The sink is a key of its own: its logit starts the softmax, its value is nothing.
    top = jnp.broadcast_to(sink_N.astype(jnp.float32).reshape(1, K, N // K, 1), (B, K, N // K, L))
    start = (top, jnp.where(top > -1e29, 1.0, 0.0), jnp.zeros((B, K, N // K, L, v_BKMH.shape[-1])))
    block = (k_BKMH, v_BKMH, places)
    (state, block), _ = jax.lax.scan(turn, (start, block), None, length=num_shards - 1)
    _, sum_BKGL, mixed_BKGLH = see(state, block)
    mixed_BKGLH = (mixed_BKGLH / sum_BKGL[..., None]).astype(q_BLNH.dtype)
    return jnp.moveaxis(mixed_BKGLH, 3, 1).reshape(B, L, N, -1)
