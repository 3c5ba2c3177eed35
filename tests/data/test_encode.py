"""Bulk encoding: id for id what the tokenizer gives, or a reason why it cannot be."""

import functools
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.tokens.encode import (
    PROBE_BITS,
    Cuts,
    check,
    encode,
    joined_in_pieces,
    joined_in_words,
)
from data.tokens.tokenizer import load, load_own
from data.tokens.trainer import FILES, TokenizerConfig, train
from tests.data.test_gguf_tokenizer import write_llama
from tests.data.test_tokenizer import SPELLED, TEXTS, WRITERS, folders, random_texts

__all__ = ["folders"]  # the fixture
MULTILINGUAL = Path(__file__).parents[3] / "shared" / "data" / "multilingual"
WORDS = ("walk", "walking", "über", "return", "self.value", "x1", "(a)", "##", "漢字", "-->", "мир")
SIZES = {"bpe": 420, "unigram": 400, "byte_level": 420, "wordpiece": 620}


def texts(count=300, seed=0):
    rng = random.Random(seed)
    bits = (*WORDS, *WORDS, *PROBE_BITS, " ", " ", " ", "\n    ", "\t")
    made = ["".join(rng.choices(bits, k=rng.randrange(60))) for _ in range(count)]
    return [*made, "", " ", "\n", "a" * 5000, " " * 999, "\u2581", "\u2581\u2581 a\u2581 "]


def make(kind, folder):
    config = TokenizerConfig(SIZES[kind], 10**6, 12, 0.99, kind=kind)
    train(texts(2000), config, folder / FILES[kind])
    return load_own(folder)


@pytest.fixture(scope="module", params=["bpe", "byte_level", "wordpiece"])
def tokenizer(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp("encode"))


def rows(encoded):
    ids, lengths = encoded
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]


def test_ids_are_those_of_the_tokenizer(tokenizer):
    given = texts()
    found = rows(encode(given, tokenizer.cuts()))
    assert found == tokenizer.encode_batch(given)
    assert [tokenizer.decode(ids) for ids in found] == given
    assert check(tokenizer, given) == ""
    for few in ([], [""], ["", ""], ["a"]):
        assert rows(encode(few, tokenizer.cuts())) == tokenizer.encode_batch(few)


@pytest.mark.parametrize("name", WRITERS)
def test_imported_tokenizers_have_the_same_ids(folders, name):
    tokenizer = load(folders / name)
    given = [*TEXTS, SPELLED, "", " the dog", "  the", *random_texts(300)]
    why = check(tokenizer, given)
    # A token that is not special stands beside the pieces of this one.
    assert why == ("tokens that are not special were added beside its pieces") * (name == "llama")
    if not why:
        is_known = name in ("gpt2", "qwen2", "llama3")
        assert tokenizer.cuts().joined[ord("a"), ord("(")] != is_known
        assert rows(encode(given, tokenizer.cuts())) == tokenizer.encode_batch(given, 1)


@pytest.mark.parametrize("has_space", [True, False])
def test_a_space_before_each_text_is_put_before_it_alone(tmp_path, has_space):
    write_llama(tmp_path, added_tokens_decoder={}, add_prefix_space=has_space, legacy=False)
    tokenizer = load(tmp_path)
    given = ["", "a", " b", *TEXTS, SPELLED, *random_texts(300)]
    assert check(tokenizer, given) == ""
    assert rows(encode(given, tokenizer.cuts())) == tokenizer.encode_batch(given)


def test_parts_are_encoded_once(tokenizer):
    seen = []
    joined, encode_parts, _ = tokenizer.cuts()
    cuts = Cuts(joined, lambda parts: seen.extend(parts) or encode_parts(parts))
    encode(["return self.value return", " return", "self.value return"] * 50, cuts)
    assert "".join(seen).count("return") == 2, "at the beginning of a text and after a space"
    assert len(seen) == len(set(seen))


def test_lone_surrogate_is_bad_input_that_names_the_place(tokenizer):
    with pytest.raises(BadInput, match="text 1: lone surrogate .* at character 2"):
        encode(["fine", "ab\ud800"], tokenizer.cuts())


def test_bytes_are_joined_where_a_piece_has_both():
    """By hand."""
    joined = joined_in_pieces(["ab", "\u2581c", "\u2581\u2581", "x\u2581y"])
    plain = {(chr(a), chr(b)) for a, b in np.argwhere(joined[:0x80, :0x80])}
    assert plain == {("a", "b"), (" ", "c"), (" ", " "), ("x", " "), (" ", "y")}
    mark = "\u2581".encode()
    assert joined[ord("x"), mark[0]] and joined[mark[-1], ord("c")] and joined[mark[0], mark[1]]
    assert joined[mark[-1], ord(" ")] and joined[ord(" "), mark[0]], "a mark and a space"
    assert not joined[mark[-1], ord("a")]
    assert joined[:, 0x80:0xC0].all(), "a character is never cut"


def test_words_are_cut_before_spaces_that_follow_no_blank():
    joined = joined_in_words(
        ["plain", "\u0120word", "a\u0120b", "b\u2581c", "\u00c3\u0120"], is_known=False
    )
    cut = {(a, b) for a, b in np.argwhere(~joined)}
    assert {b for _, b in cut} == {0x20}
    before = {a for a, _ in cut}
    assert before >= set(b'z09.)"\xbf')
    assert not before & {*b" \t\n\r\x00", 0x80, 0xA0}, "blanks"
    assert not before & {*b"ab", 0xC3}, "what a token joins to a space"
    known = ~joined_in_words(["<t1>"], is_known=True)
    pairs = ("a.", "1)", "a1", "1a", ".1", "a\n", "1\r", "a ", ". ")
    assert not known[ord("t"), ord("1")] and not known[ord("1"), ord(">")], "of an added token"
    assert all(known[ord(a), ord(b)] for a, b in pairs)
    assert not any(
        known[ord(a), ord(b)] for a, b in ("ab", "11", ".a", "..", "a'", "'a", "\na", ".\n")
    )


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
    tokenizer = make("bpe", tmp_path)
    assert check(tokenizer, texts(3)) == ""
    setattr(getattr(tokenizer._backend._model, section), field, value)
    assert why in check(tokenizer, texts(3))


def test_unigram_is_encoded_whole(tmp_path):
    assert "sums over a whole text" in check(make("unigram", tmp_path), texts(3))


class Pairs:
    """A tokenizer that takes two characters at a time: it must not be cut anywhere."""

    def __init__(self, cut_before):
        joined = np.ones((256, 256), bool)
        joined[:, list(cut_before.encode())] = False
        self.cuts = lambda: Cuts(joined, self.encode_batch)

    def encode_batch(self, given):
        pairs = [[text[i : i + 2] for i in range(0, len(text), 2)] for text in given]
        return [[sum(map(ord, pair)) for pair in row] for row in pairs]


def test_check_finds_cuts_that_change_ids():
    assert "other ids than as a whole" in check(Pairs(cut_before="a"), [])
    assert check(Pairs(cut_before="\x05"), ["no such byte"]) == ""
    assert "'no \\x05" in check(Pairs(cut_before="\x05"), ["good", "no \x05"]), "in the sample"


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
    tokenizer = load_own(tmp_path)
    assert rows(encode(given, tokenizer.cuts())) == tokenizer.encode_batch(given)
