"""The order in which rules are tried, and what each compares, compiled.

What the thresholds mean stands with the configs in `rules`; what is measured, in `lines`
and `repetition`.
"""

from typing import NamedTuple

import numba
import numpy as np

from data.gates import lines, repetition
from data.words import ALPHABETIC, BLANK, WORD, probe, read_char

# Cheap to dear: the first that fails is the one named.
RULES = (
    "gopher_word_count",
    "gopher_mean_word_length",
    "gopher_stop_words",
    "gopher_alphabetic_words",
    "gopher_symbol_ratio",
    "c4_curly_brackets",
    "c4_lorem_ipsum",
    "fineweb_newline_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "fineweb_line_punctuation",
    "fineweb_short_lines",
    "c4_javascript_lines",
    "c4_policy_lines",
    "c4_terminal_lines",
    "c4_sentences",
    "gopher_duplicate_lines",
    "gopher_duplicate_paragraphs",
    "fineweb_character_duplicates",
    "gopher_top_ngrams",
    "gopher_duplicate_ngrams",
)
(
    WORD_COUNT,
    MEAN_WORD_LENGTH,
    STOP_WORDS,
    ALPHABETIC_WORDS,
    SYMBOL_RATIO,
    CURLY_BRACKETS,
    LOREM_IPSUM,
    NEWLINE_RATIO,
    BULLET_LINES,
    ELLIPSIS_LINES,
    LINE_PUNCTUATION,
    SHORT_LINES,
    JAVASCRIPT_LINES,
    POLICY_LINES,
    TERMINAL_LINES,
    SENTENCES,
    DUPLICATE_LINES,
    DUPLICATE_PARAGRAPHS,
    CHARACTER_DUPLICATES,
    TOP_NGRAMS,
    DUPLICATE_NGRAMS,
) = range(len(RULES))
PASSES = -1
APOSTROPHES, JOINS = (ord("'"), 0x2019), (ord("."), ord(","))  # don't; 3.14, example.org
LINE_RULES, C4_LINE_RULES, DUPLICATE_RULES, NGRAM_RULES = (
    np.uint32(sum(1 << rule for rule in range(first, last + 1)))
    for first, last in (
        (BULLET_LINES, CHARACTER_DUPLICATES),
        (JAVASCRIPT_LINES, SENTENCES),
        (DUPLICATE_LINES, CHARACTER_DUPLICATES),
        (TOP_NGRAMS, DUPLICATE_NGRAMS),
    )
)


class Text(NamedTuple):
    """One text and its words, as parts of the batch.

    Attributes:
        data: of the whole batch.
        first, end: its first byte, and the one after its last.
        hashes, chars, starts: of its words.
    """

    data: np.ndarray
    first: int
    end: int
    hashes: np.ndarray
    chars: np.ndarray
    starts: np.ndarray


class Tables(NamedTuple):
    """What `char_table`, `lines.marks` and `stop_words.sets` give."""

    entries: np.ndarray
    marks: np.ndarray
    stops: np.ndarray


@numba.njit(cache=True, nogil=True)
def find_failures(
    data,
    offsets,
    words,
    languages,
    enabled,
    limits,
    tables,
    found,
    buffers,
    failed,
    measured,
):
    for k in range(len(offsets) - 1):
        asked = enabled[k]
        first, end = words.offsets[k], words.offsets[k + 1]
        text = Text(
            data,
            offsets[k],
            offsets[k + 1],
            words.hashes[first:end],
            words.chars[first:end],
            words.starts[first:end],
        )
        rule, value = _check_words(asked, text, languages[k], limits, tables)
        if rule == PASSES:
            rule, value = _check_symbols(asked, text, limits, tables)
        if rule == PASSES and asked & LINE_RULES:
            count = lines.read_lines(
                data, text.first, text.end, text.starts, tables.entries, tables.marks, found
            )
            rule, value = _check_lines(asked, found, count, limits)
            if rule == PASSES and asked & C4_LINE_RULES:
                rule, value = _check_c4_lines(asked, text, found, count, limits, tables)
            if rule == PASSES and asked & DUPLICATE_RULES:
                rule, value = _check_duplicates(asked, data, found, count, limits, buffers.keys)
        if rule == PASSES and asked & NGRAM_RULES:
            rule, value = _check_ngrams(asked, text, limits, tables.entries, buffers)
        failed[k], measured[k] = rule, value


