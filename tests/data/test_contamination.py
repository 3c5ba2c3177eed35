"""Decontamination: planted evaluation texts are all found, and named; nothing else is."""

import random

import numpy as np
import pytest

from data.gates import contamination
from data.words import split_words

QUESTION = "What is the capital of the country whose flag shows a red maple leaf on white ground?"
N = 13
LETTERS = str.maketrans("0123456789", "abcdefghij")


def view(texts):
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(encoded), np.uint8)
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return data, split_words(data, offsets)


def hits(index, texts):
    return index.find(*view(texts))


def sentence(source, count):
    numbers = (f"w{source.randrange(50_000)}q" for _ in range(count))
    return " ".join(numbers).translate(LETTERS)  # digits would count as equal


def words(text):
    return text.lower().split()


@pytest.fixture
def index(tmp_path):
    sets = [("quiz", QUESTION), ("short", "a b c d e f g h i"), ("tiny", "a b c d e f g")]
    contamination.build(sets, N).save(tmp_path / "index.npz")
    return contamination.Index.load(tmp_path / "index.npz")


def test_a_question_inside_a_text_is_found_whatever_its_case_and_punctuation(index):
    shouted = f"Before.\n{QUESTION.upper().replace(' ', ', ')} Ottawa."
    part = " ".join(QUESTION.split()[2:15])
    texts = ["Nothing of it.", shouted, f"see {part} here", "A b c, d e f g. H i!", ""]
    found = hits(index, texts)
    assert [hit and hit.name for hit in found] == [None, "quiz", "quiz", "short", None]
    assert (
        found[1].shared
        == "WHAT, IS, THE, CAPITAL, OF, THE, COUNTRY, WHOSE, FLAG, SHOWS, A, RED, MAPLE"
    )
    assert found[2].shared == part
    assert found[3].shared == "A b c, d e f g. H i"


def test_twelve_words_of_a_longer_question_are_not_enough(index):
    part = " ".join(QUESTION.split()[:12])
    assert hits(index, [part + " other", "a b c d e f g", "a b c d e f g h x"]) == [None] * 3


def test_an_index_of_nothing_finds_nothing():
    assert hits(contamination.build([], N), ["some text"]) == [None]


def test_characters_of_several_bytes_are_shown_whole():
    text = "\u4e00\u4e01\u4e02\u4e03\u4e04\u4e05\u4e06\u4e07\u4e08\u4e09\u4e0a\u4e0b\u4e0c\u4e0d"
    (hit,) = hits(contamination.build([("han", text)], N), [f"\u3042{text}\u3042"])
    assert hit == ("han", text[:13])


def test_planted_texts_are_all_found_and_nothing_else():
    """Against a plain search over sets of word tuples."""
    source = random.Random(0)
    sets = [(f"set{i % 5}", sentence(source, source.randrange(3, 40))) for i in range(300)]
    index = contamination.build(sets, N)
    documents = []
    for number in range(400):
        filler = [sentence(source, source.randrange(0, 60)) for _ in range(2)]
        planted = sets[number][1] if number < 300 else sentence(source, 20)
        documents.append(f"{filler[0]}\n{planted}. {filler[1]}")
    found = hits(index, documents)
    wanted = {}
    for name, text in sets:
        n = min(N, len(words(text)))
        if n >= contamination.MIN_WORDS:
            for i in range(len(words(text)) - n + 1):
                wanted.setdefault(tuple(words(text)[i : i + n]), name)
    for text, hit in zip(documents, found, strict=True):
        parts = words(text.replace(".", ""))
        spans = {
            tuple(parts[i : i + n]) for n in range(8, N + 1) for i in range(len(parts) - n + 1)
        }
        names = {wanted[span] for span in spans & set(wanted)}
        assert (hit is None) == (not names)
        assert hit is None or (
            hit.name in names and tuple(words(hit.shared.replace(".", ""))) in wanted
        )
    assert sum(hit is not None for hit in found[:300]) == sum(
        len(words(text)) >= contamination.MIN_WORDS for _, text in sets
    )
    assert not any(found[300:])
