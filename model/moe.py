"""Mixture of experts: a router chooses a few feed-forwards for each token.

Routing and its statistics are written for whole arrays, which XLA splits like their tokens;
model/dispatch.py moves the tokens. A token's choices J are in order, the best first.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from model import sharding
from model.attention import TokenIndex
from model.config import MoEConfig, TransformerConfig
from model.dispatch import LETTERS, dropless, limited
from model.layer import FeedForward, cast, is_gated, product, weight


class Experts(nnx.Module):
    """Routed experts, and one that every token passes (`shared`)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        moe = config.moe
        sizes, fan_in = {**config.sizes(), "F": moe.d_ff}, config.d_model**-0.5
        gated, biased = is_gated(config.mlp), "mlp" in config.bias
        self.config = config
        self.router = weight(rngs, "DE", sizes, fan_in)
        self.router_bias = weight(rngs, "E", sizes) if "router" in config.bias else None
        self.balance_bias = weight(rngs, "E", sizes) if moe.balance_bias else None
        self.gate = weight(rngs, "EDF", sizes, fan_in) if gated else None
        self.up = weight(rngs, "EDF", sizes, fan_in)
        self.down = weight(rngs, "EFD", sizes, (moe.d_ff * 2 * config.num_layers) ** -0.5)
        self.gate_bias = weight(rngs, "EF", sizes) if gated and biased else None
        self.up_bias = weight(rngs, "EF", sizes) if biased else None
        self.down_bias = weight(rngs, "ED", sizes) if biased else None
        shared = moe.shared_d_ff > 0
        self.shared = FeedForward(config, rngs, moe.shared_d_ff) if shared else None
        self.shared_gate = weight(rngs, "D", sizes, fan_in) if shared and moe.shared_gate else None

    def __call__(self, x_BLD: jax.Array, tokens: TokenIndex):
        """Mixes the outputs of each token's experts.

        Args:
          x_BLD: input.
          tokens: which are padding: no expert computes it, and no statistic counts it.

        Returns:
          y_BLD, and sums over each row's tokens, float32: `moe_balance` and `moe_z` (B) are the
          losses of `measure`; `moe_dropped` (B) counts choices beyond capacity, `moe_load` (B, E)
          choices of each expert, dropped ones included.
        """
        moe, real_BL = self.config.moe, tokens.segments_BL > 0
        logits_BLE = self._logits(x_BLD)
        scores_BLE = score(moe, logits_BLE)
        bias_E = None if self.balance_bias is None else sharding.replicate(self.balance_bias[...])
        choices_BLJ = _choose_locally(moe, scores_BLE, bias_E)
        weights_BLJ = weigh(moe, scores_BLE, choices_BLJ)
        stats = measure(moe, logits_BLE, scores_BLE, choices_BLJ, real_BL)
        if bias_E is not None:
            load_E = jnp.sum(stats["moe_load"], 0)
            weights_BLJ = report_surplus(weights_BLJ, bias_E, load_E - jnp.mean(load_E))
        experts_BLJ = jnp.where(real_BL[..., None], choices_BLJ, moe.num_experts)
        named = {name: getattr(self, name) for name in LETTERS}
        kernels = {name: cast(x_BLD, w) for name, w in named.items() if w is not None}
        routed = (self.config, x_BLD, experts_BLJ, weights_BLJ, kernels)
        is_limited = moe.dispatch == "capacity"
        y_BLD, kept_BLJ = limited(*routed, tokens) if is_limited else dropless(*routed)
        stats["moe_dropped"] = jnp.sum(stats["moe_load"], 1) - jnp.sum(kept_BLJ, (1, 2))
        if self.down_bias is not None:
            mixture_BLE = scatter_to_experts(moe.num_experts, weights_BLJ * kept_BLJ, choices_BLJ)
            bias_ED = cast(x_BLD, self.down_bias)
            y_BLD = y_BLD + product("BLE,ED->BLD", mixture_BLE.astype(x_BLD.dtype), bias_ED)
        return self._add_shared(x_BLD, sharding.constrain(y_BLD, "BLD")), stats

    def _logits(self, x_BLD: jax.Array) -> jax.Array:
        """Float32 all the way: a TPU would by default multiply float32 in bfloat16.

        Small weights are gathered, lest their split of E spreads to the tokens' scores.
        """
        x_BLD, highest = x_BLD.astype(jnp.float32), lax.Precision.HIGHEST
        router_DE = sharding.replicate(self.router[...])
        logits_BLE = jnp.einsum("BLD,DE->BLE", x_BLD, router_DE, precision=highest)
        if self.router_bias is not None:
            logits_BLE = logits_BLE + sharding.replicate(self.router_bias[...])[None, None]
        return sharding.constrain(logits_BLE, "BL_")

    def _add_shared(self, x_BLD: jax.Array, y_BLD: jax.Array) -> jax.Array:
        if self.shared is None:
            return y_BLD
        shared_BLD = self.shared(x_BLD)
        if self.shared_gate is not None:
            gate_BL = product("BLD,D->BL", x_BLD, cast(x_BLD, self.shared_gate), jnp.float32)
            shared_BLD = shared_BLD * jax.nn.sigmoid(gate_BL)[..., None].astype(x_BLD.dtype)
        return y_BLD + shared_BLD


