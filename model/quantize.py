"""Products of activations and weights in 8 bits, for training: forward and backward, by qwix.

Each vector that is summed over gets a scale of its own, computed in every product, and is
rounded to 8 bits; rounding counts as the identity in gradients (straight-through). Weights,
optimizer state and everything between products keep their dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Numbers of: values; gradients that give those of activations; gradients that give those of
# weights. The last are summed over every token, and int8's one step for all of them loses the
# small ones: they keep their dtype (arXiv 2304.13013, section 2). FP8 gradients need more range
# than values, and get fewer digits (arXiv 2209.05433, section 3).
TYPES = {
    "int8": ("int8", "int8", None),
    "fp8": ("float8_e4m3fn", "float8_e5m2", "float8_e5m2"),
}


def matmul(x: jax.Array, w: jax.Array, kind: str, dtype: Any = None) -> jax.Array:
    """Sums x w over the last dim of x and the first of w, in the numbers that `kind` names.

    Args:
      x: activations, shape (..., inner).
      w: weights, shape (inner, outer), in x's dtype.
      kind: one of config.QUANTIZED; 'none' is the plain product.
      dtype: of the result; x's by default.

    Raises:
      ValueError: qwix is not installed.

    Source: qwix's QtProvider, which works on Flax modules alone, from its public parts.
    """
    if kind == "none":
        dims = (((x.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, w, dims, preferred_element_type=dtype)
    return _rounded_matmul(x, w, kind).astype(dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_matmul(x: jax.Array, w: jax.Array, kind: str) -> jax.Array:
    return _forward(x, w, kind)[0]


def _forward(x: jax.Array, w: jax.Array, kind: str):
    values = TYPES[kind][0]
    small_x = _round(x, values, range(x.ndim - 1))
    small_w = _round(w, values, (1,))
    y = _dot(small_x, small_w, ((x.ndim - 1,), (0,)))
    return y, (small_x, small_w, jnp.zeros(0, x.dtype))


def _backward(kind: str, residuals, y_bar: jax.Array):
    """Both gradients from the 8 bits kept. Scales along what is now summed over move to y_bar."""
    small_x, small_w, like = residuals
    _, of_x, of_w = TYPES[kind]
    wide, last = y_bar.astype(jnp.float32), y_bar.ndim - 1
    tokens = tuple(range(last))
    scale_w = small_w.scale.reshape((1,) * last + (-1,))
    small_y = _round(wide * scale_w, of_x, tokens)
    x_bar = _dot(small_y, small_w.qvalue, ((last,), (1,)))
    if of_w is None:
        values = _load_qwix().dequantize(small_x).astype(like.dtype)
        w_bar = jax.lax.dot_general(values, y_bar.astype(like.dtype), ((tokens, tokens), ((), ())))
    else:
        small_y = _round(wide * small_x.scale, of_w, (last,))
        w_bar = _dot(small_x.qvalue, small_y, (tokens, tokens))
    return x_bar.astype(like.dtype), w_bar.astype(like.dtype)


_rounded_matmul.defvjp(_forward, _backward)


def _round(x: jax.Array, number: str, dims):
    """8-bit numbers, and a float32 scale for each index of `dims`."""
    return _load_qwix().quantize(x.astype(jnp.float32), number, channelwise_axes=tuple(dims))


def _dot(x: Any, y: Any, summed: tuple) -> jax.Array:
    """A product of 8-bit numbers, and its scales: qwix mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        return _load_qwix().dot_general(x, y, (summed, ((), ())))


def _load_qwix():
    try:
        import qwix
    except ImportError as error:
        raise ValueError(
            "model.quantized other than 'none' needs the package qwix: pip install 'seedbed[quant]'"
        ) from error
    return qwix
