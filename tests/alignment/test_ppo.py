"""PPO: one rollout measured against numpy, and iterations that learn, repeat and resume."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import policy, ppo, rollout, score
from model import sharding
from model.config import TransformerConfig
from model.decode import generate
from model.transformer import declare, forward
from tests.ranges import check_ranges
from train.checkpoint import Checkpointer, params_hash
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEASURE_RTOL = 2e-4  # float32 through two layers, then sums of advantages, against float64
MEASURE_ATOL = 2e-4
MESH_RTOL = 1e-4  # float32 sums in another order, whitened
MESH_ATOL = 1e-4

SHAPE = TransformerConfig(
    vocab_size=32,
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="tied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
SCALAR = dataclasses.replace(SHAPE, head="scalar")
LOOP = LoopConfig(
    num_steps=12,
    batch_size=16,
    num_microbatches=2,
    log_every=1,
    save_every=1,
    eval_every=12,
    keep_checkpoints=1,
)
OPTIMIZER = OptimizerConfig(
    schedule="wsd",
    peak_lr=0.01,
    warmup_steps=0,
    decay_fraction=0.0,
    final_lr_fraction=1.0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip_norm=1.0,
)
ROLLOUT = policy.RolloutConfig(
    max_prompt_tokens=4,
    max_new_tokens=5,
    temperature=0.8,
    kl_coef=0.05,
    clip_low=0.2,
    clip_high=0.3,
    num_epochs=2,
    num_minibatches=2,
    missing_eos_score=-1.25,
)
CONFIG = ppo.PPOConfig(
    rollout=ROLLOUT,
    gamma=0.97,
    gae_lambda=0.9,
    dual_clip=3.0,
    value_clip=0.5,
    loop=LOOP,
    optimizer=OPTIMIZER,
    critic_optimizer=OPTIMIZER,
)


class Letters:
    pad_id, assistant_id, end_id = 0, 6, 7


def make_params(config, seed):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.2 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


def make_prompts(seed=0, rows=16):
    rng = np.random.default_rng(seed)
    real_BP = (np.arange(4) >= rng.integers(0, 4, (rows, 1))).astype(np.int32)
    tokens_BP = rng.integers(8, 32, (rows, 4)) * real_BP
    return {"tokens": tokens_BP, "real": real_BP, "index": np.arange(rows)}


POLICY, CRITIC, REFERENCE, REWARD = (
    make_params(config, seed) for seed, config in enumerate((SHAPE, SCALAR, SHAPE, SCALAR), 4)
)


# ------------------------------------------------------------ one rollout, measured


SCORE = score.by_model(SHAPE, REWARD, 0.15, 0.4)
measure_scored = jax.jit(ppo.measure, static_argnums=(0, 1))


def measure(config, shape, params, critic, sequences, finished_B):
    score_B = SCORE(sequences, None)
    return measure_scored(config, shape, REFERENCE, params, critic, sequences, finished_B, score_B)


FINISHED_B = np.array([False, True, True, True])


@pytest.fixture(scope="module")
def rolled():
    """Four prompts of unequal lengths; answers of 5, 3, 1 and 5 tokens, the first unfinished."""
    prompts, rng = make_prompts(rows=4), np.random.default_rng(9)
    mask_BR = (np.arange(5) < [[5], [3], [1], [5]]).astype(np.int32)
    tokens_BR = rng.integers(8, 32, (4, 5)) * mask_BR
    tokens_BR[[1, 2, 3], [2, 0, 4]] = Letters.end_id
    sequences = rollout.Sequences(*map(np.asarray, rollout.join(prompts, tokens_BR, mask_BR)))
    measured = measure(CONFIG, SHAPE, POLICY, CRITIC, sequences, FINISHED_B)
    return sequences, *jax.tree.map(np.asarray, measured)


run_forward = jax.jit(forward, static_argnums=0)


def outputs(config, params, tokens):
    """The head's output over an unpadded sequence, in float64; padded to one shape to compile."""
    ids = np.pad(tokens, (0, 9 - len(tokens)))[None]
    out = run_forward(config, params, ids, np.arange(9)[None], np.ones((1, 9), int))
    return np.asarray(out[0, : len(tokens)], np.float64)


