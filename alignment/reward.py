"""The reward model: a scalar head on the fine-tuned model, trained on preference pairs.

    seedbed reward --config=configs/quickstart.py

Source: Bradley-Terry loss as in arXiv 2203.02155, equation 1.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alignment import losses
from alignment.preference import PreferenceConfig
from data.conversations import OwnSet
from data.mixture.loader import fixed_batches
from model.config import TransformerConfig, require
from model.transformer import Params, forward, init
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, LossFn, Sums


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Pairs, their length and the training of the reward model."""

    seq_len: int = 512  # longest prompt and answer, tokens; longer pairs are left out
    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    centering: float = 0.01  # weight of (chosen + rejected)^2
    pairs: PreferenceConfig = PreferenceConfig()
    # In the place of the reward model, for ppo and grpo: 'grade' (as evaluation grades), or
    # MODULE:NAME of a function fn(example, answer) -> float.
    function: str = ""
    # Preference pairs of the user's own, by name; pairs.num_prompts=0 leaves out those made here.
    data: Mapping[str, OwnSet] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(self, centering=(self.centering >= 0, "0 or more"))
        longest = self.pairs.max_new_tokens
        if longest >= self.seq_len:
            raise ValueError(
                f"pairs.max_new_tokens is {longest}; it must be below seq_len = {self.seq_len}, "
                "which prompt and answer share"
            )


def scalar_config(config: TransformerConfig) -> TransformerConfig:
    """The same trunk with one value a position in place of logits."""
    return dataclasses.replace(config, head="scalar")


def start_from(config: TransformerConfig, params: Params, rng: jax.Array) -> Params:
    """The language model's trunk, the same arrays, under a fresh scalar head.

    Args:
      config: shape of the language model.
      params: its parameters.
      rng: of the head, drawn as `transformer.init` does.
    """
    # Compiled for the head alone, the other weights are never made.
    head_D = jax.jit(lambda rng: init(scalar_config(config), rng)["head"])(rng)
    trunk = {name: leaf for name, leaf in params.items() if name != "head"}
    return {**trunk, "head": head_D}


def score(
    config: TransformerConfig, params: Params, tokens_BL: jax.Array, real_BL: jax.Array
) -> jax.Array:
    """Raw score of each whole conversation, read at its last real token.

    Args:
      config: with a scalar head.
      params: of the reward model.
      tokens_BL: prompt and answer, the end token included, padded on either side.
      real_BL: 1 on real tokens, one unbroken run a row.

    Returns:
      score_B, not normalised.
    """
    values_BL = forward(config, params, tokens_BL, positions_of(real_BL), real_BL)
    return losses.last_token_value(values_BL, real_BL)


def positions_of(real_BL: jax.Array) -> jax.Array:
    """Positions counted from the first real token; 0 before it."""
    return jnp.maximum(jnp.cumsum(real_BL, -1) - 1, 0)


def pair_loss(config: TransformerConfig, centering: float) -> LossFn:
    """Bradley-Terry loss of a batch of `preference.pair_rows`; weight: pairs.

    Named sums: 'accuracy' (the chosen one scores higher) and 'margin' (score units).

    Args:
      config: with a scalar head.
      centering: weight >= 0 of (chosen + rejected)^2; see `losses.bradley_terry`.
    """

    def loss(params: Params, batch: Batch):
        tokens_BL, real_BL = (_flat(batch[key]) for key in ("tokens", "real"))
        score_B2 = score(config, params, tokens_BL, real_BL).reshape(-1, 2)
        chosen_B, rejected_B = score_B2[:, 0], score_B2[:, 1]
        loss_B = losses.bradley_terry(chosen_B, rejected_B, jnp.zeros_like(chosen_B), centering)
        margin_B, weight_B = chosen_B - rejected_B, batch["weight"]
        named = {
            "accuracy": jnp.sum(jnp.where(margin_B > 0, weight_B, 0)),
            "margin": jnp.sum(margin_B * weight_B),
        }
        return Sums(jnp.sum(loss_B * weight_B), jnp.sum(weight_B), named)

    return loss


def _flat(x_B2L: jax.Array) -> jax.Array:
    return x_B2L.reshape(-1, x_B2L.shape[-1])


def accuracy(
    config: TransformerConfig, params: Params, rows: Sequence[Batch], batch_size: int
) -> np.ndarray:
    """For each pair: 1 if the chosen answer scores higher, 0.5 if they tie, else 0.

    Args:
      config: with a scalar head.
      params: of the reward model.
      rows: of `preference.pair_rows`, at least one.
      batch_size: pairs scored at a time.
    """
    sides = [{key: row[key][side] for key in ("tokens", "real")} for row in rows for side in (0, 1)]
    score_B2 = score_rows(config, params, sides, 2 * batch_size).reshape(-1, 2)
    return (np.sign(score_B2[:, 0] - score_B2[:, 1]) + 1) / 2


def score_rows(
    config: TransformerConfig, params: Params, rows: Sequence[Batch], batch_size: int
) -> np.ndarray:
    """`score` over any number of rows.

    Args:
      config, params: of the reward model.
      rows: {tokens_L, real_L} of each answer with its prompt, at least one.
      batch_size: rows at a time.

    Returns:
      float32 scores, one a row.
    """
    found = [
        _score_batch(config, params, batch["tokens"], batch["real"])
        for batch in fixed_batches(rows, batch_size, filler=rows[0])
    ]
    return np.concatenate(jax.device_get(found))[: len(rows)]


_score_batch = functools.partial(jax.jit, static_argnames="config")(score)
