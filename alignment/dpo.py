"""Direct preference optimisation on preference pairs, against the model that it starts from.

    seedbed dpo --config=configs/quickstart.py

Reference log-probabilities are computed once and stored in the rows.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alignment import losses
from alignment.reward import positions_of
from data.mixture.loader import fixed_batches
from model.config import TransformerConfig, require
from model.loss import token_logprobs
from model.transformer import Params, forward
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, LossFn, Sums

KINDS = ("sigmoid", "ipo")


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """Loss and training of DPO."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    beta: float = 0.1  # strength of the pull to the reference
    kind: str = "sigmoid"  # sigmoid (DPO, cDPO) or ipo
    label_smoothing: float = 0.0  # share of labels thought to be flipped (cDPO)

    def __post_init__(self):
        smoothable = self.label_smoothing == 0 or self.kind == "sigmoid"
        require(
            self,
            beta=(self.beta > 0, "above 0"),
            kind=(self.kind in KINDS, f"one of {KINDS}"),
            label_smoothing=(
                0 <= self.label_smoothing < 0.5 and smoothable,
                "in [0, 0.5), and 0 unless kind is 'sigmoid'",
            ),
        )


def answer_logprob(
    config: TransformerConfig, params: Params, tokens_BL, real_BL, answer_BL
) -> jax.Array:
    """Log-probability of each answer given its prompt.

    Args:
      config: shape of the model.
      params: its parameters.
      tokens_BL: prompt and answer, padded on either side.
      real_BL: 1 on their tokens.
      answer_BL: 1 on the answer's alone, its end token included.

    Returns:
      logp_B, nats, a sum over the answer's tokens.
    """
    inputs = (tokens_BL[:, :-1], positions_of(real_BL)[:, :-1], real_BL[:, :-1])
    logp_BL = token_logprobs(forward(config, params, *inputs), tokens_BL[:, 1:], 1.0)
    return losses.sequence_logprob(logp_BL, answer_BL[:, 1:])


_answer_logprob = functools.partial(jax.jit, static_argnames="config")(answer_logprob)


def with_reference(
    config: TransformerConfig, params: Params, rows: Sequence[Batch], batch_size: int
) -> list[Batch]:
    """Adds `reference_2`, the reference's log-probabilities of both answers, to each row.

    Args:
      config: shape of the reference.
      params: its parameters.
      rows: of `preference.pair_rows`, at least one.
      batch_size: pairs scored at a time.
    """
    found = [
        _answer_logprob(config, params, *_sides(batch))
        for batch in fixed_batches(rows, batch_size, filler=rows[0])
    ]
    reference_B2 = np.concatenate(jax.device_get(found)).reshape(-1, 2)[: len(rows)]
    return [
        {**row, "reference": logprob_2} for row, logprob_2 in zip(rows, reference_B2, strict=True)
    ]


def _sides(batch: Batch) -> list:
    """tokens, real and answer of both sides of each pair, [2 B, L]."""
    return [batch[key].reshape(-1, batch[key].shape[-1]) for key in ("tokens", "real", "answer")]


def dpo_loss(model_config: TransformerConfig, config: DPOConfig) -> LossFn:
    """DPO loss of a batch of `with_reference` rows {tokens_B2L, real_B2L, answer_B2L, ...}.

    The weight of a batch is its number of pairs. Formulas and sources: `losses.dpo`.

    Args:
      model_config: shape of the policy.
      config: kind of loss, beta and smoothing.

    Named sums: 'accuracy' (implicit reward prefers the chosen one), 'margin', and
    'chosen_logprob', which may fall while the margin grows.
    """

    def loss(params: Params, batch: Batch):
        policy_B2 = answer_logprob(model_config, params, *_sides(batch)).reshape(-1, 2)
        reference_B2 = batch["reference"]
        loss_B, margin_B = losses.dpo(
            policy_B2[:, 0],
            policy_B2[:, 1],
            reference_B2[:, 0],
            reference_B2[:, 1],
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            kind=config.kind,
        )
        weight_B = batch["weight"]
        named = {
            "accuracy": jnp.sum(jnp.where(margin_B > 0, weight_B, 0)),
            "margin": jnp.sum(margin_B * weight_B),
            "chosen_logprob": jnp.sum(policy_B2[:, 0] * weight_B),
        }
        return Sums(jnp.sum(loss_B * weight_B), jnp.sum(weight_B), named)

    return loss
