"""Attention on arrays: rotary positions, masks, grouped-query attention.

S, here only, is the G query heads of one kv head times their L positions.
"""

import jax
import jax.numpy as jnp


def rope(x_BLNH: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotates pairs (i, i + H/2) of each head by position * theta^(-2i/H), in float32.

    Source: arXiv 2104.09864, equation 34; pairs are split by halves, as in Llama's published
    weights, not interleaved as in the paper.
    """
    half = x_BLNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BLH = positions_BL[..., None].astype(jnp.float32) * frequency_H[None, None, :]
    sin, cos = jnp.sin(angle_BLH)[:, :, None, :], jnp.cos(angle_BLH)[:, :, None, :]
    a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BLNH.dtype)


def causal_mask(segments_BL: jax.Array) -> jax.Array:
    """True where query L may see key M: not later, and in the same segment.

    Padding (segment 0) sees padding only, so that its softmax stays finite; its outputs carry no
    weight in any loss.
    """
    length = segments_BL.shape[1]
    order_LM = jnp.tril(jnp.ones((length, length), bool))
    return order_LM[None] & (segments_BL[:, :, None] == segments_BL[:, None, :])


def attend(
    q_BLNH: jax.Array, k_BKMH: jax.Array, v_BKMH: jax.Array, mask_BLM: jax.Array
) -> jax.Array:
    """Grouped-query attention; softmax in float32.

    Args:
      q_BLNH: queries; head n reads kv head n // G, G = N / K.
      k_BKMH: keys, heads before positions: a cache is kept this way, so that no step turns it.
      v_BKMH: values, likewise.
      mask_BLM: True where a query may see a key; each query must see at least one.

    Returns:
      Mixed values, shape (B, L, N, H).

    Source: arXiv 2305.13245 (grouped queries); arXiv 1706.03762, equation 1.
    """
    B, L, N, H = q_BLNH.shape
    K, M = k_BKMH.shape[1:3]
    G = N // K
    # Queries of one kv head stand in one matrix: two batched products, no broadcast of keys.
    q_BKGLH = jnp.moveaxis(q_BLNH.reshape(B, L, K, G, H), 1, 3) * jnp.asarray(H**-0.5, q_BLNH.dtype)
    score_BKSM = jnp.einsum(
        "BKSH,BKMH->BKSM",
        q_BKGLH.reshape(B, K, G * L, H),
        k_BKMH,
        preferred_element_type=jnp.float32,
    )
    score_BKGLM = score_BKSM.reshape(B, K, G, L, M)
    score_BKGLM = jnp.where(mask_BLM[:, None, None], score_BKGLM, jnp.float32(-1e30))
    weight_BKGLM = jax.nn.softmax(score_BKGLM, axis=-1).astype(v_BKMH.dtype)
    mixed_BKSH = jnp.einsum("BKSM,BKMH->BKSH", weight_BKGLM.reshape(B, K, G * L, M), v_BKMH)
    return jnp.moveaxis(mixed_BKSH.reshape(B, K, G, L, H), 3, 1).reshape(B, L, N, H)
