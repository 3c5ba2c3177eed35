"""Special tokens laid out as the families that we import have them: nothing is read off an id.

The tokenizers are trained and saved by the tokenizers and sentencepiece libraries. Texts hold the
very characters whose ids are 0, 1 and the padding's. Expected values come from the numpy decoder,
one document or conversation at a time, without padding or packing.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alignment import dpo, reward, rollout, sft
from alignment.preference import PreferenceConfig, make_pairs, pair_rows
from data.mixture.loader import lm_batch
from data.quickstart.instruct import Example
from data.tokens import chat
from data.tokens.shards import pack_documents
from data.tokens.tokenizer import load_for_training
from eval.dialog import Response, respond
from eval.text import bits_per_byte
from tests.model import test_transformer
from tests.model.test_transformer import make_params, numpy_forward
from tests.tiny import replace
from train.lm import lm_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

RTOL = 2e-5
SEQ_LEN = 48
CONTROL = ("<|sys|>", "<|usr|>", "<|ast|>", "<|stop|>")
DOCUMENTS = ['"Wait!" she said. "!"', "!!", '"no" or "yes"', "a plain text, with no marks at all"]
# Family: (special tokens at the start of the vocabulary, at its end, roles). The byte-level
# vocabularies without a first group give '!' the id 0 and '"' the id 1.
END, BEGIN, PAD, TURN = "<|endoftext|>", "<|begin|>", "<|pad|>", "<|im_end|>"
BYTE_LEVEL = {
    "gpt2": ([], [END], {"bos_token": END, "eos_token": END}),
    "llama3": ([], [BEGIN, END], {"bos_token": BEGIN, "eos_token": END}),
    "qwen2": ([], [END, TURN], {"bos_token": None, "eos_token": TURN, "pad_token": END}),
    "qwen2-base": ([], [END], {"bos_token": None, "eos_token": END, "pad_token": END}),
    "olmo2": ([], [END, PAD], {"bos_token": None, "eos_token": END, "pad_token": PAD}),
    "gpt-oss": ([], [BEGIN, END, PAD], {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}),
    "deepseek_v3": ([BEGIN, END], [], {"bos_token": BEGIN, "eos_token": END, "pad_token": END}),
    "neox": ([END, PAD], [], {"bos_token": END, "eos_token": END, "pad_token": PAD}),
}
# Family: ids of (unk, bos, eos, pad) in the SentencePiece model; -1 for none.
PIECES = {"llama2": (0, 1, 2, -1), "gemma": (3, 2, 1, 0), "t5-like": (2, -1, 1, 0)}
# Those that chat by a template, in which the marks of turns are their own special tokens.
TEMPLATE = (
    "{{ bos_token if bos_token is defined }}{% for message in messages %}"
    "{{ '<|' + message.role[:3] + '|>' + message.content + '<|stop|>\n' }}"
    "{% endfor %}{{ '<|ass|>' if add_generation_prompt }}"
)
MARKS = ["<|use|>", "<|ass|>", "<|stop|>"]
FAMILIES = [*BYTE_LEVEL, *PIECES, "gpt2, template", "qwen2, template", "llama2, template"]


def write_byte_level(folder, first, last, roles, control=CONTROL):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.add_special_tokens([*last, *control])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_pieces(folder, unk, bos, eos, pad, control):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        control_symbols=list(control),
        unk_id=unk,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        minloglevel=2,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    family, _, template = request.param.partition(", ")
    control = MARKS if template else CONTROL
    if family in PIECES:
        write_pieces(folder, *PIECES[family], control)
    else:
        write_byte_level(folder, *BYTE_LEVEL[family], control)
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return load_for_training(folder, 400, () if template else CONTROL)


CONFIG = dataclasses.replace(test_transformer.CONFIG, vocab_size=400)
PARAMS = make_params(CONFIG)
SCALAR = reward.scalar_config(CONFIG)
SCALAR_PARAMS = make_params(SCALAR)
compute_loss = jax.jit(lm_loss(replace(CONFIG, chunk_tokens=64), 0.0))


def alone(ids, config=CONFIG, params=PARAMS):
    """Outputs of the numpy decoder for one sequence."""
    return numpy_forward(config, params, np.array(ids), np.arange(len(ids)), np.ones(len(ids)))


def logprobs(ids):
    """Natural log-probability of each token after the first."""
    logits_LV = alone(ids)
    chosen_L = logits_LV[np.arange(len(ids) - 1), ids[1:]]
    return chosen_L - np.log(np.exp(logits_LV[:-1]).sum(-1))


def whole_documents(tokenizer):
    ids = tokenizer.encode_batch(DOCUMENTS)
    return [[tokenizer.bos_id, *document, tokenizer.eos_id] for document in ids]


def conversations():
    asked = ['Say "!"', "!", '"', "what now?"]
    answers = ['"!"', "!!!", "not that", '"']
    return [
        Example(f"{i}", "own", ({"role": "user", "content": q},), a, "exact", a)
        for i, (q, a) in enumerate(zip(asked, answers, strict=True))
    ]


def test_the_layouts_hold_what_goes_wrong(tokenizer):
    """Ids 0, 1 and the padding's occur in texts or mark their ends, in every family."""
    ids = {token for document in whole_documents(tokenizer) for token in document}
    assert ids & {0, 1, tokenizer.pad_id}
    assert tokenizer.decode(whole_documents(tokenizer)[0]).strip() == DOCUMENTS[0]


