"""Decontamination: what rewriting of an evaluation text is found, and what is not one."""

import random

import numpy as np
import pytest

from data.gates import contamination, repair

QUESTION = (
    "Whose national flag shows a single red maple leaf between two broad bars on white ground?"
)
SHORT = "Which moon circles Neptune backwards?"
SUM = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 and 16"
OPTIONS = [
    "Which metal melts?",
    "gallium nitride",
    "pure tungsten",
    "molten iron",
    "white gold ore",
]
BROKEN = (
    "It\u2019s na\u00efve that every caf\u00e9 of the old town closes before the last of us left"
)
SETS = [
    ("quiz", QUESTION),
    ("short", SHORT),
    ("short", "in the course of time"),
    ("sums", SUM),
    ("rows", "\n".join(OPTIONS)),
    ("broken", BROKEN.encode().decode("cp1252")),
]


def hits(index, texts):
    encoded = [repair.repair(text).encode() for text in texts]
    data = np.frombuffer(b"".join(encoded), np.uint8)
    return index.find(data, np.cumsum([0, *map(len, encoded)]))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index.npz"
    contamination.build(SETS, 13).save(path)
    return contamination.Index.load(path)


def words_of(start, stop):
    return " ".join(QUESTION.split()[start:stop])


FOUND = {
    "verbatim": QUESTION,
    "thirteen of its words": f"see {words_of(2, 15)} there",
    "capitals and commas": QUESTION.upper().replace(" ", ", "),
    "full width": QUESTION.translate({code: code + 0xFEE0 for code in range(33, 127)}),
    "a word replaced": QUESTION.replace("maple", "oak"),
    "a word left out": QUESTION.replace("maple ", ""),
    "a word put in": QUESTION.replace("maple", "bright maple"),
    "short": f"He asks: {SHORT.lower()[:-1]} - and leaves.",
    "question and options": "Which metal melts?\nA. gallium nitride\n(B) pure tungsten\nC: molten "
    "iron d) white gold ore",
    "mojibake on one side": BROKEN,
}
NOT_FOUND = {
    "nothing": "",
    "eleven of its words": words_of(2, 13) + " or so",
    "two words replaced": QUESTION.replace("maple", "oak").replace("shows", "has"),
    "a short one with another word": SHORT.replace("moon", "planet"),
    "a short text that is no question": "It went in the course of time.",
    "options alone": "gallium nitride, pure tungsten, molten iron",
    "numbers": SUM,
}


@pytest.mark.parametrize("kind", FOUND)
def test_rewriting_that_is_found(index, kind):
    (hit,) = hits(index, [f"Before it.\n{FOUND[kind]}\nAfter it."])
    assert hit is not None
    assert hit.name in ("quiz", "short", "rows", "broken")


@pytest.mark.parametrize("kind", NOT_FOUND)
def test_what_is_no_evaluation_text(index, kind):
    assert hits(index, [f"Before it.\n{NOT_FOUND[kind]}\nAfter it."]) == [None]


def test_numbers_are_compared():
    text = "A crate holds 48 tins of 250 grams, and 17 crates stand in each of the 9 sheds there."
    index = contamination.build([("sums", text)], 13)
    other = text.replace("48", "52").replace("250", "300").replace("17", "18").replace("9 s", "8 s")
    assert [hit and hit.name for hit in hits(index, [text, other])] == ["sums", None]


def test_what_is_shared_is_shown_in_one_line():
    text = "\u4e00\u4e01\u4e02\u4e03\u4e04\u4e05\u4e06\u4e07\u4e08\u4e09\u4e0a\u4e0b\u4e0c\u4e0d"
    index = contamination.build([("han", text), ("quiz", QUESTION)], 13)
    found = hits(index, [f"\u3042{text}\u3042", QUESTION.replace(" ", "\n", 3)])
    assert found == [("han", text), ("quiz", QUESTION[:-1])]
    assert hits(contamination.build([], 13), ["some text"]) == [None]


def has_one_difference(document, text, stretch):
    """Whether a stretch of a text stands there but for a word replaced, by trying every place."""
    for i in range(len(document) - stretch + 1):
        for j in range(len(text) - stretch + 1):
            pairs = list(zip(document[i : i + stretch], text[j : j + stretch], strict=True))
            wrong = [place for place, (a, b) in enumerate(pairs) if a != b]
            if not wrong or (len(wrong) == 1 and 2 <= wrong[0] <= stretch - 3):
                return True
    return False


def test_a_plain_search_finds_the_same():
    """Words are replaced at random, in texts longer and shorter than a stretch of ten."""
    source = random.Random(0)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(600)]
    texts = [source.sample(words, source.randrange(8, 20)) for _ in range(30)]
    index = contamination.build([(str(n), " ".join(text)) for n, text in enumerate(texts)], 10)
    documents, expected = [], []
    for _ in range(300):
        text = list(source.choice(texts))
        for _ in range(source.randrange(4)):
            text[source.randrange(len(text))] = source.choice(words)
        start = source.randrange(3)
        documents.append([*source.sample(words, 5), *text[start:], *source.sample(words, 5)])
        expected.append(any(has_one_difference(documents[-1], t, min(10, len(t))) for t in texts))
    found = [hit is not None for hit in hits(index, [" ".join(d) for d in documents])]
    assert found == expected
    assert 0.3 < np.mean(expected) < 0.9
