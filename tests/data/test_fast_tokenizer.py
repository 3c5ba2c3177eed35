"""tokenizer.model to tokenizer.json: the same ids and texts, or a refusal."""

import io
import random

import numpy as np
import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer as FastTokenizer

from data.errors import BadInput
from data.tokens.fast_tokenizer import from_pieces
from data.tokens.tokenizer import load_own
from data.tokens.trainer import FILES, TokenizerConfig, train

WORDS = [
    f"{stem}{end}" for stem in ("walk", "talk", "über", "数", "x1") for end in ("", "s", "ing")
]
# Scores are kept in 32 bits; a token's share of the error of their sum.
ROUNDING = 1e-5
TEXTS = ["", " ", "a  b", "  a\t\tb \n\n c  ", "12 345 6", "Ünïcödé 漢字 🙂", "\x00\r\n", "zz" * 99]


def write_model(path, **options):
    """A SentencePiece model of a few words, which keeps text unless options say otherwise."""
    rng, content = random.Random(0), io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "vocab_size": 360,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n", "▁▁", "▁▁▁", "walks"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentences = (" ".join(rng.choices(WORDS, k=9)) for _ in range(400))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=content, **defaults | options
    )
    path.write_bytes(content.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())


def check_ways_are_as_good(model, found, wanted):
    """The ids are the same, or else cut the text in ways whose scores are all but equal."""
    same = [a == b for a, b in zip(found, wanted, strict=True)]
    assert np.mean(same) > 0.9
    for ways in zip(found, wanted, strict=True):
        ours, theirs = (sum(model.get_score(i) for i in ids) for ids in ways)
        assert abs(ours - theirs) <= ROUNDING * max(map(len, ways)), "a worse way to cut"


def random_texts(count):
    rng = random.Random(1)
    bits = [*WORDS, " ", "  ", "\n", "\t", "w", "al", "k", "7", "é", "漢", "<0x41>"]
    return ["".join(rng.choices(bits, k=rng.randrange(40))) for _ in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "byte_fallback": False},
        {"user_defined_symbols": []},
        {"user_defined_symbols": [], "byte_fallback": False},
        {"model_type": "unigram", "add_dummy_prefix": False, "user_defined_symbols": ["\n"]},
        {"model_type": "unigram", "user_defined_symbols": [], "byte_fallback": False},
        {"model_type": "unigram", "user_defined_symbols": []},
    ],
)
def test_ids_and_texts_are_those_of_the_model(tmp_path, options):
    model = write_model(tmp_path / "tokenizer.model", **options)
    fast = from_pieces(tmp_path / "tokenizer.model")
    texts = [*TEXTS, *random_texts(500)]
    ids = model.encode(texts)
    found = [fast.encode(text).ids for text in texts]
    if options.get("model_type") == "unigram":
        check_ways_are_as_good(model, found, ids)
    else:
        assert found == ids
    known = [row for row in ids if model.unk_id() not in row]
    assert len(known) > 10
    assert [fast.decode(row) for row in known] == [model.decode(row) for row in known]
    assert fast.get_vocab_size() == model.vocab_size()


def test_pieces_may_stand_in_any_order(tmp_path):
    path = tmp_path / "tokenizer.model"
    write_model(path, add_dummy_prefix=False)
    proto = ModelProto.FromString(path.read_bytes())
    pieces = list(proto.pieces)
    random.Random(2).shuffle(pieces)
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    path.write_bytes(proto.SerializeToString())
    model, fast = sentencepiece.SentencePieceProcessor(str(path)), from_pieces(path)
    for text in random_texts(300):
        assert fast.encode(text).ids == model.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_of_our_own_keeps_every_text(tmp_path, kind):
    texts, path = random_texts(400), tmp_path / FILES[kind]
    train(texts, TokenizerConfig(330, 10**6, 16, 0.9995, kind=kind), path)
    model = load_own(tmp_path)
    from_pieces(path).save(str(tmp_path / "fast.json"))
    fast = FastTokenizer.from_file(str(tmp_path / "fast.json"))
    for text in (*TEXTS, *texts, "<0x41> < 0x0A>"):
        ids = fast.encode(text).ids
        assert kind == "unigram" or ids == model.encode(text)
        assert fast.decode(ids) == text
    if kind == "unigram":
        pieces = sentencepiece.SentencePieceProcessor(str(path))
        ids = [fast.encode(text).ids for text in texts]
        check_ways_are_as_good(pieces, ids, model.encode_batch(texts))
    assert fast.encode("<|user|>").ids == [5], "as transformers has it"
    assert fast.decode([5, 7]) == "" and fast.decode([5], skip_special_tokens=False) == "<|user|>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "char"}, "is neither BPE nor unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"remove_extra_whitespaces": True}, "normalizes text"),
        (
            {"model_type": "unigram", "add_dummy_prefix": False},
            "is a unigram with longer user-defined pieces",
        ),
        ({}, "has both a space before each text and user-defined pieces"),
    ],
)
def test_a_model_that_cannot_be_turned_over_is_refused(tmp_path, options, words):
    write_model(tmp_path / "tokenizer.model", **options)
    with pytest.raises(BadInput, match=f"tokenizer.model: {words}; no tokenizer.json is made"):
        from_pieces(tmp_path / "tokenizer.model")
