"""Cached generation against the full forward pass, and rows that do not disturb each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import MLAConfig, TransformerConfig
from model.decode import generate
from model.loss import token_logprobs
from model.transformer import declare, forward
from tests.tiny import replace

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOGPROB_ATOL = 2e-5  # sampler and trainer: the same sums in another order
NUM_SIGMAS = 4.5  # of a multinomial count; a fixed seed, so that the test cannot flicker
PAD, NEVER = 0, 64  # an end token outside the vocabulary

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="untied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
LENGTHS_B = np.array([6, 3, 1, 5])
NUM_PROMPT, NUM_NEW = 6, 10


def make_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.4 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


PARAMS = make_params(CONFIG)


def make_prompts(seed=0, width=NUM_PROMPT):
    """Prompts of unequal lengths, padded on the left to `width`."""
    rng = np.random.default_rng(seed)
    real_BP = (np.arange(NUM_PROMPT) >= NUM_PROMPT - LENGTHS_B[:, None]).astype(np.int32)
    tokens_BP = np.where(real_BP, rng.integers(8, 64, real_BP.shape), PAD)
    return [np.pad(x, ((0, 0), (width - NUM_PROMPT, 0))) for x in (tokens_BP, real_BP)]


def sample(prompts, *, temperature, seed=0, end_id=NEVER, config=CONFIG, params=PARAMS):
    out = generate(
        config,
        params,
        *prompts,
        jax.random.key(seed),
        max_new_tokens=NUM_NEW,
        temperature=temperature,
        end_id=end_id,
        pad_id=PAD,
    )
    return jax.tree.map(np.asarray, out)


full_forward = jax.jit(functools.partial(forward, CONFIG))


def logits_before_each_new_token(prompts, tokens_BR, full_forward=full_forward, params=PARAMS):
    """The trainer's logits, one row at a time and without any padding."""
    rows = []
    for prompt, real, answer in zip(*prompts, tokens_BR, strict=True):
        ids = np.concatenate([prompt[real == 1], answer])[None]
        logits = full_forward(params, ids, np.arange(ids.shape[1])[None], np.ones_like(ids))
        rows.append(logits[0, -NUM_NEW - 1 : -1])
    return np.stack(rows)


def test_greedy_decoding_is_the_argmax_of_the_full_forward_at_every_step():
    prompts = make_prompts()
    out = sample(prompts, temperature=0.0)
    logits_BRV = logits_before_each_new_token(prompts, out.tokens_BR)
    np.testing.assert_array_equal(out.tokens_BR, logits_BRV.argmax(-1))
    assert out.mask_BR.all() and len(np.unique(out.tokens_BR)) > NUM_NEW
    expected = token_logprobs(logits_BRV, out.tokens_BR, 0.0)
    np.testing.assert_allclose(out.logprobs_BR, expected, atol=LOGPROB_ATOL)


def test_a_cache_of_latents_decodes_as_the_full_forward():
    """Latent attention multiplies in another order where it has a cache."""
    mla = MLAConfig(16, 24, 4, 8)
    config = dataclasses.replace(CONFIG, num_kv_heads=4, head_dim=12, qk_norm="none", mla=mla)
    params, prompts = make_params(config), [x[:1] for x in make_prompts()]
    out = sample(prompts, temperature=0.0, config=config, params=params)
    full = functools.partial(forward, config)
    logits_BRV = logits_before_each_new_token(prompts, out.tokens_BR, full, params)
    np.testing.assert_array_equal(out.tokens_BR, logits_BRV.argmax(-1))
    expected = token_logprobs(logits_BRV, out.tokens_BR, 0.0)
    np.testing.assert_allclose(out.logprobs_BR, expected, atol=LOGPROB_ATOL)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_trainers(temperature):
    prompts = make_prompts()
    out = sample(prompts, temperature=temperature)
    logits_BRV = logits_before_each_new_token(prompts, out.tokens_BR)
    expected = token_logprobs(logits_BRV, out.tokens_BR, temperature)
    np.testing.assert_allclose(out.logprobs_BR, expected, atol=LOGPROB_ATOL)
    assert (out.tokens_BR != logits_BRV.argmax(-1)).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_more_padding_changes_nothing(temperature):
    out = sample(make_prompts(), temperature=temperature)
    padded = sample(make_prompts(width=NUM_PROMPT + 3), temperature=temperature)
    np.testing.assert_array_equal(padded.tokens_BR, out.tokens_BR)
    np.testing.assert_allclose(padded.logprobs_BR, out.logprobs_BR, atol=LOGPROB_ATOL)