def score(moe: MoEConfig, logits_BLE: jax.Array) -> jax.Array:
    """Router scores_BLE: softmax over all experts, before any is chosen, or sigmoid of each logit.

    Source: arXiv 2006.16668, algorithm 1 (softmax); arXiv 2412.19437, equation 15 (sigmoid).
    """
    return jax.nn.softmax(logits_BLE) if moe.router == "softmax" else jax.nn.sigmoid(logits_BLE)


def choose(moe: MoEConfig, scores_BLE: jax.Array, bias_E: jax.Array | None) -> jax.Array:
    """The top_k experts of each token, best first; of equal ones, the lower index.

    With several groups only experts of the best `top_groups` can be chosen; a group's score is its
    best one ('softmax', arXiv 2405.04434, section 2.2.2) or the sum of its best two ('sigmoid',
    arXiv 2412.19437, section 2.1.2).

    Args:
      moe: router, top_k and groups.
      scores_BLE: of `score`; no gradient goes there.
      bias_E: added for the choice alone; None for none.

    Returns:
      choices_BLJ, int32, J = top_k different experts.

    Source: arXiv 2412.19437, equation 16.
    """
    scores_BLE = lax.stop_gradient(scores_BLE)
    if bias_E is not None:
        scores_BLE = scores_BLE + lax.stop_gradient(bias_E)[None, None]
    if moe.num_groups > 1:
        each = moe.num_experts // moe.num_groups
        grouped = scores_BLE.reshape(*scores_BLE.shape[:2], moe.num_groups, each)
        num_best = min(each, 1 if moe.router == "softmax" else 2)
        worth = jnp.sum(lax.top_k(grouped, num_best)[0], -1)
        best = jax.nn.one_hot(lax.top_k(worth, moe.top_groups)[1], moe.num_groups, dtype=bool)
        open_BLE = jnp.repeat(jnp.any(best, 2), each, -1)
        scores_BLE = jnp.where(open_BLE, scores_BLE, -jnp.inf)
    return lax.top_k(scores_BLE, moe.top_k)[1]


def _choose_locally(moe: MoEConfig, scores_BLE: jax.Array, bias_E: jax.Array | None) -> jax.Array:
    """`choose` on each device's tokens: XLA would gather all tokens for a top_k."""
    spec = sharding.activation_spec("BL_", scores_BLE.shape)
    run = functools.partial(choose, moe)
    return sharding.on_each_device(run, (spec, PartitionSpec()), spec)(scores_BLE, bias_E)


