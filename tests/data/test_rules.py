"""Rules: for each a text at its threshold, worked by hand, and what it says of one beyond."""

import dataclasses
import unicodedata

import numpy as np
import pytest

from data.gates import rules, stop_words
from data.words import split_words

PUBLISHED = rules.RuleConfig(
    gopher=rules.GopherConfig(
        min_words=50,
        max_words=100_000,
        min_mean_word_chars=3.0,
        max_mean_word_chars=10.0,
        max_symbol_to_word_ratio=0.1,
        max_bullet_lines=0.9,
        max_ellipsis_lines=0.3,
        min_alphabetic_words=0.8,
        min_stop_words=2,
        max_duplicate_lines=0.3,
        max_duplicate_line_chars=0.2,
        max_duplicate_paragraphs=0.3,
        max_duplicate_paragraph_chars=0.2,
        max_top_ngram_chars=(0.20, 0.18, 0.16),
        max_duplicate_ngram_chars=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    ),
    c4=rules.C4Config(
        max_javascript_lines=0.1,
        max_policy_lines=0.1,
        max_curly_brackets=0,
        min_line_words=3,
        min_terminal_lines=0.3,
        min_sentences=5,
    ),
    fineweb=rules.FineWebConfig(
        min_punctuated_lines=0.12,
        short_line_chars=30,
        max_short_lines=0.67,
        max_character_duplicates=0.01,
        max_newlines_per_word=0.3,
    ),
)
MANY = 10**9
# Everything passes: (family, fields).
LOOSE = {
    "gopher": {
        "min_words": 0,
        "max_words": MANY,
        "min_mean_word_chars": 0.0,
        "max_mean_word_chars": 1e9,
        "max_symbol_to_word_ratio": 1.0,
        "max_bullet_lines": 1.0,
        "max_ellipsis_lines": 1.0,
        "min_alphabetic_words": 0.0,
        "marks_count": False,
        "min_stop_words": 0,
        "max_duplicate_lines": 1.0,
        "max_duplicate_line_chars": 1.0,
        "max_duplicate_paragraphs": 1.0,
        "max_duplicate_paragraph_chars": 1.0,
        "max_top_ngram_chars": (1.0,) * 3,
        "max_duplicate_ngram_chars": (1.0,) * 6,
    },
    "c4": {
        "max_javascript_lines": 1.0,
        "max_policy_lines": 1.0,
        "max_curly_brackets": MANY,
        "min_line_words": 3,
        "min_terminal_lines": 0.0,
        "min_sentences": 0,
    },
    "fineweb": {
        "min_punctuated_lines": 0.0,
        "short_line_chars": 30,
        "max_short_lines": 1.0,
        "max_character_duplicates": 1.0,
        "max_newlines_per_word": 1e9,
    },
}
KINDS = {"gopher": rules.GopherConfig, "c4": rules.C4Config, "fineweb": rules.FineWebConfig}


def loose(**changes):
    """A config that lets everything pass but for the changes."""
    parts = {
        name: kind(**LOOSE[name] | {k: v for k, v in changes.items() if k in LOOSE[name]})
        for name, kind in KINDS.items()
    }
    assert set(changes) <= set().union(*LOOSE.values())
    return rules.RuleConfig(**parts)


# Every measure that can be asked for fails, unless nothing at all is there.
STRICT = loose(
    min_words=MANY,
    max_words=MANY,
    min_mean_word_chars=1e9,
    max_symbol_to_word_ratio=0.0,
    max_bullet_lines=0.0,
    max_ellipsis_lines=0.0,
    min_alphabetic_words=1.0,
    min_stop_words=8,
    max_duplicate_lines=0.0,
    max_duplicate_paragraphs=0.0,
    max_top_ngram_chars=(0.0,) * 3,
    max_duplicate_ngram_chars=(0.0,) * 6,
    max_javascript_lines=0.0,
    max_policy_lines=0.0,
    max_curly_brackets=0,
    min_terminal_lines=1.0,
    min_sentences=MANY,
    min_punctuated_lines=1.0,
    max_short_lines=0.0,
    max_character_duplicates=0.0,
    max_newlines_per_word=0.0,
)


