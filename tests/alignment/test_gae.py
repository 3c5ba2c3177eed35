"""From score to advantage: hand-worked numbers, loops in float64, and what must not leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import gae

pytestmark = pytest.mark.usefixtures("quick_compilation")

HAND_RTOL = 2e-6  # float32 against numbers worked by hand
LOOP_TOLERANCE = 2e-6  # float32 scan against a float64 loop, absolute, values of order 1

# One answer of four tokens, score 0.7, beta 0.1, gamma 0.9, lambda 0.5.
#   k1      = logp - ref          =  0.2    -1.0     0.0    1.0
#   r       = -0.1 k1 (+ 0.7)     = -0.02    0.1     0.0    0.6
#   V                             =  0.5     0.4     0.2    0.3
#   delta_3 = 0.6             - 0.3 =  0.3      A_3 = 0.3
#   delta_2 = 0.0  + 0.9 0.3 - 0.2 =  0.07     A_2 =  0.07 + 0.45  0.3      =  0.205
#   delta_1 = 0.1  + 0.9 0.2 - 0.4 = -0.12     A_1 = -0.12 + 0.45  0.205    = -0.02775
#   delta_0 = -.02 + 0.9 0.4 - 0.5 = -0.16     A_0 = -0.16 + 0.45 -0.02775  = -0.1724875
#   return  = A + V                =  0.3275125, 0.37225, 0.405, 0.6
LOGP = [-1.0, -2.0, -0.5, -1.5]
REF_LOGP = [-1.2, -1.0, -0.5, -2.5]
VALUES = [0.5, 0.4, 0.2, 0.3]
REWARDS = [-0.02, 0.1, 0.0, 0.6]
ADVANTAGES = [-0.1724875, -0.02775, 0.205, 0.3]
RETURNS = [0.3275125, 0.37225, 0.405, 0.6]
SCORE = 0.7


def advantages_of(logp, ref_logp, values, mask):
    mask_BR = jnp.asarray([mask], jnp.uint8)
    rewards_BR = gae.kl_penalised_rewards(
        jnp.array([SCORE]), jnp.array([logp]), jnp.array([ref_logp]), mask_BR, 0.1
    )
    return rewards_BR, *gae.gae(rewards_BR, jnp.array([values]), mask_BR, 0.9, 0.5)


def test_fractional_score_reaches_the_advantage():
    found = advantages_of(LOGP, REF_LOGP, VALUES, [1, 1, 1, 1])
    for ours_BR, expected in zip(found, (REWARDS, ADVANTAGES, RETURNS), strict=True):
        np.testing.assert_allclose(ours_BR, [expected], rtol=HAND_RTOL, atol=1e-8)
        assert ours_BR.dtype == jnp.float32


@pytest.mark.parametrize("garbage", [7.0, float("nan")])
def test_tool_tokens_in_the_middle_and_padding_change_nothing(garbage):
    def widen(numbers):
        return [*numbers[:2], garbage, garbage, *numbers[2:], garbage]

    mask = [1, 1, 0, 0, 1, 1, 0]
    found = advantages_of(widen(LOGP), widen(REF_LOGP), widen(VALUES), mask)
    for ours_BR, expected in zip(found, (REWARDS, ADVANTAGES, RETURNS), strict=True):
        np.testing.assert_allclose(
            ours_BR, [[*expected[:2], 0, 0, *expected[2:], 0]], rtol=HAND_RTOL, atol=1e-8
        )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float32])
def test_rewards_are_float32_whatever_the_inputs(dtype):
    zeros_BR = jnp.zeros((1, 3), dtype)
    rewards_BR = gae.kl_penalised_rewards(
        jnp.array([0.3]), zeros_BR, zeros_BR, jnp.ones((1, 3), jnp.int32), 0.1
    )
    np.testing.assert_allclose(rewards_BR, [[0.0, 0.0, 0.3]], rtol=HAND_RTOL)


def test_rewards_of_unfinished_finished_and_empty_answers():
    mask_BR = jnp.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    zeros_BR = jnp.zeros((3, 3))
    score_B = gae.missing_eos_score(jnp.array([5.25, 0.75, 0.5]), jnp.array([0, 1, 1]), -1.0)
    np.testing.assert_array_equal(score_B, [-1.0, 0.75, 0.5])  # replaced, not 4.25
    rewards_BR = gae.kl_penalised_rewards(score_B, zeros_BR, zeros_BR, mask_BR, 0.1)
    np.testing.assert_array_equal(rewards_BR, [[0, 0, -1.0], [0, 0.75, 0], [0, 0, 0]])


def test_values_are_read_before_the_action():
    # Prompt of 3, response of 4. A perfect critic at position p knows all that is paid after p:
    # read at P-1 .. P+R-2 it leaves no advantage, one position later it does.
    rewards_BR = jnp.array([[0.5, -1.0, 0.25, 2.0]])
    to_come = [1.75, 1.75, 1.75, 1.25, 2.25, 2.0, 0.0]
    values_BL = jnp.array([to_come])
    mask_BR = jnp.ones((1, 4))
    advantages_BR, returns_BR = gae.gae(rewards_BR, values_BL[:, 3 - 1 : 3 + 4 - 1], mask_BR, 1, 1)
    np.testing.assert_array_equal(advantages_BR, np.zeros((1, 4)))
    np.testing.assert_array_equal(returns_BR, [[1.75, 1.25, 2.25, 2.0]])
    late_BR, _ = gae.gae(rewards_BR, values_BL[:, 3:7], mask_BR, 1.0, 0.95)
    assert np.abs(late_BR).max() > 0.4


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_(t+l), for one answer without holes, in float64."""
    following = [*values, 0.0][1:]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.97, 1.0)])