@numba.njit(cache=True, nogil=True)
def _fails(asked, rule, value, low, high):
    return (asked >> rule) & 1 and not low <= value <= high


@numba.njit(cache=True, nogil=True)
def _check_words(asked, text, language, limits, tables):
    num_words = len(text.hashes)
    if _fails(asked, WORD_COUNT, num_words, limits.min_words, limits.max_words):
        return WORD_COUNT, np.float64(num_words)
    value = text.chars.sum() / max(num_words, 1)
    low, high = limits.min_mean_word_chars, limits.max_mean_word_chars
    if _fails(asked, MEAN_WORD_LENGTH, value, low, high):
        return MEAN_WORD_LENGTH, value
    if (asked >> STOP_WORDS) & 1 and language >= 0:
        value = _count_stop_words(text.hashes, tables.stops[language], limits.min_stop_words)
        if value < limits.min_stop_words:
            return STOP_WORDS, value
    if (asked >> ALPHABETIC_WORDS) & 1 and num_words > 0:
        value = _count_alphabetic(text, tables.entries) / (num_words + _marks(text, limits, tables))
        if value < limits.min_alphabetic_words:
            return ALPHABETIC_WORDS, value
    return PASSES, 0.0


@numba.njit(cache=True, nogil=True)
def _count_stop_words(hashes, stops, enough):
    """Counts the different stop words, up to `enough`."""
    count, seen = 0.0, np.uint64(0)
    for h in hashes:
        if count >= enough:
            break
        slot = probe(stops, h)
        bit = np.uint64(1) << slot
        if stops[slot] == h and seen & bit == 0:
            seen |= bit
            count += 1.0
    return count


@numba.njit(cache=True, nogil=True)
def _count_alphabetic(text, entries):
    """Counts the words with a letter."""
    total = 0
    for word in range(len(text.starts)):
        i = text.starts[word]
        for _ in range(text.chars[word]):
            char, size = read_char(text.data, i)
            if entries[char] & ALPHABETIC:
                total += 1
                break
            i += size
    return total


@numba.njit(cache=True, nogil=True)
def _marks(text, limits, tables):
    """How many words more a text has where marks count as words, each with its repetitions once.

    Within a word an apostrophe does not count, and a point or a comma joins two words to one.
    """
    total, before, i = 0, np.uint32(0), text.first
    while limits.marks_count and i < text.end:
        char, size = read_char(text.data, i)
        i += size
        if tables.entries[char] & (WORD | BLANK) == 0 and char != before:
            after = read_char(text.data, i)[0] if i < text.end else char
            within = tables.entries[before] & tables.entries[after] & WORD
            total += -1 if within and char in JOINS else not (within and char in APOSTROPHES)
        before = char
    return total


@numba.njit(cache=True, nogil=True)
def _check_symbols(asked, text, limits, tables):
    part = text.data[text.first : text.end]
    num_words = max(len(text.hashes) + _marks(text, limits, tables), 1)
    hashes, ellipses, braces, newlines = lines.count_symbols(part)
    for value in (hashes / num_words, ellipses / num_words):
        if _fails(asked, SYMBOL_RATIO, value, 0.0, limits.max_symbol_to_word_ratio):
            return SYMBOL_RATIO, value
    if _fails(asked, CURLY_BRACKETS, braces, 0.0, limits.max_curly_brackets):
        return CURLY_BRACKETS, np.float64(braces)
    if (asked >> LOREM_IPSUM) & 1 and lines.holds_any(part, lines.PACKED_LOREM):
        return LOREM_IPSUM, 1.0
    value = newlines / num_words
    if _fails(asked, NEWLINE_RATIO, value, 0.0, limits.max_newlines_per_word):
        return NEWLINE_RATIO, value
    return PASSES, 0.0


