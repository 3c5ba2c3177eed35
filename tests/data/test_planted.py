"""Planted copies and evaluation texts are found as often as they should be, and nothing else."""

import random
import re

import pytest

from configs import quickstart
from data.curate import CurateConfig
from data.document import place
from data.gates import contamination
from data.scoring import planted
from launch import schema

CONFIG = schema.to_dataclass(CurateConfig, quickstart.get_config().data, "data")
PARTS = [a + b + c for a in "bdfgklmnprst" for b in ("a", "ei", "o") for c in ("l", "nd", "rk")]


def prose(seed, num_words=120):
    source = random.Random(seed)
    return " ".join(source.choice(PARTS) + source.choice(PARTS) for _ in range(num_words)) + "."


def ngrams(text, n=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(left, right):
    left, right = ngrams(left), ngrams(right)
    return len(left & right) / len(left | right)


def test_planted_copies_are_found_as_often_as_the_formula_says():
    documents = [(f"d{n}", prose(n, 100 + n)) for n in range(150)]
    found = planted.measure_duplicates(documents, CONFIG.dedup)
    assert found["originals"] == 150
    assert found["exact"] == {"planted": 150, "recall": 1.0, "false_merges": 0, "merged": []}
    for row, share in zip(found["near"], planted.SHARES, strict=True):
        assert (row["share"], row["planted"], row["false_merges"]) == (share, 450, 0)
        # Of a 5-gram no word is replaced with this chance, and words are replaced in one copy only.
        kept = (1 - share) ** 5
        assert row["similarity"] == pytest.approx(kept / (2 - kept), abs=0.02)
        assert row["recall"] == pytest.approx(row["expected"], abs=0.06)
    assert [row["recall"] > 0.9 for row in found["near"]] == [True, False, False]


def test_a_share_of_the_words_is_replaced_by_others():
    texts = ["(" + prose(1, 200), prose(2, 151) + "\n"]
    others = sorted(set(re.findall(r"\w+", " ".join(texts).lower())))
    for share in (0.02, 0.1):
        copies = planted._replace_words(texts, others, share, seed=1)
        again = planted._replace_words(texts, others, share, seed=2)
        assert copies != again
        for text, copy in zip(texts, copies, strict=True):
            before, after = re.findall(r"\w+", text), re.findall(r"\w+", copy)
            changed = sum(a != b for a, b in zip(before, after, strict=True))
            assert changed == round(share * len(before))
            assert re.findall(r"\W+", text) == re.findall(r"\W+", copy)
    text = "One two. " * 50
    (copy,) = planted._replace_words([text], ["one", "two"], 0.1, seed=1)
    assert sum(a != b for a, b in zip(text.split(), copy.split(), strict=True)) == 10


def test_copies_that_were_there_before_are_named():
    documents = [(f"d{n}", prose(n)) for n in range(20)]
    documents += [("twin", prose(3) + " And more."), ("again", prose(3) + " More.")]
    found = planted.measure_duplicates(documents, CONFIG.dedup)
    for row in found["near"]:
        assert row["false_merges"] == 3
        similar = {tuple(pair["ids"]): pair["similarity"] for pair in row["merged"]}
        texts = dict(documents)
        assert similar == {
            pair: pytest.approx(jaccard(texts[pair[0]], texts[pair[1]]))
            for pair in (("d3", "twin"), ("d3", "again"), ("twin", "again"))
        }
    assert found["exact"]["false_merges"] == 0


def test_documents_are_chosen_by_hash():
    documents = [(f"d{n}", prose(n)) for n in range(50)] + [("short", "Too short.")]
    chosen = planted.choose(documents + [("copy", prose(7))], 20)
    assert planted.choose(reversed(documents), 20) == [(key, text) for key, text in chosen]
    assert [text for _, text in chosen] == sorted((t for _, t in documents[:-1]), key=place)[:20]
    assert len(planted.choose(documents, 100)) == 50


def quiz(count, num_words=(8, 30)):
    source = random.Random(5)
    return [
        (f"set{n % 3}", " ".join(source.choices(PARTS, k=source.randint(*num_words))))
        for n in range(count)
    ]


def test_planted_evaluation_texts_are_found():
    documents = [(f"d{n}", prose(n)) for n in range(60)]
    evaluation = quiz(90) + [("set1", "far too short to be looked for"), ("set1", "\ud83d")]
    shared = next(text for _, text in evaluation if len(text.split()) > 20)
    documents[11] = ("d11", f"{prose(11)} {shared} {prose(12)}")
    found = planted.measure_contamination(documents, evaluation, CONFIG.gates)
    assert found["recall"] == {"as_it_is": 1.0, "retyped": 1.0} and not found["missed"]
    counts = {key: found[key] for key in ("sets", "texts", "planted", "unplanted")}
    assert counts == {"sets": 3, "texts": 90, "planted": 59, "unplanted": 60}
    (hit,) = found["hits"]
    assert hit["id"] == "d11" and hit["shared"] in shared
    assert len(hit["shared"].split()) >= CONFIG.gates.contamination_words


def test_what_is_not_planted_is_not_found(monkeypatch):
    monkeypatch.setattr(planted, "FORMS", {"backwards": lambda text: text[::-1]})
    documents = [(f"d{n}", prose(n)) for n in range(9)]
    found = planted.measure_contamination(documents, quiz(30), CONFIG.gates)
    assert found["recall"] == {"backwards": 0.0}
    assert [form for form, _ in found["missed"]] == ["backwards"] * 9


def test_evaluation_texts_are_taken_from_each_set_in_turn():
    evaluation = [("large", text) for _, text in quiz(40)] + [
        ("small", text) for _, text in quiz(2)
    ]
    names = [name for name, _ in planted._choose_texts(evaluation)]
    assert names == ["large", "small"] * 2 + ["large"] * 38
    assert contamination.MIN_WORDS == 8, "the texts above have at least as many"
