"""The decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, scanned over layers.

Every weight is declared once, in `weight(rngs, letters, sizes, std)`: its letters give its shape
and, through model/sharding.py, its place on any mesh. Outside this file parameters are a plain
nested dict of arrays, and `init` and `forward` are pure functions of a frozen configuration.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from model import sharding
from model.attention import attend, causal_mask, rope

Params = dict[str, Any]

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
HEADS = ("tied", "untied", "scalar")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder. `head='scalar'` gives one value a position (reward model, critic)."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    head: str
    qk_norm: bool
    rope_theta: float
    norm_eps: float
    dtype: str
    remat: str
    scan_layers: bool

    def __post_init__(self):
        sizes = "vocab_size num_layers d_model num_heads num_kv_heads head_dim d_ff"
        for key in sizes.split():
            _require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        allowed = f"a divisor of model.num_heads = {self.num_heads}"
        _require(
            self.num_heads % self.num_kv_heads == 0, "num_kv_heads", self.num_kv_heads, allowed
        )
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, RoPE turns pairs")
        _require(self.head in HEADS, "head", self.head, f"one of {HEADS}")
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {tuple(DTYPES)}")
        _require(self.remat in REMAT, "remat", self.remat, f"one of {tuple(REMAT)}")

    def sizes(self) -> dict[str, int]:
        """Length of each lettered dim of the weights."""
        return {
            "V": self.vocab_size,
            "D": self.d_model,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "H": self.head_dim,
            "F": self.d_ff,
        }


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"model.{key} is {value!r}; it must be {allowed}")


def weight(rngs: nnx.Rngs, letters: str, sizes: dict[str, int], std: float) -> nnx.Param:
    """Declares one weight by its letters: normal with `std` (0: ones, the scale of a norm)."""
    shape = tuple(sizes[letter] for letter in letters)
    key = rngs.params()
    value = std * jax.random.normal(key, shape) if std else jnp.ones(shape)
    return nnx.Param(value, out_sharding=tuple(letters))


def product(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """einsum of an activation and a weight as one flat matrix product.

    The letters they share must end x and begin w, in one order. On a CPU, XLA transposes the
    whole output gradient for the weight gradient of the unflattened einsum: 2.4 times slower at
    the head of configs/bench_cpu.py.
    """
    left, right, out = equation.replace("->", ",").split(",")
    num_shared = (len(left) + len(right) - len(out)) // 2
    assert (
        left[-num_shared:] == right[:num_shared] and out == left[:-num_shared] + right[num_shared:]
    )
    flat_w = w.reshape(math.prod(w.shape[:num_shared]), -1)
    flat = jnp.matmul(x.reshape(-1, flat_w.shape[0]), flat_w, preferred_element_type=dtype)
    return flat.reshape(x.shape[:-num_shared] + w.shape[num_shared:])


class Norm(nnx.Module):
    """RMSNorm in float32. Source: arXiv 1910.07467, equation 4."""

    def __init__(self, config: TransformerConfig, letter: str, rngs: nnx.Rngs):
        self.eps = config.norm_eps
        self.scale = weight(rngs, letter, config.sizes(), 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))
        return (y * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention; with a cache, keys and values come from it."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        sizes, fan_in = config.sizes(), config.d_model**-0.5
        out_std = (config.num_heads * config.head_dim * 2 * config.num_layers) ** -0.5
        self.config = config
        self.q = weight(rngs, "DNH", sizes, fan_in)
        self.k = weight(rngs, "DKH", sizes, fan_in)
        self.v = weight(rngs, "DKH", sizes, fan_in)
        self.out = weight(rngs, "NHD", sizes, out_std)
        self.q_norm = Norm(config, "H", rngs) if config.qk_norm else None
        self.k_norm = Norm(config, "H", rngs) if config.qk_norm else None

    def project(self, x_BLD: jax.Array, positions_BL: jax.Array):
        """Queries q_BLNH, keys k_BKLH and values v_BKLH, normed and rotated."""
        cast, theta = functools.partial(_cast, x_BLD.dtype), self.config.rope_theta
        q_BLNH = product("BLD,DNH->BLNH", x_BLD, cast(self.q))
        k_BLKH = product("BLD,DKH->BLKH", x_BLD, cast(self.k))
        v_BLKH = product("BLD,DKH->BLKH", x_BLD, cast(self.v))
        if self.config.qk_norm:
            q_BLNH, k_BLKH = self.q_norm(q_BLNH), self.k_norm(k_BLKH)
        q_BLNH, k_BLKH = rope(q_BLNH, positions_BL, theta), rope(k_BLKH, positions_BL, theta)
        return q_BLNH, jnp.moveaxis(k_BLKH, 1, 2), jnp.moveaxis(v_BLKH, 1, 2)

    def merge(self, mixed_BLNH: jax.Array) -> jax.Array:
        """Output projection."""
        return product("BLNH,NHD->BLD", mixed_BLNH, _cast(mixed_BLNH.dtype, self.out))


class FeedForward(nnx.Module):
    """SwiGLU. Source: arXiv 2002.05202, equation 6."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        sizes, fan_in = config.sizes(), config.d_model**-0.5
        self.gate = weight(rngs, "DF", sizes, fan_in)
        self.up = weight(rngs, "DF", sizes, fan_in)
        self.down = weight(rngs, "FD", sizes, (config.d_ff * 2 * config.num_layers) ** -0.5)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cast = functools.partial(_cast, x_BLD.dtype)
        gate_BLF = jax.nn.silu(product("BLD,DF->BLF", x_BLD, cast(self.gate)))
        up_BLF = product("BLD,DF->BLF", x_BLD, cast(self.up))
        return product("BLF,FD->BLD", gate_BLF * up_BLF, cast(self.down))


