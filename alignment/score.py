"""Rewards of sampled answers, score(sequences, index_B) -> score_B: by a model or a function."""

import functools
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import reward
from alignment.policy import Score
from alignment.rollout import Sequences
from data.errors import BadInput
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
      BadInput: `fn` failed, or gave no finite number; names it, the value and the example.
    """

    def score(sequences: Sequences, index_B: jax.Array) -> np.ndarray:
        tokens_BL, mask_BR, index_B = jax.device_get(
            (sequences.tokens_BL, sequences.mask_BR, index_B)
        )
        answers_BR = tokens_BL[:, -mask_BR.shape[1] :]
        found = []
        for ids_R, mask_R, index in zip(answers_BR, mask_BR, index_B, strict=True):
            text = chat.read_answer(tokenizer, ids_R[mask_R == 1].tolist())
            found.append(_call(fn, examples[int(index)], text))
        return np.asarray(found, np.float32)

    return score


def _call(fn: RewardFn, example: Example, answer: str) -> float:
    name = f"reward.function {fn.__module__}:{getattr(fn, '__qualname__', fn)}"
    try:
        value = fn(example, answer)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise BadInput(
            f"{name} failed for example {example.id}: {type(error).__name__}: {error} "
            f"({last.filename}, line {last.lineno})"
        ) from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise BadInput(
            f"{name} gave {value!r} for example {example.id}; it must give a finite number"
        )
    return number