def measure_one(tokens, prompt_length, finished):
    """One answer in numpy and loops: log-probabilities, values, rewards, advantages, returns."""
    answer, steps = tokens[prompt_length:], range(len(tokens) - prompt_length)

    def logprobs(params):
        logits = outputs(SHAPE, params, tokens) / ROLLOUT.temperature
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.array([logp[prompt_length - 1 + t, answer[t]] for t in steps])

    score = (outputs(SCALAR, REWARD, tokens)[-1] - 0.15) / 0.4 if finished else -1.25
    logp, ref_logp = logprobs(POLICY), logprobs(REFERENCE)
    values = outputs(SCALAR, CRITIC, tokens)[prompt_length - 1 : -1]
    rewards = -ROLLOUT.kl_coef * (logp - ref_logp)
    rewards[-1] += score
    advantages = np.zeros(len(answer))
    for t in steps:  # the definition: discounted sum of temporal differences
        for later in range(t, len(answer)):
            next_value = values[later + 1] if later + 1 < len(answer) else 0.0
            delta = rewards[later] + CONFIG.gamma * next_value - values[later]
            advantages[t] += (CONFIG.gamma * CONFIG.gae_lambda) ** (later - t) * delta
    return score, logp, ref_logp, values, advantages, advantages + values


@pytest.fixture(scope="module")
def by_hand(rolled):
    sequences = rolled[0]
    rows = []
    for b, tokens_L in enumerate(sequences.tokens_BL):
        tokens = tokens_L[sequences.real_BL[b] == 1]
        rows.append(measure_one(tokens, sequences.real_BL[b, :4].sum(), finished=b > 0))
    return list(zip(*rows, strict=True))


def assert_rows(got_BR, expected_rows, mask_BR):
    for got_R, expected, mask_R in zip(got_BR, expected_rows, mask_BR, strict=True):
        np.testing.assert_allclose(got_R[mask_R == 1], expected, MEASURE_RTOL, MEASURE_ATOL)


def test_measure_is_the_numpy_one(rolled, by_hand):
    sequences, experience, _ = rolled
    _, logps, _, values, advantages, returns = by_hand
    mask_BR = sequences.mask_BR
    assert_rows(experience.policy.old_logp_BR, logps, mask_BR)
    assert_rows(experience.old_values_BR, values, mask_BR)
    assert_rows(experience.returns_BR, returns, mask_BR)
    flat = np.concatenate(advantages)
    white = [(row - flat.mean()) / flat.std() for row in advantages]
    assert_rows(experience.policy.advantages_BR, white, mask_BR)
    assert np.all(experience.policy.advantages_BR[mask_BR == 0] == 0)


def test_metrics_are_the_numpy_ones(rolled, by_hand):
    _, _, metrics = rolled
    scores, logps, ref_logps, values, _, returns = by_hand
    ratios = [logp - ref for logp, ref in zip(logps, ref_logps, strict=True)]
    values, returns = np.concatenate(values), np.concatenate(returns)
    expected = {
        "reward": np.mean(scores),
        "kl": sum(ratio.sum() for ratio in ratios) / 4,
        "kl_k3": sum((np.exp(-ratio) - 1 + ratio).sum() for ratio in ratios) / 4,
        "answer_tokens": (5 + 3 + 1 + 5) / 4,
        "finished": 0.75,
        "explained_variance": 1 - np.var(returns - values) / np.var(returns),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, MEASURE_RTOL, MEASURE_ATOL, err_msg=name)
    assert scores[0] == -1.25 and len({round(score, 3) for score in scores}) == 4
    assert any(score % 1 for score in scores[1:])  # fractions count


