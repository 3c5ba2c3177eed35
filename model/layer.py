"""What layers are made of: declared weights, their products, norms and the feed-forward."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import quantize, sharding
from model.config import TransformerConfig

CONSTANTS = {"zeros": jnp.zeros, "ones": jnp.ones}


def weight(
    rngs: nnx.Rngs, letters: str, sizes: dict[str, int], init: float | str = "zeros"
) -> nnx.Param:
    """Declares one weight by its letters; `init`: 'zeros', 'ones' or the std of normal values."""
    shape = tuple(sizes[letter] for letter in letters)
    if init in CONSTANTS:
        value = CONSTANTS[init](shape)
    else:
        value = init * jax.random.normal(rngs.params(), shape)
    return nnx.Param(value, out_sharding=tuple(letters))


def product(
    equation: str, x: jax.Array, w: jax.Array, dtype: Any = None, quantized: str = "none"
) -> jax.Array:
    """einsum of an activation and a weight as one flat matrix product.

    The letters they share must end x and begin w, in one order. On a CPU, XLA transposes the
    whole output gradient for the weight gradient of the unflattened einsum: 2.4 times slower at
    the head of configs/bench_cpu.py.

    Args:
      equation: as of einsum.
      x: activation.
      w: weight, in x's dtype.
      dtype: of the result; x's by default.
      quantized: 'none', or the kind of number that the product is computed in (model/quantize.py).
    """
    left, right, out = equation.replace("->", ",").split(",")
    num_shared = (len(left) + len(right) - len(out)) // 2
    assert (
        left[-num_shared:] == right[:num_shared] and out == left[:-num_shared] + right[num_shared:]
    )
    rows, inner = x.shape[:-num_shared], math.prod(w.shape[:num_shared])
    # On a context axis B and L are both split: they cannot be merged.
    flat_rows = rows if sharding.axis_size("context") > 1 else (math.prod(rows),)
    flat_x, flat_w = x.reshape(*flat_rows, inner), w.reshape(inner, -1)
    flat = quantize.matmul(flat_x, flat_w, quantized, dtype)
    return flat.reshape(rows + w.shape[num_shared:])


def is_matrix(name: str, letters: str) -> bool:
    """Whether a weight is a matrix (or a stack of them): no scale, bias, sink or scalar head."""
    is_vector = name in ("scale", "sink") or name.endswith("bias")
    return not is_vector and len(letters.replace("X", "")) >= 2


def cast(like: jax.Array, param: nnx.Param) -> jax.Array:
    """A parameter in the dtype of an activation."""
    return param[...].astype(like.dtype)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """x plus a bias over its last dims; x where there is none."""
    if bias is None:
        return x
    value = cast(x, bias)
    return x + jnp.expand_dims(value, tuple(range(x.ndim - value.ndim)))


class Norm(nnx.Module):
    """Normalises the last dims named by `letters`, in float32.

    Source: RMSNorm arXiv 1910.07467, equation 4; LayerNorm arXiv 1607.06450, equation 4.
    """

    def __init__(
        self,
        config: TransformerConfig,
        letters: str,
        rngs: nnx.Rngs,
        sizes: dict[str, int] | None = None,
        kind: str | None = None,
    ):
        self.eps, self.kind = config.norm_eps, kind or config.norm
        self.scale = weight(rngs, letters, sizes or config.sizes(), "ones")
        is_layer = self.kind == "layer"
        self.bias = weight(rngs, letters, sizes or config.sizes()) if is_layer else None

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, y = self.scale[...], x.astype(jnp.float32)
        dims = tuple(range(x.ndim - scale.ndim, x.ndim))
        if self.kind == "layer":
            y = y - jnp.mean(y, dims, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), dims, keepdims=True) + self.eps)
        y = y * jnp.expand_dims(scale, tuple(range(x.ndim - scale.ndim)))
        return add_bias(y, self.bias).astype(x.dtype)


def activate(mlp: str, gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """The nonlinearity of a feed-forward.

    Args:
      mlp: one of config.MLPS.
      gate: of the gated kinds; None of the others.
      up: the other, or only, projection; same shape.

    Source: arXiv 2002.05202, equation 6 (SwiGLU, GeGLU); arXiv 2109.08668 (squared ReLU);
    'clamped_swiglu' the released code of gpt-oss: sigmoid(1.702 x), clamped at 7, up + 1. GELU is
    the tanh approximation of GPT-2 and Gemma (arXiv 1606.08415, section 2).
    """
    if mlp == "swiglu":
        return jax.nn.silu(gate) * up
    if mlp == "geglu":
        return jax.nn.gelu(gate, approximate=True) * up
    if mlp == "clamped_swiglu":
        gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
        return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1.0)
    return jax.nn.gelu(up, approximate=True) if mlp == "gelu" else jnp.square(jax.nn.relu(up))


def is_gated(mlp: str) -> bool:
    """Whether this kind of feed-forward has a gate."""
    return mlp in ("swiglu", "geglu", "clamped_swiglu")


class FeedForward(nnx.Module):
    """Up (and gate), nonlinearity, down."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, d_ff: int):
        sizes, fan_in = {**config.sizes(), "F": d_ff}, config.d_model**-0.5
        self.config = config
        gated, biased = is_gated(config.mlp), "mlp" in config.bias
        self.gate = weight(rngs, "DF", sizes, fan_in) if gated else None
        self.up = weight(rngs, "DF", sizes, fan_in)
        self.down = weight(rngs, "FD", sizes, (d_ff * 2 * config.num_layers) ** -0.5)
        self.gate_bias = weight(rngs, "F", sizes) if gated and biased else None
        self.up_bias = weight(rngs, "F", sizes) if biased else None
        self.down_bias = weight(rngs, "D", sizes) if biased else None

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        multiply = functools.partial(product, quantized=self.config.quantized)

        def widen(w: nnx.Param, bias: nnx.Param | None) -> jax.Array:
            y_BLF = add_bias(multiply("BLD,DF->BLF", x_BLD, cast(x_BLD, w)), bias)
            return sharding.constrain(y_BLF, "BLF")

        gate_BLF = None if self.gate is None else widen(self.gate, self.gate_bias)
        y_BLF = activate(self.config.mlp, gate_BLF, widen(self.up, self.up_bias))
        return add_bias(multiply("BLF,FD->BLD", y_BLF, cast(x_BLD, self.down)), self.down_bias)