def pieces(documents, seq_len):
    """The parts of documents that the rows of a stream hold; a row ends with the next one's first
    token."""
    start = 0
    for ids in documents:
        for row in range(start // seq_len, (start + len(ids) - 1) // seq_len + 1):
            piece = ids[max(0, row * seq_len - start) : (row + 1) * seq_len + 1 - start]
            yield from [piece] if len(piece) > 1 else []
        start += len(ids)


@pytest.mark.parametrize("seq_len", [400, 7])
def test_pretraining_on_packed_documents_is_training_on_each_alone(tokenizer, seq_len):
    """In rows of 7 targets documents go on in the next row, where nothing before it is seen."""
    documents = whole_documents(tokenizer)
    rows = list(
        pack_documents([x[1:-1] for x in documents], seq_len, tokenizer.bos_id, tokenizer.eos_id)
    )
    assert len(rows) == -(-(sum(map(len, documents)) - 1) // seq_len)
    batch = lm_batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    loss, weight, *_ = compute_loss(PARAMS, batch)
    assert weight == sum(len(ids) - 1 for ids in documents)
    expected = -sum(logprobs(ids).sum() for ids in pieces(documents, seq_len))
    np.testing.assert_allclose(loss, expected, rtol=RTOL)


def test_bits_per_byte_are_those_of_each_document_alone(tokenizer):
    found = bits_per_byte(CONFIG, PARAMS, tokenizer, {"text": DOCUMENTS}, seq_len=400, batch_size=2)
    nats = -sum(logprobs(ids).sum() for ids in whole_documents(tokenizer))
    num_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    expected = nats / math.log(2) / num_bytes
    np.testing.assert_allclose(found["text"]["bits_per_byte"], expected, rtol=RTOL)


def test_fine_tuning_on_packed_conversations_is_training_on_each_alone(tokenizer):
    rows, _ = sft.pack_demonstrations(conversations(), tokenizer, 200)
    assert len(rows) == 1
    batch = lm_batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    loss, weight, *_ = compute_loss(PARAMS, batch)
    expected, num_targets = 0.0, 0
    for example in conversations():
        learned = answer(tokenizer, example.reference)
        ids = [*chat.render_prompt(tokenizer, example.messages), *learned]
        expected -= logprobs(ids)[-len(learned) :].sum()
        num_targets += len(learned)
    assert weight == num_targets
    np.testing.assert_allclose(loss, expected, rtol=RTOL)


def answer(tokenizer, text):
    return (*tokenizer.encode(text), chat.end_id(tokenizer))


def pairs(tokenizer):
    """As the reward stage makes them of a policy's answers."""
    config = PreferenceConfig(len(conversations()), 2, 8, 1.0, 0.0, 0.0, 0.5)
    samples = [
        [Response(text, answer(tokenizer, text), True) for text in ('no! "', example.reference)]
        for example in conversations()
    ]
    made = make_pairs(config, conversations(), samples, tokenizer, 0)
    found = made["train"] + made["heldout"]
    expected = {
        (
            tuple(chat.render_prompt(tokenizer, example.messages).tolist()),
            answer(tokenizer, example.reference),
            answer(tokenizer, 'no! "'),
        )
        for example in conversations()
    }
    assert {(pair.prompt, pair.chosen, pair.rejected) for pair in found} == expected
    assert len(found) == len(expected) and all(made.values())
    return found


def test_answers_of_preference_pairs_have_the_log_probability_of_each_alone(tokenizer):
    given = pairs(tokenizer)
    rows, _ = pair_rows(given, SEQ_LEN, tokenizer.pad_id)
    found = dpo.with_reference(CONFIG, PARAMS, rows, 3)
    expected = [
        [logprobs((*pair.prompt, *side))[-len(side) :].sum() for side in sides]
        for pair, sides in zip(given, ((p.chosen, p.rejected) for p in given), strict=True)
    ]
    np.testing.assert_allclose([row["reference"] for row in found], expected, rtol=RTOL)


def test_rewards_are_those_of_each_conversation_alone(tokenizer):
    given = pairs(tokenizer)
    rows, _ = pair_rows(given, SEQ_LEN, tokenizer.pad_id)
    sides = [{key: row[key][i] for key in ("tokens", "real")} for row in rows for i in (0, 1)]
    found = reward.score_rows(SCALAR, SCALAR_PARAMS, sides, 3)
    expected = [
        alone((*pair.prompt, *side), SCALAR, SCALAR_PARAMS)[-1]
        for pair in given
        for side in (pair.chosen, pair.rejected)
    ]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL)


def test_greedy_answers_do_not_depend_on_the_padding(tokenizer):
    """Against a loop without cache or padding; prompts of several lengths in one batch."""
    messages = [example.messages for example in conversations()]
    found = respond(
        CONFIG,
        PARAMS,
        tokenizer,
        messages,
        max_tokens=64,
        max_new_tokens=3,
        temperature=0.0,
        seed=0,
        batch_size=len(messages),
        log=lambda line: None,
    )
    for response, asked in zip(found, messages, strict=True):
        ids = chat.render_prompt(tokenizer, asked).tolist()
        for token in response.tokens:
            assert token == alone(ids)[-1].argmax()
            ids.append(token)
        assert response.finished == (response.tokens[-1] == chat.end_id(tokenizer))
        assert response.finished or len(response.tokens) == 3


def test_rollouts_measure_each_answer_alone(tokenizer):
    """Prompts padded on the left and answers on the right, with the padding's own token in both."""
    prompts = rollout.prompt_rows(conversations(), tokenizer, 24)
    answers = [[tokenizer.pad_id, *tokenizer.encode(x.reference)] for x in conversations()]
    tokens_BR = np.full((len(answers), 16), tokenizer.pad_id, np.int32)
    mask_BR = np.zeros_like(tokens_BR)
    for row, ids in enumerate(answers):
        tokens_BR[row, : len(ids)], mask_BR[row, : len(ids)] = ids, 1
    batch = {key: np.stack([row[key] for row in prompts]) for key in ("tokens", "real")}
    sequences = rollout.join(batch, jnp.asarray(tokens_BR), jnp.asarray(mask_BR))
    logp_BR = rollout.answer_logprobs(CONFIG, PARAMS, sequences, 1.0) * np.float32(mask_BR)
    for row, (example, ids) in enumerate(zip(conversations(), answers, strict=True)):
        prompt = chat.render_prompt(tokenizer, example.messages).tolist()
        expected = logprobs([*prompt, *ids])[-len(ids) :]
        np.testing.assert_allclose(logp_BR[row, : len(ids)], expected, rtol=RTOL, atol=RTOL)
