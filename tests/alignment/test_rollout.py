"""Rollouts: prompts laid out, and what the sampler says is what the trainer says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import rollout
from data.quickstart.instruct import Example
from data.tokens import chat
from model.config import TransformerConfig
from model.decode import generate
from model.transformer import declare, forward

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOGPROB_ATOL = 2e-5  # sampler and trainer: the same sums in another order

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
CRITIC = dataclasses.replace(CONFIG, head="scalar")
NUM_PROMPT, NUM_NEW = 5, 6


class Letters:
    """Eight control tokens and the 256 bytes."""

    pad_id, bos_id, eos_id, unk_id, system_id, user_id, assistant_id, end_id = range(8)

    def encode_batch(self, texts):
        return [[8 + byte for byte in text.encode()] for text in texts]


def make_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, declared):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return np.float32(around + 0.3 * rng.normal(size=declared.shape))

    return jax.tree.map_with_path(draw, declare(config))


def make_prompts():
    """Four prompts of unequal lengths, padded on the left."""
    real_BP = (np.arange(NUM_PROMPT) >= [[0], [2], [4], [1]]).astype(np.int32)
    tokens_BP = np.random.default_rng(1).integers(8, 64, real_BP.shape) * real_BP
    return {"tokens": tokens_BP, "real": real_BP}


TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def rolled():
    """Answers of the policy, the second of them cut after three tokens, and their sequences."""
    prompts = make_prompts()
    answers = generate(
        CONFIG,
        make_params(CONFIG),
        prompts["tokens"],
        prompts["real"],
        jax.random.key(0),
        max_new_tokens=NUM_NEW,
        temperature=TEMPERATURE,
        end_id=64,  # never sampled
        pad_id=0,
    )
    kept_BR = np.arange(NUM_NEW) < np.array([[NUM_NEW], [3], [NUM_NEW], [NUM_NEW]])
    answers = jax.tree.map(lambda x: jnp.where(kept_BR, x, 0), answers)
    return answers, rollout.join(prompts, answers.tokens_BR, answers.mask_BR)


answer_values = jax.jit(rollout.answer_values, static_argnums=0)
run_forward = jax.jit(forward, static_argnums=0)


def before_each_answer_token(config, params, sequences):
    """What the head says there, row by row and without padding; one shape, for one compilation."""
    rows = []
    for tokens_L, real_L in zip(sequences.tokens_BL, sequences.real_BL, strict=True):
        ids = np.asarray(tokens_L)[np.asarray(real_L) == 1]
        first = int(np.asarray(real_L)[:NUM_PROMPT].sum()) - 1
        width = NUM_PROMPT + NUM_NEW
        padded = np.pad(ids, (0, width - len(ids)))[None]
        out = run_forward(config, params, padded, np.arange(width)[None], np.ones((1, width), int))
        rows.append(np.asarray(out[0, first : first + NUM_NEW]))
    return np.stack(rows)


def test_the_trainer_gives_the_samplers_logprobs(rolled):
    answers, sequences = rolled
    logp_BR = jax.jit(rollout.answer_logprobs, static_argnums=(0, 3))(
        CONFIG, make_params(CONFIG), sequences, TEMPERATURE
    )
    mask_BR = np.float32(answers.mask_BR)
    np.testing.assert_allclose(logp_BR * mask_BR, answers.logprobs_BR, atol=LOGPROB_ATOL)
    logits_BRV = before_each_answer_token(CONFIG, make_params(CONFIG), sequences) / TEMPERATURE
    plain_BRV = np.asarray(jax.nn.log_softmax(logits_BRV, -1))
    expected_BR = np.take_along_axis(plain_BRV, np.asarray(answers.tokens_BR)[..., None], -1)
    np.testing.assert_allclose(logp_BR * mask_BR, expected_BR[..., 0] * mask_BR, atol=LOGPROB_ATOL)


def test_values_are_of_the_state_before_each_token(rolled):
    _, sequences = rolled
    params = make_params(CRITIC, seed=4)
    values_BR = answer_values(CONFIG, params, sequences)
    expected_BR = before_each_answer_token(CRITIC, params, sequences)
    mask_BR = np.float32(sequences.mask_BR)
    np.testing.assert_allclose(values_BR * mask_BR, expected_BR * mask_BR, atol=LOGPROB_ATOL)
    assert np.std(expected_BR) > 0.1


def test_no_value_depends_on_the_token_it_judges(rolled):
    _, sequences = rolled
    params = make_params(CRITIC, seed=4)
    changed = sequences._replace(tokens_BL=sequences.tokens_BL.at[:, NUM_PROMPT + 2].set(50))
    once, again = (answer_values(CONFIG, params, x) for x in (sequences, changed))
    np.testing.assert_array_equal(once[:, :3], again[:, :3])
    assert np.abs(once - again)[0, 3:].min() > 0


def test_join_lays_answers_beside_prompts(rolled):
    answers, sequences = rolled
    prompts = make_prompts()
    np.testing.assert_array_equal(sequences.tokens_BL[:, :NUM_PROMPT], prompts["tokens"])
    np.testing.assert_array_equal(sequences.tokens_BL[:, NUM_PROMPT:], answers.tokens_BR)
    np.testing.assert_array_equal(sequences.real_BL[:, :NUM_PROMPT], prompts["real"])
    np.testing.assert_array_equal(sequences.real_BL[:, NUM_PROMPT:], answers.mask_BR)
    assert sequences.real_BL.dtype == jnp.int32


def make_example(question):
    return Example("x", "add", ({"role": "user", "content": question},), "2", "exact", "2")


def test_prompt_rows_by_hand():
    """BOS, user, the text, end, assistant; the second of three does not fit."""
    examples = [make_example(text) for text in ("ab", "much too long", "abc")]
    rows = rollout.prompt_rows(examples, Letters(), 8)
    assert [int(row["index"]) for row in rows] == [0, 2]
    assert rows[0]["tokens"].tolist() == [0, 0, 1, 5, 8 + 97, 8 + 98, 7, 6]
    assert rows[0]["real"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    expected = chat.render_prompt(Letters(), examples[2].messages)
    assert rows[1]["tokens"][1:].tolist() == expected.tolist() and rows[1]["real"].sum() == 7
    assert {row[name].dtype for row in rows for name in row} == {np.dtype(np.int32)}


def test_a_prompt_that_does_not_fit_is_left_out():
    assert rollout.prompt_rows([make_example("ab")], Letters(), 3) == []
