"""Losses of reward model, DPO and PPO: hand-worked numbers, closed forms, TRL's numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import losses

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT_RTOL = 1e-6  # float32 rounding of a handful of operations
ORACLE_RTOL = 5e-6  # two frameworks, sums of up to six tokens taken in another order
LOOP_RTOL = 1e-5  # float32 ratios of up to e^5 against float64
GRAD_ATOL = 1e-6

# Eight answers, four chosen then four rejected, and their first LENGTHS tokens' log-probabilities.
LENGTHS = np.array([6, 3, 1, 4, 2, 6, 5, 3])
LOGP_BL = np.array(
    [
        [-5.14, -2.24, -5.43, -0.7, -1.54, -2.25],
        [-2.85, -1.83, -2.31, -2.14, -4.44, -1.42],
        [-0.07, -2.66, -6.65, -0.41, -4.53, -4.37],
        [-0.76, -0.19, -3.81, -3.75, -0.65, -0.42],
        [-1.09, -1.16, -0.33, -1.41, -0.76, -2.22],
        [-1.63, -2.28, -0.97, -1.24, -0.82, -0.28],
        [-0.32, -2.34, -2.8, -1.84, -2.24, -0.93],
        [-1.3, -1.74, -0.57, -3.12, -2.34, -0.37],
    ],
    np.float32,
)
REF_LOGP_BL = np.array(
    [
        [-4.55, -2.33, -5.97, -0.17, -1.74, -1.64],
        [-2.75, -1.34, -2.13, -1.79, -4.43, -0.53],
        [-0.01, -2.46, -5.71, -1.08, -5.17, -3.89],
        [-1.35, 0.78, -4.02, -4.12, 0.31, 0.32],
        [-0.16, -0.71, -0.76, -0.45, -0.89, -1.82],
        [-1.16, -2.36, -0.66, -0.78, -0.63, -0.83],
        [-0.17, -1.68, -3.15, -1.91, -2.46, -0.01],
        [-0.96, -1.54, -0.95, -2.85, -2.68, -0.35],
    ],
    np.float32,
)
MASK_BL = (np.arange(6) < LENGTHS[:, None]).astype(np.uint8)

# What TRL 1.16.0 (torch 2.13.0, CPU, float32) makes of them: `DPOTrainer._compute_loss` run on a
# stand-in model that returns these log-probabilities, one pair a call so that its mean is the pair;
# gradients by torch's autograd to each chosen token. Label smoothing 0.2 is its loss type 'aot',
# which for a batch of one pair is cDPO. Its 'ipo' is the per-token form; the sums are
# `CPOTrainer.cpo_loss`, 'ipo', given the log-ratios to the reference.
TRL_BETA = 0.3
TRL_MARGIN = [0.143999547, 0.00900049508, 0.0330000222, 0.107999906]
TRL_DPO = {
    "sigmoid": (
        [0.623737156, 0.688657045, 0.676783264, 0.640604556],
        [-0.139218668, -0.149324973, -0.147525221, -0.141907886],
    ),
    "smoothed": (
        [0.652537107, 0.690457165, 0.683383286, 0.662204564],
        [-0.0792186757, -0.089324971, -0.0875252113, -0.0819078833],
    ),
    "ipo per token": (
        [1.2693783, 3.2040987, 2.86512041, 2.44401121],
        [-0.375555634, -1.19333299, -3.3853333, -0.781666696],
    ),
    "ipo sums": (
        [1.40817713, 2.67867641, 2.42321157, 1.70737774],
        [-2.37333279, -3.2733325, -3.11333363, -2.6133333],
    ),
}

# TRL 1.16.0's `RewardTrainer.compute_loss` in the same way, one pair a call: the loss, and its
# gradients to the chosen and to the rejected score.
SCORES_B = np.array([[1.25, -0.5, 3.0, 40.0, -60.0], [0.5, 0.75, 3.0, -45.0, 55.0]], np.float32)
MARGIN_B = np.array([0.0, 0.25, 1.0, 2.0, 0.5], np.float32)
TRL_BRADLEY_TERRY = {
    "plain": (
        [0.38687101, 1.50192904, 0.693147182, 0.0, 115.0],
        [-0.320821285, -0.777299941, -0.5, 0.0, -1.0],
        [0.320821285, 0.777299941, 0.5, 0.0, 1.0],
    ),
    "margin": (
        [0.38687101, 1.70141327, 1.31326175, 0.0, 115.5],
        [-0.320821285, -0.817574501, -0.731058657, 0.0, -1.0],
        [0.320821285, 0.817574501, 0.731058657, 0.0, 1.0],
    ),
    "margin, centred": (
        [0.417495996, 1.70203829, 1.67326176, 0.25, 115.75],
        [-0.285821289, -0.812574506, -0.611058652, -0.099999994, -1.10000002],
        [0.355821282, 0.822574496, 0.851058662, -0.099999994, 0.900000036],
    ),
}


@pytest.mark.parametrize(
    ("name", "margin", "centering"),
    [("plain", 0, 0.0), ("margin", MARGIN_B, 0.0), ("margin, centred", MARGIN_B, 0.01)],
)
def test_bradley_terry_equals_trl(name, margin, centering):
    def loss_sum(chosen_B, rejected_B):
        return jnp.sum(losses.bradley_terry(chosen_B, rejected_B, margin, centering))

    loss_B = losses.bradley_terry(*SCORES_B, margin, centering)
    grads = jax.grad(loss_sum, argnums=(0, 1))(*SCORES_B)
    for ours, theirs in zip((loss_B, *grads), TRL_BRADLEY_TERRY[name], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=ORACLE_RTOL, atol=GRAD_ATOL)


def test_bradley_terry_margin_asks_for_more_and_huge_differences_stay_finite():
    at_margin_B = losses.bradley_terry(jnp.array([2.0]), jnp.array([0.5]), jnp.array([1.5]), 0.0)
    np.testing.assert_allclose(at_margin_B, [math.log(2)], rtol=EXACT_RTOL)
    value, grad = jax.value_and_grad(lambda r: losses.bradley_terry(r, jnp.zeros(1), 0, 0.0)[0])(
        jnp.array([-1e15])
    )
    assert value == np.float32(1e15)
    assert grad[0] == -1.0


EOS = 2  # and padding


def test_last_token_value_when_padding_is_eos():
    tokens_BL = np.array([[5, 7, EOS, EOS, EOS], [5, EOS, 8, 9, EOS], [EOS, EOS, 4, 6, EOS]])
    mask_BL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], np.uint8)
    values_BL = 10.0 * np.arange(3)[:, None] + np.arange(5)
    value_B = losses.last_token_value(values_BL, mask_BL)
    np.testing.assert_array_equal(value_B, [2.0, 14.0, 23.0])
    before_padding_B = np.argmax(tokens_BL == EOS, axis=1) - 1  # what looking for the id would read
    assert not np.any(before_padding_B == np.array([2, 4, 3]))


def test_last_token_value_of_an_empty_row_is_zero_even_beside_nan():
    values_BL = jnp.array([[jnp.nan, jnp.nan], [jnp.nan, 3.5], [4.5, jnp.nan]])
    mask_BL = jnp.array([[0, 0], [0, 1], [1, 0]])
    value_B = losses.last_token_value(values_BL, mask_BL)
    np.testing.assert_array_equal(value_B, [0.0, 3.5, 4.5])
    grad_BL = jax.grad(lambda v: jnp.sum(losses.last_token_value(v, mask_BL)))(values_BL)
    np.testing.assert_array_equal(grad_BL, [[0, 0], [0, 1], [1, 0]])


def test_is_last_token_skips_holes():
    mask_BL = np.array([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        losses.is_last_token(mask_BL), np.array([[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 5], bool)
    )


def test_sequence_logprob_counts_only_the_answer():
    logp_BL = jnp.array([[jnp.nan, -1.0, -2.5], [-0.5, -jnp.inf, jnp.nan]])
    mask_BL = jnp.array([[0, 1, 1], [1, 0, 0]], jnp.uint8)
    np.testing.assert_allclose(losses.sequence_logprob(logp_BL, mask_BL), [-3.5, -0.5])


def dpo_of_tokens(logp_BL, kind, label_smoothing, per_token):
    num_tokens_B = np.float32(LENGTHS if per_token else np.ones(8))
    policy_B = losses.sequence_logprob(logp_BL, MASK_BL) / num_tokens_B
    ref_B = losses.sequence_logprob(REF_LOGP_BL, MASK_BL) / num_tokens_B
    pairs = (policy_B[:4], policy_B[4:], ref_B[:4], ref_B[4:])
    return losses.dpo(*pairs, beta=TRL_BETA, label_smoothing=label_smoothing, kind=kind)


@pytest.mark.parametrize(
    ("name", "kind", "smoothing", "per_token"),
    [
        ("sigmoid", "sigmoid", 0.0, False),
        ("smoothed", "sigmoid", 0.2, False),
        ("ipo per token", "ipo", 0.0, True),
        ("ipo sums", "ipo", 0.0, False),
    ],
)
def test_dpo_equals_trl(name, kind, smoothing, per_token):
    loss_B, margin_B = dpo_of_tokens(LOGP_BL, kind, smoothing, per_token)
    expected_loss_B, expected_grad_B = TRL_DPO[name]
    np.testing.assert_allclose(loss_B, expected_loss_B, rtol=ORACLE_RTOL)
    if not per_token:
        np.testing.assert_allclose(margin_B, TRL_MARGIN, rtol=ORACLE_RTOL, atol=GRAD_ATOL)
    grad_BL = jax.grad(lambda lp: jnp.sum(dpo_of_tokens(lp, kind, smoothing, per_token)[0]))(
        LOGP_BL
    )
    np.testing.assert_allclose(
        grad_BL[:4], np.array(expected_grad_B)[:, None] * MASK_BL[:4], rtol=ORACLE_RTOL
    )


def dpo_at_start(smoothing, kind="sigmoid", beta=0.1):
    logp_B = losses.sequence_logprob(LOGP_BL, MASK_BL)

    def loss_sum(policy_B, ref_B):
        pairs = (policy_B[:4], policy_B[4:], ref_B[:4], ref_B[4:])
        loss_B, margin_B = losses.dpo(*pairs, beta=beta, label_smoothing=smoothing, kind=kind)
        return jnp.sum(loss_B), (loss_B, margin_B)

    return jax.grad(loss_sum, argnums=(0, 1), has_aux=True)(logp_B, logp_B)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_dpo_starts_at_log_2_with_no_margin(smoothing):
    (policy_grad_B, ref_grad_B), (loss_B, margin_B) = dpo_at_start(smoothing)
    np.testing.assert_allclose(loss_B, [math.log(2)] * 4, rtol=EXACT_RTOL)
    np.testing.assert_array_equal(margin_B, np.zeros(4))
    slope = -0.1 * (0.5 - smoothing)  # beta (s - 1/2), and so zero for labels that say nothing
    np.testing.assert_allclose(policy_grad_B, [slope] * 4 + [-slope] * 4, atol=1e-8)
    np.testing.assert_array_equal(ref_grad_B, np.zeros(8))


def test_ipo_is_zero_where_the_ratio_is_half_over_beta():
    zeros_B = jnp.zeros(2)
    loss_B, margin_B = losses.dpo(
        jnp.array([5.0, 0.0]), zeros_B, zeros_B, zeros_B, beta=0.1, label_smoothing=0.0, kind="ipo"
    )
    np.testing.assert_allclose(loss_B, [0.0, 25.0], atol=1e-10)  # (0 - 1 / 0.2)^2
    np.testing.assert_allclose(margin_B, [0.5, 0.0])


@pytest.mark.parametrize(
    ("kind", "smoothing", "message"),
    [("hinge", 0.0, "'hinge'.*'sigmoid', 'ipo'"), ("ipo", 0.1, r"label_smoothing is 0\.1.*be 0")],
)
def test_dpo_refuses(kind, smoothing, message):
    with pytest.raises(ValueError, match=message):
        dpo_at_start(smoothing, kind)


THETA_V = jnp.array([0.3, -1.2, 0.8, 0.0, 2.0])
REF_LOGP_V = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.7, 0.4, 0.9]))


def categorical_expectation(estimator):
    """Exact mean over samples of the policy: of the estimate, and of its gradient as a loss."""
    probs_V = jax.nn.softmax(THETA_V)

    def expected(theta_V):
        return jnp.sum(probs_V * estimator(jax.nn.log_softmax(theta_V), REF_LOGP_V))

    return jax.value_and_grad(expected)(THETA_V)


def categorical_truth():
    """KL(policy || ref), its gradient to the policy's logits, and that of KL(ref || policy)."""
    logits_V = np.asarray(THETA_V, np.float64)
    probs_V = np.exp(logits_V) / np.exp(logits_V).sum()
    ref_V = np.exp(np.asarray(REF_LOGP_V, np.float64))
    x_V = np.log(probs_V / ref_V)
    kl = np.sum(probs_V * x_V)
    return kl, probs_V * (x_V - kl), probs_V - ref_V