def test_measure_does_not_depend_on_the_mesh(rolled):
    sequences, *expected = rolled
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = sharding.weight_shardings(declare(SHAPE), mesh)
    with jax.set_mesh(mesh):
        spread = jax.device_put(sequences, sharding.batch_sharding(mesh))
        placed = jax.device_put(POLICY, shardings)
        measured = measure(CONFIG, SHAPE, placed, CRITIC, spread, FINISHED_B)
    assert len(measured[0].policy.advantages_BR.sharding.device_set) == 8
    for got, wanted in zip(jax.tree.leaves(measured), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, MESH_RTOL, MESH_ATOL)


@pytest.fixture(scope="module")
def policy_grad():
    loss = policy.policy_loss(ROLLOUT, SHAPE, dual_clip=CONFIG.dual_clip)

    def sums(params, part):
        sums = loss(params, part)
        return sums.objective, (sums.weight, sums.named)

    return jax.jit(jax.value_and_grad(sums, has_aux=True))


def test_the_first_ratio_is_exactly_one(rolled, policy_grad):
    (loss, (weight, named)), _ = policy_grad(POLICY, rolled[1].policy)
    assert named["update_kl"] == 0 and named["clip_fraction"] == 0 and weight == 14
    np.testing.assert_allclose(loss, 0.0, atol=MESH_ATOL)  # whitened advantages sum to 0
    assert 0.5 * 14 < named["entropy"] < np.log(32) * 14


def test_the_first_gradient_is_the_policy_gradient(rolled, policy_grad):
    """-A grad log p, summed over the answers' tokens."""
    sequences, experience, _ = rolled

    @jax.jit
    @jax.grad
    def by_hand(params):
        logp_BR = rollout.answer_logprobs(SHAPE, params, sequences, ROLLOUT.temperature)
        return -jnp.sum(logp_BR * experience.policy.advantages_BR * np.float32(sequences.mask_BR))

    _, grads = policy_grad(POLICY, experience.policy)
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(by_hand(POLICY)), strict=True):
        np.testing.assert_allclose(got, wanted, MESH_RTOL, MESH_ATOL)


def test_another_policy_is_clipped(rolled, policy_grad):
    _, (_, named) = policy_grad(REFERENCE, rolled[1].policy)[0]
    assert named["update_kl"] > 0 and 0 < named["clip_fraction"] < 14


# ------------------------------------------------------------ iterations


def make_run(config, sizes=(1, 1, 1), seed=5):
    """(mesh, start, iteration)."""
    mesh = sharding.make_mesh(
        sharding.MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))),
        jax.devices()[: int(np.prod(sizes))],
    )
    with jax.set_mesh(mesh):
        start = functools.partial(ppo.start, config, SHAPE, POLICY, CRITIC, mesh)
        iteration = ppo.make_iteration(config, SHAPE, SCORE, REFERENCE, Letters(), seed, mesh)
    return mesh, start, iteration


def iterate(run, count, state=None, first=0):
    mesh, start, iteration = run
    measured = []
    with jax.set_mesh(mesh):
        state = state or start()
        for step in range(first, first + count):
            prompts = jax.device_put(make_prompts(step), sharding.batch_sharding(mesh))
            state, metrics = iteration(state, prompts)
            measured.append(jax.tree.map(float, metrics))
    return state, measured


@pytest.fixture(scope="module")
def run():
    return make_run(CONFIG)


@pytest.fixture(scope="module")
def three(run):
    return iterate(run, 3)


def test_iterations_are_deterministic(run, three):
    state, measured = iterate(run, 3)
    assert measured == three[1]
    assert params_hash(state) == params_hash(three[0])
    assert len({metrics["reward"] for metrics in measured}) == 3


def test_a_resumed_run_is_the_uninterrupted_one(run, three, tmp_path):
    state, _ = iterate(run, 2)
    rest = {"step": state.step, "opt_state": state.opt_state}
    first = Checkpointer(tmp_path / "run", {}, {}, 1)
    first.save(2, state.params, rest, {})
    iterate(run, 1, state, first=2)  # donates what is being saved
    first.close()
    fresh = run[1]()
    second = Checkpointer(tmp_path / "run", {}, {}, 1)
    _, params, rest, _ = second.restore(
        fresh.params, {"step": fresh.step, "opt_state": fresh.opt_state}
    )
    second.close()
    state, measured = iterate(run, 1, type(fresh)(rest["step"], params, rest["opt_state"]), first=2)
    assert params_hash(state) == params_hash(three[0]) and measured == three[1][2:]