class Block(nnx.Module):
    """Pre-norm residual block."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, "D", rngs)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = Norm(config, "D", rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x_BLD, positions_BL, mix):
        """`mix(q_BLNH, k_BKLH, v_BKLH) -> mixed_BLNH` is attention over a row, or over a cache."""
        q, k, v = self.attention.project(self.attention_norm(x_BLD), positions_BL)
        x_BLD = x_BLD + self.attention.merge(mix(q, k, v))
        x_BLD = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return sharding.constrain(x_BLD, "BLD")


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm and head."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        sizes, fan_in = config.sizes(), config.d_model**-0.5
        self.config = config
        self.embedding = weight(rngs, "VD", sizes, fan_in)
        make_block = nnx.vmap(
            functools.partial(Block, config), transform_metadata={nnx.PARTITION_NAME: "X"}
        )
        self.blocks = make_block(rngs.split(config.num_layers))
        self.norm = Norm(config, "D", rngs)
        # Scalar: N(0, 1/sqrt(D + 1)), arXiv 2403.17031 (reward head of the OpenAI code).
        self.head = {
            "tied": lambda: None,
            "untied": lambda: weight(rngs, "DV", sizes, fan_in),
            "scalar": lambda: weight(rngs, "D", sizes, (config.d_model + 1) ** -0.5),
        }[config.head]()

    def embed(self, tokens_BL: jax.Array) -> jax.Array:
        """Token vectors, scaled to unit size so that a tied head starts with small logits."""
        x_BLD = self.embedding[...][tokens_BL] * math.sqrt(self.config.d_model)
        return sharding.constrain(x_BLD.astype(DTYPES[self.config.dtype]), "BLD")

    def project(self, x_BLD: jax.Array) -> jax.Array:
        """Final norm and head: logits_BLV, or values_BL of a scalar head; float32."""
        x_BLD, cast = self.norm(x_BLD), functools.partial(_cast, x_BLD.dtype)
        if self.config.head == "scalar":
            return product("BLD,D->BL", x_BLD, cast(self.head), jnp.float32)
        head_DV = cast(self.embedding).T if self.config.head == "tied" else cast(self.head)
        return sharding.constrain(product("BLD,DV->BLV", x_BLD, head_DV, jnp.float32), "BLV")

    def unstack(self) -> list[Block] | None:
        """The blocks one by one if the config does not scan them, else None.

        A caller with a loop of its own cuts the stack once, outside of it.
        """
        if self.config.scan_layers:
            return None
        block_graph, stacked = nnx.split(self.blocks)
        cut = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(self.config.num_layers))
        return [nnx.merge(block_graph, params) for params in cut]

    def layers(
        self, body: Callable[[Block, Any, Any], Any], carry: Any, blocks: list[Block] | None = None
    ) -> Any:
        """Runs `carry = body(block, index, carry)` over the blocks.

        Without `blocks` (see `unstack`) it is a scan over the stack: one compiled body.
        """
        if blocks is not None:
            for index, block in enumerate(blocks):
                carry = body(block, index, carry)
            return carry
        block_graph, stacked = nnx.split(self.blocks)

        def step(carry, layer):
            params, index = layer
            return body(nnx.merge(block_graph, params), index, carry), None

        if REMAT[self.config.remat] is not None:
            step = jax.checkpoint(step, policy=REMAT[self.config.remat], prevent_cse=False)
        layers = (stacked, jnp.arange(self.config.num_layers))
        return jax.lax.scan(step, carry, layers, unroll=not self.config.scan_layers)[0]


def _cast(dtype: Any, param: nnx.Param) -> jax.Array:
    return param[...].astype(dtype)


@functools.lru_cache(maxsize=64)
def _abstract(config: TransformerConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the model, and its parameters' shapes and letters; no device is touched."""
    with nnx.use_eager_sharding(False):
        # Not nnx.eval_shape: under a mesh it looks for the letters among the mesh's axes.
        return jax.eval_shape(lambda: nnx.split(_new(config, jax.random.key(0))))