def test_kl_estimators_against_the_closed_form():
    kl, reverse_grad_V, forward_grad_V = categorical_truth()
    k1, k1_grad_V = categorical_expectation(losses.kl_k1)
    k2, k2_grad_V = categorical_expectation(losses.kl_k2)
    k3, k3_grad_V = categorical_expectation(losses.kl_k3)
    np.testing.assert_allclose([k1, k3], [kl, kl], rtol=EXACT_RTOL)
    assert abs(k2 - kl) > 0.02 * kl  # biased; only its gradient is right
    np.testing.assert_allclose(k1_grad_V, np.zeros(5), atol=GRAD_ATOL)
    np.testing.assert_allclose(k2_grad_V, reverse_grad_V, atol=GRAD_ATOL)
    np.testing.assert_allclose(k3_grad_V, forward_grad_V, atol=GRAD_ATOL)
    assert np.abs(forward_grad_V - reverse_grad_V).max() > 0.1


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    _, reverse_grad_V, _ = categorical_truth()
    cost_V = losses.kl_k1(jax.nn.log_softmax(THETA_V), REF_LOGP_V)
    grad_V = jax.grad(lambda t: jnp.sum(jax.nn.softmax(THETA_V) * cost_V * jax.nn.log_softmax(t)))(
        THETA_V
    )
    np.testing.assert_allclose(grad_V, reverse_grad_V, atol=GRAD_ATOL)


