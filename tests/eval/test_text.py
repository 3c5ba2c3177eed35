"""Bits per byte: exact for uniform logits, and equal to scoring each document alone."""

import math

import jax
import numpy as np
import pytest

from eval import text
from model import transformer
from model.config import TransformerConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = 1e-6  # float32 sums of some hundred terms
PACKING = 1e-5

CONFIG = TransformerConfig(
    vocab_size=264,
    num_layers=2,
    d_model=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    d_ff=48,
    head="tied",
    qk_norm="none",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
DOCUMENTS = {
    "docs": ["short", "a somewhat longer one, with é", "x" * 100],
    "code": ["def f(x):\n    return x\n"],
}


class Letters:
    """Eight control tokens and the 256 bytes."""

    bos_id, eos_id = 1, 2

    def encode_batch(self, texts):
        return [[8 + byte for byte in text.encode()] for text in texts]


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, jax.random.key(0))


def score(params, documents=DOCUMENTS, seq_len=16, batch_size=4):
    return text.bits_per_byte(
        CONFIG, params, Letters(), documents, seq_len=seq_len, batch_size=batch_size
    )


@pytest.mark.parametrize(("seq_len", "batch_size"), [(16, 4), (7, 3), (512, 1)])
def test_uniform_logits_cost_log2_of_the_vocabulary_a_token(params, seq_len, batch_size):
    table = score(jax.tree.map(np.zeros_like, params), seq_len=seq_len, batch_size=batch_size)
    for domain, documents in DOCUMENTS.items():
        num_bytes = sum(len(document.encode()) for document in documents)
        num_tokens = num_bytes + len(documents)  # an EOS each; BOS is never predicted
        entry = table[domain]
        assert (entry["bytes"], entry["tokens"]) == (num_bytes, num_tokens)
        assert entry["documents"] == len(documents)
        expected = num_tokens * math.log2(CONFIG.vocab_size) / num_bytes
        assert entry["bits_per_byte"] == pytest.approx(expected, rel=EXACT)


def test_packed_documents_score_as_each_alone(params):
    texts = [document for documents in DOCUMENTS.values() for document in documents]
    ids = [[1, *(8 + byte for byte in document.encode()), 2] for document in texts]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, document in zip(tokens, ids, strict=True):
        row[: len(document)] = document
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    segments = (tokens > 0).astype(np.int32)
    forward = jax.jit(transformer.forward, static_argnums=0)
    logits = forward(CONFIG, params, tokens, positions, segments)
    logprobs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    bits = 0.0
    for row, document in zip(logprobs, ids, strict=True):
        bits -= sum(row[i, token] for i, token in enumerate(document[1:])) / math.log(2)
    table = score(params, seq_len=512)
    num_bytes = table["all"]["bytes"]
    assert num_bytes == table["docs"]["bytes"] + table["code"]["bytes"]
    assert table["all"]["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=PACKING)
    weighted = sum(table[d]["bits_per_byte"] * table[d]["bytes"] for d in DOCUMENTS)
    assert table["all"]["bits_per_byte"] == pytest.approx(weighted / num_bytes, rel=EXACT)


def test_batch_size_changes_nothing_and_one_shape_is_compiled(params):
    one = score(params, batch_size=1)
    text._row_nats.clear_cache()
    many = score(params, batch_size=5)
    assert text._row_nats._cache_size() == 1
    for domain, entry in one.items():
        assert many[domain]["bits_per_byte"] == pytest.approx(entry["bits_per_byte"], rel=PACKING)


@pytest.mark.parametrize("documents", [{"docs": []}, {"docs": [""]}, {"all": ["text"]}])
def test_a_domain_needs_text_and_a_name_of_its_own(params, documents):
    with pytest.raises(ValueError, match="domain"):
        score(params, documents)
