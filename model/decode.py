"""Generation with a key-value cache: prefill and the token loop in one compiled program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import transformer
from model.attention import attend


class Generation(NamedTuple):
    """Generated tokens, padded with pad_id after the end.

    tokens_BR: token ids; mask_BR: 1 up to and including the end token; logprobs_BR: log-probability
    of each token under the distribution that it was drawn from.
    """

    tokens_BR: jax.Array
    mask_BR: jax.Array
    logprobs_BR: jax.Array


class Cache(NamedTuple):
    """Keys and values of every layer, written at the same index in all rows (left padding)."""

    k_XBKMH: jax.Array
    v_XBKMH: jax.Array


@functools.partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "temperature", "end_id", "pad_id")
)
def generate(
    config: transformer.TransformerConfig,
    params: transformer.Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    rng: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    end_id: int,
    pad_id: int,
) -> Generation:
    """Samples a continuation of each prompt; compiles once a shape and set of static arguments.

    Each row draws from its own random stream and sees only itself: the other rows do not matter.

    Args:
      config: shape of the model.
      params: its parameters.
      prompt_BP: token ids, padded on the left.
      prompt_mask_BP: 1 on real tokens, 0 on padding; each row has at least one 1, the last column.
      rng: a jax key.
      max_new_tokens: R, at least 1.
      temperature: divides the logits; 0 takes the most likely token.
      end_id: a row stops after this token.
      pad_id: fills tokens_BR after the end.
    """
    B, P = prompt_BP.shape
    R = max_new_tokens
    # Generated slots are all real: those not yet written are later than any query.
    real_BM = jnp.pad(prompt_mask_BP.astype(bool), ((0, 0), (0, R)), constant_values=True)
    model = transformer.build(config, params)
    extend = functools.partial(_extend, model, model.unstack(), real_BM)
    num_real_B = prompt_mask_BP.sum(-1).astype(jnp.int32)
    positions_BP = jnp.maximum(jnp.cumsum(prompt_mask_BP, -1) - 1, 0)
    keys_B = jax.random.split(rng, B)

    def emit(step, out, cache, logits_BV, done_B):
        token_B, logprob_B = _draw(keys_B, step, logits_BV, temperature)
        now = (jnp.where(done_B, pad_id, token_B), ~done_B, jnp.where(done_B, 0.0, logprob_B))
        out = jax.tree.map(lambda x, y: x.at[:, step].set(y), out, Generation(*now))
        return step + 1, out, cache, token_B, done_B | (token_B == end_id)

    def advance(carry):
        step, out, cache, token_B, done_B = carry
        positions_B1 = (num_real_B + step - 1)[:, None]
        logits_BV, cache = extend(cache, token_B[:, None], positions_B1, P + step - 1)
        return emit(step, out, cache, logits_BV, done_B)

    def unfinished(carry):
        return (carry[0] < R) & ~carry[-1].all()

    logits_BV, cache = extend(_empty_cache(config, B, P + R), prompt_BP, positions_BP, 0)
    first = emit(0, _empty_generation(B, R, pad_id), cache, logits_BV, jnp.zeros(B, bool))
    out = jax.lax.while_loop(unfinished, advance, first)[1]
    return out._replace(mask_BR=out.mask_BR.astype(jnp.int32))


def _draw(keys_B, step, logits_BV, temperature: float) -> tuple[jax.Array, jax.Array]:
    """One token a row, and its log-probability under the distribution it is drawn from."""
    if temperature:
        logits_BV = logits_BV / temperature
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
        token_B = jax.vmap(jax.random.categorical)(step_keys_B, logits_BV)
    else:
        token_B = jnp.argmax(logits_BV, -1)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], -1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, -1)


def _extend(model, blocks, real_BM, cache: Cache, tokens_BL, positions_BL, start):
    """Runs tokens at slots start.. of the cache; returns the last one's logits and the cache."""
    slot_L = start + jnp.arange(tokens_BL.shape[1])
    slot_M = jnp.arange(real_BM.shape[1])
    seen_LM = slot_M[None, :] <= slot_L[:, None]
    # A padded query sees its own slot, so that its softmax stays finite.
    own_LM = slot_M[None, :] == slot_L[:, None]
    mask_BLM = (seen_LM[None] & real_BM[:, None, :]) | own_LM[None]

    def body(block, layer, carry):
        x_BLD, cache = carry
        written = []

        def mix(q_BLNH, k_BKLH, v_BKLH):
            at = (layer, 0, 0, start, 0)
            put = jax.lax.dynamic_update_slice
            written.append(put(cache.k_XBKMH, k_BKLH[None], at))
            written.append(put(cache.v_XBKMH, v_BKLH[None], at))
            return attend(q_BLNH, written[0][layer], written[1][layer], mask_BLM)

        x_BLD = block(x_BLD, positions_BL, mix)
        return x_BLD, Cache(*written)

    x_BLD, cache = model.layers(body, (model.embed(tokens_BL), cache), blocks)
    return model.project(x_BLD[:, -1:])[:, 0], cache


def _empty_generation(B: int, R: int, pad_id: int) -> Generation:
    tokens_BR = jnp.full((B, R), pad_id, jnp.int32)
    return Generation(tokens_BR, jnp.zeros((B, R), bool), jnp.zeros((B, R)))


def _empty_cache(config: transformer.TransformerConfig, B: int, M: int) -> Cache:
    shape = (config.num_layers, B, config.num_kv_heads, M, config.head_dim)
    return Cache(*(jnp.zeros(shape, transformer.DTYPES[config.dtype]) for _ in range(2)))
