"""What the models of languages see of a text: stretches of it, without what is no word."""

import numba
import numpy as np

from data.words import ALPHABETIC, BLANK, CODE, DIGIT, WORD, char_table, frozen, read_char

# A text is read in so many stretches, from so many places as far apart as can be.
STRETCHES = 4
MAX_WORD = 60  # ASCII letters in one word; more are no word
NUM_POINTS = 0x20000  # code points of the tables


def read_stretches(
    texts: list[bytes],
    max_chars: int,
    scripts: np.ndarray,
    specials: np.ndarray,
    foreign_to: np.ndarray,
    num_scripts: int,
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Reads up to so many characters of each text, and looks at its letters.

    Args:
        texts: UTF-8.
        max_chars: in all stretches of a text together; the last word may be cut.
        scripts: the script of each code point, or -1; int8 [NUM_POINTS].
        specials: the number of each special letter, or -1; int16 [NUM_POINTS].
        foreign_to: the labels to which each is foreign, bool [specials, labels].
        num_scripts: how many there are.

    Returns:
        A line of words for each text, those in capitals made small, without addresses, numbers
        and long codes; bytes of letters, int32 [texts, scripts]; the share of letters that are
        foreign to a label, float32 [texts, labels].
    """
    data = frozen(np.frombuffer(b"".join(texts), np.uint8), np.uint8)
    offsets = frozen(np.cumsum([0, *map(len, texts)]), np.int64)
    sizes = np.zeros((len(texts), num_scripts), np.int32)
    foreign = np.zeros((len(texts), foreign_to.shape[1]), np.float32)
    written, ends = _prepare(
        data, offsets, char_table(), max_chars, scripts, specials, foreign_to, sizes, foreign
    )
    content, ends = written.tobytes(), ends.tolist()
    lines = [content[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
    return lines, sizes, foreign


@numba.njit(cache=True, nogil=True)
def _prepare(data, offsets, entries, max_chars, scripts, specials, foreign_to, sizes, foreign):
    """Writes a line of words for each text, and counts bytes by script and foreign letters."""
    num_texts = len(offsets) - 1
    lines = np.empty(num_texts * (4 * (max_chars + STRETCHES) + 1), np.uint8)
    ends = np.zeros(len(offsets), np.int64)
    counts = np.zeros(len(foreign_to), np.int64)
    size = 0
    for text in range(num_texts):
        first, last, num_chars, num_letters = offsets[text], offsets[text + 1], 0, 0
        i = first
        for stretch in range(STRETCHES):
            i = _begin(data, i, first + (last - first) * stretch // STRETCHES, last)
            end = first + (last - first) * (stretch + 1) // STRETCHES
            most = max_chars * (stretch + 1) // STRETCHES
            while i < end and num_chars < most:
                stop, capitals, keep = _next_word(data, i, last, entries)
                start = i
                while keep and i < stop and num_chars < most:
                    point, width = read_char(data, i)
                    folded = entries[point] & CODE
                    if entries[point] & WORD and not entries[point] & DIGIT:
                        if point < NUM_POINTS and scripts[point] >= 0:
                            sizes[text, scripts[point]] += width
                            num_letters += 1
                        if folded < NUM_POINTS and specials[folded] >= 0:
                            counts[specials[folded]] += 1
                    size = _encode(folded if capitals else point, lines, size)
                    i += width
                    num_chars += 1
                if i > start:
                    lines[size] = 32
                    size += 1
                    num_chars += 1
                if not keep:
                    i = stop
        lines[size] = 10
        size += 1
        ends[text + 1] = size
        for special in range(len(counts)):
            if counts[special] > 0:
                share = np.float32(counts[special] / max(num_letters, 1))
                for label in range(foreign_to.shape[1]):
                    foreign[text, label] += share * foreign_to[special, label]
                counts[special] = 0
    return lines[:size], ends


@numba.njit(cache=True, nogil=True)
def _begin(data, i, start, end):
    """Where reading goes on: at i, or at the first word or character from `start` on"""
    if i >= start:
        return i
    i = start
    while i < min(start + MAX_WORD, end) and data[i] > 32:
        i += 1
    i = i if i < end and data[i] <= 32 else start
    while i < end and data[i] & 0xC0 == 0x80:
        i += 1
    return i


@numba.njit(cache=True, nogil=True)
def _next_word(data, i, end, entries):
    """The word at i, or the blank: where it ends, whether it is in capitals, and worth keeping.

    Not kept are words without a letter, addresses of pages and mail, and long codes.
    """
    first, num_large, num_small, num_letters, address = i, 0, 0, 0, False
    while i < end:
        point, width = read_char(data, i)
        entry = entries[point]
        if entry & BLANK or point < 32:
            if i == first:
                i += width
            break
        if entry & ALPHABETIC:
            num_letters += 1
            large = entry & CODE != point
            num_large += large
            num_small += not large
        slashes = point == 58 and i + 2 < end and data[i + 1] == 47 and data[i + 2] == 47
        address = address or point == 64 or slashes  # @, ://
        i += width
    if i - first > 4 and data[first + 3] == 46:  # www.
        address = address or (data[first] == data[first + 1] == data[first + 2] == 119)
    code = num_letters == i - first and num_letters > MAX_WORD
    capitals = num_small == 0 and num_large > 1
    return i, capitals, num_letters > 0 and not address and not code


@numba.njit(cache=True, nogil=True)
def _encode(point, out, size):
    """Writes a character in UTF-8 and returns where the next one goes."""
    if point < 0x80:
        out[size] = point
        return size + 1
    if point < 0x800:
        out[size] = 0xC0 | point >> 6
    elif point < 0x10000:
        out[size] = 0xE0 | point >> 12
    else:
        out[size] = 0xF0 | point >> 18
        size += 1
        out[size] = 0x80 | point >> 12 & 0x3F
    if point >= 0x800:
        size += 1
        out[size] = 0x80 | point >> 6 & 0x3F
    size += 1
    out[size] = 0x80 | point & 0x3F
    return size + 1
