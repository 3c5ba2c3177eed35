"""Drawing a token: what top-p keeps, and rows with settings of their own in one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.sampling import draw

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_SIGMAS = 4.5  # of a multinomial count; a fixed seed, so that the test cannot flicker
PROBS_V = np.array([0.1, 0.4, 0.05, 0.3, 0.15])

jitted = jax.jit(draw)


def draw_many(probs_V, temperature, top_p, num_rows=2000):
    logits_BV = np.broadcast_to(np.log(probs_V).astype(np.float32), (num_rows, len(probs_V)))
    keys_B = jax.random.split(jax.random.key(0), num_rows)
    settings = (np.full(num_rows, x, np.float32) for x in (temperature, top_p))
    return [np.asarray(x) for x in jitted(keys_B, np.zeros(num_rows, int), logits_BV, *settings)]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-6, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 4]),
        (0.86, [0, 1, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    """In order of probability 0.4, 0.3, 0.15, 0.1, 0.05; their sums 0.4, 0.7, 0.85, 0.95, 1."""
    token_B, logprob_B = draw_many(PROBS_V, 1.0, top_p)
    assert sorted(set(token_B.tolist())) == kept
    probs_V = np.where(np.isin(np.arange(5), kept), PROBS_V, 0)
    probs_V /= probs_V.sum()
    np.testing.assert_allclose(logprob_B, np.log(probs_V[token_B]), atol=1e-5)
    counts_V = np.bincount(token_B, minlength=5)
    sigma_V = np.sqrt(len(token_B) * probs_V * (1 - probs_V))
    assert (np.abs(counts_V - len(token_B) * probs_V) <= NUM_SIGMAS * sigma_V).all()


def test_of_equal_tokens_no_more_are_kept_than_needed():
    token_B, _ = draw_many(np.full(4, 0.25), 1.0, 0.6)
    assert sorted(set(token_B.tolist())) == [0, 1, 2]
    token_B, _ = draw_many(np.array([0.2, 0.4, 0.2, 0.2]), 1.0, 0.5)
    assert sorted(set(token_B.tolist())) == [0, 1]


def test_top_p_cuts_after_the_temperature():
    """At temperature 1/2 probabilities go with their squares: 0.16 of 0.285, then 0.09."""
    token_B, _ = draw_many(PROBS_V, 0.5, 0.6)
    assert sorted(set(token_B.tolist())) == [1, 3]
    token_B, _ = draw_many(PROBS_V, 0.5, 0.55)
    assert set(token_B.tolist()) == {1}


def test_each_row_has_a_temperature_and_a_top_p_of_its_own():
    """What a row draws is what it draws in a batch of its like."""
    logits_BV = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    keys_B = jax.random.split(jax.random.key(3), 6)
    temperature_B = np.array([0.0, 1.0, 0.7, 1.0, 0.0, 2.0], np.float32)
    top_p_B = np.array([1.0, 1.0, 0.5, 0.9, 0.2, 1.0], np.float32)
    mixed = jitted(keys_B, np.arange(6), logits_BV, temperature_B, top_p_B)
    mixed = [np.asarray(x) for x in mixed]
    for b in range(6):
        same = (np.full(6, x[b]) for x in (temperature_B, top_p_B))
        alone = jitted(keys_B, np.arange(6), logits_BV, *same)
        assert mixed[0][b] == alone[0][b]
        np.testing.assert_allclose(mixed[1][b], alone[1][b], atol=1e-6)
    np.testing.assert_array_equal(mixed[0][[0, 4]], logits_BV[[0, 4]].argmax(-1))
    plain = jax.nn.log_softmax(jnp.asarray(logits_BV), -1)
    np.testing.assert_allclose(mixed[1][4], plain[4, mixed[0][4]], atol=1e-6)


def test_without_a_cut_it_is_jaxs_categorical():
    logits_BV = np.random.default_rng(1).normal(size=(64, 50)).astype(np.float32)
    keys_B = jax.random.split(jax.random.key(3), 64)
    folded_B = jax.vmap(jax.random.fold_in)(keys_B, jnp.arange(64))
    expected_B = jax.vmap(jax.random.categorical)(folded_B, logits_BV / np.float32(0.8))
    settings = (np.full(64, 0.8, np.float32), np.ones(64, np.float32))
    token_B, _ = jitted(keys_B, np.arange(64), logits_BV, *settings)
    np.testing.assert_array_equal(token_B, expected_B)
