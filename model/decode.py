"""Generation with a key-value cache: `prefill` reads prompts, `step` one token of each row.

`generate` is these two in one compiled program. The others are for programs that keep a batch going
while rows end and begin: such a program jits them itself, so that it can donate its cache.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import sampling, transformer
from model.attention import attend, visible
from model.cache import Cache, KeysValues, empty_cache, locate, write
from model.config import TransformerConfig

Groups = list[list[transformer.LayerGroup]] | None


class Generation(NamedTuple):
    """Generated tokens, padded with pad_id after the end.

    tokens_BR: token ids; mask_BR: 1 up to and including the end token; logprobs_BR: log-probability
    of each token under the distribution that it was drawn from.
    """

    tokens_BR: jax.Array
    mask_BR: jax.Array
    logprobs_BR: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "end_id", "pad_id"))
def generate(
    config: TransformerConfig,
    params: transformer.Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    rng: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float | jax.Array,
    top_p: float | jax.Array = 1.0,
    end_id: int,
    pad_id: int,
) -> Generation:
    """Samples a continuation of each prompt; compiles once a shape and set of static arguments.

    Each row draws from its own random stream and sees only itself. It ends where learned positions
    do.

    Args:
      config: shape of the model.
      params: its parameters.
      prompt_BP: token ids, padded on the left.
      prompt_mask_BP: 1 on real tokens; each row has at least one, the last column.
      rng: a jax key.
      max_new_tokens: R, at least 1.
      temperature: as of `sampling.draw`, of all rows or one of each; new values compile nothing.
      top_p: likewise.
      end_id: a row stops after this token.
      pad_id: fills tokens_BR after the end.
    """
    B, P = prompt_BP.shape
    R = max_new_tokens
    groups = transformer.build(config, params).unstack()
    keys_B = jax.random.split(rng, B)
    temperature_B, top_p_B = (jnp.broadcast_to(x, (B,)) for x in (temperature, top_p))
    num_real_B = prompt_mask_BP.sum(-1)
    most = config.max_positions if config.positions == "learned" else P + R

    def emit(number, out, cache, logits_BV, done_B):
        counts_B = jnp.broadcast_to(number, (B,))
        token_B, logprob_B = sampling.draw(keys_B, counts_B, logits_BV, temperature_B, top_p_B)
        now = (jnp.where(done_B, pad_id, token_B), ~done_B, jnp.where(done_B, 0.0, logprob_B))
        out = jax.tree.map(lambda x, y: x.at[:, number].set(y), out, Generation(*now))
        done_B = done_B | (token_B == end_id) | (num_real_B + number >= most)
        return number + 1, out, cache, token_B, done_B

    def advance(carry):
        number, out, cache, token_B, done_B = carry
        logits_BV, cache = step(config, params, cache, token_B, groups, True)
        return emit(number, out, cache, logits_BV, done_B)

    def unfinished(carry):
        return (carry[0] < R) & ~carry[-1].all()

    cache = empty_cache(config, B, P + R)
    logits_BV, cache = prefill(config, params, cache, prompt_BP, prompt_mask_BP, groups, True)
    first = emit(0, _empty_generation(B, R, pad_id), cache, logits_BV, num_real_B > most)
    out = jax.lax.while_loop(unfinished, advance, first)[1]
    return out._replace(mask_BR=out.mask_BR.astype(jnp.int32))


def prefill(
    config: TransformerConfig,
    params: transformer.Params,
    cache: Cache,
    tokens_BP: jax.Array,
    mask_BP: jax.Array,
    groups: Groups = None,
    aligned: bool = False,
) -> tuple[jax.Array, Cache]:
    """Reads a prompt, or the next part of one, into each row.

    Args:
      config: shape of the model.
      params: its parameters.
      cache: each row has P slots left.
      tokens_BP: token ids, padded on the right; in empty rows, on the left too.
      mask_BP: 1 on real tokens, which stand side by side. A row without any is left as it is; its
        logits mean nothing.
      groups: from `Transformer.unstack`, by a caller with a loop of its own.
      aligned: all rows have one index_B, and their prompts end in the last column: this is faster.

    Returns:
      logits_BV after each row's last token, float32; the cache.
    """
    real_BP = mask_BP.astype(jnp.int32)
    before_B = jnp.argmax(real_BP, -1).astype(jnp.int32)
    cache = cache._replace(first_B=cache.first_B + before_B)
    num_new_B = before_B + real_BP.sum(-1)
    return _extend(config, params, cache, tokens_BP, real_BP, num_new_B, groups, aligned)


def step(
    config: TransformerConfig,
    params: transformer.Params,
    cache: Cache,
    tokens_B: jax.Array,
    groups: Groups = None,
    aligned: bool = False,
) -> tuple[jax.Array, Cache]:
    """Reads one token of each row, wherever the row stands.

    Args:
      config: shape of the model.
      params: its parameters.
      cache: a row that has no slot left, or no learned position, gives logits that mean nothing.
      tokens_B: token ids.
      groups, aligned: as of `prefill`.

    Returns:
      logits_BV after the token, float32; the cache.
    """
    one_B = jnp.ones_like(cache.index_B)
    return _extend(config, params, cache, tokens_B[:, None], one_B[:, None], one_B, groups, aligned)


def _extend(config, params, cache: Cache, tokens_BL, real_BL, num_new_B, groups, aligned):
    """Writes tokens to slots index_B.. of the cache; the first num_new_B of a row stay."""
    model = transformer.build(config, params)
    queries, keys = locate(cache, real_BL, num_new_B)

    def body(block, where, layer, carry):
        x_BLD, layers = carry
        written = []

        def mix(q_BLNH, k_BKLH, v_BKLH):
            old, at = layers[where], (layer, cache.index_B, aligned)
            written.append(write(old.k_XBKMH, k_BKLH, *at))
            latent = old.v_XBKMH.shape[-1] == 0
            written.append(old.v_XBKMH if latent else write(old.v_XBKMH, v_BKLH, *at))
            k_BKMH = written[0][layer]
            v_BKMH = k_BKMH[..., : v_BKLH.shape[-1]] if latent else written[1][layer]
            sink_N = None if block.attention.sink is None else block.attention.sink[...]
            mask_BLM = visible(queries, keys, block.window)
            cap = config.attention_softcap
            return attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM, block.scale, cap, sink_N)

        x_BLD, _ = block(x_BLD, queries, mix, cached=True)
        return x_BLD, {**layers, where: KeysValues(*written)}

    x_BLD = model.embed(tokens_BL, queries.positions_BL)
    x_BLD, layers = model.layers(body, (x_BLD, cache.layers), groups)
    if not aligned and tokens_BL.shape[1] > 1:
        last_B = jnp.maximum(num_new_B - 1, 0)
        x_BLD = jnp.take_along_axis(x_BLD, last_B[:, None, None], 1)
    logits_BV = model.project(x_BLD[:, -1:])[:, 0]
    return logits_BV, Cache(layers, cache.first_B, cache.index_B + num_new_B)


def _empty_generation(B: int, R: int, pad_id: int) -> Generation:
    tokens_BR = jnp.full((B, R), pad_id, jnp.int32)
    return Generation(tokens_BR, jnp.zeros((B, R), bool), jnp.zeros((B, R)))
