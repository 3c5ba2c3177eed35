"""The shared view of a batch of texts: its words, as hashes, and the n-grams of them, compiled.

A batch is `data`, the UTF-8 of its texts back to back (uint8), and `offsets`, where each begins and
the last ends (int64, one more than there are texts): what an Arrow large_string array holds. Rules,
MinHash and look-ups of n-grams all read the same words, so that they are found once.

Compiled code meets only the types that `_frozen` gives it: every function is compiled once. In it
every constant that touches a hash is np.uint64, for uint64 with int64 would become float64.
"""

import functools
import hashlib
import unicodedata
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

# Blocks of Han, kana, Thai, Lao, Myanmar and Khmer, which are written without blanks.
BLANKLESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x19E0, 0x19FF),
    (0x3005, 0x3007),
    (0x3021, 0x302F),
    (0x3038, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)
NUM_CODE_POINTS = 0x110000
# Letters stand only in planes 0 to 3; marks also in plane 14.
ASSIGNED = (range(0x40000), range(0xE0000, 0xE1000))
# An entry of the table: the folded code point and, above it, what the character is.
CODE = np.uint32((1 << 21) - 1)
WORD = np.uint32(1 << 24)
ALONE = np.uint32(1 << 25)
ALPHABETIC = np.uint32(1 << 26)
BLANK = np.uint32(1 << 27)
DIGIT = np.uint32(1 << 28)

ASCII_END = np.uint32(0x80)
EMPTY_SLOT = np.uint64(0)
START = np.uint64(0x9E3779B97F4A7C15)
STEP = np.uint64(0xD6E8FEB86659FD93)
# 3 modulo 4: a difference of two powers of it has few factors of 2.
BASE = np.uint64(0xA0761D6478BD642F)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S29, S30, S31 = (np.uint64(bits) for bits in (27, 29, 30, 31))


