"""Next-token training over packed rows: pretraining, and supervised fine-tuning with its mask."""

import dataclasses

import jax.numpy as jnp

from model.loss import cross_entropy
from model.transformer import Params, TransformerConfig, forward
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, LossFn


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """One stage of next-token training; pretraining and fine-tuning have the same keys."""

    seq_len: int
    z_loss: float
    loop: LoopConfig
    optimizer: OptimizerConfig

    def __post_init__(self):
        if self.seq_len < 2:
            raise ValueError(f"seq_len is {self.seq_len}; it must be at least 2")
        if self.z_loss < 0:
            raise ValueError(f"z_loss is {self.z_loss}; it must be 0 or more")


def lm_loss(config: TransformerConfig, z_loss: float) -> LossFn:
    """Weighted next-token loss of a batch from `data.loader.lm_batch`."""

    def loss(params: Params, batch: Batch):
        logits_BLV = forward(config, params, batch["tokens"], batch["positions"], batch["segments"])
        nll_BL = cross_entropy(logits_BLV, batch["targets"], z_loss)
        weights_BL = batch["weights"]
        return jnp.sum(nll_BL * weights_BL), jnp.sum(weights_BL), {}

    return loss
