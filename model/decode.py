"""Generation with a key-value cache: prefill and the token loop in one compiled program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import transformer
from model.attention import TokenIndex, attend, visible
from model.config import DTYPES, TransformerConfig, stacks
from model.self_attention import cache_dims


class Generation(NamedTuple):
    """Generated tokens, padded with pad_id after the end.

    tokens_BR: token ids; mask_BR: 1 up to and including the end token; logprobs_BR: log-probability
    of each token under the distribution that it was drawn from.
    """

    tokens_BR: jax.Array
    mask_BR: jax.Array
    logprobs_BR: jax.Array


class Cache(NamedTuple):
    """Keys and values of one place in a stack, written at one index in all rows (left padding).

    The values of latent attention are the first dims of its keys: v has none of its own.
    """

    k_XBKMH: jax.Array
    v_XBKMH: jax.Array


@functools.partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "temperature", "end_id", "pad_id")
)
def generate(
    config: TransformerConfig,
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

    Each row draws from its own random stream and sees only itself. It ends where learned positions
    do.

    Args:
      config: shape of the model.
      params: its parameters.
      prompt_BP: token ids, padded on the left.
      prompt_mask_BP: 1 on real tokens; each row has at least one, the last column.
      rng: a jax key.
      max_new_tokens: R, at least 1.
      temperature: divides the logits; 0 takes the most likely token.
      end_id: a row stops after this token.
      pad_id: fills tokens_BR after the end.
    """
    B, P = prompt_BP.shape
    R = max_new_tokens
    model = transformer.build(config, params)
    extend = functools.partial(_extend, model, model.unstack(), _slots(prompt_mask_BP, R))
    keys_B = jax.random.split(rng, B)

    num_real_B = prompt_mask_BP.sum(-1)
    most = config.max_positions if config.positions == "learned" else P + R

    def emit(step, out, cache, logits_BV, done_B):
        token_B, logprob_B = _draw(keys_B, step, logits_BV, temperature)
        now = (jnp.where(done_B, pad_id, token_B), ~done_B, jnp.where(done_B, 0.0, logprob_B))
        out = jax.tree.map(lambda x, y: x.at[:, step].set(y), out, Generation(*now))
        done_B = done_B | (token_B == end_id) | (num_real_B + step >= most)
        return step + 1, out, cache, token_B, done_B

    def advance(carry):
        step, out, cache, token_B, done_B = carry
        logits_BV, cache = extend(cache, token_B[:, None], P + step - 1)
        return emit(step, out, cache, logits_BV, done_B)

    def unfinished(carry):
        return (carry[0] < R) & ~carry[-1].all()

    logits_BV, cache = extend(_empty_caches(config, B, P + R), prompt_BP, 0)
    first = emit(0, _empty_generation(B, R, pad_id), cache, logits_BV, num_real_B > most)
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


def _slots(prompt_mask_BP: jax.Array, R: int) -> TokenIndex:
    """Where the tokens stand that the cache's slots hold, or will hold.

    Those to be written have later positions than any query before them: none sees them.
    """
    real_BP = prompt_mask_BP.astype(jnp.int32)
    later_BR = real_BP.sum(-1, keepdims=True) + jnp.arange(R, dtype=jnp.int32)[None]
    positions_BM = jnp.concatenate([jnp.maximum(jnp.cumsum(real_BP, -1) - 1, 0), later_BR], 1)
    return TokenIndex(positions_BM, jnp.pad(real_BP, ((0, 0), (0, R)), constant_values=1))


def _extend(model, cycles, keys: TokenIndex, caches, tokens_BL, start):
    """Runs tokens at slots start.. of the caches; returns the last one's logits and the caches."""
    config, length = model.config, tokens_BL.shape[1]
    queries = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, 1), keys)

    def body(block, where, layer, carry):
        x_BLD, caches = carry
        written = []

        def mix(q_BLNH, k_BKLH, v_BKLH):
            cache, at = caches[where], (layer, 0, 0, start, 0)
            put = jax.lax.dynamic_update_slice
            written.append(put(cache.k_XBKMH, k_BKLH[None], at))
            latent = cache.v_XBKMH.shape[-1] == 0
            written.append(cache.v_XBKMH if latent else put(cache.v_XBKMH, v_BKLH[None], at))
            k_BKMH = written[0][layer]
            v_BKMH = k_BKMH[..., : v_BKLH.shape[-1]] if latent else written[1][layer]
            sink_N = None if block.attention.sink is None else block.attention.sink[...]
            mask_BLM = visible(queries, keys, block.window)
            cap = config.attention_softcap
            return attend(q_BLNH, k_BKMH, v_BKMH, mask_BLM, block.scale, cap, sink_N)

        x_BLD, _ = block(x_BLD, queries, mix, cached=True)
        return x_BLD, {**caches, where: Cache(*written)}

    x_BLD = model.embed(tokens_BL, queries.positions_BL)
    x_BLD, caches = model.layers(body, (x_BLD, caches), cycles)
    return model.project(x_BLD[:, -1:])[:, 0], caches


def _empty_generation(B: int, R: int, pad_id: int) -> Generation:
    tokens_BR = jnp.full((B, R), pad_id, jnp.int32)
    return Generation(tokens_BR, jnp.zeros((B, R), bool), jnp.zeros((B, R)))


def _empty_caches(config: TransformerConfig, B: int, M: int) -> dict[tuple[int, int], Cache]:
    """By stack and place in it."""
    num_heads, *sizes = cache_dims(config)
    return {
        (number, place): Cache(
            *(
                jnp.zeros((stack.repeats, B, num_heads, M, size), DTYPES[config.dtype])
                for size in sizes
            )
        )
        for number, stack in enumerate(stacks(config))
        for place in range(len(stack.layers))
    }