def judge(texts, config, names=rules.RULES, languages=None):
    """(rule or '', value) of each text, with the rules named."""
    parts = [text.encode() for text in texts]
    data, offsets = np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)])
    bits = sum(1 << rules.RULES.index(name) for name in names)
    enabled = np.full(len(texts), bits, np.uint32)
    words = split_words(data, offsets)
    languages = languages or ["en"] * len(texts)
    failed, values = rules.first_failures(data, offsets, words, languages, enabled, config)
    assert failed.dtype == np.int8 and values.dtype == np.float32
    named = [rules.RULES[rule] if rule != rules.PASSES else "" for rule in failed]
    return list(zip(named, values.tolist(), strict=True))


WORDS = [f"{a}{b}" for a in ("stone", "river", "glass", "wolf") for b in ("er", "ish", "ing", "ed")]
TEN = " ".join(WORDS[:10])
# Rule, text, threshold, what is measured, worked by hand.
CASES = [
    ("gopher_word_count", "one two_2 3 -- don't", "min_words", 5),
    ("gopher_word_count", "one two \u4e2d\u56fd", "max_words", 4),
    ("gopher_mean_word_length", "a bb cccccc", "min_mean_word_chars", 3.0),
    ("gopher_mean_word_length", "a \u00e9e\u0301 cccccc", "max_mean_word_chars", 10 / 3),
    ("gopher_stop_words", "The cat AND the dog with", "min_stop_words", 3),
    ("gopher_alphabetic_words", "a1 22 _ \u4e2d 5", "min_alphabetic_words", 2 / 5),
    ("gopher_symbol_ratio", f"## {TEN} #", "max_symbol_to_word_ratio", 0.3),
    ("gopher_symbol_ratio", f"# {TEN}....... \u2026", "max_symbol_to_word_ratio", 0.3),
    ("c4_curly_brackets", "a { b {} }", "max_curly_brackets", 2),
    ("fineweb_newline_ratio", "\na b\n\nc d\n\n", "max_newlines_per_word", 3 / 4),
    ("gopher_bullet_lines", "- a\n  * b\n\n\u2022 c\nd - e\nf", "max_bullet_lines", 3 / 5),
    ("gopher_ellipsis_lines", "a...\nb \u2026\t\nc..\n\n...d\n", "max_ellipsis_lines", 2 / 4),
    ("fineweb_line_punctuation", "a.\nb\u3002\nc\nd: \n\n", "min_punctuated_lines", 2 / 4),
    ("fineweb_line_punctuation", 'a\u061f\n"b."\nc\u0964\n', "min_punctuated_lines", 2 / 3),
    ("fineweb_short_lines", f"{'x' * 30}\n {'y' * 31}\n", "max_short_lines", 1 / 2),
    ("fineweb_short_lines", f"\u00e9{'x' * 29}  \n{'y' * 31}\n", "max_short_lines", 1 / 2),
    ("c4_javascript_lines", "Use JavaScript\na\nb\nc", "max_javascript_lines", 1 / 4),
    ("c4_policy_lines", "Our Privacy Policy, cookie policy\na\nb", "max_policy_lines", 1 / 3),
    ("c4_policy_lines", "terms of USE\nuses cookies\na\nuse of cookie", "max_policy_lines", 2 / 4),
    # Kept: 1, 3 and 4; too few words, an ellipsis, no mark.
    (
        "c4_terminal_lines",
        'a b c.\na b.\n"a b c"\na b c!\na b c...\na b c',
        "min_terminal_lines",
        3 / 6,
    ),
    # Two sentences, one (no word in the second), none (Javascript), two without a blank.
    (
        "c4_sentences",
        'He said "no." She left!\nOne v1.2 only? ...?\nSet javascript on.\n\u4e2d\u56fd\u3002\u4eba'
        "\u3002",
        "min_sentences",
        5,
    ),
    ("gopher_duplicate_lines", "a\n b\na \n\nb\nc\n", "max_duplicate_lines", 2 / 5),
    ("gopher_duplicate_lines", "abcd\nx\nabcd\ny", "max_duplicate_line_chars", 4 / 10),
    ("fineweb_character_duplicates", "abcd\nx\n\u00e9\nabcd", "max_character_duplicates", 4 / 10),
    ("gopher_duplicate_paragraphs", "a\nb\n\na\n b\n\nb\n", "max_duplicate_paragraphs", 1 / 3),
    ("gopher_duplicate_paragraphs", "a\nb\n\nc\n\na\nb", "max_duplicate_paragraph_chars", 2 / 5),
]
# "aa bb" three times of 20 characters; of n-grams as frequent the longest; of five words 5 of 21.
NGRAM_CASES = [
    (2, "aa bb c aa bb d aa bb efghij", 12 / 20),
    (2, "a b x a b y cc dd z cc dd", 8 / 15),
    (3, "Aa b c x aa B c 11 22 33", 8 / 15),
    (4, "a b c d 1 a b c d 2", 8 / 10),
    (5, "a b c d ee x a b c d ee y", 6 / 14),
    (5, "a b c d e a b c d e a b c d e", 10 / 15),
    (10, f"{TEN} x {TEN}", len(TEN) - 9),
]


