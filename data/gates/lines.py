"""The lines of a text, compiled: what they are, how they end, which phrases and symbols they hold.

A line ends at a line feed. Blanks at its ends are no part of it, and an empty line is none: it only
parts paragraphs.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np

from data.words import BLANK, NUM_CODE_POINTS, STEP, WORD, finish, frozen, read_char

# Flags of a line.
NONE = np.uint8(0)
BULLET = np.uint8(1)
ELLIPSIS = np.uint8(2)
TERMINAL = np.uint8(4)
QUOTE = np.uint8(8)
JAVASCRIPT = np.uint8(16)
POLICY = np.uint8(32)
OPENS = np.uint8(64)

# Flags of a character.
ENDS = np.uint8(1)
ENDS_ALONE = np.uint8(2)
CLOSES = np.uint8(4)
QUOTES = np.uint8(8)
# Unicode 16, property Sentence_Terminal: one character, or the first and the last of several.
SENTENCE_TERMINAL = """
21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736
17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F
2024 203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7
A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E
FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD
111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7
11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44
16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88
"""
# After these a sentence ends without a blank: ideographic, danda, Burmese, Khmer.
BLANKLESS_TERMINAL = "\u3002\uff61\uff01\uff1f\u0964\u0965\u104b\u17d4\u17d5"
END_QUOTES = "\"'\u2019\u201d\u00bb\u203a\u300d\u300f\u201c\uff02\uff63"
CLOSING = END_QUOTES + ")]}\uff09\uff3d\u3011\u300b\u3009"

BULLETS = (ord("-"), ord("*"), 0x2022)
ELLIPSIS_CHAR = 0x2026
LF, HASH, DOT, BRACE = (np.uint8(ord(char)) for char in "\n#.{")
CONTINUES, TOP_BITS = np.uint8(0x80), np.uint8(0xC0)
ELLIPSIS_UTF8 = np.frombuffer("\u2026".encode(), np.uint8)
# Lower case of an ASCII letter; of other bytes something near enough for a first look.
CASE = np.uint8(0x20)
LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)
# Each phrase with four letters of it that are rare elsewhere.
LOREM = ((b"lorem ipsum", b"m ip"),)
SCRIPTS = ((b"javascript", b"vasc"),)
POLICIES = (
    (b"terms of use", b"f us"),
    (b"privacy policy", b"y po"),
    (b"cookie policy", b"ooki"),
    (b"uses cookies", b"ooki"),
    (b"use of cookies", b"ooki"),
    (b"use cookies", b"ooki"),
)


class Lines(NamedTuple):
    """Buffers for the lines of a text; what it holds of the text read last.

    Attributes:
        starts, ends: first byte in `data`, and the one after the last; int64.
        chars: length in code points; int64.
        words: how many words it has; int64.
        flags: BULLET to OPENS; uint8.
        hashes: of its bytes, where `hash_lines` has been called; uint64.
    """

    starts: np.ndarray
    ends: np.ndarray
    chars: np.ndarray
    words: np.ndarray
    flags: np.ndarray
    hashes: np.ndarray


def buffers(data: np.ndarray, offsets: np.ndarray) -> Lines:
    """Buffers for the lines of any one of the texts.

    Args:
        data: the texts back to back, uint8 [bytes].
        offsets: first byte of each text, and the end; int64 [texts + 1].

    Returns:
        Arrays of as many elements as the text with the most lines needs.
    """
    most = _most_lines(frozen(data, np.uint8), frozen(offsets, np.int64))
    return Lines(
        *(np.empty(most, np.int64) for _ in range(4)),
        np.empty(most, np.uint8),
        np.empty(most, np.uint64),
    )


@functools.cache
def marks() -> np.ndarray:
    """Says of each character how it ends or closes a sentence: ENDS to QUOTES.

    Returns:
        uint8 [NUM_CODE_POINTS], read-only.
    """
    flags = np.zeros(NUM_CODE_POINTS, np.uint8)
    for span in SENTENCE_TERMINAL.split():
        first, _, last = span.partition("-")
        flags[int(first, 16) : int(last or first, 16) + 1] |= ENDS
    for chars, flag in ((BLANKLESS_TERMINAL, ENDS_ALONE), (CLOSING, CLOSES), (END_QUOTES, QUOTES)):
        flags[[ord(char) for char in chars]] |= flag
    flags.flags.writeable = False
    return flags


def _packed(phrases):
    """Phrases of different lengths as an array: length, rare letters, letters."""
    rows = np.zeros((len(phrases), 24), np.uint8)
    for row, (phrase, rare) in zip(rows, phrases, strict=True):
        row[0] = len(phrase)
        row[1:5] = np.frombuffer(rare, np.uint8)
        row[5 : 5 + len(phrase)] = np.frombuffer(phrase, np.uint8)
    return rows


PACKED_LOREM, PACKED_SCRIPTS, PACKED_POLICIES = map(_packed, (LOREM, SCRIPTS, POLICIES))


@numba.njit(cache=True, nogil=True)
def _most_lines(data, offsets):
    most = 0
    for text in range(len(offsets) - 1):
        most = max(most, 1 + _count(data[offsets[text] : offsets[text + 1]], LF))
    return most


@numba.njit(cache=True, nogil=True)
def _count(part, byte):
    total = 0
    for i in range(len(part)):
        total += part[i] == byte
    return total


@numba.njit(cache=True, nogil=True)
def count_symbols(part):
    """Counts in a text: (hashes, ellipses, curly brackets that open, inner line feeds)."""
    ellipses = dots = 0
    for i in range(len(part) - 2):
        dots += (part[i] == DOT) & (part[i + 1] == DOT) & (part[i + 2] == DOT)
        ellipses += (
            (part[i] == ELLIPSIS_UTF8[0])
            & (part[i + 1] == ELLIPSIS_UTF8[1])
            & (part[i + 2] == ELLIPSIS_UTF8[2])
        )
    run = 0
    for i in range(len(part) if dots > 0 else 0):
        run = run + 1 if part[i] == DOT else 0
        if run == 3:
            ellipses += 1
            run = 0
    end = len(part)
    while end > 0 and part[end - 1] == LF:
        end -= 1
    return _count(part, HASH), ellipses, _count(part, BRACE), _count(part[:end], LF)


@numba.njit(cache=True, nogil=True)
def holds_any(part, phrases):
    """Says whether a text holds one of the phrases, in any case of ASCII."""
    rare = False
    for j in range(len(phrases)):
        if j == 0 or not np.array_equal(phrases[j, 1:5], phrases[j - 1, 1:5]):
            rare = _holds_letters(part, phrases[j, 1:5])
        if rare and _find(part, phrases[j, 5 : 5 + phrases[j, 0]]):
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _holds_letters(part, letters):
    """Says whether a text holds four letters, or perhaps others that look like them to CASE."""
    first, second, third, fourth = letters[0], letters[1], letters[2], letters[3]
    found = np.uint8(0)
    for i in range(len(part) - 3):
        found |= np.uint8(
            (part[i] | CASE == first)
            & (part[i + 1] | CASE == second)
            & (part[i + 2] | CASE == third)
            & (part[i + 3] | CASE == fourth)
        )
    return found > 0


@numba.njit(cache=True, nogil=True)
def _find(part, phrase):
    for i in range(len(part) - len(phrase) + 1):
        j = 0
        while j < len(phrase) and LOWER[part[i + j]] == phrase[j]:
            j += 1
        if j == len(phrase):
            return True
    return False


@numba.njit(cache=True, nogil=True)
def read_lines(data, first, end, word_starts, entries, char_marks, lines):
    """Fills `lines` with those of the text data[first:end], and returns how many there are.

    `word_starts` are those of the text's words; `entries` is `char_table`, `char_marks` is
    `marks`.
    """
    count = word = 0
    opens = OPENS
    while first < end:
        stop, chars = first, 0
        while stop < end and data[stop] != LF:
            chars += data[stop] & TOP_BITS != CONTINUES
            stop += 1
        start, last, char = first, stop, np.uint32(0)
        while start < stop:
            char, size = read_char(data, start)
            if entries[char] & BLANK == 0:
                break
            start, chars = start + size, chars - 1
        flags = opens | (BULLET if char in BULLETS else NONE)
        while last > start:
            before = last - 1
            while data[before] & TOP_BITS == CONTINUES:
                before -= 1
            char, _ = read_char(data, before)
            if entries[char] & BLANK == 0:
                break
            last, chars = before, chars - 1
        first = stop + 1
        opens = OPENS if start == last else NONE
        if start == last:
            continue
        lines.starts[count], lines.ends[count], lines.chars[count] = start, last, chars
        first_word = word
        while word < len(word_starts) and word_starts[word] < last:
            word += 1
        lines.words[count] = word - first_word
        lines.flags[count] = flags | _ending(data, start, last, char, char_marks[char])
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _ending(data, start, end, char, mark):
    """The flags of a line's end, where its last character is `char`."""
    flags = TERMINAL if mark & ENDS else NONE
    if mark & QUOTES:
        flags |= QUOTE
    dots = end - start >= 3
    for i in range(end - 3, end if dots else 0):
        dots = dots and data[i] == DOT
    if dots or char == ELLIPSIS_CHAR:
        flags |= ELLIPSIS
    return flags