def test_kl_values_and_guards():
    x = jnp.array([0.5, -0.5, 50.0, -50.0])
    zero = jnp.zeros(4)
    np.testing.assert_allclose(losses.kl_k1(x, zero), x)
    np.testing.assert_allclose(losses.kl_k2(x, zero), [0.125, 0.125, 1250.0, 1250.0])
    guarded = [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, math.exp(-10) + 9, math.exp(10) - 11]
    np.testing.assert_allclose(losses.kl_k3(x, zero), guarded, rtol=EXACT_RTOL)
    grad = jax.grad(lambda x: jnp.sum(losses.kl_k3(x, zero)))(x)
    np.testing.assert_allclose(grad, [1 - math.exp(-0.5), 1 - math.exp(0.5), 0, 0], rtol=EXACT_RTOL)
    assert losses.kl_k3(jnp.bfloat16(-1.0), jnp.bfloat16(-1.5)).dtype == jnp.float32


# rho, A, loss, whether a bound sets it; clip_low 0.2, clip_high 0.3, dual_clip 3.
CLIP_TABLE = np.array(
    [
        [0.5, 2.0, -1.0, 0],  # good token grown rarer: -2 * 0.5, pushed back up
        [1.0, 2.0, -2.0, 0],
        [1.25, 2.0, -2.5, 0],  # inside the higher upper clip
        [1.5, 2.0, -2.6, 1],  # -2 * 1.3
        [9.0, 2.0, -2.6, 1],
        [0.5, -2.0, 1.6, 1],  # bad token already rarer: 2 * 0.8
        [0.9, -2.0, 1.8, 0],
        [1.0, -2.0, 2.0, 0],
        [1.5, -2.0, 3.0, 0],  # bad token grown likelier: 2 * 1.5, no upper clip
        [9.0, -2.0, 6.0, 1],  # but the dual clip: 2 * 3
        [9.0, 0.0, 0.0, 0],
    ],
    np.float32,
)


