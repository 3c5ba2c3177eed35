"""Words and n-grams against the same definitions in plain Python."""

import hashlib
import random
import unicodedata
from pathlib import Path

import numba
import numpy as np
import pytest

from data.words import (
    ALPHABETIC,
    BLANK,
    BLANKLESS,
    DIGIT,
    START,
    WORD,
    __file__,
    build_set,
    char_table,
    ngrams,
    split_words,
)

MASK = 2**64 - 1
WORD_THE, WORD_MATS = 0xEA2F44962E490051, 0xF6EE05AE1B019C55
NGRAM_THE_CAT_SAT = 0xA56A0A2AC3BAD46A
ALPHABET = list("aB9_ .-'\n\t") + [
    "\u0301",  # a combining accent
    "\u00e9",
    "\u0130",  # its lower case is two characters: it stays
    "\u03a3",
    "\u0663",  # an Arabic digit
    "\u0939",
    "\u4e2d",
    "\u56fd",
    "\u3005",
    "\u304b",
    "\u30fc",
    "\u0e44",
    "\uac00",
    "\U0001d538",
    "\U0001f600",
    "\u00a0",
    "\u01c5",
    "\u00b2",
]


def batch(texts):
    parts = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    return data, np.cumsum([0, *map(len, parts)])


def is_alone(char):
    return any(first <= ord(char) <= last for first, last in BLANKLESS)


def split(text):
    """The words by their definition."""
    found, run = [], ""
    for char in text:
        in_word = char == "_" or unicodedata.category(char)[0] in "LMN"
        if in_word and not is_alone(char):
            run += char
            continue
        found += [part for part in (run, char if in_word else "") if part]
        run = ""
    return found + ([run] if run else [])


def fold(word):
    folded = ""
    for char in word:
        common = unicodedata.normalize("NFKC", char)
        if unicodedata.category(char) == "Nd":
            char = "0"
        elif char.isalpha() and len(common) == 1:
            char = common
        folded += char.lower() if len(char.lower()) == 1 else char
    return folded


def finish(h):
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & MASK
    return h ^ (h >> 31)


def hash_word(word):
    h = 0x9E3779B97F4A7C15
    for char in fold(word):
        h = (h ^ ord(char)) * 0xD6E8FEB86659FD93 & MASK
        h ^= h >> 29
    return finish(h)


def hash_ngram(hashes):
    total = 0
    for h in hashes:
        total = (total * 0xA0761D6478BD642F + h) & MASK
    return finish(total)


def random_texts(seed, count):
    source = random.Random(seed)
    lengths = [source.randrange(60) for _ in range(count)]
    return ["".join(source.choice(ALPHABET) for _ in range(length)) for length in lengths]


def assert_words(texts):
    data, offsets = batch(texts)
    words = split_words(data, offsets)
    assert [part.dtype for part in words] == [np.uint64, np.int32, np.int64, np.int64]
    for number, text in enumerate(texts):
        wanted, part = split(text), slice(*words.offsets[number : number + 2])
        assert words.hashes[part].tolist() == list(map(hash_word, wanted)), repr(text)
        assert words.chars[part].tolist() == list(map(len, wanted))
        for word, start in zip(wanted, words.starts[part].tolist(), strict=True):
            assert data[start : start + len(word.encode())].tobytes().decode() == word
    assert words.offsets[-1] == len(words.hashes)


def test_words_follow_their_definition():
    assert_words(random_texts(1, 400))


def test_words_of_any_characters():
    source = random.Random(2)
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    assert_words(["".join(map(chr, source.sample(points, 60))) for _ in range(100)])


def test_words_where_every_character_is_one():
    """More words than there is room for at first."""
    assert_words(["a", "\u4e2d" * 500, "", "\u4e2d\u56fd" * 300, "b c " * 400, "x"])


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["...", "a"]])
def test_words_of_hardly_anything(texts):
    assert_words(texts)


