"""Rules that a text passes or fails by its words and lines alone, after Gopher, C4 and FineWeb.

Gopher: Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A.1. C4: Raffel et al. 2020,
https://arxiv.org/abs/1910.10683, section 2.2. FineWeb: Penedo et al. 2024,
https://arxiv.org/abs/2406.17557, section 3.6. They were made for web pages in English; which of
them apply to a text is the caller's choice. C4 removes single lines; here a text with too many such
lines fails as a whole.

Words are those of `data.words`: a word of Chinese is one character, so that its texts fail
`gopher_mean_word_length`. Lines are those of `lines`.
"""

from collections import namedtuple
from dataclasses import dataclass, fields

import numpy as np

from data.gates import lines, repetition, rule_order, stop_words
from data.words import Words, char_table, frozen

RULES = rule_order.RULES
PASSES = rule_order.PASSES

TOP_NGRAM_WORDS = (2, 3, 4)
DUPLICATE_NGRAM_WORDS = (5, 6, 7, 8, 9, 10)
MAX_STOP_WORDS = 8


def _check_ratios(config, names):
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: {getattr(config, name)} must be from 0 to 1")


def _check_counts(config, names):
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name}: {getattr(config, name)} must be at least 0")


@dataclass(frozen=True)
class GopherConfig:
    """Thresholds of the rules `gopher_*`; a text passes at the threshold itself.

    Attributes:
        min_words, max_words: `word_count` (published: 50 and 100,000).
        min_mean_word_chars, max_mean_word_chars: `mean_word_length` (3 and 10).
        max_symbol_to_word_ratio: `symbol_ratio`, hashes, and ellipses, for a word (0.1).
        max_bullet_lines: `bullet_lines`, ratio of lines that begin with a bullet (0.9).
        max_ellipsis_lines: `ellipsis_lines`, ratio of lines that end in an ellipsis (0.3).
        min_alphabetic_words: `alphabetic_words`, ratio of words with a letter (0.8).
        marks_count: whether `alphabetic_words`, `symbol_ratio` and FineWeb's `newline_ratio` count
            punctuation as words, as datatrove does, with which FineWeb was made; the paper does
            not say.
        min_stop_words: `stop_words`, how many different ones of the text's language occur (2); a
            language that `stop_words` has no list for passes.
        max_duplicate_lines: `duplicate_lines`, ratio of lines seen before (0.3).
        max_duplicate_line_chars: `duplicate_lines`, ratio of the characters in them (0.2).
        max_duplicate_paragraphs: `duplicate_paragraphs`, ratio of those seen before (0.3).
        max_duplicate_paragraph_chars: `duplicate_paragraphs`, ratio of the characters in their
            lines (0.2).
        max_top_ngram_chars: `top_ngrams`, ratio of word characters in the most frequent n-gram, for
            n in TOP_NGRAM_WORDS (0.20, 0.18, 0.16); published as a ratio of all characters.
        max_duplicate_ngram_chars: `duplicate_ngrams`, ratio of word characters in n-grams seen
            before, each word once, for n in DUPLICATE_NGRAM_WORDS (0.15, 0.14, 0.13, 0.12, 0.11,
            0.10).
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_chars: float = 3.0
    max_mean_word_chars: float = 10.0
    max_symbol_to_word_ratio: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    marks_count: bool = False
    min_stop_words: int = 2
    max_duplicate_lines: float = 0.3
    max_duplicate_line_chars: float = 0.2
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_paragraph_chars: float = 0.2
    max_top_ngram_chars: tuple[float, ...] = (0.2, 0.18, 0.16)
    max_duplicate_ngram_chars: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)

    def __post_init__(self):
        for unit in ("words", "mean_word_chars"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if not 0 <= low <= high:
                allowed = f"0 <= min_{unit} <= max_{unit}"
                raise ValueError(f"min_{unit}, max_{unit}: {low} and {high}; allowed: {allowed}")
        kinds = {field.name: field.type for field in fields(self)}
        _check_ratios(self, [n for n in kinds if kinds[n] is float and "mean_word" not in n])
        if not 0 <= self.min_stop_words <= MAX_STOP_WORDS:
            allowed = f"must be from 0 to {MAX_STOP_WORDS}"
            raise ValueError(f"min_stop_words: {self.min_stop_words} {allowed}")
        for name, lengths in (
            ("max_top_ngram_chars", TOP_NGRAM_WORDS),
            ("max_duplicate_ngram_chars", DUPLICATE_NGRAM_WORDS),
        ):
            ratios = getattr(self, name)
            if len(ratios) != len(lengths) or not all(0 <= ratio <= 1 for ratio in ratios):
                allowed = f"{len(lengths)} ratios from 0 to 1, for n-grams of {lengths} words"
                raise ValueError(f"{name}: {ratios} must be {allowed}")


@dataclass(frozen=True)
class C4Config:
    """Thresholds of the rules `c4_*`; a text passes at the threshold itself.

    C4 keeps a line that ends in a terminal mark (one that ends sentences, or a closing quote), not
    in an ellipsis, and has enough words. `lorem_ipsum` has no threshold: the phrase may not occur.

    Attributes:
        max_javascript_lines: `javascript_lines`, ratio of lines naming Javascript (each is removed
            there).
        max_policy_lines: `policy_lines`, ratio of lines with a phrase of `lines.POLICIES` (each is
            removed in C4's code).
        max_curly_brackets: `curly_brackets`, how many open in the text (published: 0).
        min_line_words: words of a line that is kept (published: 5; datatrove: 3).
        min_terminal_lines: `terminal_lines`, ratio of lines that are kept.
        min_sentences: `sentences`, how many the lines hold that are kept and name neither
            Javascript nor a policy (published: 3; datatrove: 5). An abbreviation ends a sentence.
    """

    max_javascript_lines: float = 0.1
    max_policy_lines: float = 0.1
    max_curly_brackets: int = 0
    min_line_words: int = 5
    min_terminal_lines: float = 0.1
    min_sentences: int = 3

    def __post_init__(self):
        _check_ratios(self, ("max_javascript_lines", "max_policy_lines", "min_terminal_lines"))
        _check_counts(self, ("max_curly_brackets", "min_line_words", "min_sentences"))


@dataclass(frozen=True)
class FineWebConfig:
    """Thresholds of the rules `fineweb_*`; a text passes at the threshold itself.

    Attributes:
        min_punctuated_lines: `line_punctuation`, ratio of lines that end in a mark that ends
            sentences (published: 0.12).
        short_line_chars: `short_lines`, characters of the longest line that is short (30).
        max_short_lines: `short_lines`, ratio of them (0.67).
        max_character_duplicates: `character_duplicates`, ratio of the characters in lines seen
            before (published: 0.1; datatrove: 0.01).
        max_newlines_per_word: `newline_ratio`, line feeds inside the text for a word (datatrove:
            0.3; not in the paper).
    """

    min_punctuated_lines: float = 0.12
    short_line_chars: int = 30
    max_short_lines: float = 0.67
    max_character_duplicates: float = 0.01
    max_newlines_per_word: float = 0.3

    def __post_init__(self):
        ratios = ("min_punctuated_lines", "max_short_lines", "max_character_duplicates")
        _check_ratios(self, ratios)
        _check_counts(self, ("short_line_chars", "max_newlines_per_word"))


@dataclass(frozen=True)
class RuleConfig:
    """Thresholds of all rules, by the paper they come from."""

    gopher: GopherConfig
    c4: C4Config
    fineweb: FineWebConfig


# What compiled code gets of a RuleConfig.
LIMITS = tuple(f.name for kind in (GopherConfig, C4Config, FineWebConfig) for f in fields(kind))
Limits = namedtuple("Limits", LIMITS)


def first_failures(
    data: np.ndarray,
    offsets: np.ndarray,
    words: Words,
    languages: list[str],
    enabled: np.ndarray,
    config: RuleConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Names the first rule that each text fails, in the order of RULES.

    Args:
        data: the texts back to back, valid UTF-8, uint8 [bytes].
        offsets: first byte of each text, and the end; int64 [texts + 1].
        words: of the same texts.
        languages: of each text, an ISO 639-1 code.
        enabled: which rules apply to each text: bit r for RULES[r]; uint32 [texts].
        config: thresholds.

    Returns:
        The rule's place in RULES, or PASSES, int8 [texts]; and what was measured there, of several
        measures the first that fails, 0 where the text passes, float32 [texts].
    """
    data, offsets = frozen(data, np.uint8), frozen(offsets, np.int64)
    values = vars(config.gopher) | vars(config.c4) | vars(config.fineweb)
    limits = Limits(
        **{
            name: tuple(map(float, value)) if isinstance(value, tuple) else float(value)
            for name, value in values.items()
        }
    )
    found = lines.buffers(data, offsets)
    most_words = int(np.diff(words.offsets).max(initial=0))
    failed = np.full(len(offsets) - 1, PASSES, np.int8)
    measured = np.zeros(len(offsets) - 1, np.float32)
    rule_order.find_failures(
        data,
        offsets,
        Words(*map(frozen, words, (np.uint64, np.int32, np.int64, np.int64))),
        frozen(stop_words.numbers(languages), np.int64),
        frozen(enabled, np.uint32),
        limits,
        rule_order.Tables(char_table(), lines.marks(), stop_words.sets()),
        found,
        repetition.buffers(max(most_words, len(found.starts))),
        failed,
        measured,
    )
    return failed, measured