def test_ppo_clip_on_both_signs():
    rho, advantage, expected, bounded = CLIP_TABLE.T
    old_logp = np.full_like(rho, -1.5)
    bounds = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}

    def loss_of(logp, old_logp, advantage):
        return losses.ppo_policy_loss(logp, old_logp, advantage, **bounds)

    loss, clipped = loss_of(old_logp + np.log(rho), old_logp, advantage)
    np.testing.assert_allclose(loss, expected, rtol=EXACT_RTOL)
    np.testing.assert_array_equal(clipped, bounded)
    grads = jax.grad(lambda *a: jnp.sum(loss_of(*a)[0]), argnums=(0, 1, 2))(
        old_logp + np.log(rho), old_logp, advantage
    )
    np.testing.assert_allclose(grads[0], -advantage * rho * (1 - bounded), rtol=EXACT_RTOL)
    np.testing.assert_array_equal(grads[1:], np.zeros((2, len(rho))))


def test_ppo_policy_loss_survives_absurd_ratios_and_no_dual_clip():
    bounds = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": math.inf}
    logp = jnp.array([-1.0, -900.0, -1.0, -900.0, -1.0])
    old_logp = jnp.array([-900.0, -1.0, -900.0, -1.0, -900.0])
    advantage = jnp.array([1.0, 1.0, -1.0, -1.0, 0.0])
    loss, _ = losses.ppo_policy_loss(logp, old_logp, advantage, **bounds)
    np.testing.assert_allclose(
        loss, [-1.2, -math.exp(-10), math.exp(10), 0.8, 0.0], rtol=EXACT_RTOL
    )
    grad = jax.grad(
        lambda lp: jnp.sum(losses.ppo_policy_loss(lp, old_logp, advantage, **bounds)[0])
    )(logp)
    np.testing.assert_array_equal(grad, np.zeros(5))