@numba.njit(cache=True, nogil=True)
def flag_lines(data, lines, count, phrases, flag):
    """Sets a flag on the lines that hold one of the phrases."""
    for k in range(count):
        if holds_any(data[lines.starts[k] : lines.ends[k]], phrases):
            lines.flags[k] |= flag


@numba.njit(cache=True, nogil=True)
def count_flagged(lines, count, flag):
    """Counts the lines with a flag."""
    total = 0
    for k in range(count):
        total += lines.flags[k] & flag != 0
    return total


@numba.njit(cache=True, nogil=True)
def _is_kept(flags, num_words, min_words):
    """Says whether C4 would keep a line, as far as its end and its words go."""
    return flags & (TERMINAL | QUOTE) != 0 and flags & ELLIPSIS == 0 and num_words >= min_words


@numba.njit(cache=True, nogil=True)
def count_kept(lines, count, min_words):
    """Counts the lines that C4 would keep, as far as their ends and words go."""
    flags, words, total = lines.flags, lines.words, 0
    for k in range(count):
        total += _is_kept(flags[k], words[k], min_words)
    return total


@numba.njit(cache=True, nogil=True)
def count_sentences(data, lines, count, min_words, enough, entries, char_marks):
    """Counts the sentences of the lines that C4 keeps, until there are enough."""
    flags, words, total = lines.flags, lines.words, 0
    for k in range(count):
        if total >= enough:
            break
        if flags[k] & (JAVASCRIPT | POLICY) == 0 and _is_kept(flags[k], words[k], min_words):
            line = data[lines.starts[k] : lines.ends[k]]
            total += _sentences(line, entries, char_marks)
    return total