def test_padding_tokens_are_not_read():
    tokens_BP, real_BP = make_prompts()
    scribbled = np.where(real_BP, tokens_BP, 33)
    expected = sample((tokens_BP, real_BP), temperature=1.0)
    np.testing.assert_array_equal(
        sample((scribbled, real_BP), temperature=1.0).tokens_BR, expected.tokens_BR
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch_mates(temperature):
    tokens_BP, real_BP = make_prompts()
    others_BP = make_prompts(seed=5)[0]
    mixed_BP = others_BP.copy()
    mixed_BP[1] = tokens_BP[1]
    expected = sample((tokens_BP, real_BP), temperature=temperature)
    mixed = sample((mixed_BP, real_BP), temperature=temperature)
    for got, wanted in zip(mixed, expected, strict=True):
        np.testing.assert_allclose(got[1], wanted[1], atol=LOGPROB_ATOL)
    assert (mixed.tokens_BR[[0, 2, 3]] != expected.tokens_BR[[0, 2, 3]]).any()


def test_equal_prompts_draw_from_streams_of_their_own():
    tokens_BP, real_BP = (np.repeat(x[:1], 4, axis=0) for x in make_prompts())
    out = sample((tokens_BP, real_BP), temperature=1.0)
    assert len(np.unique(out.tokens_BR, axis=0)) == 4
    again = sample((tokens_BP, real_BP), temperature=1.0)
    np.testing.assert_array_equal(again.tokens_BR, out.tokens_BR)
    other = sample((tokens_BP, real_BP), temperature=1.0, seed=1)
    assert (other.tokens_BR != out.tokens_BR).any()


def test_the_end_token_stops_its_row_alone():
    """The token that the first row says third is made the end token."""
    prompts = make_prompts()
    free = sample(prompts, temperature=1.0)
    end_id = int(free.tokens_BR[0, 2])
    assert end_id not in free.tokens_BR[0, :2]
    out = sample(prompts, temperature=1.0, end_id=end_id)
    for b, tokens_R in enumerate(free.tokens_BR):
        hits = np.flatnonzero(tokens_R == end_id)
        length = hits[0] + 1 if len(hits) else NUM_NEW
        written = np.arange(NUM_NEW) < length
        np.testing.assert_array_equal(out.mask_BR[b], written)
        np.testing.assert_array_equal(out.tokens_BR[b], np.where(written, tokens_R, PAD))
        np.testing.assert_allclose(
            out.logprobs_BR[b], np.where(written, free.logprobs_BR[b], 0), atol=LOGPROB_ATOL
        )


def test_all_rows_may_stop_early():
    """A head of zeros says word 0, here the end token, with a probability of 1 in 64."""
    params = {**PARAMS, "head": np.zeros_like(PARAMS["head"])}
    out = sample(make_prompts(), temperature=0.0, end_id=0, params=params)
    assert out.mask_BR.tolist() == [[1] + [0] * (NUM_NEW - 1)] * 4
    assert (out.tokens_BR == 0).all() and (out.logprobs_BR[:, 1:] == 0).all()
    np.testing.assert_allclose(out.logprobs_BR[:, 0], -np.log(64), atol=LOGPROB_ATOL)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_tempered_distribution(temperature):
    """One prompt 4,000 times: how often each word comes first."""
    num_rows = 4000
    prompt = np.tile([[9, 30, 12]], (num_rows, 1))
    out = generate(
        CONFIG,
        PARAMS,
        prompt,
        np.ones_like(prompt),
        jax.random.key(1),
        max_new_tokens=1,
        temperature=temperature,
        end_id=NEVER,
        pad_id=PAD,
    )
    logits_V = full_forward(PARAMS, prompt[:1], np.arange(3)[None], np.ones((1, 3), int))[0, -1]
    probs_V = np.asarray(jax.nn.softmax(logits_V / temperature))
    counts_V = np.bincount(out.tokens_BR[:, 0], minlength=64)
    sigma_V = np.sqrt(num_rows * probs_V * (1 - probs_V)) + 1
    assert (np.abs(counts_V - num_rows * probs_V) < NUM_SIGMAS * sigma_V).all()
    assert probs_V.max() < 0.9


@pytest.mark.parametrize(
    "changes", [{"scan_layers": False}, {"remat": "full"}, {"dtype": "bfloat16"}]
)
def test_other_settings_decode_too(changes):
    """Unrolled layers and remat change nothing; bfloat16 may choose another word."""
    expected = sample(make_prompts(), temperature=0.0)
    config = replace(CONFIG, **changes)
    out = sample(make_prompts(), temperature=0.0, config=config)
    if "dtype" in changes:
        assert (out.tokens_BR[:, 0] == expected.tokens_BR[:, 0]).mean() >= 0.75
        assert out.logprobs_BR.dtype == jnp.float32
    else:
        np.testing.assert_array_equal(out.tokens_BR, expected.tokens_BR)


def test_new_prompts_and_parameters_of_the_same_shape_compile_nothing():
    sample(make_prompts(), temperature=1.0)
    before = generate._cache_size()
    sample(make_prompts(seed=1), temperature=1.0, seed=3, params=make_params(CONFIG, seed=1))
    assert generate._cache_size() == before


def test_a_row_ends_where_learned_positions_do():
    """Ten positions: the last one that can be fed holds the token before the last drawn."""
    config = dataclasses.replace(CONFIG, positions="learned", max_positions=10)
    params = make_params(config)
    out = sample(make_prompts(), temperature=0.0, config=config, params=params)
    np.testing.assert_array_equal(out.mask_BR.sum(1), np.minimum(NUM_NEW, 11 - LENGTHS_B))
    assert np.isfinite(out.logprobs_BR).all()
    short = dataclasses.replace(config, max_positions=4)
    out = sample(make_prompts(), temperature=0.0, config=short, params=make_params(short))
    np.testing.assert_array_equal(out.mask_BR.sum(1), [0, 2, 4, 0])
