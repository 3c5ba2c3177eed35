"""Bulk encoding: id for id what the tokenizer gives, whatever fits into the tables."""

import functools
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data.errors import BadInput
from data.tokens import encode
from data.tokens.encode import PROBE_BITS, Cuts, Encoder, check, joined_in_pieces, joined_in_words
from data.tokens.tokenizer import FILES, TokenizerConfig, load, train

MULTILINGUAL = Path(__file__).parents[3] / "shared" / "data" / "multilingual"
WORDS = ("walk", "walking", "über", "return", "self.value", "x1", "(a)", "##", "漢字", "-->", "мир")
SIZES = {"bpe": 420, "unigram": 400, "wordpiece": 620}


def texts(count=300, seed=0):
    rng = random.Random(seed)
    bits = (*WORDS, *WORDS, *PROBE_BITS, " ", " ", " ", "\n    ", "\t")
    made = ["".join(rng.choices(bits, k=rng.randrange(60))) for _ in range(count)]
    return [*made, "", " ", "\n", "a" * 5000, " " * 999, "\u2581", "\u2581\u2581 a\u2581 "]


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def tokenizer(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp("encode"))


def make(kind, folder):
    train(
        texts(2000), TokenizerConfig(SIZES[kind], 10**6, 12, 0.99, kind=kind), folder / FILES[kind]
    )
    return load(folder)


def rows(encoded):
    ids, lengths = encoded
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]


def test_ids_are_those_of_the_tokenizer_cold_and_warm(tokenizer):
    encoder, given = Encoder(tokenizer, cached=True), texts()
    wanted = tokenizer.encode_batch(given)
    assert rows(encoder.encode(given)) == wanted
    assert rows(encoder.encode(given[::-1])) == wanted[::-1]
    assert rows(Encoder(tokenizer, cached=False).encode(given)) == wanted
    assert [tokenizer.decode(ids) for ids in rows(encoder.encode(given))] == given
    assert check(tokenizer, given) == ""


@pytest.mark.parametrize(
    ("name", "size"), [("MAX_PARTS", 16), ("MAX_PARTS", 1), ("ARENA_BYTES", 4), ("BLOCK_PARTS", 3)]
)
def test_tables_that_are_always_full_change_nothing(tokenizer, monkeypatch, name, size):
    given, wanted = texts(60), tokenizer.encode_batch(texts(60))
    monkeypatch.setattr(encode, name, size)
    encoder = Encoder(tokenizer, cached=True)
    for _ in range(2):
        assert rows(encoder.encode(given)) == wanted


def test_parts_are_encoded_once(tokenizer):
    seen = []

    class Watched:
        encode_batch = tokenizer.encode_batch

        def cuts(self):
            joined, encode_parts, _ = tokenizer.cuts()
            return Cuts(joined, lambda parts: seen.extend(parts) or encode_parts(parts))

    encoder = Encoder(Watched(), cached=True)
    encoder.encode(["return self.value return"] * 50)
    encoder.encode([" return", "self.value return"])
    assert "".join(seen).count("return") == 2, "at the beginning of a text and after a space"
    assert len(seen) == len(set(seen))


def test_arrow_arrays_of_all_forms(tokenizer):
    given, encoder = texts(40), Encoder(tokenizer, cached=True)
    wanted = tokenizer.encode_batch(given)
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(given, kind)
        assert rows(encoder.encode(array)) == wanted
        assert rows(encoder.encode(array[7:31])) == wanted[7:31]
        assert rows(Encoder(tokenizer, cached=False).encode(array[7:])) == wanted[7:]
        assert rows(encoder.encode(array[3:3])) == []
    assert rows(encoder.encode([])) == []


def test_lone_surrogate_is_bad_input_that_names_the_place(tokenizer):
    for cached in (True, False):
        with pytest.raises(BadInput, match="text 1: lone surrogate .* at character 2"):
            Encoder(tokenizer, cached).encode(["fine", "ab\ud800"])


def test_bytes_are_joined_where_a_piece_has_both():
    """Pieces 'ab', ' c', two spaces, and a defined 'x y', by hand."""
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.pieces.add(piece="ab", type=1)
    model.pieces.add(piece="\u2581c", type=1)
    model.pieces.add(piece="\u2581\u2581", type=1)
    model.pieces.add(piece="x\u2581y", type=4)
    model.pieces.add(piece="<0x41>", type=6)
    model.pieces.add(piece="<s>", type=3)
    joined = joined_in_pieces(model)
    plain = {(chr(a), chr(b)) for a, b in np.argwhere(joined[:0x80, :0x80])}
    assert plain == {("a", "b"), (" ", "c"), (" ", " "), ("x", " "), (" ", "y")}
    mark = "\u2581".encode()
    assert joined[ord("x"), mark[0]] and joined[mark[-1], ord("c")] and joined[mark[0], mark[1]]
    assert joined[mark[-1], ord(" ")] and joined[ord(" "), mark[0]], "a mark and a space"
    assert not joined[mark[-1], ord("a")]
    assert joined[:, 0x80:0xC0].all(), "a character is never cut"