def _new(config: TransformerConfig, rng: jax.Array) -> Transformer:
    return Transformer(config, nnx.Rngs(params=rng))


def declare(config: TransformerConfig) -> Params:
    """Letters and shape of every weight.

    Returns:
      A tree like the parameters' with (letters, shape) in place of each array, where `letters`
      is a tuple of one-letter dims.
    """
    return jax.tree.map(
        lambda param: (tuple(param.out_sharding), tuple(param.shape)),
        nnx.to_pure_dict(_abstract(config)[1], extract_fn=lambda param: param),
        is_leaf=lambda node: isinstance(node, nnx.Param),
    )


def init(config: TransformerConfig, rng: jax.Array, mesh: Mesh | None = None) -> Params:
    """Fresh parameters: float32, a nested dict of arrays, placed on the mesh if one is given.

    Raises:
      ValueError: the mesh cannot split some weight.
    """

    def create(rng):
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.state(_new(config, rng), nnx.Param))

    shardings = sharding.weight_shardings(declare(config), mesh) if mesh else None
    return jax.jit(create, out_shardings=shardings)(rng)


def build(config: TransformerConfig, params: Params) -> Transformer:
    """The module, holding these parameters."""
    return nnx.merge(_abstract(config)[0], params)


def forward(
    config: TransformerConfig,
    params: Params,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array,
    tail: int | None = None,
) -> jax.Array:
    """Runs the decoder over packed rows.

    Args:
      config: shape of the model.
      params: from `init`.
      tokens_BL: token ids.
      positions_BL: position of each token in its own segment, from 0.
      segments_BL: a token sees earlier tokens of its own segment only; 0 is padding, whose
        outputs mean nothing.
      tail: if given, only the last `tail` positions go through the head.

    Returns:
      logits_BLV, or values_BL where config.head is 'scalar'; float32.
    """
    model, mask_BLM = build(config, params), causal_mask(segments_BL)

    def body(block, _, x_BLD):
        return block(x_BLD, positions_BL, lambda q, k, v: attend(q, k, v, mask_BLM))

    x_BLD = model.layers(body, model.embed(tokens_BL))
    return model.project(x_BLD if tail is None else x_BLD[:, -tail:])