@numba.njit(cache=True, nogil=True)
def _sentences(line, entries, char_marks):
    """Counts the sentences of a line: its parts with a word, parted where sentences end.

    One ends at marks that end sentences and any that close brackets or quotes, before a blank;
    after some marks of scripts without blanks anywhere.
    """
    count, i = 0, 0
    has_word = ended = alone = False
    while i < len(line):
        char, size = read_char(line, i)
        mark = char_marks[char]
        if mark & ENDS:
            ended, alone = True, alone or mark & ENDS_ALONE != 0
        elif not (ended and mark & CLOSES):
            if ended and (alone or entries[char] & BLANK):
                count, has_word = count + has_word, False
            ended = alone = False
            has_word = has_word or entries[char] & WORD != 0
        i += size
    return count + has_word


@numba.njit(cache=True, nogil=True)
def hash_lines(data, lines, count):
    """Hashes the bytes of each line."""
    for k in range(count):
        line = data[lines.starts[k] : lines.ends[k]]
        h, i, n = np.uint64(len(line)), 0, len(line)
        while i + 8 <= n:
            h = finish(h ^ _eight_bytes(line, i)) * STEP
            i += 8
        while i < n:
            h = (h ^ np.uint64(line[i])) * STEP
            i += 1
        lines.hashes[k] = finish(h)


@numba.njit(cache=True, nogil=True)
def _eight_bytes(part, i):
    total = np.uint64(0)
    for j in range(8):
        total |= np.uint64(part[i + j]) << np.uint64(8 * j)
    return total