def test_gae_against_its_definition_on_answers_with_holes(gamma, lam):
    rng = np.random.default_rng(2)
    rewards_BR, values_BR = rng.normal(size=(2, 6, 9))
    mask_BR = rng.uniform(size=(6, 9)) < 0.6
    mask_BR[0], mask_BR[1] = True, False
    advantages_BR, returns_BR = jax.jit(gae.gae)(rewards_BR, values_BR, mask_BR, gamma, lam)
    for row in range(6):
        real = mask_BR[row]
        expected = gae_by_definition(rewards_BR[row, real], values_BR[row, real], gamma, lam)
        np.testing.assert_allclose(advantages_BR[row, real], expected, atol=LOOP_TOLERANCE)
        np.testing.assert_allclose(
            returns_BR[row, real], np.add(expected, values_BR[row, real]), atol=LOOP_TOLERANCE
        )
    np.testing.assert_array_equal(np.asarray(advantages_BR)[~mask_BR], 0.0)
    np.testing.assert_array_equal(np.asarray(returns_BR)[~mask_BR], 0.0)


def test_no_gradient_flows_through_targets():
    def total(score_B, logp_BR, ref_logp_BR, values_BR):
        mask_BR = jnp.ones_like(values_BR)
        rewards_BR = gae.kl_penalised_rewards(score_B, logp_BR, ref_logp_BR, mask_BR, 0.1)
        advantages_BR, returns_BR = gae.gae(rewards_BR, values_BR, mask_BR, 0.9, 0.5)
        whitened_BR = gae.whiten(advantages_BR, mask_BR) + gae.whiten(values_BR, mask_BR)
        return jnp.sum(jnp.square(whitened_BR + returns_BR + rewards_BR))

    inputs = (jnp.array([SCORE]), *(jnp.array([x]) for x in (LOGP, REF_LOGP, VALUES)))
    for grad in jax.grad(total, argnums=(0, 1, 2, 3))(*inputs):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


def test_whiten_against_numpy():
    rng = np.random.default_rng(3)
    x_BR = 40.0 + 3.0 * rng.normal(size=(5, 8))
    mask_BR = rng.uniform(size=(5, 8)) < 0.5
    dirty_BR = np.where(mask_BR, x_BR, np.nan)
    whitened_BR = np.asarray(gae.whiten(dirty_BR, mask_BR))
    kept = x_BR[mask_BR]
    expected = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    np.testing.assert_allclose(whitened_BR[mask_BR], expected, atol=1e-5)
    np.testing.assert_array_equal(whitened_BR[~mask_BR], 0.0)


def test_whiten_of_nothing_one_token_and_equal_tokens_is_zero():
    x_BR = jnp.array([[0.75, 0.75, 3.0]])
    for mask in ([0, 0, 0], [0, 0, 1], [1, 1, 0]):
        np.testing.assert_array_equal(gae.whiten(x_BR, jnp.array([mask])), np.zeros((1, 3)))


def test_explained_variance():
    returns_BR = jnp.array([[1.0, 2.0, 3.0, 99.0]])
    mask_BR = jnp.array([[1, 1, 1, 0]])
    assert gae.explained_variance(returns_BR + 5.0, returns_BR, mask_BR) == 1.0
    assert gae.explained_variance(jnp.zeros((1, 4)), returns_BR, mask_BR) == 0.0
    # R - V = 0.5, 1, 1.5: a quarter of the variance is left.
    np.testing.assert_allclose(
        gae.explained_variance(returns_BR / 2, returns_BR, mask_BR), 0.75, rtol=HAND_RTOL
    )
    assert gae.explained_variance(-returns_BR, returns_BR, mask_BR) == -3.0
    assert jnp.isnan(gae.explained_variance(returns_BR, jnp.ones((1, 4)), mask_BR))
