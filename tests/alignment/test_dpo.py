"""DPO: log 2 at the start, answer tokens alone, and a reference that stays where it was."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import dpo
from alignment.preference import Pair, pair_rows
from model import sharding
from model.config import TransformerConfig
from model.transformer import declare, forward
from tests.ranges import check_ranges
from train.step import init_state, make_step, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

START_ATOL = 2e-6  # log-ratios of the policy to itself, of answers of some -20 nats
LOGPROB_ATOL = 2e-5
GRAD_RTOL = 1e-4
GRAD_ATOL = 1e-6

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="tied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
DPO = dpo.DPOConfig(beta=0.5, kind="sigmoid", label_smoothing=0.0, loop=None, optimizer=None)
SEQ_LEN = 10


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.2 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(CONFIG))


def make_pairs(count=5):
    rng = np.random.default_rng(0)

    def words(low, high):
        return tuple(rng.integers(8, 64, rng.integers(low, high)).tolist())

    return [Pair(words(2, 5), (*words(1, 5), 7), (*words(1, 5), 7), 1.0) for _ in range(count)]


PAIRS = make_pairs()
ROWS, _ = pair_rows(PAIRS, SEQ_LEN, pad_id=0)
run_forward = jax.jit(forward, static_argnums=0)


def logprob_alone(params, prompt, answer):
    """log p(answer | prompt), token by token, in float64."""
    ids = np.zeros(SEQ_LEN, int)  # of one length for all; what follows cannot be seen
    ids[: len(prompt) + len(answer)] = prompt + answer
    ones, positions = np.ones((1, SEQ_LEN), int), np.arange(SEQ_LEN)[None]
    logits = np.asarray(run_forward(CONFIG, params, ids[None], positions, ones)[0], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logp[len(prompt) + i - 1, token] for i, token in enumerate(answer))


def logprobs_alone(params):
    return np.array(
        [
            [logprob_alone(params, pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
            for pair in PAIRS
        ]
    )


def stack(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def batch():
    return stack(dpo.with_reference(CONFIG, make_params(), ROWS, 5))


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grad(config, params, batch):
    def loss(params):
        sums = dpo.dpo_loss(CONFIG, config)(params, batch)
        return sums.objective, (sums.weight, sums.named)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_reference_logprobs_are_of_the_answers_alone(batch_size):
    rows = dpo.with_reference(CONFIG, make_params(), ROWS, batch_size)
    got = np.stack([row["reference"] for row in rows])
    np.testing.assert_allclose(got, logprobs_alone(make_params()), atol=LOGPROB_ATOL)
    for row, before in zip(rows, ROWS, strict=True):
        assert all(row[name] is before[name] for name in before)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_at_the_start_is_log_2(batch, smoothing):
    config = dataclasses.replace(DPO, label_smoothing=smoothing)
    (loss, (weight, named)), grads = loss_and_grad(config, make_params(), batch)
    assert weight == 5
    np.testing.assert_allclose(loss / weight, np.log(2), atol=START_ATOL)
    np.testing.assert_allclose(named["margin"], 0.0, atol=START_ATOL * 10)
    np.testing.assert_allclose(
        named["chosen_logprob"], logprobs_alone(make_params())[:, 0].sum(), atol=LOGPROB_ATOL * 5
    )
    assert optax.tree.norm(grads) > 0.1  # where it starts is no optimum


def test_ipo_at_the_start_is_the_square_of_its_target(batch):
    config = dataclasses.replace(DPO, kind="ipo")
    (loss, _), _ = loss_and_grad(config, make_params(), batch)
    np.testing.assert_allclose(loss / 5, (1 / (2 * 0.5)) ** 2, rtol=1e-5)


def test_loss_and_gradient_are_the_papers(batch):
    """Rafailov et al. 2023: -beta sigmoid(-margin) (grad log p(chosen) - grad log p(rejected))."""
    params, reference = make_params(3), logprobs_alone(make_params())
    (loss, (_, named)), grads = loss_and_grad(DPO, params, batch)
    delta = (logprobs_alone(params) - reference) @ np.float32([1, -1])
    np.testing.assert_allclose(loss, np.log1p(np.exp(-0.5 * delta)).sum(), GRAD_RTOL)
    np.testing.assert_allclose(named["margin"], 0.5 * delta.sum(), GRAD_RTOL)
    assert named["accuracy"] == np.float32((delta > 0).sum()) and 0 < named["accuracy"] < 5
    pull_B = np.float32(-0.5 / (1 + np.exp(0.5 * delta)))

    @jax.grad
    def by_hand(params):
        flat = (batch[key].reshape(10, SEQ_LEN) for key in ("tokens", "real", "answer"))
        logprob_B2 = dpo.answer_logprob(CONFIG, params, *flat).reshape(5, 2)
        return jnp.sum(pull_B * (logprob_B2[:, 0] - logprob_B2[:, 1]))

    for got, wanted in zip(
        jax.tree.leaves(grads), jax.tree.leaves(jax.jit(by_hand)(params)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, GRAD_RTOL, GRAD_ATOL)


def test_pairs_without_weight_count_for_nothing_and_ties_are_not_won(batch):
    params = make_params(3)
    alone, _ = loss_and_grad(DPO, params, jax.tree.map(lambda x: x[:4], batch))
    weighed, _ = loss_and_grad(DPO, params, batch | {"weight": np.float32([1, 1, 1, 1, 0])})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, GRAD_RTOL), weighed, alone)
    tied = {name: x.copy() for name, x in batch.items()}
    for name in ("tokens", "real", "answer"):
        tied[name][:, 1] = tied[name][:, 0]
    tied["reference"][:, 1] = tied["reference"][:, 0]
    (_, (_, named)), _ = loss_and_grad(DPO, params, tied)
    assert named["margin"] == 0 and named["accuracy"] == 0


def test_prompts_are_read_but_not_learnt(batch):
    """Another prompt changes the answer's log-probability; its own tokens count for nothing."""
    flat = [batch[key].reshape(10, SEQ_LEN) for key in ("tokens", "real", "answer")]
    logprob = functools.partial(
        jax.jit(dpo.answer_logprob, static_argnums=0), CONFIG, make_params()
    )
    other = np.where((flat[1] == 1) & (flat[2] == 0), 9, flat[0])
    assert np.abs(logprob(other, *flat[1:]) - logprob(*flat)).min() > 1e-3
    prompts_only = logprob(*flat[:2], np.zeros_like(flat[2]))
    assert np.all(prompts_only == 0)