def test_ppo_losses_against_a_loop():
    rng = np.random.default_rng(0)
    logp, old_logp, advantage, value, old_value, target = rng.normal(size=(6, 5, 7))
    policy_BR, _ = losses.ppo_policy_loss(
        logp, old_logp, advantage, clip_low=0.2, clip_high=0.28, dual_clip=2.0
    )
    value_BR = losses.ppo_value_loss(value, old_value, target, clip=0.2)
    for at in np.ndindex(5, 7):
        ratio = math.exp(logp[at] - old_logp[at])
        gain = min(ratio * advantage[at], min(max(ratio, 0.8), 1.28) * advantage[at])
        gain = gain if advantage[at] >= 0 else max(gain, 2.0 * advantage[at])
        np.testing.assert_allclose(policy_BR[at], -gain, rtol=LOOP_RTOL)
        near = min(max(value[at], old_value[at] - 0.2), old_value[at] + 0.2)
        worse = max((value[at] - target[at]) ** 2, (near - target[at]) ** 2)
        np.testing.assert_allclose(value_BR[at], worse / 2, rtol=LOOP_RTOL, atol=GRAD_ATOL)


def test_ppo_value_loss_by_hand():
    # V_old 1, clip 0.2. Moved past the clip towards R 2: charged as at 1.2, no gradient. Moved past
    # it away from R 0: charged in full. Within it: plain.
    values = jnp.array([1.5, 1.5, 1.1])
    returns = jnp.array([2.0, 0.0, 2.0])
    old = jnp.ones(3)
    np.testing.assert_allclose(
        losses.ppo_value_loss(values, old, returns, clip=0.2), [0.32, 1.125, 0.405], rtol=EXACT_RTOL
    )
    np.testing.assert_allclose(
        losses.ppo_value_loss(values, old, returns, clip=math.inf), [0.125, 1.125, 0.405], rtol=1e-6
    )
    grads = jax.grad(lambda *a: jnp.sum(losses.ppo_value_loss(*a, clip=0.2)), argnums=(0, 1, 2))(
        values, old, returns
    )
    np.testing.assert_allclose(grads[0], [0.0, 1.5, -0.9], rtol=EXACT_RTOL)
    np.testing.assert_array_equal(grads[1:], np.zeros((2, 3)))


def test_entropy_in_closed_form():
    uniform_BRV = jnp.zeros((1, 1, 7))
    np.testing.assert_allclose(losses.entropy(uniform_BRV, 0.7), [[math.log(7)]], rtol=EXACT_RTOL)
    forbidden_BRV = jnp.array([[[1.0, 1.0, -jnp.inf, 1.0, -jnp.inf]]])
    entropy, grad = jax.value_and_grad(lambda z: losses.entropy(z, 1.0)[0, 0])(forbidden_BRV)
    np.testing.assert_allclose(entropy, math.log(3), rtol=EXACT_RTOL)
    np.testing.assert_allclose(grad, np.zeros((1, 1, 5)), atol=GRAD_ATOL)
    logits_V = np.array([0.5, -1.0, 2.0])
    probs_V = np.exp(logits_V / 0.7) / np.exp(logits_V / 0.7).sum()
    truth = -np.sum(probs_V * np.log(probs_V))
    entropy, grad = jax.value_and_grad(lambda z: losses.entropy(z, 0.7)[0, 0])(
        jnp.asarray(logits_V)[None, None]
    )
    np.testing.assert_allclose(entropy, truth, rtol=EXACT_RTOL)
    np.testing.assert_allclose(
        grad[0, 0], -probs_V * (np.log(probs_V) + truth) / 0.7, rtol=ORACLE_RTOL
    )


def test_entropy_of_16_bit_logits_is_taken_in_float32():
    logits_BRV = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 64)), jnp.bfloat16)
    entropy_BR = losses.entropy(logits_BRV, 0.7)
    assert entropy_BR.dtype == jnp.float32
    wanted_BR = losses.entropy(logits_BRV.astype(jnp.float32), 0.7)
    np.testing.assert_allclose(entropy_BR, wanted_BR, rtol=EXACT_RTOL)
