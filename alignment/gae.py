"""From one score an answer to an advantage a token: what lies between rollout and PPO's losses.

Everything here is a target or a report, so no gradient flows through any of it.

Time runs over response tokens. With prompts of P tokens and responses of R, token t of the response
(t = 0 .. R-1) sits at position P + t; the action taken there was chosen in the state that ends at
position P + t - 1. So `values_BR` is the critic's output for positions P-1 .. P+R-2:
`values_BL[:, P-1 : P+R-1]`, as log-probabilities are read from the logits of the same positions.
"""

import jax.numpy as jnp
from jax import lax

from alignment import losses

VARIANCE_FLOOR = 1e-8


def missing_eos_score(score_B, finished_B, missing_score):
    """Gives answers that never ended a fixed score, instead of the reward model's score.

    Args:
      score_B: score of each answer.
      finished_B: nonzero where the answer has its end token.
      missing_score: that of an unfinished answer, such as -1; it replaces, it is not added.

    Returns:
      score_B, float32.

    Source: Huang et al. 2024 (`non_eos_penalty`). TRL subtracts the penalty instead, which a
    reward model that likes long answers can outbid.
    """
    return jnp.where(finished_B.astype(bool), _target(score_B), jnp.float32(missing_score))


def kl_penalised_rewards(score_B, logp_BR, ref_logp_BR, mask_BR, kl_coef):
    """Rewards of PPO: each token pays for leaving the reference, the last one gets the score.

    r_t = -kl_coef (logp_t - ref_logp_t) + [t is the last token of the mask] score, estimator k1.

    Args:
      score_B: score of each whole answer; fractions count.
      logp_BR: log-probabilities at rollout time (the OLD policy) of the sampled tokens.
      ref_logp_BR: the same tokens under the reference.
      mask_BR: nonzero on tokens that the policy wrote, its end token included; 0 on tool output
        and padding.
      kl_coef: KL coefficient >= 0, in units of the score a nat.

    Returns:
      rewards_BR, float32, 0 where the mask is. A row with an empty mask has no action to reward:
      its score is lost.

    Source: Ziegler et al. 2019 eq. 2. The score sits on the last response token, the end token of
    a finished answer, as in OpenRLHF; TRL has it one later.
    """
    kl_BR = losses.kl_k1(_target(logp_BR), _target(ref_logp_BR))
    penalty_BR = jnp.where(mask_BR.astype(bool), -kl_coef * kl_BR, 0.0)
    last_BR = losses.is_last_token(mask_BR)
    return penalty_BR + jnp.where(last_BR, _target(score_B)[:, None], 0.0)


def gae(rewards_BR, values_BR, mask_BR, gamma, lam):
    """Generalised advantage estimates and the returns that the critic should learn.

    delta_t = r_t + gamma V_next - V_t;  A_t = delta_t + gamma lam A_next;  return_t = A_t + V_t,
    where `next` is the next position inside the mask: positions outside it (tool output in the
    middle, padding) pass the carry through and take no discount. After the last one V and A are 0,
    for an answer cut off by the length limit too.

    Args:
      rewards_BR: reward of each action; ignored where the mask is 0.
      values_BR: value of the state BEFORE each action (the module's docstring has the slice).
      mask_BR: nonzero on the policy's own tokens.
      gamma: discount of a step, in [0, 1]; 1 for whole answers.
      lam: in [0, 1]; 0 trusts the critic, 1 the rewards.

    Returns:
      advantages_BR and returns_BR, float32, 0 where the mask is. Advantages are not whitened, and
      the returns must be taken before `whiten`, which would move the critic's target.

    Source: Schulman et al. 2016 eq. 16. The pass through the mask is verl's and Tunix's.
    """
    real_BR = mask_BR.astype(bool)
    values_BR = _target(values_BR)

    def step(carry, now):
        next_value_B, next_advantage_B = carry
        reward_B, value_B, real_B = now
        advantage_B = reward_B + gamma * (next_value_B + lam * next_advantage_B) - value_B
        passed = (
            jnp.where(real_B, value_B, next_value_B),
            jnp.where(real_B, advantage_B, next_advantage_B),
        )
        return passed, jnp.where(real_B, advantage_B, 0.0)

    start = (jnp.zeros_like(values_BR[:, 0]), jnp.zeros_like(values_BR[:, 0]))
    inputs = (_target(rewards_BR).T, values_BR.T, real_BR.T)
    _, advantages_RB = lax.scan(step, start, inputs, reverse=True)
    advantages_BR = advantages_RB.T
    return advantages_BR, jnp.where(real_BR, advantages_BR + values_BR, 0.0)


def whiten(x_BR, mask_BR):
    """Shifts and scales to mean 0 and variance 1 over all tokens of the mask.

    (x - mean) / sqrt(var + 1e-8). Called under jit on arrays sharded over devices, the two sums run
    over every device's rows, so each device count gives the same numbers. Call it on the whole
    rollout, before cutting minibatches.

    Args:
      x_BR: what to whiten; anything, even NaN, where the mask is 0.
      mask_BR: nonzero on tokens that count.

    Returns:
      x_BR, float32, 0 where the mask is; all 0 if the mask holds at most one token.

    Source: Ziegler et al. 2019's code (`whiten`), with its population variance. TRL and verl divide
    the variance by n - 1, and TRL whitens each process by itself.
    """
    mean, variance = _moments(_target(x_BR), mask_BR)
    scaled_BR = (_target(x_BR) - mean) * lax.rsqrt(variance + VARIANCE_FLOOR)
    return jnp.where(mask_BR.astype(bool), scaled_BR, 0.0)


def explained_variance(values_BR, returns_BR, mask_BR):
    """How much of the returns the critic foresaw: 1 - Var(R - V) / Var(R).

    Args:
      values_BR: the critic's values at rollout time.
      returns_BR: the returns of `gae`.
      mask_BR: nonzero on tokens that count.

    Returns:
      A scalar, at most 1; 0 is no better than a constant, below 0 worse. NaN where the returns do
      not vary: nothing was there to explain. Not a sum: take it over the whole rollout.
    """
    returns_BR, values_BR = _target(returns_BR), _target(values_BR)
    _, unexplained = _moments(returns_BR - values_BR, mask_BR)
    _, total = _moments(returns_BR, mask_BR)
    return jnp.where(total > 0, 1.0 - unexplained / total, jnp.nan)


def _moments(x_BR, mask_BR):
    """Mean and population variance over the mask (NaN if empty); float32 cancels in one pass."""
    real_BR = mask_BR.astype(bool)
    num_tokens = jnp.sum(real_BR, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(real_BR, x_BR, 0.0)) / num_tokens
    variance = jnp.sum(jnp.where(real_BR, jnp.square(x_BR - mean), 0.0)) / num_tokens
    return mean, variance


def _target(x):
    return lax.stop_gradient(jnp.asarray(x).astype(jnp.float32))