def _cache_apart() -> None:
    """Gives the compiled code of each state of the sources a folder of its own.

    Numba notices that the file of a function has changed, but not that the files of the functions
    it calls have: it would go on with old hashes in one module and new ones in another.
    """
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    state = hashlib.blake2b(b"".join(s for s in sources if b"njit" in s), digest_size=8)
    folder = Path(numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__")
    numba.config.CACHE_DIR = str(folder / state.hexdigest())


_cache_apart()


class Words(NamedTuple):
    """The words of a batch of texts, in order.

    A word is a maximal run of letters, digits, underscores and marks (categories L, N, M and the
    underscore), but each such character of the scripts in BLANKLESS is a word of its own.

    Attributes:
        hashes: of each word in simple lower case, letters of other forms (full-width,
            mathematical) as their common ones, and digits as 0 where they count as equal;
            uint64 [words].
        chars: its length in code points; int32 [words].
        starts: its first byte in `data`; int64 [words].
        offsets: the first word of each text, and the end; int64 [texts + 1].
    """

    hashes: np.ndarray
    chars: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray


@functools.cache
def char_table(equal_digits: bool = True) -> np.ndarray:
    """Says what each character is: its folded code point, and the flags WORD to DIGIT.

    Args:
        equal_digits: whether every decimal digit is folded to 0; else each to its value.

    Returns:
        uint32 [NUM_CODE_POINTS], read-only; of unassigned characters the code point alone.
    """
    entries = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    for points in ASSIGNED:
        chars = list(map(chr, points))
        part = entries[points.start : points.stop]
        category = np.frombuffer("".join(map(unicodedata.category, chars)).encode(), "S2")
        major = category.view("S1")[::2]
        lower = list(map(_fold, chars))
        single = np.fromiter(map(len, lower), np.int8, len(lower)) == 1
        single &= major != b"C"
        part[single] = np.fromiter(map(ord, (c[0] for c in lower)), np.uint32)[single]
        digit = category == b"Nd"
        values = [0 if equal_digits else unicodedata.decimal(c) for c in compress(chars, digit)]
        part[digit] = np.array(values, np.uint32) + ord("0")
        part[np.isin(major, (b"L", b"M", b"N"))] |= WORD
        part[major == b"L"] |= ALPHABETIC
        part[digit] |= DIGIT
        part[np.fromiter(map(str.isspace, chars), bool, len(chars))] |= BLANK
    entries[ord("_")] |= WORD
    for first, last in BLANKLESS:
        block = entries[first : last + 1]
        block[block & WORD > 0] |= ALONE
    entries.flags.writeable = False
    return entries


def _fold(char: str) -> str:
    """Lower case of the common form (NFKC) of a letter; of another character, of itself."""
    common = unicodedata.normalize("NFKC", char)
    return (common if len(common) == 1 and char.isalpha() else char).lower()


def split_words(data: np.ndarray, offsets: np.ndarray, equal_digits: bool = True) -> Words:
    """Finds and hashes the words of a batch of texts.

    Args:
        data: valid UTF-8, uint8 [bytes].
        offsets: first byte of each text, and the end; int64 [texts + 1].
        equal_digits: whether numbers of as many digits are one word.

    Returns:
        The words; the same on every machine.
    """
    data, offsets = frozen(data, np.uint8), frozen(offsets, np.int64)
    firsts = np.zeros(len(offsets), np.int64)
    table = char_table(equal_digits)
    # Enough for most languages; where it is not, there is a second turn with enough for any.
    room = int(offsets[-1] - offsets[0]) // 5 + most_words(int(np.diff(offsets).max(initial=0)))
    hashes, chars, starts = (np.empty(room, kind) for kind in (np.uint64, np.int32, np.int64))
    done = _fill(data, offsets, 0, table, hashes, chars, starts, firsts)
    while done < len(offsets) - 1:
        rest = offsets[done:]
        room = firsts[done] + most_words(int(rest[-1] - rest[0]) + len(rest))
        hashes, chars, starts = (np.resize(part, room) for part in (hashes, chars, starts))
        done = _fill(data, offsets, done, table, hashes, chars, starts, firsts)
    count = firsts[-1]
    return Words(hashes[:count], chars[:count], starts[:count], firsts)


@numba.njit(cache=True, nogil=True)
def most_words(num_bytes):
    """How many words a text can hold: two are a byte apart, or of two bytes and more."""
    return num_bytes // 2 + 1


def frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    """Gives an array the one form that compiled code is compiled for.

    Args:
        array: any array of one dimension.
        dtype: of its elements.

    Returns:
        The same elements, contiguous, aligned and read-only; copied only where they must be.
    """
    view = np.require(array, dtype, ("C", "A")).view()
    view.flags.writeable = False
    return view


@numba.njit(cache=True, nogil=True)
def read_char(data, i):
    """Reads the character at byte i: (code point, number of bytes)."""
    lead = np.uint32(data[i])
    if lead < ASCII_END:
        return lead, 1
    second = np.uint32(data[i + 1]) & np.uint32(0x3F)
    if lead < np.uint32(0xE0):
        return (lead & np.uint32(0x1F)) << np.uint32(6) | second, 2
    third = np.uint32(data[i + 2]) & np.uint32(0x3F)
    if lead < np.uint32(0xF0):
        point = (lead & np.uint32(0x0F)) << np.uint32(12) | second << np.uint32(6) | third
        return point, 3
    point = (lead & np.uint32(0x07)) << np.uint32(18) | second << np.uint32(12)
    return point | third << np.uint32(6) | np.uint32(data[i + 3]) & np.uint32(0x3F), 4


@numba.njit(cache=True, nogil=True)
def finish(h):
    """Lets every bit of a hash depend on every other; one to one.

    Source: Steele, Lea and Flood 2014, the finaliser of SplitMix (Stafford's variant 13).
    """
    h = (h ^ (h >> S30)) * MIX_1
    h = (h ^ (h >> S27)) * MIX_2
    return h ^ (h >> S31)


@numba.njit(cache=True, nogil=True)
def _fill(data, offsets, text, entries, hashes, chars, starts, firsts):
    """Writes the words from a text on; returns the text for which there may be no room."""
    count = firsts[text]
    while text < len(offsets) - 1:
        i, end = offsets[text], offsets[text + 1]
        if count + most_words(end - i) > len(hashes):
            break
        h, length, start = START, 0, i
        while i < end:
            point, size = read_char(data, i)
            entry = entries[point]
            if length > 0 and (entry & WORD == 0 or entry & ALONE != 0):
                hashes[count], chars[count], starts[count] = finish(h), length, start
                count += 1
                h, length = START, 0
            if entry & WORD != 0:
                h = (h ^ np.uint64(entry & CODE)) * STEP
                h ^= h >> S29
                if length == 0:
                    start = i
                length += 1
                if entry & ALONE != 0:
                    hashes[count], chars[count], starts[count] = finish(h), length, start
                    count += 1
                    h, length = START, 0
            i += size
        if length > 0:
            hashes[count], chars[count], starts[count] = finish(h), length, start
            count += 1
        text += 1
        firsts[text] = count
    return text


@numba.njit(cache=True, nogil=True)
def roll(hashes, first, count):
    """Folds the hashes of `count` words from `first` on: sum of h_i * BASE ** (count - 1 - i)."""
    total = np.uint64(0)
    for i in range(first, first + count):
        total = total * BASE + hashes[i]
    return total


@numba.njit(cache=True, nogil=True)
def power(exponent):
    """BASE ** exponent, modulo 2 ** 64."""
    result = np.uint64(1)
    for _ in range(exponent):
        result *= BASE
    return result


def ngrams(words: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes every word n-gram of every text.

    Args:
        words: of a batch of texts.
        n: words in an n-gram, at least 1.

    Returns:
        The hashes, uint64 [n-grams], in order, repeats included; and the first of each text, and
        the end, int64 [texts + 1]. A text of fewer than n words has none.
    """
    counts = np.maximum(np.diff(words.offsets) - n + 1, 0)
    firsts = np.concatenate(([0], np.cumsum(counts)))
    hashes = np.empty(firsts[-1], np.uint64)
    _fill_ngrams(frozen(words.hashes, np.uint64), frozen(words.offsets, np.int64), n, hashes)
    return hashes, firsts


@numba.njit(cache=True, nogil=True)
def _fill_ngrams(hashes, firsts, n, ngram_hashes):
    oldest, count = power(n - 1), 0
    for text in range(len(firsts) - 1):
        first, last = firsts[text], firsts[text + 1] - n
        total = roll(hashes, first, n) if first <= last else np.uint64(0)
        for i in range(first, last + 1):
            ngram_hashes[count] = finish(total)
            count += 1
            if i < last:
                total = (total - hashes[i] * oldest) * BASE + hashes[i + n]


def build_set(hashes: np.ndarray, min_slots: int = 2) -> np.ndarray:
    """Makes a set of hashes that `probe` looks others up in.

    Args:
        hashes: of n-grams, as `ngrams` gives them, in any order, with repeats; uint64 [hashes].
        min_slots: the table has no fewer slots, at least 2.

    Returns:
        A table with open addressing, at most half full; uint64 [a power of two].
    """
    slots = np.full(1 << (max(min_slots, 2 * len(hashes)) - 1).bit_length(), EMPTY_SLOT)
    _insert_all(slots, frozen(hashes, np.uint64))
    return slots


@numba.njit(cache=True, nogil=True)
def probe(slots, h):
    """The slot that holds the hash, or the empty one where it belongs."""
    mask = np.uint64(len(slots) - 1)
    place = h & mask
    while slots[place] != EMPTY_SLOT and slots[place] != h:
        place = (place + np.uint64(1)) & mask
    return place


@numba.njit(cache=True, nogil=True)
def insert(slots, h):
    """Adds a hash to a table and says whether it was there."""
    h = h if h != EMPTY_SLOT else START
    place = probe(slots, h)
    known = slots[place] == h
    slots[place] = h
    return known


@numba.njit(cache=True, nogil=True)
def _insert_all(slots, hashes):
    for h in hashes:
        insert(slots, h)
