"""Rewards of sampled answers, score(sequences, index_B) -> score_B: by a model or a function."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import reward
from alignment.policy import Score
from alignment.rollout import Sequences
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer
from model.config import TransformerConfig
from model.transformer import Params

# fn(example, answer) -> reward; of an answer of text alone, its end token cut off.
RewardFn = Callable[[Example, str], float]


def by_model(config: TransformerConfig, params: Params, mean: float, std: float) -> Score:
    """The reward model's score, less a mean and over a deviation.

    Args:
      config: shape of the language model; the reward model has a scalar head on it.
      params: of the reward model.
      mean, std: of the scores that are to be about 0 and 1.
    """
    jitted = jax.jit(_score_model, static_argnums=0)
    score_model = functools.partial(jitted, reward.scalar_config(config))
    moments = {"mean": jnp.float32(mean), "std": jnp.float32(std)}
    return lambda sequences, _: score_model(params, moments, sequences)


def _score_model(
    config: TransformerConfig, params: Params, moments: dict[str, Any], sequences: Sequences
) -> jax.Array:
    raw_B = reward.score(config, params, sequences.tokens_BL, sequences.real_BL)
    return (raw_B - moments["mean"]) / moments["std"]


def by_function(fn: RewardFn, examples: Sequence[Example], tokenizer: Tokenizer) -> Score:
    """Scores the text of each answer by a function on the host.

    Args:
      fn: gives a finite number for an example and an answer to its prompt.
      examples: where `index_B` finds a row's example.
      tokenizer: decodes answers.

    Raises, when called:
      ValueError: `fn` gave no finite number; names the example.
    """

    def score(sequences: Sequences, index_B: jax.Array) -> np.ndarray:
        tokens_BL, mask_BR, index_B = jax.device_get(
            (sequences.tokens_BL, sequences.mask_BR, index_B)
        )
        answers_BR = tokens_BL[:, -mask_BR.shape[1] :]
        found = []
        for ids_R, mask_R, index in zip(answers_BR, mask_BR, index_B, strict=True):
            text = chat.read_answer(tokenizer, ids_R[mask_R == 1].tolist())
            value = fn(examples[int(index)], text)
            if not np.isfinite(value):
                raise ValueError(
                    f"reward.function gave {value!r} for example {examples[int(index)].id}; it "
                    "must give a finite number"
                )
            found.append(value)
        return np.asarray(found, np.float32)

    return score