@numba.njit(cache=True, nogil=True)
def _check_lines(asked, found, count, limits):
    if count == 0:
        return PASSES, 0.0
    value = lines.count_flagged(found, count, lines.BULLET) / count
    if _fails(asked, BULLET_LINES, value, 0.0, limits.max_bullet_lines):
        return BULLET_LINES, value
    value = lines.count_flagged(found, count, lines.ELLIPSIS) / count
    if _fails(asked, ELLIPSIS_LINES, value, 0.0, limits.max_ellipsis_lines):
        return ELLIPSIS_LINES, value
    value = lines.count_flagged(found, count, lines.TERMINAL) / count
    if _fails(asked, LINE_PUNCTUATION, value, limits.min_punctuated_lines, 1.0):
        return LINE_PUNCTUATION, value
    short = 0
    for k in range(count):
        short += found.chars[k] <= limits.short_line_chars
    if _fails(asked, SHORT_LINES, short / count, 0.0, limits.max_short_lines):
        return SHORT_LINES, short / count
    return PASSES, 0.0


@numba.njit(cache=True, nogil=True)
def _check_c4_lines(asked, text, found, count, limits, tables):
    part = text.data[text.first : text.end]
    for rule, phrases, flag, limit in (
        (JAVASCRIPT_LINES, lines.PACKED_SCRIPTS, lines.JAVASCRIPT, limits.max_javascript_lines),
        (POLICY_LINES, lines.PACKED_POLICIES, lines.POLICY, limits.max_policy_lines),
    ):
        if lines.holds_any(part, phrases):
            lines.flag_lines(text.data, found, count, phrases, flag)
            value = lines.count_flagged(found, count, flag) / count
            if _fails(asked, rule, value, 0.0, limit):
                return rule, value
    if (asked >> TERMINAL_LINES) & 1 and count > 0:
        value = lines.count_kept(found, count, limits.min_line_words) / count
        if value < limits.min_terminal_lines:
            return TERMINAL_LINES, value
    if (asked >> SENTENCES) & 1:
        min_words, enough = limits.min_line_words, limits.min_sentences
        value = lines.count_sentences(
            text.data, found, count, min_words, enough, tables.entries, tables.marks
        )
        if value < enough:
            return SENTENCES, np.float64(value)
    return PASSES, 0.0


@numba.njit(cache=True, nogil=True)
def _check_duplicates(asked, data, found, count, limits, keys):
    lines.hash_lines(data, found, count)
    share, chars = repetition.repeated_lines(found, count, keys)
    if _fails(asked, DUPLICATE_LINES, share, 0.0, limits.max_duplicate_lines):
        return DUPLICATE_LINES, share
    if _fails(asked, DUPLICATE_LINES, chars, 0.0, limits.max_duplicate_line_chars):
        return DUPLICATE_LINES, chars
    if (asked >> DUPLICATE_PARAGRAPHS) & 1:
        share, share_chars = repetition.repeated_paragraphs(found, count, keys)
        if share > limits.max_duplicate_paragraphs:
            return DUPLICATE_PARAGRAPHS, share
        if share_chars > limits.max_duplicate_paragraph_chars:
            return DUPLICATE_PARAGRAPHS, share_chars
    if _fails(asked, CHARACTER_DUPLICATES, chars, 0.0, limits.max_character_duplicates):
        return CHARACTER_DUPLICATES, chars
    return PASSES, 0.0


@numba.njit(cache=True, nogil=True)
def _check_ngrams(asked, text, limits, entries, buffers):
    repetition.read_words(text.data, entries, text.hashes, text.chars, text.starts, buffers)
    which, value = repetition.ngram_rules(
        len(text.hashes),
        buffers,
        limits.max_top_ngram_chars,
        limits.max_duplicate_ngram_chars,
        (asked >> TOP_NGRAMS) & 1 != 0,
        (asked >> DUPLICATE_NGRAMS) & 1 != 0,
    )
    if which == repetition.TOP:
        return TOP_NGRAMS, value
    return (DUPLICATE_NGRAMS, value) if which == repetition.DUPLICATE else (PASSES, 0.0)