@pytest.mark.parametrize(
    ("section", "field", "value", "why"),
    [
        ("trainer_spec", "model_type", 1, "its sums over a whole text are rounded"),
        ("trainer_spec", "byte_fallback", False, "unknown characters that stand together"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "the text is normalized"),
        ("normalizer_spec", "precompiled_charsmap", b"x", "the text is normalized"),
    ],
)
def test_models_that_cannot_be_cut_say_why(tmp_path, section, field, value, why):
    make("bpe", tmp_path)
    model = ModelProto.FromString((tmp_path / FILES["bpe"]).read_bytes())
    joined_in_pieces(model)
    setattr(getattr(model, section), field, value)
    with pytest.raises(BadInput, match=why):
        joined_in_pieces(model)


def test_unigram_is_encoded_whole(tmp_path):
    tokenizer = make("unigram", tmp_path)
    assert "sums over a whole text" in check(tokenizer, texts(3))
    with pytest.raises(BadInput, match="sums over a whole text"):
        Encoder(tokenizer, cached=True)
    assert rows(Encoder(tokenizer, cached=False).encode(texts())) == tokenizer.encode_batch(texts())


class Pairs:
    """A tokenizer that takes two characters at a time: it must not be cut anywhere."""

    def __init__(self, cut_before):
        joined = np.ones((256, 256), bool)
        joined[:, list(cut_before.encode())] = False
        self.cuts = lambda: Cuts(joined, self.encode_batch)

    def encode_batch(self, given, num_threads=-1):
        pairs = [[text[i : i + 2] for i in range(0, len(text), 2)] for text in given]
        return [[sum(map(ord, pair)) for pair in row] for row in pairs]


def test_check_finds_cuts_that_change_ids():
    assert "other ids than as a whole" in check(Pairs(cut_before="a"), [])
    assert check(Pairs(cut_before="\x05"), ["no such byte"]) == ""
    assert "'no \\x05" in check(Pairs(cut_before="\x05"), ["good", "no \x05"]), (
        "found in the sample"
    )


def test_words_are_cut_before_spaces_that_follow_no_blank():
    joined = joined_in_words(["plain", "\u0120word", "a\u0120b"], is_known=False)
    cut = {(a, b) for a, b in np.argwhere(~joined)}
    assert {b for _, b in cut} == {0x20}
    before = {a for a, _ in cut}
    assert before >= set(b'bz09.)"\xbf\x81') - {0x81}
    assert not before & {*b" \t\n\r\x00a", 0x80, 0xA0}, "blanks, and what a token joins to a space"
    known = ~joined_in_words([], ["<t1>"], is_known=True)
    pairs = ("a.", "1)", "a1", "1a", ".1", "a\n", "1\r", "a ", ". ")
    assert not known[ord("t"), ord("1")] and not known[ord("1"), ord(">")], "of an added token"
    assert all(known[ord(a), ord(b)] for a, b in pairs)
    assert not any(
        known[ord(a), ord(b)] for a, b in ("ab", "11", ".a", "..", "a'", "'a", "\na", ".\n")
    )


def test_prefix_is_put_before_texts_that_are_not_empty(tokenizer):
    class Prefixed:
        def cuts(self):
            return tokenizer.cuts()._replace(prefix=" ")

    given = ["", "a", " b", "walk walking"]
    found = rows(Encoder(Prefixed(), cached=True).encode(given))
    assert found == [[], *tokenizer.encode_batch([" " + text for text in given[1:]])]


@functools.cache
def multilingual():
    found = []
    for name in ("tatoeba/tatoeba_a.jsonl.gz", "udhr2/udhr2.jsonl.gz"):
        with gzip.open(MULTILINGUAL / name, "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["text"][:3000] for line in lines]
    return found


@pytest.mark.real
@pytest.mark.skipif(not MULTILINGUAL.is_dir(), reason="the multilingual set is not beside here")
def test_ids_of_every_language_are_those_of_the_tokenizer(tmp_path):
    given = multilingual()
    config = TokenizerConfig(8192, 500_000, 16, 0.9995)
    train(given[::50] + given[-388:], config, tmp_path / FILES["bpe"])
    tokenizer = load(tmp_path)
    found = rows(Encoder(tokenizer, cached=True).encode(given))
    assert found == tokenizer.encode_batch(given)
