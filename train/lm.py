"""Next-token training over packed rows: pretraining, and supervised fine-tuning with its mask."""

import dataclasses

import jax.numpy as jnp

from model.attention import TokenIndex
from model.config import TransformerConfig, layer_kinds, require
from model.loss import head_sums
from model.transformer import Params, features
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig
from train.step import Batch, LossFn, Sums


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """One stage of next-token training; pretraining and fine-tuning have the same keys."""

    seq_len: int = 1024  # tokens a row
    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    z_loss: float = 0.0  # weight of logsumexp^2

    def __post_init__(self):
        require(
            self,
            seq_len=(2 <= self.seq_len < 2**31, "at least 2, below 2^31"),
            z_loss=(self.z_loss >= 0, "0 or more"),
        )


def lm_loss(config: TransformerConfig, z_loss: float) -> LossFn:
    """Weighted next-token loss of a batch of `data.mixture.loader.lm_batch`, in balanced order.

    The loss is the cross-entropy alone, in nats. The objective adds, each times its weight, the
    named sums `z_loss` (logsumexp^2 of the logits) and with experts the router's `moe_balance` and
    `moe_z`, averaged over layers and tokens as the loss is.

    Args:
      config: shape of the model.
      z_loss: weight of logsumexp^2 of the logits.
    """

    def loss(params: Params, batch: Batch):
        tokens = TokenIndex(batch["positions"], batch["segments"], balanced=True)
        weights_BL = batch["weights"]
        x_BLD, head_DV, stats = features(config, params, batch["tokens"], tokens)
        total, nats, squares = head_sums(
            config, z_loss, x_BLD, head_DV, batch["targets"], weights_BL
        )
        router = _router_sums(config, stats, tokens.segments_BL, weights_BL)
        if router:
            moe = config.moe
            total += moe.aux_loss * router["moe_balance"] + moe.z_loss * router["moe_z"]
        return Sums(total, jnp.sum(weights_BL), {"z_loss": squares, **router}, loss=nats)

    return loss


def _router_sums(config: TransformerConfig, stats: dict, segments_BL, weights_BL) -> dict:
    """The router's statistics, sums over tokens turned into sums over weights, row by row.

    moe_load is relative: divided by the weight, 1 means an even share.
    """
    if not stats:
        return {}
    num_layers = sum(kind.experts for kind in layer_kinds(config))
    num_real_B = jnp.sum(segments_BL > 0, -1, dtype=jnp.float32)
    share_B = jnp.sum(weights_BL, -1) / jnp.maximum(num_real_B, 1)
    even = config.moe.num_experts / config.moe.top_k
    load = jnp.einsum("B,BXE->XE", share_B, stats["moe_load"]) * even
    mean = {
        name: jnp.sum(share_B * stats[name]) / num_layers
        for name in ("moe_balance", "moe_z", "moe_dropped")
    }
    return {**mean, "moe_load": load}
