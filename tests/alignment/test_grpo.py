"""GRPO: advantages by hand, the KL term, iterations that learn, resume, and fit any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from alignment import grpo, losses, policy, rollout, score
from data.errors import BadInput
from data.quickstart.instruct import Example
from model import sharding
from tests.alignment.test_ppo import (
    LOOP,
    OPTIMIZER,
    POLICY,
    REFERENCE,
    ROLLOUT,
    SHAPE,
    Letters,
    iterate,
)
from tests.ranges import check_ranges
from train.checkpoint import params_hash

pytestmark = pytest.mark.usefixtures("quick_compilation")
RTOL, ATOL = 1e-4, 1e-4  # float32 sums in another order

CONFIG = grpo.GRPOConfig(
    loop=dataclasses.replace(LOOP, batch_size=8), optimizer=OPTIMIZER, rollout=ROLLOUT, group_size=4
)


def test_advantages_at_hand_computed_points():
    """Groups (1, 3), of mean 2 and deviation 1, and (5, 5), which says nothing."""
    mask_BR = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    got = grpo.advantages(np.float32([1, 3, 5, 5]), mask_BR, 2, scale=True)
    expected = np.array([[-1, -1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(got, expected, atol=2 * grpo.STD_FLOOR)
    got = grpo.advantages(np.float32([1, 3, 5, 9]), mask_BR, 2, scale=False)
    np.testing.assert_array_equal(got[:, 0], [-1, 1, -2, 2])
    one = grpo.advantages(np.float32([1, 3, 5, 9]), mask_BR, 4, scale=False)
    np.testing.assert_array_equal(one[:, 0], [-3.5, -1.5, 0.5, 4.5])


def test_the_kl_term_is_the_gradient_of_k3_and_no_part_of_the_reported_loss():
    rng = np.random.default_rng(0)
    mask_BR = (np.arange(5) < [[5], [3], [1], [5]]).astype(np.int32)
    tokens_BP, real_BP = rng.integers(8, 32, (4, 4)), np.ones((4, 4), np.int32)
    tokens_BR = rng.integers(8, 32, (4, 5)) * mask_BR
    sequences = rollout.join({"tokens": tokens_BP, "real": real_BP}, tokens_BR, mask_BR)
    logp_BR, ref_BR = policy.logprobs(ROLLOUT, SHAPE, POLICY, REFERENCE, sequences)
    part = policy.Experience(sequences, logp_BR, ref_BR, np.zeros_like(mask_BR, np.float32))
    loss = policy.policy_loss(ROLLOUT, SHAPE, dual_clip=float("inf"), kl_coef=0.3)

    def k3(params):
        now_BR = rollout.answer_logprobs(SHAPE, params, sequences, ROLLOUT.temperature)
        return 0.3 * (losses.kl_k3(now_BR, ref_BR) * mask_BR.astype(np.float32)).sum()

    assert float(loss(POLICY, part).loss) == 0.0
    got = jax.grad(lambda params: loss(params, part).objective)(POLICY)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(k3)(POLICY)), strict=True):
        np.testing.assert_allclose(a, b, RTOL, ATOL)


def ends(sequences, _):
    """A reward on the host: 1 for every answer that ends, and 0.1 more for a short one."""
    return np.float32(1 + 0.1 * (np.asarray(sequences.mask_BR).sum(-1) < 3))


def make_run(config, sizes=(1, 1, 1), seed=5):
    mesh = sharding.make_mesh(
        sharding.MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))),
        jax.devices()[: int(np.prod(sizes))],
    )

    def start():
        return grpo.start(config, SHAPE, POLICY, mesh)

    with jax.set_mesh(mesh):
        iteration = grpo.make_iteration(config, SHAPE, ends, REFERENCE, Letters(), seed, mesh)

    def of_eight(state, prompts):
        return iteration(state, {name: x[:8] for name, x in prompts.items()})

    return mesh, start, of_eight


@pytest.fixture(scope="module")
def run():
    return make_run(CONFIG)


@pytest.fixture(scope="module")
def three(run):
    return iterate(run, 3)


def test_iterations_are_deterministic_and_resumed_ones_the_same(run, three):
    state, measured = iterate(run, 2)
    state, last = iterate(run, 1, state, first=2)
    assert measured + last == three[1] and params_hash(state) == params_hash(three[0])
    assert int(state.step) == 3 * ROLLOUT.num_updates()


def test_metrics_are_of_all_answers(three):
    for metrics in three[1]:
        assert -1.25 <= metrics["reward"] <= 1.1 and 0 <= metrics["finished"] <= 1
        assert 0 <= metrics["even_groups"] < 1 and metrics["answer_tokens"] <= 5
    assert {"loss", "grad_norm", "clip_fraction", "entropy", "update_kl"} <= three[1][0].keys()


def test_a_learnable_reward_is_learnt(run):
    _, measured = iterate(run, LOOP.num_steps)
    rewards = [metrics["reward"] for metrics in measured]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.5, rewards


@pytest.mark.slow
def test_eight_devices_are_one(three):
    _, measured = iterate(make_run(CONFIG, (2, 2, 2)), 1)
    for name, value in three[1][0].items():
        np.testing.assert_allclose(measured[0][name], value, RTOL, ATOL, err_msg=name)


def test_a_function_scores_the_text_of_each_answer_by_its_example():
    class Words(Letters):
        id_to_text = staticmethod(lambda ids: " ".join(map(str, ids)))

    seen = []

    def reward(example, text):
        seen.append((example.id, text))
        return len(example.reference) + 0.5

    examples = [Example(f"e{i}", "kind", (), "x" * i, "exact", "") for i in range(3)]
    mask_BR = np.array([[1, 1, 0], [1, 0, 0]])
    sequences = rollout.join(
        {"tokens": np.full((2, 2), 9), "real": np.ones((2, 2), np.int32)},
        np.array([[10, 7, 0], [11, 0, 0]]),
        mask_BR,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score.chat, "read_answer", lambda _, ids: " ".join(map(str, ids)))
        found = score.by_function(reward, examples, Words())(sequences, np.array([2, 0]))
        assert found.tolist() == [2.5, 0.5] and found.dtype == np.float32
        assert seen == [("e2", "10 7"), ("e0", "11")]
        for value in (float("nan"), "x", "1", None, np.float32("inf"), [1, 2]):
            with pytest.raises(BadInput, match=r"reward.function .*lambda> gave .* for example e1"):
                score.by_function(lambda *_, v=value: v, examples, Words())(sequences, [1, 1])
        with pytest.raises(
            BadInput, match=r"failed for example e1: ZeroDivisionError: .*, line \d"
        ):
            score.by_function(lambda *_: 1 / 0, examples, Words())(sequences, [1, 1])
        assert score.by_function(lambda *_: True, examples, Words())(sequences, [1, 1])[0] == 1


def test_each_number_is_taken_in_its_range_alone():
    check_ranges(CONFIG, {"group_size": ((2,), (1, 0))})
    with pytest.raises(ValueError, match="num_minibatches is 2; .* must divide the 27 answers"):
        odd = dataclasses.replace(LOOP, batch_size=9, num_microbatches=1)
        dataclasses.replace(CONFIG, loop=odd, group_size=3)
