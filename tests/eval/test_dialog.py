"""Batched answers: order, shapes, and answers that do not depend on who shares the batch."""

import jax
import numpy as np
import pytest

from data.errors import BadInput
from data.quickstart.instruct import Example
from eval import dialog
from model import decode, transformer
from model.config import TransformerConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = TransformerConfig(
    vocab_size=264,
    num_layers=2,
    d_model=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    d_ff=48,
    head="untied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)


class Letters:
    """Eight control tokens and the 256 bytes."""

    pad_id, bos_id, eos_id, unk_id, system_id, user_id, assistant_id, end_id = range(8)

    def encode_batch(self, texts):
        return [[8 + byte for byte in text.encode()] for text in texts]

    def decode(self, ids):
        return bytes(i - 8 for i in ids if i >= 8).decode(errors="replace")


def ask(text):
    return ({"role": "user", "content": text},)


def answer(params, conversations, log=lambda line: None, **changes):
    settings = {
        "max_tokens": 128,
        "max_new_tokens": 8,
        "temperature": 0.0,
        "seed": 0,
        "batch_size": 4,
    }
    return dialog.respond(CONFIG, params, Letters(), conversations, **(settings | changes), log=log)


@pytest.fixture(scope="module")
def params():
    # Fresh weights attend evenly and answer every prompt alike; larger ones tell prompts apart.
    return jax.tree.map(lambda weight: 4 * weight, transformer.init(CONFIG, jax.random.key(0)))


@pytest.fixture
def echo(monkeypatch):
    """Replaces generation: each row answers its last 3 content bytes, then the end token."""
    shapes = []

    def generate(
        config,
        params,
        prompt_BP,
        prompt_mask_BP,
        rng,
        *,
        max_new_tokens,
        temperature,
        top_p,
        end_id,
        pad_id,
    ):
        shapes.append(prompt_BP.shape)
        assert (prompt_mask_BP[:, -1] == 1).all()
        assert (np.diff(prompt_mask_BP, axis=1) >= 0).all()  # padding is on the left alone
        assert ((prompt_BP != pad_id) == (prompt_mask_BP == 1)).all()
        B = len(prompt_BP)
        tokens = np.full((B, max_new_tokens), pad_id)
        # A prompt ends with content, the user's end token and the assistant token.
        tokens[:, :3] = prompt_BP[:, -5:-2]
        tokens[:, 3] = end_id
        mask = (np.arange(max_new_tokens) < 4)[None].repeat(B, 0)
        return decode.Generation(tokens, mask.astype(int), np.zeros((B, max_new_tokens)))

    monkeypatch.setattr(decode, "generate", generate)
    return shapes


def test_order_text_and_fixed_shapes(echo):
    rng = np.random.default_rng(0)
    texts = [f"{'x' * rng.integers(0, 100)}{i:03d}" for i in range(23)]
    lines = []
    responses = answer(None, [ask(text) for text in texts], log=lines.append)
    assert [response.text for response in responses] == [text[-3:] for text in texts]
    assert all(response.finished and len(response.tokens) == 4 for response in responses)
    assert set(echo) == {(4, 32), (4, 64), (4, 96), (4, 128)}
    assert lines[-1] == "23 of 23 answers"


def test_nothing_to_answer(echo):
    assert answer(None, []) == []


def test_a_prompt_that_fits_exactly_and_one_that_does_not(echo):
    around = 4  # BOS, user, end, assistant
    fits = "y" * (120 - around)
    assert answer(None, [ask(fits)])[0].text == "yyy"
    with pytest.raises(BadInput, match="conversation 1: its prompt has 121 tokens; at most 120"):
        answer(None, [ask("short"), ask(fits + "y")])


def test_greedy_answers_do_not_depend_on_the_batch(params):
    texts = [f"{'ab' * n} {n}?" for n in (1, 20, 7, 18, 3, 9, 11)]
    together = answer(params, [ask(text) for text in texts])
    assert len({response.tokens for response in together}) > 1
    assert answer(params, [ask(text) for text in texts], batch_size=3) == together
    for text, response in zip(texts, together, strict=True):
        assert answer(params, [ask(text)]) == [response]


def test_greedy_answers_are_the_arg_max_of_the_full_forward_pass(params):
    prompt = [1, 5, *(8 + byte for byte in b"hello"), 7, 6]
    (response,) = answer(params, [ask("hello")])
    tokens = np.array([prompt + list(response.tokens)])
    positions, segments = np.arange(tokens.size)[None], np.ones_like(tokens)
    forward = jax.jit(transformer.forward, static_argnums=0)
    logits = forward(CONFIG, params, tokens, positions, segments)
    wanted = np.argmax(logits[0, len(prompt) - 1 : -1], -1)
    assert response.tokens == tuple(wanted.tolist())
    assert response.finished == (response.tokens[-1] == Letters.end_id)


def test_sampling_follows_the_seed(params):
    conversations = [ask(f"question {n}") for n in range(6)]
    first = answer(params, conversations, temperature=1.0)
    assert first == answer(params, conversations, temperature=1.0)
    assert first != answer(params, conversations, temperature=1.0, seed=1)
    assert not all(response.finished for response in first)


def test_evaluate_adds_length_and_finish():
    examples = [Example(str(i), "add", ask("?"), "3", "exact", "3") for i in range(2)]
    responses = [dialog.Response("3", (59, 7), True), dialog.Response("3 3", (59, 40, 59), False)]
    table = dialog.evaluate(examples, responses)
    assert table["verifiable"]["mean"] == table["kinds"]["add"]["mean"] == 0.5
    assert table["finished"]["mean"] == 0.5
    assert table["response_tokens"]["mean"] == 2.5
