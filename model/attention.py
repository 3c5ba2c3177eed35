"""Attention on arrays: rotary positions, masks, and the reference product with a float32 softmax.

Beside README's letters: Y = G L, the queries of all heads that share keys.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from model import sharding
from model.config import RopeConfig


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions_BL", "segments_BL"),
    meta_fields=("balanced",),
)
@dataclasses.dataclass(frozen=True)
class TokenIndex:
    """Position of every token within its segment, and its segment id; segment 0 is padding.

    The order of a row's tokens in memory has no effect on results, but a kernel that knows it can
    skip work: with `balanced` it is that of model/ring.py for the mesh's context axis.
    """

    positions_BL: jax.Array
    segments_BL: jax.Array
    balanced: bool = False


def frequencies(config: RopeConfig, head_dim: int, local: bool) -> np.ndarray:
    """Radians a position of each pair of rotated dims, shape (head_dim / 2,).

    Source: arXiv 2104.09864, section 3.2.2; 'linear' arXiv 2306.15595; 'yarn' arXiv 2309.00071,
    section 3.2, with dims in place of wavelengths for the blend as its authors' code has it;
    'llama3' the released code of arXiv 2407.21783.
    """
    theta = config.local_theta if local and config.local_theta else config.theta
    pair = np.arange(head_dim // 2)
    kept = theta ** (-2.0 * pair / head_dim)
    if config.scaling == "none" or (local and config.local_theta):
        return kept.astype(np.float32)
    if config.scaling == "linear":
        blend = np.zeros_like(kept)
    elif config.scaling == "llama3":
        turns = config.original_len * kept / (2 * math.pi)
        blend = (turns - config.slow) / (config.fast - config.slow)
    else:
        low, high = (
            head_dim * math.log(config.original_len / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (config.fast, config.slow)
        )
        if config.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        blend = 1 - (pair - low) / max(high - low, 1e-3)
    blend = np.clip(blend, 0, 1)
    return (blend * kept + (1 - blend) * kept / config.factor).astype(np.float32)


def rope(
    x_BLNH: jax.Array, positions_BL: jax.Array, config: RopeConfig, local: bool = False
) -> jax.Array:
    """Rotates pairs (i, i + H/2) of each head by position times frequency i, in float32.

    Source: arXiv 2104.09864, equation 34; pairs are split by halves, as in Llama's published
    weights, not interleaved as in the paper.
    """
    frequency_H = jnp.asarray(frequencies(config, x_BLNH.shape[-1], local))
    magnitude = 1.0 if local and config.local_theta else config.magnitude
    angle_BLH = positions_BL[..., None].astype(jnp.float32) * frequency_H[None, None, :]
    sin = (jnp.sin(angle_BLH) * magnitude)[:, :, None, :]
    cos = (jnp.cos(angle_BLH) * magnitude)[:, :, None, :]
    a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BLNH.dtype)


def visible(queries: TokenIndex, keys: TokenIndex, window: int) -> jax.Array:
    """mask_BLM, True where a query may see a key.

    That is: in the same segment, not later, and less than `window` (if not 0) positions back.
    Padding sees padding only, so that its softmax stays finite; its outputs carry no weight.
    """
    back_BLM = queries.positions_BL[:, :, None] - keys.positions_BL[:, None, :]
    mask_BLM = (queries.segments_BL[:, :, None] == keys.segments_BL[:, None, :]) & (back_BLM >= 0)
    return mask_BLM & (back_BLM < window) if window else mask_BLM


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap); x where cap is 0. Source: arXiv 2408.00118, section 2."""
    return cap * jnp.tanh(x / cap) if cap else x


def attend(
    q_BLNH: jax.Array,
    k_BKMH: jax.Array,
    v_BKMH: jax.Array,
    mask_BLM: jax.Array,
    scale: float,
    cap: float = 0.0,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query attention; softmax in float32.

    Args:
      q_BLNH: queries; head n reads kv head n // G, G = N / K.
      k_BKMH: keys, heads before positions, as a cache holds them, so that no step transposes it.
      v_BKMH: values, likewise; their H may differ from the keys'.
      mask_BLM: True where a query may see a key; each query must see at least one.
      scale: multiplies the scores.
      cap: softcap of the scaled scores; 0 for none.
      sink_N: a logit a head that takes part in the softmax and brings no value; None for none.

    Returns:
      Mixed values, shape (B, L, N, H of the values).

    Source: arXiv 2305.13245 (grouped queries); arXiv 1706.03762, equation 1; sinks: the released
    code of gpt-oss (arXiv 2508.10925).
    """
    B, L, N, H = q_BLNH.shape
    K, M = k_BKMH.shape[1:3]
    G = N // K
    q_BKGLH = jnp.moveaxis(q_BLNH.reshape(B, L, K, G, H), 1, 3) * jnp.asarray(scale, q_BLNH.dtype)
    score_BKGLM = _product(q_BKGLH, k_BKMH, "BKGLH,BKMH->BKGLM", jnp.float32)
    score_BKGLM = softcap(score_BKGLM, cap)
    score_BKGLM = jnp.where(mask_BLM[:, None, None], score_BKGLM, jnp.float32(-1e30))
    if sink_N is None:
        weight_BKGLM = jax.nn.softmax(score_BKGLM, axis=-1)
    else:
        sink_BKGL1 = jnp.broadcast_to(
            sink_N.astype(jnp.float32).reshape(1, K, G, 1, 1), (B, K, G, L, 1)
        )
        weight_BKGLM = jax.nn.softmax(jnp.concatenate([score_BKGLM, sink_BKGL1], -1), -1)[..., :M]
    mixed_BKGLH = _product(weight_BKGLM.astype(v_BKMH.dtype), v_BKMH, "BKGLM,BKMH->BKGLH", None)
    return jnp.moveaxis(mixed_BKGLH, 3, 1).reshape(B, L, N, v_BKMH.shape[-1])


def _product(x: jax.Array, y_BKMH: jax.Array, equation: str, dtype) -> jax.Array:
    """A batched product in which all queries of one kv head make one matrix of Y = G L rows."""
    if sharding.axis_size("context") > 1:  # L is split over devices: it cannot be merged with G
        return jnp.einsum(equation, x, y_BKMH, preferred_element_type=dtype)
    flat = equation.replace("GL", "Y")
    merged = x.reshape(*x.shape[:2], -1, x.shape[-1])
    out = jnp.einsum(flat, merged, y_BKMH, preferred_element_type=dtype)
    return out.reshape(*x.shape[:4], -1)