def test_policy_and_critic_have_states_of_their_own(run, three):
    before, after = run[1](), three[0]
    assert int(after.step) == 3
    assert int(after.opt_state["policy"]["step"]) == 3 * 4  # epochs times minibatches
    assert int(after.opt_state["critic"]["step"]) == 3 * 4
    for old, new in (
        (before.params, after.params),
        (before.opt_state["critic"]["trainable"], after.opt_state["critic"]["trainable"]),
    ):
        assert params_hash(old) != params_hash(new)
    assert "head" in after.opt_state["critic"]["trainable"] and "head" not in after.params
    assert params_hash(before.params) == params_hash(POLICY)
    assert params_hash(before.opt_state["critic"]["trainable"]) == params_hash(CRITIC)
    moments = jax.tree.map(jnp.shape, after.opt_state["critic"]["opt_state"][1][0].mu)
    assert moments == jax.tree.map(jnp.shape, CRITIC)


def test_nothing_compiles_after_the_first_iteration(run, three):
    before = generate._cache_size()
    iterate(run, 2)
    assert generate._cache_size() == before


def test_every_answer_is_learnt_from_once_an_epoch():
    experience = policy.Experience(*[np.arange(16)] * 4)
    parts = list(policy.minibatches(ROLLOUT, 16, experience, jax.random.key(0)))
    rows = [part.old_logp_BR.tolist() for part in parts]
    assert [len(row) for row in rows] == [8] * 4
    for epoch in (rows[:2], rows[2:]):
        assert sorted(sum(epoch, [])) == list(range(16))
    assert rows[0] != rows[2]


def test_a_learnable_reward_is_learnt(run):
    """To end at all is worth some 2.5 points more than not to."""
    _, measured = iterate(run, LOOP.num_steps)
    rewards, finished = ([metrics[name] for metrics in measured] for name in ("reward", "finished"))
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.5, rewards
    assert np.mean(finished[-3:]) > np.mean(finished[:3]) + 0.3, finished


@pytest.mark.slow
def test_eight_devices_are_one(three):
    state, measured = iterate(make_run(CONFIG, (2, 2, 2)), 1)
    for name, value in three[1][0].items():
        np.testing.assert_allclose(measured[0][name], value, MESH_RTOL, MESH_ATOL, err_msg=name)
    assert state.params["embedding"].sharding.device_set == set(jax.devices())


RANGES = {
    "gamma": ((0.0, 1.0), (-0.1, 1.1)),
    "gae_lambda": ((0.0, 1.0), (-0.1, 1.1)),
    "dual_clip": ((1.01, math.inf), (1.0,)),
    "value_clip": ((0.01, math.inf), (0.0,)),
}
ROLLOUT_RANGES = {
    "max_prompt_tokens": ((1,), (0,)),
    "max_new_tokens": ((1,), (0,)),
    "temperature": ((0.01,), (0.0, -1.0)),
    "kl_coef": ((0.0,), (-0.1,)),
    "clip_low": ((0.01, 0.99), (0.0, 1.0)),
    "clip_high": ((0.01, 1.5), (0.0,)),
    "num_epochs": ((1,), (0,)),
    "num_minibatches": ((1,), (0,)),
}


def test_each_number_is_taken_in_its_range_alone():
    check_ranges(CONFIG, RANGES)
    check_ranges(ROLLOUT, ROLLOUT_RANGES)


def test_microbatches_must_divide_a_minibatch():
    for count in (3, 16):
        words = f"rollout.num_minibatches is {count}; .*num_microbatches = 2"
        with pytest.raises(ValueError, match=words):
            cut = dataclasses.replace(ROLLOUT, num_minibatches=count)
            dataclasses.replace(CONFIG, rollout=cut)