def tighten(threshold, value):
    step = 1 if isinstance(value, int) else None
    low = threshold.startswith("min")
    return value + (step if low else -step) if step else float(np.nextafter(value, 9 if low else 0))


@pytest.mark.parametrize(("rule", "text", "threshold", "value"), CASES)
def test_a_text_passes_at_the_threshold_and_fails_beyond(rule, text, threshold, value):
    assert judge([text], loose(**{threshold: value}), [rule]) == [("", 0.0)]
    failure = judge([text], loose(**{threshold: tighten(threshold, value)}), [rule])
    assert failure == [(rule, pytest.approx(value, rel=1e-6))]


@pytest.mark.parametrize(
    ("rule", "text", "threshold", "value"),
    [  # aa , b 'b . cc ? ! ? 1,5 . are 11, 4 with a letter; 10 words, # and ., repeated or not
        ("gopher_alphabetic_words", "aa, b'b. cc???!? 1,5.", "min_alphabetic_words", 4 / 11),
        ("gopher_symbol_ratio", f"# {TEN}.......", "max_symbol_to_word_ratio", 2 / 12),
        ("fineweb_newline_ratio", "a, b\nc", "max_newlines_per_word", 1 / 4),
    ],
)
def test_marks_count_as_words_where_asked(rule, text, threshold, value):
    asked = {threshold: value, "marks_count": True}
    assert judge([text], loose(**asked), [rule]) == [("", 0.0)]
    asked[threshold] = tighten(threshold, value)
    (failure,) = judge([text], loose(**asked), [rule])
    assert failure == (rule, pytest.approx(value))


@pytest.mark.parametrize(("n", "text", "value"), NGRAM_CASES)
def test_ngrams_at_the_threshold_and_beyond(n, text, value):
    value = value / (2 * value + 1) if value > 1 else value
    rule, field = ("gopher_top_ngrams", "max_top_ngram_chars")
    limits, place = [1.0] * 3, n - 2
    if n > 4:
        rule, field = ("gopher_duplicate_ngrams", "max_duplicate_ngram_chars")
        limits, place = [1.0] * 6, n - 5
    for limit, expected in ((value, ""), (np.nextafter(value, 0), rule)):
        limits[place] = float(limit)
        found = judge([text], loose(**{field: tuple(limits)}), [rule])
        assert found == [(expected, pytest.approx(value if expected else 0, rel=1e-6))]


def test_lorem_ipsum_in_any_case():
    texts = ["a Lorem IPSUM b", "lorem", "lore m ipsum", "lorem ipsu"]
    found = [rule for rule, _ in judge(texts, loose(), ["c4_lorem_ipsum"])]
    assert found == ["c4_lorem_ipsum", "", "", ""]


def test_different_numbers_are_no_repetition():
    table = "\n".join(
        f"{i % 10} {i // 10 % 10} {(i * 7) % 10}{(i * 3) % 10}" for i in range(0, 90, 9)
    )
    assert judge([table], PUBLISHED, ["gopher_top_ngrams"]) == [("", 0.0)]


def test_stop_words_are_those_of_the_language():
    texts = ["the cat and the dog", "der Hund und die Katze", "\u6211\u7684\u4e66\u5728\u8fd9", "x"]
    for languages, wanted in (
        (["en", "de", "zh", "en"], "   x"),
        (["de", "en", "ja", "qq"], "xxx "),
    ):
        found = judge(texts, PUBLISHED, ["gopher_stop_words"], languages)
        assert ["x" if rule else " " for rule, _ in found] == list(wanted), languages


def test_stop_words_are_enough_and_found_as_words():
    for language, listed in stop_words.STOP_WORDS.items():
        chosen = listed.split()
        assert rules.MAX_STOP_WORDS <= len(set(chosen)) == len(chosen) <= stop_words.NUM_SLOTS // 2
        text = unicodedata.normalize("NFC", listed)
        strict = loose(min_stop_words=rules.MAX_STOP_WORDS)
        assert judge([text], strict, ["gopher_stop_words"], [language]) == [("", 0.0)], language


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


