"""Rollouts: prompts to answers and everything PPO measures on them, in token ids throughout.

P is the padded prompt length, R the longest answer; a row has L = P + R slots, its prompt padded on
the left. The action at answer token t is taken in the state that ends at slot P + t - 1, so
log-probabilities and values of the answer are read from slots P - 1 .. P + R - 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.reward import positions_of, scalar_config
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer
from model.config import TransformerConfig
from model.loss import token_logprobs
from model.transformer import Params, forward


class Sequences(NamedTuple):
    """Prompts with their answers; `real` is 0 on padding, `mask` 1 on answer tokens."""

    tokens_BL: jax.Array
    real_BL: jax.Array
    mask_BR: jax.Array


def prompt_rows(
    examples: Sequence[Example], tokenizer: Tokenizer, max_prompt_tokens: int
) -> list[dict[str, np.ndarray]]:
    """Prompts padded on the left.

    Args:
      examples: those whose prompts are too long are left out.
      tokenizer: the run's tokenizer.
      max_prompt_tokens: P, the width of a row.

    Returns:
      {tokens_P, real_P, index} of each prompt that fits: `real` is 0 on padding, and `index` is its
      place in `examples`.
    """
    rows = []
    for index, example in enumerate(examples):
        ids = chat.render_prompt(tokenizer, example.messages)
        if len(ids) > max_prompt_tokens:
            continue
        tokens_P = np.full(max_prompt_tokens, tokenizer.pad_id, np.int32)
        tokens_P[max_prompt_tokens - len(ids) :] = ids
        real_P = (np.arange(max_prompt_tokens) >= max_prompt_tokens - len(ids)).astype(np.int32)
        rows.append({"tokens": tokens_P, "real": real_P, "index": np.int32(index)})
    return rows


def join(prompt: dict[str, jax.Array], tokens_BR: jax.Array, mask_BR: jax.Array) -> Sequences:
    """Prompts [B, P] and answers [B, R] side by side, [B, L]; `mask_BR` is 1 on answer tokens."""
    return Sequences(
        jnp.concatenate([prompt["tokens"], tokens_BR], -1),
        jnp.concatenate([prompt["real"], mask_BR], -1),
        mask_BR,
    )


def answer_logprobs(
    config: TransformerConfig, params: Params, sequences: Sequences, temperature: float
) -> jax.Array:
    """logp_BR of the answer's tokens under the tempered distribution they were sampled from."""
    R = sequences.mask_BR.shape[1]
    logits_BRV = answer_logits(config, params, sequences)
    return token_logprobs(logits_BRV, sequences.tokens_BL[:, -R:], temperature)


def answer_values(config: TransformerConfig, params: Params, sequences: Sequences) -> jax.Array:
    """values_BR: the critic's value of the state before each answer token."""
    return answer_logits(scalar_config(config), params, sequences)


def answer_logits(config: TransformerConfig, params: Params, sequences: Sequences) -> jax.Array:
    """The head's output before each answer token: logits_BRV, or values_BR of a scalar head."""
    tokens_BL, real_BL, mask_BR = sequences
    inputs = (tokens_BL[:, :-1], positions_of(real_BL)[:, :-1], real_BL[:, :-1])
    return forward(config, params, *inputs, tail=mask_BR.shape[1])