# Both recompute their one-hot arrays, which would take more memory than the rest of the layer.
@functools.partial(jax.checkpoint, prevent_cse=False)
def pick(scores_BLE: jax.Array, choices_BLJ: jax.Array) -> jax.Array:
    """scores_BLJ of the choices. A gather's gradient would be a scatter-add."""
    chosen_BLJE = jax.nn.one_hot(choices_BLJ, scores_BLE.shape[-1])
    return jnp.sum(scores_BLE[:, :, None] * chosen_BLJE, -1)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def scatter_to_experts(
    num_experts: int, weights_BLJ: jax.Array, choices_BLJ: jax.Array
) -> jax.Array:
    """sums_BLE of the weights of choices at their experts: the transpose of `pick`."""
    return jnp.sum(weights_BLJ[..., None] * jax.nn.one_hot(choices_BLJ, num_experts), 2)


def weigh(moe: MoEConfig, scores_BLE: jax.Array, choices_BLJ: jax.Array) -> jax.Array:
    """Weight of each choice: its unbiased score. Source: arXiv 2412.19437, equations 12 and 13."""
    weights_BLJ = pick(scores_BLE, choices_BLJ)
    if moe.normalize:
        weights_BLJ = weights_BLJ / (jnp.sum(weights_BLJ, -1, keepdims=True) + 1e-20)
    return weights_BLJ * moe.scale


def measure(moe: MoEConfig, logits_BLE, scores_BLE, choices_BLJ, real_BL) -> dict[str, jax.Array]:
    """Losses and load of a router, for each row, so that no split of the batch changes them.

    For a row of n tokens, f_e = E / (k n) x choices of e, P_e = mean of e's share of the scores:
      moe_balance = n sum_e f_e P_e, n where the load is even; gradients flow through P alone.
      moe_z = sum over tokens of logsumexp(logits)^2.
    Source: arXiv 2101.03961, equations 4 to 6, for one sequence and k choices as in
    arXiv 2412.19437, equations 17 to 20; arXiv 2202.08906, equation 5.
    """
    real_BL1 = real_BL[..., None].astype(jnp.float32)
    real_BLJ = jnp.broadcast_to(real_BL1, choices_BLJ.shape)
    load_BE = jnp.sum(scatter_to_experts(moe.num_experts, real_BLJ, choices_BLJ), 1)
    shares_BLE = scores_BLE / jnp.sum(scores_BLE, -1, keepdims=True)
    means_BE = jnp.sum(shares_BLE * real_BL1, 1) / jnp.maximum(jnp.sum(real_BL1, 1), 1)
    return {
        "moe_balance": moe.num_experts / moe.top_k * jnp.sum(load_BE * means_BE, -1),
        "moe_z": jnp.sum(jnp.square(jax.nn.logsumexp(logits_BLE, -1)) * real_BL1[..., 0], 1),
        "moe_load": load_BE,
    }


@jax.custom_vjp
def report_surplus(weights_BLJ: jax.Array, bias_E: jax.Array, surplus_E: jax.Array) -> jax.Array:
    """Returns the weights, and makes `surplus_E` the gradient of `bias_E`.

    The choice, which the bias changes, has no derivative. The rule of the bias, "lower that of an
    overloaded expert by a fixed step", needs the sign of (choices of e - mean over experts) in the
    whole batch. As a gradient, which does not depend on the loss, the count is summed over
    microbatches, devices and pipeline stages like any other, and the optimizer takes
    bias -= rate sign(gradient). It must stay out of gradient norms, clipping and weight decay.
    Source: arXiv 2408.15664, algorithm 1.
    """
    del bias_E, surplus_E
    return weights_BLJ


report_surplus.defvjp(
    lambda weights_BLJ, _, surplus_E: (weights_BLJ, surplus_E),
    lambda surplus_E, gradient: (gradient, surplus_E, jnp.zeros_like(surplus_E)),
)