def test_prose_passes_and_its_like_fails_where_it_should():
    prose = PROSE.split()
    texts = {
        PROSE: "",
        " ".join(prose[:40]): "gopher_word_count",
        "!!! ??? " * 30: "gopher_word_count",
        "a be of it " * 30: "gopher_mean_word_length",
        "incomprehensibilities " * 60: "gopher_mean_word_length",
        " ".join(WORDS * 4): "gopher_stop_words",
        PROSE + " 1234" * 40: "gopher_alphabetic_words",
        PROSE + " #" * 20: "gopher_symbol_ratio",
        PROSE + "{": "c4_curly_brackets",
        PROSE + "Lorem Ipsum dolor sit amet": "c4_lorem_ipsum",
        "\n\n".join(prose): "fineweb_newline_ratio",
        "".join(f" \u2022 {line}\n" for line in PROSE.splitlines()): "gopher_bullet_lines",
        PROSE.replace(".\n", "...\n"): "gopher_ellipsis_lines",
        PROSE.replace(".\n", ",\n"): "fineweb_line_punctuation",
        PROSE + "Why me, why?\n" * 20: "fineweb_short_lines",
        PROSE + "Please enable JavaScript.": "c4_javascript_lines",
        PROSE + "We use cookies, see our Privacy Policy.": "c4_policy_lines",
        " ".join(PROSE.replace(".", ",").splitlines()) + ".": "c4_sentences",
        PROSE + "It was an old and tired story of the sea.\n" * 6: "gopher_duplicate_lines",
        PROSE + PROSE.splitlines()[3]: "fineweb_character_duplicates",
        " ".join(f"{w} stoner riverish" if i % 9 == 0 else w for i, w in enumerate(prose)) + ".": (
            "gopher_top_ngrams"
        ),
        " ".join(prose + prose[10:50]) + ".": "gopher_duplicate_ngrams",
    }
    found = [rule for rule, _ in judge(list(texts), PUBLISHED)]
    assert found == list(texts.values())


def test_only_the_rules_asked_for_are_tried():
    data = np.frombuffer(b"a#{a#{", np.uint8)
    offsets = np.array([0, 3, 6])
    words = split_words(data, offsets)
    bit = {name: 1 << number for number, name in enumerate(rules.RULES)}
    for asked in (
        ("gopher_symbol_ratio", "c4_curly_brackets"),
        ("c4_curly_brackets", "gopher_symbol_ratio"),
        ("gopher_bullet_lines", "gopher_word_count"),
    ):
        enabled = np.array([bit[name] for name in asked], np.uint32)
        found, _ = rules.first_failures(data, offsets, words, ["en"] * 2, enabled, PUBLISHED)
        wanted = [rules.RULES.index(asked[0]), rules.RULES.index(asked[1])]
        if asked[0] == "gopher_bullet_lines":
            wanted[0] = rules.PASSES
        assert found.tolist() == wanted


def test_no_texts():
    assert judge([], PUBLISHED) == []


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gopher", {"min_words": -1}, "min_words, max_words: -1 and 100000; allowed: 0 <= min_w"),
        ("gopher", {"min_mean_word_chars": 11}, "max_mean_word_chars: 11 and 10.0; allowed"),
        ("gopher", {"max_bullet_lines": 1.5}, "max_bullet_lines: 1.5 must be from 0 to 1"),
        ("gopher", {"max_duplicate_paragraphs": -1}, "max_duplicate_paragraphs: -1 must be from"),
        ("gopher", {"min_stop_words": 9}, "min_stop_words: 9 must be from 0 to 8"),
        ("gopher", {"max_top_ngram_chars": (0.2,)}, r"max_top_ngram_chars: \(0.2,\) must be 3 rat"),
        ("c4", {"max_policy_lines": 2}, "max_policy_lines: 2 must be from 0 to 1"),
        ("c4", {"min_sentences": -2}, "min_sentences: -2 must be at least 0"),
        ("fineweb", {"max_short_lines": 1.1}, "max_short_lines: 1.1 must be from 0 to 1"),
        ("fineweb", {"short_line_chars": -1}, "short_line_chars: -1 must be at least 0"),
    ],
)
def test_configs_refuse(family, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(PUBLISHED, family), **change)
