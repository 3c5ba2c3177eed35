"""The pure formulas of preference learning and PPO: a loss for each row or each token.

Nothing here takes a mean. A stage masks and sums what it gets, and the training step divides that
sum once by the weight of the whole batch, so that devices and microbatches cannot change a loss.
Where the rewards and advantages of PPO come from is alignment/gae.py.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Log-ratios are clamped to +-10 before exp: a ratio stays within 4.5e-5 .. 22026. Two engines in
# bfloat16 can disagree by far more on one rare token, which unguarded becomes 5e8 or infinity.
LOG_RATIO_LIMIT = 10.0


def bradley_terry(chosen_B, rejected_B, margin_B, centering):
    """Loss of a reward model on pairs: the preferred answer should score higher.

    -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2, through softplus,
    so that differences of any size keep a finite loss and gradient in float32.

    Args:
      chosen_B: scores of the preferred answers.
      rejected_B: scores of the other answers.
      margin_B: by how much the preferred answer should win, >= 0; the scalar 0 asks for none.
      centering: weight >= 0 of the term that keeps scores around zero; 0.01 is usual.

    Returns:
      loss_B, float32.

    Source: Touvron et al. 2023 (Llama 2) eq. 2 for the margin; Eisenstein et al. 2023 for the
    centering. TRL adds mean(ranking) + centering * mean(square); both means run over the same
    pairs, so sum(loss_B) / num_pairs is the same number.
    """
    chosen_B, rejected_B = _float32(chosen_B), _float32(rejected_B)
    ranking_B = jax.nn.softplus(margin_B - (chosen_B - rejected_B))
    return ranking_B + centering * jnp.square(chosen_B + rejected_B)


def last_token_value(values_BL, mask_BL):
    """The value at each row's last real token: how a sequence gets its one score.

    The token is found from the mask alone, never from a token id: where padding and end of text
    share an id, looking for the first padding would read one token too early, or nowhere.

    Args:
      values_BL: a value for each token; anything, even NaN, where the mask is 0.
      mask_BL: nonzero on real tokens; padding may be on either side.

    Returns:
      value_B, float32. A row without a real token has value 0 and no gradient; leave it out of any
      mean by a weight of `jnp.any(mask_BL, -1)`.

    Source: OpenRLHF openrlhf/models/model.py (`eos_indices`), which assumes a real token.
    """
    return jnp.sum(jnp.where(is_last_token(mask_BL), _float32(values_BL), 0.0), axis=-1)


def is_last_token(mask_BL):
    """True at the last nonzero position of each row's mask, at most once a row.

    Args:
      mask_BL: nonzero on the tokens that count.

    Returns:
      last_BL, bool; a row of zeros has no True.
    """
    real_BL = mask_BL != 0
    following_BL = jnp.flip(jnp.cumsum(jnp.flip(real_BL, -1), axis=-1, dtype=jnp.int32), -1)
    return real_BL & (following_BL == 1)


def sequence_logprob(logp_BL, mask_BL):
    """Log-probability of each answer: the sum over its own tokens only.

    Args:
      logp_BL: log-probability of each target token; anything, even NaN, where the mask is 0.
      mask_BL: nonzero on the tokens of the answer, the end token included, the prompt excluded.

    Returns:
      logp_B, float32, a sum: longer answers have smaller values.
    """
    return jnp.sum(jnp.where(mask_BL != 0, _float32(logp_BL), 0.0), axis=-1)


def dpo(
    policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, *, beta, label_smoothing, kind
):
    """Loss of direct preference optimisation on pairs, from log-probabilities of whole answers.

    With delta = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected):
      'sigmoid': -(1 - s) log sigmoid(beta delta) - s log sigmoid(-beta delta); s > 0 is cDPO.
      'ipo': (delta - 1 / (2 beta))^2.
    At the start, policy equal to reference, 'sigmoid' is log 2 whatever s, and the margin is 0.

    Args:
      policy_chosen_B, policy_rejected_B: `sequence_logprob` under the policy.
      ref_chosen_B, ref_rejected_B: the same under the frozen reference; no gradient goes there.
      beta: strength > 0 of the pull to the reference (IPO's tau).
      label_smoothing: s, the share of labels thought to be flipped, 0 <= s < 1, usually below 0.5.
      kind: 'sigmoid' or 'ipo'.

    Returns:
      loss_B, and margin_B = beta * delta, the implicit reward margin, without gradient.

    Raises:
      ValueError: an unknown kind, or label smoothing asked of IPO, which has none.

    Source: Rafailov et al. 2023 eq. 7; Mitchell 2023 (cDPO); Azar et al. 2023 eq. 17 (IPO).
    IPO takes sums over tokens here, as the authors' formula and the original repository do. TRL
    divides each log-probability by the answer's number of tokens: divide the four arguments to get
    that. Robust DPO, which also divides by 1 - 2s, is not this.
    """
    ref_B = lax.stop_gradient(_float32(ref_chosen_B) - _float32(ref_rejected_B))
    delta_B = _float32(policy_chosen_B) - _float32(policy_rejected_B) - ref_B
    margin_B = lax.stop_gradient(beta * delta_B)
    if kind == "sigmoid":
        kept_B = jax.nn.softplus(-beta * delta_B)
        flipped_B = jax.nn.softplus(beta * delta_B)
        return (1.0 - label_smoothing) * kept_B + label_smoothing * flipped_B, margin_B
    if kind != "ipo":
        raise ValueError(f"dpo kind is {kind!r}; allowed: 'sigmoid', 'ipo'")
    if label_smoothing != 0:
        raise ValueError(f"dpo label_smoothing is {label_smoothing}; with kind 'ipo' it must be 0")
    return jnp.square(delta_B - 0.5 / beta), margin_B


def kl_k1(logp, ref_logp):
    """Estimates KL(policy || reference) from tokens of the policy: x = logp - ref_logp.

    The value is unbiased and may be negative. Put it into the reward. As a loss its expected
    gradient is zero (E[grad log pi] = 0): it would train on noise.

    Args:
      logp: log-probabilities of sampled tokens under the policy that sampled them, any shape.
      ref_logp: the same tokens under the reference, same shape.

    Returns:
      The estimate for each token, float32; not clamped, for it is linear and cannot overflow.

    Source: Schulman 2020, "Approximating KL divergence". OpenRLHF clamps it to +-10.
    """
    return _float32(logp) - _float32(ref_logp)


def kl_k2(logp, ref_logp):
    """Estimates KL(policy || reference) from tokens of the policy: x^2 / 2.

    The value is biased (third order in x). As a loss on the policy's own tokens its expected
    gradient is that of the KL: the one of the three to differentiate.

    Args:
      logp: log-probabilities of sampled tokens under the policy that sampled them, any shape.
      ref_logp: the same tokens under the reference, same shape.

    Returns:
      The estimate for each token, float32, >= 0; not clamped, for its gradient is just x.

    Source: Schulman 2020; gradient: TRL issue 4967. OpenRLHF clamps it to 10.
    """
    return 0.5 * jnp.square(kl_k1(logp, ref_logp))


def kl_k3(logp, ref_logp):
    """Estimates KL(policy || reference) from tokens of the policy: exp(-x) - 1 + x.

    The value is unbiased, never negative and steadier than k1: the one to report. As a loss its
    expected gradient is that of KL(reference || policy), the other direction.

    Args:
      logp: log-probabilities of sampled tokens under the policy that sampled them, any shape.
      ref_logp: the same tokens under the reference, same shape.

    Returns:
      The estimate for each token, float32, >= 0. x is clamped to +-LOG_RATIO_LIMIT first, so no
      token gives more than 22016, and none beyond the limit has a gradient.

    Source: Schulman 2020. verl clamps x to +-20 and then k3 to +-10, OpenRLHF k3 to +-10; a cap of
    10 on k3 makes it too small for every token that the reference likes 13 times better.
    """
    x = _clamp_log_ratio(kl_k1(logp, ref_logp))
    return jnp.expm1(-x) + x


def ppo_policy_loss(logp_BR, old_logp_BR, advantages_BR, *, clip_low, clip_high, dual_clip):
    """PPO's clipped policy loss for each token; multiply by the mask before summing.

    Inputs must be finite where the mask is 0 too, as is any log-probability of a real word.
    With rho = exp(logp - old_logp):
      max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)), and for A < 0 at most -A dual_clip.

    Args:
      logp_BR: log-probabilities under the policy in training, of logits / T as sampled.
      old_logp_BR: the same tokens under the policy that sampled them; no gradient.
      advantages_BR: advantages, usually whitened; no gradient.
      clip_low: how far rho may fall below 1, in (0, 1).
      clip_high: how far rho may rise above 1, > 0; equal to clip_low in plain PPO.
      dual_clip: bound > 1 on rho where A < 0; math.inf turns it off.

    Returns:
      loss_BR float32, and clipped_BR float32: 1 where a bound and not rho sets the loss, so that
      the token has no gradient. log rho is clamped to +-LOG_RATIO_LIMIT (verl: +-20), which keeps
      rho and its gradient finite.

    Source: Schulman et al. 2017 eq. 7; clip_high > clip_low: Yu et al. 2025 (DAPO); dual clip:
    Ye et al. 2020 (arXiv 1912.09729).
    """
    advantages_BR = lax.stop_gradient(_float32(advantages_BR))
    log_rho_BR = _float32(logp_BR) - lax.stop_gradient(_float32(old_logp_BR))
    rho_BR = jnp.exp(_clamp_log_ratio(log_rho_BR))
    plain_BR = -advantages_BR * rho_BR
    clipped_BR = -advantages_BR * jnp.clip(rho_BR, 1.0 - clip_low, 1.0 + clip_high)
    # inf * dual_clip, not -A * dual_clip, where A >= 0: an infinite dual_clip must not meet A = 0.
    bound_BR = jnp.where(advantages_BR < 0, -advantages_BR, jnp.inf) * dual_clip
    loss_BR = jnp.minimum(jnp.maximum(plain_BR, clipped_BR), bound_BR)
    return loss_BR, _float32(loss_BR != plain_BR)


def ppo_value_loss(values_BR, old_values_BR, returns_BR, *, clip):
    """PPO's clipped value loss for each token; multiply by the mask before summing.

    0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2).

    Args:
      values_BR: the critic in training, read at the token before each action (see gae.gae).
      old_values_BR: the critic's values at rollout time; no gradient.
      returns_BR: targets from gae.gae, not whitened; no gradient.
      clip: how far V may move from V_old before its gain stops counting, > 0; math.inf for no clip.

    Returns:
      loss_BR, float32, the factor 0.5 included.

    Source: Schulman et al. 2017's code (baselines ppo2); the same in TRL, OpenRLHF, verl, Tunix.
    """
    values_BR = _float32(values_BR)
    old_values_BR = lax.stop_gradient(_float32(old_values_BR))
    returns_BR = lax.stop_gradient(_float32(returns_BR))
    clipped_BR = jnp.clip(values_BR, old_values_BR - clip, old_values_BR + clip)
    return 0.5 * jnp.maximum(
        jnp.square(values_BR - returns_BR), jnp.square(clipped_BR - returns_BR)
    )


def entropy(logits_BRV, temperature):
    """Entropy of the distribution that each token was sampled from, in nats.

    Args:
      logits_BRV: raw logits; -inf forbids a word.
      temperature: T > 0 of the rollout; the distribution is softmax(logits / T).

    Returns:
      entropy_BR, float32, between 0 and log V, with its gradient.
    """
    logits_BRV = _float32(logits_BRV) / temperature
    probs_BRV = jax.nn.softmax(logits_BRV, axis=-1)
    finite_BRV = jnp.where(jnp.isfinite(logits_BRV), logits_BRV, 0.0)
    return jax.nn.logsumexp(logits_BRV, axis=-1) - jnp.sum(probs_BRV * finite_BRV, axis=-1)


def _clamp_log_ratio(log_ratio):
    return jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _float32(x):
    return jnp.asarray(x).astype(jnp.float32)
