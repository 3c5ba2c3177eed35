"""Self-attention modules: from a layer's input to queries, keys and values, and back.

Both implement one interface: `project` returns queries, keys and values, and `merge` maps
attention's output back to D. With `cached`, keys and values are those that a cache holds, which for
latent attention are far smaller.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import rope
from model.config import TransformerConfig
from model.layer import Norm, add_bias, cast, product, weight


class GroupedAttention(nnx.Module):
    """Multi-head, grouped-query and multi-query attention. Source: arXiv 2305.13245."""

    def __init__(self, config: TransformerConfig, sliding: bool, rngs: nnx.Rngs):
        sizes, fan_in = config.sizes(), config.d_model**-0.5
        self.config, self.sliding = config, sliding
        self.q = weight(rngs, "DNH", sizes, fan_in)
        self.k = weight(rngs, "DKH", sizes, fan_in)
        self.v = weight(rngs, "DKH", sizes, fan_in)
        self.out = weight(rngs, "NHD", sizes, _out_std(config, config.head_dim))
        biased = "qkv" in config.bias
        self.q_bias = weight(rngs, "NH", sizes) if biased else None
        self.k_bias = weight(rngs, "KH", sizes) if biased else None
        self.v_bias = weight(rngs, "KH", sizes) if biased else None
        self.out_bias = weight(rngs, "D", sizes) if "out" in config.bias else None
        self.sink = weight(rngs, "N", sizes) if config.sinks else None
        whole = config.qk_norm == "whole"
        normed = config.qk_norm != "none"
        self.q_norm = Norm(config, "NH" if whole else "H", rngs, kind="rms") if normed else None
        self.k_norm = Norm(config, "KH" if whole else "H", rngs, kind="rms") if normed else None

    def project(self, x_BLD: jax.Array, positions_BL: jax.Array, cached: bool):
        """Queries, keys and values, normed and rotated.

        Args:
          x_BLD: the normed residual stream.
          positions_BL: of the tokens, for the rotation.
          cached: whether keys and values go into a cache; here it changes nothing.

        Returns:
          q_BLNH, k_BKLH, v_BKLH.
        """
        del cached  # a cache holds the same
        multiply = functools.partial(product, quantized=self.config.quantized)
        q_BLNH = add_bias(multiply("BLD,DNH->BLNH", x_BLD, cast(x_BLD, self.q)), self.q_bias)
        k_BLKH = add_bias(multiply("BLD,DKH->BLKH", x_BLD, cast(x_BLD, self.k)), self.k_bias)
        v_BLKH = add_bias(multiply("BLD,DKH->BLKH", x_BLD, cast(x_BLD, self.v)), self.v_bias)
        if self.q_norm is not None:
            q_BLNH, k_BLKH = self.q_norm(q_BLNH), self.k_norm(k_BLKH)
        if self.config.positions == "rope":
            rotate = functools.partial(rope, config=self.config.rope, local=self.sliding)
            q_BLNH, k_BLKH = rotate(q_BLNH, positions_BL), rotate(k_BLKH, positions_BL)
        return q_BLNH, jnp.moveaxis(k_BLKH, 1, 2), jnp.moveaxis(v_BLKH, 1, 2)

    def merge(self, mixed_BLNH: jax.Array, cached: bool) -> jax.Array:
        """Output projection, BLNH to BLD."""
        del cached
        out_NHD = cast(mixed_BLNH, self.out)
        kind = self.config.quantized
        return add_bias(product("BLNH,NHD->BLD", mixed_BLNH, out_NHD, None, kind), self.out_bias)


class LatentAttention(nnx.Module):
    """Multi-head latent attention: keys and values come from one short vector a token.

    Training expands it to full heads. A cache holds the vector itself, with the one rotated key,
    and the expansion moves into queries and outputs: to `attend` that is multi-query attention,
    whose values are the first kv_rank dims of its keys.
    Source: arXiv 2405.04434, section 2.1 and appendix C.
    """

    def __init__(self, config: TransformerConfig, sliding: bool, rngs: nnx.Rngs):
        mla, std = config.mla, lambda fan_in: fan_in**-0.5
        plain = config.head_dim - mla.rope_dim
        self.config, self.sliding, self.sink = config, sliding, None
        sizes = config.sizes()
        down = {**sizes, "Z": mla.kv_rank + mla.rope_dim}
        up = {**sizes, "Z": mla.kv_rank, "H": plain}
        value = {**sizes, "Z": mla.kv_rank, "H": mla.value_dim}
        query = {**sizes, "Z": mla.query_rank}
        biased, ranked = "qkv" in config.bias, mla.query_rank > 0
        self.q = None if ranked else weight(rngs, "DNH", sizes, std(config.d_model))
        self.q_down = weight(rngs, "DZ", query, std(config.d_model)) if ranked else None
        self.q_down_bias = weight(rngs, "Z", query) if ranked and biased else None
        self.q_down_norm = Norm(config, "Z", rngs, query, "rms") if ranked else None
        self.q_up = weight(rngs, "ZNH", query, std(mla.query_rank)) if ranked else None
        self.kv_down = weight(rngs, "DZ", down, std(config.d_model))
        self.kv_down_bias = weight(rngs, "Z", down) if biased else None
        self.kv_norm = Norm(config, "Z", rngs, up, "rms")
        self.k_up = weight(rngs, "ZNH", up, std(mla.kv_rank))
        self.v_up = weight(rngs, "ZNH", value, std(mla.kv_rank))
        self.out = weight(rngs, "NHD", value, _out_std(config, mla.value_dim))
        self.out_bias = weight(rngs, "D", sizes) if "out" in config.bias else None

    def project(self, x_BLD: jax.Array, positions_BL: jax.Array, cached: bool):
        """As GroupedAttention.project; with `cached`, one key head (latent, rotated key), K = 1.

        H is then kv_rank + rope_dim, and the values are the latents: kv_rank dims of the keys.
        """
        rope_dim = self.config.mla.rope_dim
        rotate = functools.partial(rope, config=self.config.rope, local=self.sliding)
        q_BLNH = self._queries(x_BLD)
        kv_BLZ = self._multiply("BLD,DZ->BLZ", x_BLD, self.kv_down)
        kv_BLZ = add_bias(kv_BLZ, self.kv_down_bias)
        latent_BLZ = self.kv_norm(kv_BLZ[..., :-rope_dim])
        rotary_BL1H = rotate(kv_BLZ[:, :, None, -rope_dim:], positions_BL)
        plain_BLNH, rotated_BLNH = q_BLNH[..., :-rope_dim], q_BLNH[..., -rope_dim:]
        rotated_BLNH = rotate(rotated_BLNH, positions_BL)
        if cached:
            k_up = cast(x_BLD, self.k_up)
            plain_BLNH = jnp.einsum("BLNH,ZNH->BLNZ", plain_BLNH, k_up)
            k_BLKH = jnp.concatenate([latent_BLZ[:, :, None], rotary_BL1H], -1)
            v_BLKH = latent_BLZ[:, :, None]
        else:
            k_BLKH = self._multiply("BLZ,ZNH->BLNH", latent_BLZ, self.k_up)
            rotary_BLNH = jnp.broadcast_to(rotary_BL1H, (*k_BLKH.shape[:3], rope_dim))
            k_BLKH = jnp.concatenate([k_BLKH, rotary_BLNH], -1)
            v_BLKH = self._multiply("BLZ,ZNH->BLNH", latent_BLZ, self.v_up)
        q_BLNH = jnp.concatenate([plain_BLNH, rotated_BLNH], -1)
        return q_BLNH, jnp.moveaxis(k_BLKH, 1, 2), jnp.moveaxis(v_BLKH, 1, 2)

    def merge(self, mixed_BLNH: jax.Array, cached: bool) -> jax.Array:
        """Output projection, BLNH to BLD; with `cached`, H is kv_rank (means of latents)."""
        if cached:
            v_up = cast(mixed_BLNH, self.v_up)
            mixed_BLNH = jnp.einsum("BLNZ,ZNH->BLNH", mixed_BLNH, v_up)
        return add_bias(self._multiply("BLNH,NHD->BLD", mixed_BLNH, self.out), self.out_bias)

    def _queries(self, x_BLD: jax.Array) -> jax.Array:
        if self.q is not None:
            return self._multiply("BLD,DNH->BLNH", x_BLD, self.q)
        down_BLZ = self._multiply("BLD,DZ->BLZ", x_BLD, self.q_down)
        down_BLZ = self.q_down_norm(add_bias(down_BLZ, self.q_down_bias))
        return self._multiply("BLZ,ZNH->BLNH", down_BLZ, self.q_up)

    def _multiply(self, equation: str, x: jax.Array, w: nnx.Param) -> jax.Array:
        return product(equation, x, cast(x, w), None, self.config.quantized)


def cache_dims(config: TransformerConfig) -> tuple[int, int, int]:
    """Kv heads, size of a key and size of a value that a cache holds for each token.

    The latent's values are part of its keys: their size is 0.
    """
    if config.mla.kv_rank:
        return 1, config.mla.kv_rank + config.mla.rope_dim, 0
    return config.num_kv_heads, config.head_dim, config.head_dim


def _out_std(config: TransformerConfig, value_dim: int) -> float:
    return (config.num_heads * value_dim * 2 * config.num_layers) ** -0.5
