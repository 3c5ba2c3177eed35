"""The reward model: trunk kept, scores read at the last real token, pairs learnt."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import reward
from model import sharding
from model.config import TransformerConfig
from model.transformer import declare, forward, init
from train.step import init_state, make_step, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCORE_ATOL = 1e-5  # the same sums in another order
LOSS_RTOL = 1e-5

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="scalar",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)


def make_params(config, seed=4):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.3 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


def make_rows(num_pairs=5, seq_len=10, seed=0):
    """Pairs of conversations of any lengths, padded on the right."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_pairs):
        real_2L = (np.arange(seq_len) < rng.integers(3, seq_len + 1, (2, 1))).astype(np.int32)
        rows.append({"tokens": np.where(real_2L, rng.integers(1, 64, (2, seq_len)), 0)})
        rows[-1] |= {"real": real_2L, "weight": np.float32(1.0)}
    return rows


def stack(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


run_forward = jax.jit(forward, static_argnums=0)


def scores_alone(params, rows):
    """Each conversation by itself, unpadded: the value at its last token."""
    scores = []
    for row in rows:
        for tokens_L, real_L in zip(row["tokens"], row["real"], strict=True):
            # One shape for all, so that it compiles once: what follows cannot be seen.
            positions, ones = np.arange(len(tokens_L))[None], np.ones((1, len(tokens_L)), int)
            values_BL = run_forward(CONFIG, params, tokens_L[None], positions, ones)
            scores.append(float(values_BL[0, real_L.sum() - 1]))
    return np.array(scores).reshape(-1, 2)


def test_start_keeps_the_trunk_and_has_a_fresh_head():
    language = dataclasses.replace(CONFIG, head="untied")
    params = make_params(language)
    started = reward.start_from(language, params, jax.random.key(0))
    assert jax.tree.map(np.shape, started) == jax.tree.map(
        lambda declared: declared.shape,
        declare(reward.scalar_config(language)),
    )
    for name in ("embedding", "stack0", "norm"):
        jax.tree.map(np.testing.assert_array_equal, started[name], params[name])
    assert 0 < np.std(started["head"]) < 0.5  # 17^-0.5 is 0.24
    assert reward.scalar_config(language) == CONFIG


def test_the_fresh_head_is_that_of_a_fresh_model_and_made_alone(monkeypatch):
    """`init` is only traced: of what it declares, the program that runs makes the head."""
    language, rng = dataclasses.replace(CONFIG, head="tied"), jax.random.key(3)
    params, ran = make_params(language), []

    def watched(config, rng):
        ran.append(not isinstance(rng, jax.core.Tracer))
        return init(config, rng)

    monkeypatch.setattr(reward, "init", watched)
    started = reward.start_from(language, params, rng)
    assert ran == [False]
    np.testing.assert_array_equal(started["head"], init(CONFIG, rng)["head"])
    made = jax.jit(lambda rng: init(CONFIG, rng)["head"]).lower(rng).compile().memory_analysis()
    whole_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert made.temp_size_in_bytes + made.output_size_in_bytes < whole_bytes / 4


def test_positions_count_from_the_first_real_token():
    real_BL = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    # Padding on the right repeats the last position; it is seen by nothing.
    assert reward.positions_of(real_BL).tolist() == [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_score_is_the_value_at_the_last_real_token(side):
    params, rows = make_params(CONFIG), make_rows()
    expected = scores_alone(params, rows)
    tokens_BL, real_BL = (stack(rows)[name].reshape(10, 10) for name in ("tokens", "real"))
    if side == "left":
        shifts = 10 - real_BL.sum(-1)
        tokens_BL, real_BL = (
            np.stack([np.roll(x, by) for x, by in zip(rows_BL, shifts, strict=True)])
            for rows_BL in (tokens_BL, real_BL)
        )
        assert real_BL[:, -1].all()
    got = jax.jit(reward.score, static_argnums=0)(CONFIG, params, tokens_BL, real_BL)
    np.testing.assert_allclose(got.reshape(-1, 2), expected, atol=SCORE_ATOL)


@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_pair_loss_is_bradley_terry_of_the_scores(centering):
    params, rows = make_params(CONFIG), make_rows()
    params["head"] = params["head"] / 3  # so that some lose narrowly
    chosen, rejected = scores_alone(params, rows).astype(np.float64).T
    weights = np.float32([1, 0.5, 2, 0, 1])
    batch = stack(rows) | {"weight": weights}
    loss, weight, named, _ = jax.jit(reward.pair_loss(CONFIG, centering))(params, batch)
    per_pair = np.log1p(np.exp(rejected - chosen)) + centering * (chosen + rejected) ** 2
    np.testing.assert_allclose(loss, per_pair @ weights, LOSS_RTOL)
    assert weight == 4.5
    assert np.any((chosen < rejected) & (chosen > rejected - 1) & (weights > 0))
    assert named["accuracy"] == (chosen > rejected) @ weights and 0 < named["accuracy"] < 4.5
    np.testing.assert_allclose(
        named["margin"], (chosen - rejected) @ weights, LOSS_RTOL, SCORE_ATOL
    )


def test_swapped_pairs_have_the_opposite_margin():
    params, loss = make_params(CONFIG), jax.jit(reward.pair_loss(CONFIG, 0.0))
    batch = stack(make_rows())
    swapped = {name: array[:, ::-1] if array.ndim > 1 else array for name, array in batch.items()}
    one, other = loss(params, batch).named, loss(params, swapped).named
    np.testing.assert_allclose(one["margin"], -other["margin"], LOSS_RTOL, SCORE_ATOL)
    assert one["accuracy"] + other["accuracy"] == 5


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_accuracy_does_not_depend_on_the_batch_size(batch_size):
    params, rows = make_params(CONFIG), make_rows()
    chosen, rejected = scores_alone(params, rows).T
    hits = reward.accuracy(CONFIG, params, rows, batch_size)
    np.testing.assert_array_equal(hits, chosen > rejected)
    assert {0.0, 1.0} == set(hits.tolist())


def test_a_tie_is_half_a_hit():
    params = {**make_params(CONFIG), "head": np.zeros(16, np.float32)}
    assert reward.accuracy(CONFIG, params, make_rows(), 5).tolist() == [0.5] * 5


def test_pairs_are_learnt():
    """A word that only chosen answers hold; a few dozen steps rank every pair, seen or not."""
    rows = make_rows(num_pairs=16) + make_rows(num_pairs=8, seed=1)
    for row in rows:
        row["tokens"] = np.where(row["tokens"] == 40, 41, row["tokens"])
        row["tokens"][0, row["real"][0].sum() - 1] = 40
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    optimizer, params = optax.adam(0.01), make_params(CONFIG)
    before = reward.accuracy(CONFIG, params, rows[16:], 8).mean()
    shardings = state_shardings(optimizer, CONFIG, mesh)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # optax mixes them
        state = init_state(params, optimizer, shardings)
        step = make_step(reward.pair_loss(CONFIG, 0.01), optimizer, 2, shardings)
        batch, losses = jax.tree.map(jnp.asarray, stack(rows[:16])), []
        for _ in range(40):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.1 < losses[0] and metrics["accuracy"] == 1
    assert before < 0.9 < reward.accuracy(CONFIG, state.params, rows[16:], 8).mean()


def test_bad_centering_is_named():
    make = functools.partial(reward.RewardConfig, seq_len=8, pairs=None, loop=None, optimizer=None)
    with pytest.raises(ValueError, match="centering is -0.5; it must be 0 or more"):
        make(centering=-0.5)
