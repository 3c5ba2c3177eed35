"""Gates: for each a text that it drops, and the nearest text that it lets pass."""

import dataclasses
import random

import pyarrow as pa
import pytest

from data import gates

CONFIG = gates.GateConfig(
    min_chars=200,
    max_chars=100_000,
    languages=("en",),
    min_language_score=0.5,
    min_words=50,
    max_words=1000,
    min_mean_word_chars=3.0,
    max_mean_word_chars=10.0,
    max_symbol_to_word_ratio=0.1,
    max_bullet_lines=0.9,
    max_ellipsis_lines=0.3,
    min_alphabetic_words=0.8,
    min_stop_words=2,
    max_javascript_lines=0.1,
    max_policy_lines=0.1,
    max_duplicate_lines=0.3,
    max_duplicate_line_chars=0.2,
    max_top_ngram_chars=(0.20, 0.18, 0.16),
    max_duplicate_ngram_chars=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
)

PROSE = """\
The harbour was quiet that morning, and the old pilot had walked to the end of the stone pier.
Far out a single sail stood against the grey line of hills that closed the bay in the west.
He counted seven gulls on the railing, then eight, and wondered why none of them made a sound.
Nobody in the village could remember a winter with so little wind, nor so much fish to sell.
His daughter would be home by noon, carrying bread, letters and the usual complaints about mud.
Somewhere behind him a door opened, boots crossed the gravel, and a voice asked for directions.
It belonged to a young surveyor with wet sleeves who had come to measure every house on the hill.
They talked until the tide turned; neither noticed the bell, or how cold both had become.
"""
WORDS = [f"{a}{b}" for a in ("stone", "river", "glass", "wolf") for b in ("er", "ish", "ing", "ed")]


def fails(text, name=None, **changes):
    """Returns the first gate that fails among all, or among the one named."""
    config = dataclasses.replace(CONFIG, **changes)
    return gates.first_failure(gates.normalise(text), config, (name,) if name else gates.NAMES)


def lines_with(extra, count):
    lines = PROSE.splitlines()
    return "\n".join(lines[:-count] + [extra.format(i) for i in range(count)] if count else lines)


def test_prose_passes_every_gate():
    assert fails(PROSE) == ""


def test_empty_text_is_named_whatever_gates_apply():
    assert gates.first_failure(gates.normalise(" \r\n\t\x00\n"), CONFIG, ()) == "empty"


def test_length():
    assert fails("x" * 198, "length") == "length"  # one newline is added
    assert fails("x" * 199, "length") == ""
    assert fails("x" * 100_000, "length") == "length"


@pytest.mark.parametrize(
    "text",
    [
        "Der alte Lotse ging am Morgen bis zum Ende der Mole und sah hinaus auf das graue Meer.",
        "Le vieux pilote marchait ce matin jusqu'au bout de la jetée et regardait la mer grise.",
        "Старый лоцман утром дошёл до конца каменного причала и смотрел на серое море.",
    ],
)
def test_language(text):
    assert fails(text * 5, "language") == "language"
    assert fails(text * 5, "language", languages=()) == ""
    assert fails(text * 5, "language", languages=("de", "fr", "ru")) == ""


def test_language_score_is_a_threshold():
    assert fails(PROSE, "language", min_language_score=0.0) == ""
    assert fails(PROSE, "language", min_language_score=1.0) == "language"


def test_word_count():
    words = PROSE.split()
    assert fails(" ".join(words[:40]), "word_count") == "word_count"
    assert fails(" ".join(words[:60]), "word_count") == ""
    assert fails(PROSE * 10, "word_count") == "word_count"


def test_mean_word_length():
    assert fails("a be of it " * 30, "mean_word_length") == "mean_word_length"
    assert fails("incomprehensibilities " * 30, "mean_word_length") == "mean_word_length"
    assert fails("!!! ??? " * 30, "mean_word_length") == "mean_word_length"
    assert fails(PROSE, "mean_word_length") == ""


@pytest.mark.parametrize("symbol", ["#", "...", "\u2026"])
def test_symbol_ratio(symbol):
    words = PROSE.split()[:100]
    assert fails(" ".join(words) + f" {symbol}" * 8, "symbol_ratio") == ""
    assert fails(" ".join(words) + f" {symbol}" * 13, "symbol_ratio") == "symbol_ratio"


@pytest.mark.parametrize("bullet", ["- ", "* ", "\u2022 "])
def test_bullet_lines(bullet):
    items = [f"  {bullet}{line}" for line in PROSE.splitlines()]
    assert fails("\n".join(items), "bullet_lines") == "bullet_lines"
    assert fails("\n".join([*items, "A last line."]), "bullet_lines") == ""


def test_ellipsis_lines():
    assert fails(lines_with("and so on {} ...", 2), "ellipsis_lines") == ""
    assert fails(lines_with("and so on {} ...", 3), "ellipsis_lines") == "ellipsis_lines"
    assert fails(lines_with("and so on {} \u2026", 3), "ellipsis_lines") == "ellipsis_lines"


def test_lorem_ipsum():
    assert fails(PROSE + "Lorem Ipsum dolor sit amet", "lorem_ipsum") == "lorem_ipsum"
    assert fails(PROSE + "Lorem", "lorem_ipsum") == ""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("javascript_lines", "Please enable JavaScript to see page {}"),
        ("policy_lines", "We use cookies, see our Privacy Policy {}"),
    ],
)
def test_boilerplate_lines(name, line):
    assert fails(lines_with(line, 1), name) == name
    assert fails(PROSE * 2 + line, name) == ""


