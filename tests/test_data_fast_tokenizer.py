"""tokenizer.model to tokenizer.json: the same ids and texts, or a refusal."""

import io
import random

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer as FastTokenizer

from data.errors import BadInput
from data.fast_tokenizer import to_fast
from data.tokenizer import TokenizerConfig, train

WORDS = [
    f"{stem}{end}" for stem in ("walk", "talk", "über", "数", "x1") for end in ("", "s", "ing")
]
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
    ],
)
def test_ids_and_texts_are_those_of_the_model(tmp_path, options):
    model = write_model(tmp_path / "tokenizer.model", **options)
    fast = to_fast(tmp_path / "tokenizer.model", None)
    texts = [*TEXTS, *random_texts(500)]
    ids = model.encode(texts)
    assert [fast.encode(text).ids for text in texts] == ids
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
    model, fast = sentencepiece.SentencePieceProcessor(str(path)), to_fast(path, None)
    for text in random_texts(300):
        assert fast.encode(text).ids == model.encode(text)


def test_a_model_of_our_own_keeps_every_text(tmp_path):
    texts = random_texts(400)
    train(texts, TokenizerConfig(330, 10**6, 16, 0.9995), tmp_path / "tokenizer.model")
    fast = to_fast(tmp_path / "tokenizer.model", "<|bos|>")
    fast.save(str(tmp_path / "tokenizer.json"))
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    for text in (*TEXTS, *texts):
        ids = fast.encode(text).ids
        assert ids == [1, *model.encode(text)]
        assert fast.decode(ids) == text
    assert fast.encode("<|user|>").ids == [1, 5], "as transformers has it"
    assert (
        fast.decode([1, 5, 7]) == "" and fast.decode([5], skip_special_tokens=False) == "<|user|>"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "unigram"}, "is no BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"remove_extra_whitespaces": True}, "normalizes text"),
        ({}, "has both a space before each text and user-defined pieces"),
    ],
)
def test_a_model_that_cannot_be_turned_over_is_refused(tmp_path, options, words):
    write_model(tmp_path / "tokenizer.model", **options)
    with pytest.raises(BadInput, match=f"tokenizer.model: {words}; no tokenizer.json is made"):
        to_fast(tmp_path / "tokenizer.model", None)