def test_training_widens_the_margin_and_leaves_the_reference_alone(batch):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    reference = jax.tree.map(jnp.asarray, make_params())
    optimizer = optax.adam(3e-3)
    shardings = state_shardings(optimizer, CONFIG, mesh)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # optax mixes them
        state = init_state(jax.tree.map(jnp.copy, reference), optimizer, shardings)
        step, measured = make_step(dpo.dpo_loss(CONFIG, DPO), optimizer, 1, shardings), []
        for _ in range(20):
            state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
            measured.append(jax.tree.map(float, metrics))
    np.testing.assert_allclose(measured[0]["loss"], np.log(2), atol=START_ATOL)
    assert measured[-1]["loss"] < 0.3 and measured[-1]["accuracy"] == 1
    assert measured[-1]["margin"] > measured[5]["margin"] > measured[0]["margin"]
    jax.tree.map(np.testing.assert_array_equal, reference, make_params())
    again = dpo.with_reference(CONFIG, reference, ROWS, 5)
    np.testing.assert_array_equal(stack(again)["reference"], batch["reference"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"kind": "hinge"}, "kind is 'hinge'; it must be one of"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0.5; it must be in \[0, 0.5\)"),
        ({"label_smoothing": 0.1, "kind": "ipo"}, "label_smoothing is 0.1; .* 0 unless kind"),
    ],
)
def test_bad_value_is_named(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(DPO, **changes)


def test_each_number_is_taken_in_its_range_alone():
    ranges = {"beta": ((1e-3,), (0.0, -0.1)), "label_smoothing": ((0.0, 0.49), (-0.1, 0.5))}
    check_ranges(DPO, ranges)
