"""Toxicity: lists made up here against plain search, thresholds by language, examples of all kinds.

No real list is needed, nor are its words repeated; invented ones do.
"""

import gzip
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.gates import classifier, toxicity
from data.words import split_words

DATA = Path("../shared/data")
COUNTED = classifier.ClassifierConfig(
    bits=14,
    word_ngrams=2,
)
LISTS = {
    "en": "zork\ngrumbly zork\nflubber-wax\nmother of frobs\n2 zorks 1 cup\nsnarkle\n",
    "de": "Blörk\nzork\n\n  Krumpf Blörk  \n",
    "zh": "坏话\n13点\n13.\n性\n",
    "th": "กขค\n",
    "no": "skrubb\n",
}


def config(**changes):
    values = {
        "lists": "",
        "max_hits_per_word": 0.0,
        "model": "",
        "max_score": 1.0,
        "max_score_by_language": {},
        "examples": {},
    }
    return toxicity.ToxicityConfig(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    for code, text in LISTS.items():
        (folder / f"{code}.txt").write_text(text, encoding="utf-8")
    (folder / "SOURCE.txt").write_text("snow comes from here", encoding="utf-8")
    return folder


def batch(texts):
    parts = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return data, offsets, split_words(data, offsets)


def hits(folder, *pairs):
    gate = toxicity.Toxicity(config(lists=str(folder)))
    codes, texts = zip(*pairs, strict=True)
    return gate.find(*batch(texts), codes).hits.tolist()


def test_words_and_phrases_are_counted(folder):
    assert hits(
        folder,
        ("en", "A zork, a ZORK; zorking is not one. Snarkle!"),
        ("en", "The grumbly zork counts once, and so does the mother\n of frobs."),
        ("en", "flubber wax, Flubber-Wax, flubberwax"),
        ("en", "They are 3 zorks 7 cup, all numbers being alike."),
        ("en", "grumbly mother of cats"),
        ("en", ""),
        ("de", "krumpf blörk, BLÖRK"),
        ("de", "Ein Zork"),
    ) == [3, 2, 2, 1, 0, 0, 2, 1]


def test_a_text_is_held_against_its_own_list_and_long_english_entries(folder):
    text = "zork, blörk, skrubb, snarkle, snow"
    assert hits(folder, ("en", text), ("de", text), ("no", text), ("fr", text), ("", text)) == [
        2,  # zork, snarkle
        3,  # zork of its own list, blörk, snarkle
        2,  # skrubb, snarkle; an English word of four letters may be a harmless one elsewhere
        1,
        1,
    ]


def test_scripts_without_blanks_are_searched_character_by_character(folder):
    pairs = [("zh", "他说了坏话。"), ("zh", "好话"), ("zh", "13点 10点 42 性"), ("th", "ฮกขคฮ")]
    assert hits(folder, *pairs) == [1, 0, 0, 1]


def test_counts_are_those_of_a_plain_search(folder):
    """Longest phrase first, none inside another, on texts of nothing but parts of phrases."""
    phrases = [p.replace("-", " ") for p in LISTS["en"].split("\n") if p and p[0] != "2"]
    pattern = re.compile(r"\b(?:" + "|".join(sorted(phrases, key=len, reverse=True)) + r")\b")
    rng = random.Random(5)
    parts = sorted({word for phrase in phrases for word in phrase.split()} | {"of", "snow"})
    texts = [" ".join(rng.choices(parts, k=rng.randrange(20))) for _ in range(200)]
    assert hits(folder, *(("en", t) for t in texts)) == [len(pattern.findall(t)) for t in texts]


def test_too_many_is_a_share_of_the_words(folder):
    texts = ["zork " + "snow " * 9, "zork " + "snow " * 10, "snow", ""]
    gate = toxicity.Toxicity(config(lists=str(folder), max_hits_per_word=0.095))
    found = gate.find(*batch(texts), ["en"] * 4)
    assert found.hits.tolist() == [1, 1, 0, 0]
    assert found.too_many.tolist() == [True, False, False, False]
    assert np.isnan(found.scores).all() and not found.too_high.any()


def test_without_lists_and_model_nothing_is_found():
    found = toxicity.Toxicity(config()).find(*batch(["zork", "x"]), ["en", "en"])
    assert found.hits.tolist() == [0, 0] and not found.too_many.any() and not found.too_high.any()


def write_examples(path, form):
    rows = [{"say": f"you zork number {n}", "is": "bad"} for n in range(40)]
    rows += [{"say": f"the sea is calm, day {n}", "is": "fine"} for n in range(60)]
    if form == "csv":
        lines = ["id,is,say", *(f'{n},{row["is"]},"{row["say"]}"' for n, row in enumerate(rows))]
    else:
        lines = map(json.dumps, rows)
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return toxicity.ExamplesConfig(path=str(path), text="say", label="is", toxic=("bad", "worse"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz", "a.jsonl.gz"])
def test_a_model_is_fitted_from_examples_and_judges(tmp_path, name):
    examples = write_examples(tmp_path / name, name.split(".")[1][:3])
    model = toxicity.fit(config(examples={"made_up": examples}), COUNTED)
    assert (model.num_positive, model.num_negative) == (40, 60)
    model.save(tmp_path / "model")
    settings = config(
        model=str(tmp_path / "model"), max_score=0.5, max_score_by_language={"de": 0.9999}
    )
    texts = ["you zork number 77", "the calm sea"] * 2
    found = toxicity.Toxicity(settings).find(*batch(texts), ["en", "en", "de", "de"])
    assert found.scores[0] == found.scores[2] > 0.5 > found.scores[1] == found.scores[3]
    assert found.too_high.tolist() == [True, False, False, False]


def test_sets_of_examples_weigh_the_same_in_any_order(tmp_path):
    one = write_examples(tmp_path / "one.csv", "csv")
    two = write_examples(tmp_path / "two.jsonl", "jsonl")
    models = [
        toxicity.fit(config(examples=e), COUNTED)
        for e in ({"a": one, "b": two}, {"b": two, "a": one})
    ]
    np.testing.assert_array_equal(models[0].weights, models[1].weights)
    assert models[0].num_positive == 80


def test_files_that_are_read_are_named(folder, tmp_path):
    names = [str(folder / f"{code}.txt") for code in sorted(LISTS)]
    assert toxicity.paths(config(lists=str(folder))) == names
    assert toxicity.paths(config(lists=str(folder), model="m")) == [*names, "m"]
    assert toxicity.paths(config()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"max_hits_per_word": -0.1}, "max_hits_per_word: -0.1"),
        ({"l2": -1.0}, "l2: -1.0"),
        ({"l2": math.nan}, "l2: nan"),
        ({"max_score": 1.1}, "max_score: 1.1"),
        ({"max_score_by_language": {"de": 2}}, r"max_score_by_language\.de: 2"),
        ({"max_score_by_language": {"deu": 0.5}}, "'deu'"),
    ],
)
def test_wrong_settings_are_named(changes, word):
    with pytest.raises(BadInput, match=word):
        config(**changes)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"no <language>\.txt"):
        toxicity.Toxicity(config(lists=str(tmp_path)))
    (tmp_path / "en.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"en\.txt"):
        toxicity.Toxicity(config(lists=str(tmp_path)))
    with pytest.raises(BadInput, match="not a classifier"):
        toxicity.Toxicity(config(model=str(tmp_path / "en.txt")))
    with pytest.raises(BadInput, match="toxic: "):
        toxicity.ExamplesConfig(path="x", text="a", label="b", toxic=())


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.csv", b"say,other\nx,y\n", r"a\.csv: row 1: no 'is', but 'other'"),
        ("a.csv", b"text,is\nx,y\n", r"a\.csv: row 1: no field 'say'"),
        ("a.jsonl", b'{"say": "x", "is": "y"}\n[1]\n', r"row 2: .*list"),
        ("a.jsonl", b'{"say": "x", "is": "y"}\n{"say"\n', "row 2: malformed JSON"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00cut", r"a\.csv\.gz: "),
        ("a.csv", b"", "row 1: no field 'say'|examples: 0 positive"),
    ],
)
def test_examples_that_cannot_be_read_are_named(tmp_path, name, content, word):
    examples = write_examples(tmp_path / name, "csv")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=word):
        toxicity.fit(config(examples={"made_up": examples}), COUNTED)


def test_fitting_needs_examples(tmp_path):
    with pytest.raises(BadInput, match="none are named"):
        toxicity.fit(config(), COUNTED)
    absent = toxicity.ExamplesConfig(str(tmp_path / "absent"), "a", "b", ("c",))
    with pytest.raises(BadInput, match="absent"):
        toxicity.fit(config(examples={"x": absent}), COUNTED)


@pytest.mark.real
def test_real_lists_leave_declarations_alone():
    lists, declarations = DATA / "filters/bad_words", DATA / "multilingual/udhr2/udhr2.jsonl.gz"
    if not lists.is_dir() or not declarations.exists():
        pytest.skip("the data sets are not beside the checkout")
    with gzip.open(declarations, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    gate = toxicity.Toxicity(config(lists=str(lists), max_hits_per_word=0.005))
    codes = [toxicity.language.to_iso639_1(row["name"].split("_")[0]) for row in rows]
    found = gate.find(*batch([row["text"] for row in rows]), codes)
    assert [row["name"] for row, bad in zip(rows, found.too_many, strict=True) if bad] == [
        "pes_1",  # a plain word for a person is in the Persian list
        "pes_2",
    ]
