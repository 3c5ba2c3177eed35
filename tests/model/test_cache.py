"""`prefill` and `step`: rows that stand at different places, and prompts that come in between."""

import functools

import jax
import numpy as np
import pytest

from model.cache import empty_cache, insert
from model.config import MLAConfig
from model.decode import generate, prefill, step
from model.transformer import forward
from tests.model.test_decode import CONFIG, NEVER, make_params
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOGIT_ATOL = 1e-4  # the same sums in another order; logits are of the size of 10
NUM_SLOTS = 16
KINDS = {
    "full": CONFIG,
    "sliding with sinks": replace(CONFIG, layers=("sliding", "full"), window=3, sinks=True),
    "latent": replace(
        CONFIG, num_kv_heads=4, head_dim=12, qk_norm="none", mla=MLAConfig(16, 24, 4, 8)
    ),
    "learned positions": replace(CONFIG, positions="learned", max_positions=12),
    "unrolled": replace(CONFIG, scan_layers=False),
}

run_prefill = jax.jit(prefill, static_argnums=0)
run_step = jax.jit(step, static_argnums=0)
run_forward = jax.jit(forward, static_argnums=0)


def draw_rows(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(8, 64, length).astype(np.int32) for length in lengths]


def pad(rows, width, on_left=False):
    """Tokens and mask; padding is a word, so that a look at it would be seen."""
    tokens_BP, mask_BP = (
        np.full((len(rows), width), 33, np.int32),
        np.zeros((len(rows), width), int),
    )
    for b, row in enumerate(rows):
        at = slice(width - len(row), width) if on_left else slice(len(row))
        tokens_BP[b, at], mask_BP[b, at] = row, 1
    return tokens_BP, mask_BP


def full_logits(config, params, row):
    """What the trainer's forward says after each of a row's tokens."""
    ids = np.pad(row, (0, 12 - len(row)))[None]
    return np.asarray(run_forward(config, params, ids)[0, : len(row)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_left", [False, True])
def test_rows_at_different_indices_are_the_full_forward_of_each(kind, on_left):
    config, params = KINDS[kind], make_params(KINDS[kind])
    lengths, num_steps = [6, 3, 1, 5], 4
    rows = draw_rows([length + num_steps for length in lengths])
    prompts = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    cache = empty_cache(config, 4, NUM_SLOTS)
    logits_BV, cache = run_prefill(config, params, cache, *pad(prompts, 7, on_left))
    assert cache.index_B.tolist() == ([7] * 4 if on_left else lengths)
    expected = [full_logits(config, params, row) for row in rows]
    for number in range(num_steps + 1):
        at_B = [length + number - 1 for length in lengths]
        wanted_BV = np.stack([x[at] for x, at in zip(expected, at_B, strict=True)])
        np.testing.assert_allclose(logits_BV, wanted_BV, atol=LOGIT_ATOL)
        if number < num_steps:
            tokens_B = np.array([row[at + 1] for row, at in zip(rows, at_B, strict=True)])
            logits_BV, cache = run_step(config, params, cache, tokens_B)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_may_be_read_in_parts(kind):
    """Five tokens and none, then two and six: a row without new ones stays as it is."""
    config, params = KINDS[kind], make_params(KINDS[kind])
    first, second = draw_rows([7, 6])
    cache = empty_cache(config, 2, NUM_SLOTS)
    _, cache = run_prefill(config, params, cache, *pad([first[:5], second[:0]], 6))
    logits_BV, cache = run_prefill(config, params, cache, *pad([first[5:], second], 6))
    assert cache.index_B.tolist() == [7, 6]
    for row, logits_V in zip((first, second), logits_BV, strict=True):
        np.testing.assert_allclose(logits_V, full_logits(config, params, row)[-1], atol=LOGIT_ATOL)


def test_a_prompt_put_into_a_row_leaves_the_others_bit_for_bit():
    params, rows = make_params(CONFIG), draw_rows([6, 3, 1, 5])
    cache = empty_cache(CONFIG, 4, NUM_SLOTS)
    _, before = run_prefill(CONFIG, params, cache, *pad(rows, 6))
    # The old row's later slots hold what no product forgives.
    spoilt = jax.tree.map(lambda x: x.at[:, 1, :, 3:].set(np.nan), before.layers)
    (new,) = draw_rows([4], seed=9)
    small = empty_cache(CONFIG, 1, 5)
    logits_BV, small = run_prefill(CONFIG, params, small, *pad([new], 5, on_left=True))
    after = jax.jit(insert)(before._replace(layers=spoilt), 1, small)
    others = np.array([0, 2, 3])
    for old, now in zip(jax.tree.leaves(before.layers), jax.tree.leaves(after.layers), strict=True):
        np.testing.assert_array_equal(old[:, others], now[:, others])
    expected = full_logits(CONFIG, params, np.append(new, [20, 21]))
    np.testing.assert_allclose(logits_BV[0], expected[3], atol=LOGIT_ATOL)
    for number in range(2):
        tokens_B = np.full(4, 20 + number)
        kept_BV, before = run_step(CONFIG, params, before, tokens_B)
        logits_BV, after = run_step(CONFIG, params, after, tokens_B)
        np.testing.assert_array_equal(logits_BV[others], kept_BV[others])
        np.testing.assert_allclose(logits_BV[1], expected[4 + number], atol=LOGIT_ATOL)
    assert after.index_B.tolist() == [8, 7, 3, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_is_prefill_and_steps(kind):
    config, params = KINDS[kind], make_params(KINDS[kind])
    prompts, num_new = pad(draw_rows([6, 3, 1, 5]), 6, on_left=True), 5
    options = dict(max_new_tokens=num_new, temperature=0.0, end_id=NEVER, pad_id=0)
    out = generate(config, params, *prompts, jax.random.key(0), **options)
    cache = empty_cache(config, 4, 6 + num_new)
    logits_BV, cache = run_prefill(config, params, cache, *prompts)
    for number in range(num_new):
        tokens_B = np.asarray(logits_BV).argmax(-1)
        np.testing.assert_array_equal(out.tokens_BR[:, number], tokens_B)
        logits_BV, cache = run_step(config, params, cache, tokens_B)


def test_new_temperatures_and_cuts_compile_nothing():
    params, prompts = make_params(CONFIG), pad(draw_rows([4, 2]), 4, on_left=True)
    sample = functools.partial(generate, CONFIG, params, *prompts, jax.random.key(0))
    options = dict(max_new_tokens=4, end_id=NEVER, pad_id=0)
    greedy = sample(temperature=0.0, top_p=1.0, **options)
    before = generate._cache_size()
    drawn = [sample(temperature=t, top_p=p, **options) for t in (0.7, 3.0) for p in (0.9, 1.0)]
    assert generate._cache_size() == before
    assert any((x.tokens_BR != greedy.tokens_BR).any() for x in drawn)
    narrow = sample(temperature=3.0, top_p=1e-6, **options)
    np.testing.assert_array_equal(narrow.tokens_BR, greedy.tokens_BR)
    assert generate._cache_size() == before