def test_alphabetic_words():
    numbers = " ".join(map(str, range(1000, 1040)))
    words = " ".join(PROSE.split()[:100])
    assert fails(f"{words} {numbers}", "alphabetic_words") == "alphabetic_words"
    assert fails(f"{words} {numbers[:50]}", "alphabetic_words") == ""
    assert fails("a1 2b " * 40, "alphabetic_words") == ""


def test_stop_words():
    words = " ".join(WORDS)
    assert fails(words, "stop_words") == "stop_words"
    assert fails(words + " the the the", "stop_words") == "stop_words"
    assert fails(words + " The cat AND", "stop_words") == ""


def test_duplicate_lines():
    many = "\n".join(["again"] * 8 + PROSE.splitlines())
    assert fails(many, "duplicate_lines") == "duplicate_lines"  # 7 of 16 lines, few characters
    assert fails(many, "duplicate_lines", max_duplicate_lines=0.5) == ""
    long = PROSE + "\n".join(PROSE.splitlines()[:3])
    assert fails(long, "duplicate_lines") == "duplicate_lines"  # 3 of 11 lines, many characters
    assert fails(long, "duplicate_lines", max_duplicate_line_chars=0.3) == ""


@pytest.mark.parametrize("n", [2, 3, 4])
def test_top_ngrams(n):
    phrase = " ".join(WORDS[:n])
    words = PROSE.split()
    spread = " ".join(f"{word} {phrase}" if i % 12 == 0 else word for i, word in enumerate(words))
    assert fails(PROSE, "top_ngrams") == ""
    assert fails(spread, "top_ngrams") == "top_ngrams"
    only_n = tuple(0.16 if length == n else 1.0 for length in (2, 3, 4))
    rarely = " ".join(f"{word} {phrase}" if i % 60 == 0 else word for i, word in enumerate(words))
    assert fails(rarely, "top_ngrams", max_top_ngram_chars=only_n) == ""
    assert fails(spread, "top_ngrams", max_top_ngram_chars=only_n) == "top_ngrams"


def test_duplicate_ngrams():
    words = PROSE.split()
    assert fails(PROSE, "duplicate_ngrams") == ""
    again = words + words[10:50]
    assert fails(" ".join(again), "duplicate_ngrams") == "duplicate_ngrams"
    assert fails(" ".join(words + words[10:18]), "duplicate_ngrams") == ""


def count_by_hand(words, n):
    """Word characters in repeats, each word once: the definition, written plainly."""
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / sum(map(len, words))


@pytest.mark.parametrize("seed", range(20))
def test_duplicate_ngrams_agrees_with_the_definition(seed):
    source = random.Random(seed)
    chunks = [[source.choice(WORDS) for _ in range(12)] for _ in range(6)]
    words = [word for _ in range(12) for word in source.choice(chunks)]
    ratios = [count_by_hand(words, n) for n in gates.DUPLICATE_NGRAM_WORDS]
    for i, ratio in enumerate(ratios):
        for change, expected in ((0.001, ""), (-0.001, "duplicate_ngrams")):
            limits = [1.0] * len(ratios)
            limits[i] = min(max(ratio + change, 0.0), 1.0)
            limits = tuple(limits)
            found = fails(" ".join(words), "duplicate_ngrams", max_duplicate_ngram_chars=limits)
            assert found == expected


@pytest.mark.parametrize("text", ["a", "a b", "a a a a a a a a a a a a", "!", "\u4f60\u597d"])
def test_tiny_texts_do_not_upset_any_gate(text):
    for name in gates.NAMES:
        assert fails(text, name) in ("", name)


def test_normalise():
    assert (
        gates.normalise("a\r\nb\rc\x0cd  \n\t\n\x00e\ufeff\x1b[0m\n\n\n") == "a\nb\nc\nd\n\ne[0m\n"
    )
    assert gates.normalise("\n\n    indented\n") == "    indented\n"
    assert gates.normalise("e\u0301") == "\u00e9\n"
    assert gates.normalise(" \n ") == ""


@pytest.mark.parametrize("text", [PROSE, "\n\n x \x00\n y\t \n", "e\u0301\x00\u0301", "a\x00\r\n"])
def test_normalise_twice_changes_nothing(text):
    once = gates.normalise(text)
    assert gates.normalise(once) == once


def test_cheapest_failing_gate_is_the_one_named():
    german = "Der alte Lotse ging langsam. " * 3
    assert fails(german) == "length"
    assert fails(german * 5) == "language"


def test_apply_uses_the_gates_of_each_domain():
    batch = pa.RecordBatch.from_pydict(
        {"id": ["1", "2", "3"], "domain": ["web", "code", "code"], "text": ["x\r\n", "x\r\n", ""]}
    )
    found = gates.apply(batch, CONFIG, {"web": ("length",), "code": ("lorem_ipsum",)})
    assert found.column("why").to_pylist() == ["length", "", "empty"]
    assert found.column("text").to_pylist() == ["x\n", "x\n", ""]
    assert found.column("id").to_pylist() == ["1", "2", "3"]


def test_apply_takes_an_empty_batch():
    schema = pa.schema([("domain", pa.string()), ("text", pa.string())])
    found = gates.apply(pa.RecordBatch.from_pylist([], schema), CONFIG, {})
    assert found.num_rows == 0
    assert found.schema.names == ["domain", "text", "why"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_chars": 10, "max_chars": 5}, "min_chars, max_chars: 10 and 5; allowed"),
        ({"min_words": -1}, "min_words, max_words: -1"),
        ({"max_bullet_lines": 1.5}, "max_bullet_lines: 1.5 must be from 0 to 1"),
        ({"min_stop_words": 9}, "min_stop_words: 9 must be from 0 to 8"),
        ({"max_top_ngram_chars": (0.2,)}, r"max_top_ngram_chars: \(0.2,\) must be 3 ratios"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