def test_a_word_is_what_python_takes_for_one():
    """Letters and digits by str.isalnum, beside marks and the underscore."""
    entries = char_table()
    for point in range(0, 0x110000, 7):
        char = chr(point)
        in_word = char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"
        assert bool(entries[point] & WORD) == in_word, hex(point)
        assert bool(entries[point] & ALPHABETIC) == char.isalpha(), hex(point)
        assert bool(entries[point] & BLANK) == char.isspace(), hex(point)
        assert bool(entries[point] & DIGIT) == char.isdecimal(), hex(point)


def test_case_and_form_do_not_count_and_letters_do_and_digits_where_wanted():
    texts = ["Size 1345 \uff33ize 1\u0663\u0664\uff15 2024 sizes \u0441ize"]
    hashes = split_words(*batch(texts), equal_digits=False).hashes.tolist()
    assert hashes[:2] == hashes[2:4]
    assert len(set(hashes)) == 5
    equal = split_words(*batch(texts)).hashes.tolist()
    assert equal[1] == equal[3] == equal[4] != hashes[1]
    assert len(set(equal)) == 4


def test_hashes_never_change():
    """Stored hashes of an earlier run must still fit."""
    data, offsets = batch(["The cat sat on 12 m\u00e1ts."])
    words = split_words(data, offsets)
    assert words.hashes[[0, 5]].tolist() == [WORD_THE, WORD_MATS]
    assert ngrams(words, 3)[0][0] == NGRAM_THE_CAT_SAT


def test_a_text_has_the_same_words_anywhere_in_a_batch():
    texts = random_texts(3, 50)
    data, offsets = batch(texts)
    words = split_words(data, offsets[20:31])
    alone = split_words(*batch(texts[20:30]))
    assert words.hashes.tolist() == alone.hashes.tolist()
    assert (words.starts - offsets[20]).tolist() == alone.starts.tolist()
    assert words.offsets.tolist() == alone.offsets.tolist()


def test_different_words_have_different_hashes():
    chars = "abcdefghijklmnopqrst"
    texts = [f"{a}{b}{c}{d}" for a in chars for b in chars for c in chars for d in chars[:8]]
    hashes = split_words(*batch([" ".join(texts)])).hashes
    assert len(np.unique(hashes)) == len(texts)
    assert len(np.unique(hashes >> np.uint64(40))) > 0.99 * len(texts), "the upper bits repeat"
    assert len(np.unique(hashes << np.uint64(40))) > 0.99 * len(texts), "the lower bits repeat"


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_ngrams_follow_their_definition(n):
    words = split_words(*batch(random_texts(4, 60) + ["a b c d e f g h i j k l m n"]))
    hashes, firsts = ngrams(words, n)
    for number in range(len(firsts) - 1):
        own = words.hashes[slice(*words.offsets[number : number + 2])].tolist()
        wanted = [hash_ngram(own[i : i + n]) for i in range(len(own) - n + 1)]
        assert hashes[firsts[number] : firsts[number + 1]].tolist() == wanted


def test_a_set_holds_many_hashes_and_those_that_crowd():
    source = np.random.default_rng(7)
    spread = source.integers(0, 2**64, 5000, dtype=np.uint64)
    crowded = np.arange(3000, dtype=np.uint64) << np.uint64(32)  # all belong to one slot; 0 too
    hashes = np.concatenate([spread, crowded, spread[:100]])
    slots = build_set(hashes)
    assert len(slots) >= 2 * len(hashes) and len(slots).bit_count() == 1
    assert set(slots.tolist()) - {0} == set(hashes.tolist()) - {0} | {int(START)}


def test_compiled_code_of_other_sources_is_not_used():
    """Its folder is named after the sources of all compiled functions."""
    room = Path(__file__).parent
    sources = [path.read_bytes() for path in sorted(room.rglob("*.py"))]
    compiled = b"".join(source for source in sources if b"njit" in source)
    wanted = hashlib.blake2b(compiled, digest_size=8).hexdigest()
    assert Path(numba.config.CACHE_DIR).name == wanted
