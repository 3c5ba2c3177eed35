"""How much of a text repeats itself, compiled: lines, paragraphs, word n-grams.

Source: Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1).
"""

from typing import NamedTuple

import numba
import numpy as np

from data.gates import lines
from data.words import (
    BASE,
    DIGIT,
    EMPTY_SLOT,
    START,
    STEP,
    finish,
    insert,
    power,
    probe,
    read_char,
)

TOP, DUPLICATE = 1, 2


class Buffers(NamedTuple):
    """Buffers for the n-grams of a text.

    Attributes:
        sums: of the words before each word, as `roll` folds them; uint64 [words + 1].
        chars: the characters of the words before each word; int64 [words + 1].
        places: words at which an n-gram that may repeat begins; int64 [words].
        slots: where the n-gram at each of `places` is in `keys`; int64 [words].
        keys: table of n-grams with open addressing; uint64 [power of two].
        counts: how often each occurs; int32 [power of two].
    """

    sums: np.ndarray
    chars: np.ndarray
    places: np.ndarray
    slots: np.ndarray
    keys: np.ndarray
    counts: np.ndarray


def buffers(most: int) -> Buffers:
    """Buffers for texts of up to `most` words and lines."""
    size = 1 << (2 * most + 1).bit_length()
    return Buffers(
        np.empty(most + 1, np.uint64),
        np.empty(most + 1, np.int64),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(size, np.uint64),
        np.empty(size, np.int32),
    )


@numba.njit(cache=True, nogil=True)
def _table(keys, count):
    """An empty part of `keys`, a power of two and at least twice as large as `count`."""
    size = 4
    while size < 2 * count:
        size *= 2
    keys[:size] = EMPTY_SLOT
    return keys[:size]


@numba.njit(cache=True, nogil=True)
def repeated_lines(found, count, keys):
    """The share of lines seen before, and of the characters in them."""
    table = _table(keys, count)
    again = chars_again = chars = 0
    for k in range(count):
        chars += found.chars[k]
        if insert(table, found.hashes[k]):
            again += 1
            chars_again += found.chars[k]
    return again / max(count, 1), chars_again / max(chars, 1)


@numba.njit(cache=True, nogil=True)
def repeated_paragraphs(found, count, keys):
    """The share of paragraphs seen before, and of the characters in the lines of them."""
    table = _table(keys, count)
    paragraphs = again = chars_again = chars = first = 0
    while first < count:
        h, own, end = np.uint64(0), found.chars[first], first + 1
        h = finish(h ^ found.hashes[first])
        while end < count and found.flags[end] & lines.OPENS == 0:
            h = finish(h ^ found.hashes[end])
            own += found.chars[end]
            end += 1
        paragraphs += 1
        chars += own
        if insert(table, h):
            again += 1
            chars_again += own
        first = end
    return again / max(paragraphs, 1), chars_again / max(chars, 1)


@numba.njit(cache=True, nogil=True)
def read_words(data, entries, hashes, chars, starts, buffers):
    """Fills `buffers.sums` and `buffers.chars` from the words of a text.

    Unlike in the hashes of data.words, different digits differ here: a table of numbers repeats
    nothing.
    """
    sums, char_sums = buffers.sums, buffers.chars
    total, num_chars = np.uint64(0), np.int64(0)
    for word in range(len(hashes)):
        sums[word], char_sums[word] = total, num_chars
        digits, i = np.uint64(0), starts[word]
        for _ in range(chars[word]):
            char, size = read_char(data, i)
            if entries[char] & DIGIT:
                digits = digits * BASE + np.uint64(char)
            i += size
        total = total * BASE + (hashes[word] ^ digits * STEP)
        num_chars += chars[word]
    sums[len(hashes)], char_sums[len(hashes)] = total, num_chars


@numba.njit(cache=True, nogil=True)
def _count_ngrams(n, count, buffers):
    """Counts the n-grams at `buffers.places`, in its slots and counts; the used part of keys."""
    table = _table(buffers.keys, count)
    sums, places, slots, counts = buffers.sums, buffers.places, buffers.slots, buffers.counts
    factor = power(n)
    for j in range(count):
        place = places[j]
        h = finish(sums[place + n] - sums[place] * factor)
        h = h if h != EMPTY_SLOT else START
        slot = probe(table, h)
        if table[slot] == EMPTY_SLOT:
            table[slot] = h
            counts[slot] = 0
        counts[slot] += 1
        slots[j] = slot


@numba.njit(cache=True, nogil=True)
def _top_chars(n, count, buffers):
    """Characters of the most frequent n-gram, all its occurrences; 0 if none repeats."""
    most = longest = 1
    for j in range(count):
        times = buffers.counts[buffers.slots[j]]
        if times >= most:
            chars = buffers.chars[buffers.places[j] + n] - buffers.chars[buffers.places[j]]
            # Several can be the most frequent: the longest of them counts.
            longest = max(longest, chars) if times == most else chars
            most = times
    return most * longest if most > 1 else 0


@numba.njit(cache=True, nogil=True)
def _repeated_chars(n, count, buffers):
    """Characters of the words in n-grams seen before; each word once."""
    chars = covered = 0
    for j in range(count):
        times = buffers.counts[buffers.slots[j]]
        if times > 0:
            buffers.counts[buffers.slots[j]] = -times  # the first occurrence
        else:
            place = buffers.places[j]
            chars += buffers.chars[place + n] - buffers.chars[max(place, covered)]
            covered = place + n
    return chars


@numba.njit(cache=True, nogil=True)
def _narrow(count, buffers):
    """Keeps the places where an n-gram one word longer may repeat, and returns how many.

    There the n-gram repeats, and so does the one at the next word.
    """
    kept = 0
    for j in range(count - 1):
        if (
            buffers.places[j + 1] == buffers.places[j] + 1
            and abs(buffers.counts[buffers.slots[j]]) > 1
            and abs(buffers.counts[buffers.slots[j + 1]]) > 1
        ):
            buffers.places[kept] = buffers.places[j]
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def ngram_rules(num_words, buffers, top_limits, duplicate_limits, wants_top, wants_duplicate):
    """Measures the n-grams of the text that `room` holds: which rule fails, and its share.

    `top_limits` begin at n-grams of 2 words, `duplicate_limits` go on where they end. Which: TOP,
    DUPLICATE or 0. Shares are of the characters of words.
    """
    for place in range(num_words):
        buffers.places[place] = place
    count = num_words - 1
    first_duplicate = 2 + len(top_limits)
    for n in range(2, first_duplicate + len(duplicate_limits)):
        if count < 1 or (n >= first_duplicate and not wants_duplicate):
            break
        _count_ngrams(n, count, buffers)
        if n < first_duplicate:
            share = _top_chars(n, count, buffers) / buffers.chars[num_words]
            if wants_top and share > top_limits[n - 2]:
                return TOP, share
        else:
            share = _repeated_chars(n, count, buffers) / buffers.chars[num_words]
            if share > duplicate_limits[n - first_duplicate]:
                return DUPLICATE, share
        count = _narrow(count, buffers)
    return 0, 0.0
