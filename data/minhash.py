"""MinHash of the word n-grams of a text, cut into bands, and an exact hash of its bytes."""

import hashlib

import numba
import numpy as np

from data.words import BASE, START, STEP, Words, finish, frozen, power, roll

S15, S32 = np.uint32(15), np.uint64(32)
MOST = np.uint32(2**32 - 1)
# n-grams that one pass over the permutations takes: their keys are loaded once for all of them.
BLOCK = 4


def content_hashes(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Hashes the bytes of each text: equal for equal texts, on every machine.

    Args:
        data: the texts back to back, uint8 [bytes].
        offsets: first byte of each text, and the end; int64 [texts + 1].

    Returns:
        BLAKE2b of 128 bits as two little-endian numbers; uint64 [texts, 2].
    """
    view, ends = memoryview(np.ascontiguousarray(data)), offsets.tolist()
    digests = (
        hashlib.blake2b(view[first:last], digest_size=16).digest()
        for first, last in zip(ends[:-1], ends[1:], strict=True)
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def bands(
    words: Words, num_bands: int, band_rows: int, ngram_words: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Signs the set of word n-grams of each text, and hashes each band of the signature.

    Two texts whose sets have Jaccard similarity s share a band with probability
    1 - (1 - s ** band_rows) ** num_bands. A text of fewer words than an n-gram has one n-gram: all
    its words.

    Args:
        words: of a batch of texts.
        num_bands, band_rows: bands of a signature, and permutations in each; at least 1.
        ngram_words: words in an n-gram, at least 1.
        seed: of the permutations, from 0 to 2 ** 64 - 1.

    Returns:
        A hash of each band and its number, uint64 [texts, num_bands], 0 in a text without a word;
        and which texts have a word, bool [texts].

    Source: Broder 1997, "On the resemblance and containment of documents". A permutation here is a
        keyed mixing of 32 bits, one to one, and not a linear one: rows of a band must be
        independent.
    """
    num_rows = num_bands * band_rows
    keys = np.empty((3, num_rows), np.uint32)
    _fill_keys(np.uint64(seed), keys)
    hashes = np.zeros((len(words.offsets) - 1, num_bands), np.uint64)
    word_hashes = frozen(words.hashes, np.uint64)
    firsts = frozen(words.offsets, np.int64)
    _sign(word_hashes, firsts, ngram_words, keys, band_rows, hashes)
    return hashes, np.diff(words.offsets) > 0


@numba.njit(cache=True, nogil=True)
def _fill_keys(seed, keys):
    """SplitMix64 from the seed; multipliers (rows 1 and 2) are odd."""
    state = finish(seed + START)
    for i in range(keys.shape[0]):
        for j in range(keys.shape[1]):
            state += START
            keys[i, j] = np.uint32(finish(state) >> S32) | np.uint32(i > 0)


@numba.njit(cache=True, nogil=True)
def _permute(x, flip, first, second):
    x = np.uint32((x ^ flip) * first)
    x = np.uint32(x ^ (x >> S15))
    return np.uint32(x * second)


@numba.njit(cache=True, nogil=True)
def _lower(minima, keys, block):
    """Takes one block of n-grams into the minima of all permutations."""
    flips, firsts, seconds = keys[0], keys[1], keys[2]
    x0, x1, x2, x3 = block[0], block[1], block[2], block[3]
    for row in range(len(minima)):
        flip, first, second = flips[row], firsts[row], seconds[row]
        low = min(_permute(x0, flip, first, second), _permute(x1, flip, first, second))
        low = min(low, _permute(x2, flip, first, second))
        low = min(low, _permute(x3, flip, first, second))
        minima[row] = min(minima[row], low)


@numba.njit(cache=True, nogil=True)
def _sign(hashes, firsts, n, keys, band_rows, band_hashes):
    minima = np.empty(keys.shape[1], np.uint32)
    block = np.empty(BLOCK, np.uint32)
    oldest = power(n - 1)
    for text in range(len(firsts) - 1):
        first, end = firsts[text], firsts[text + 1]
        if first == end:
            continue
        minima[:] = MOST
        last = max(end - n, first)
        total = roll(hashes, first, min(n, end - first))
        for i in range(first, last + 1, BLOCK):
            for j in range(BLOCK):
                # The last block is filled up with its last n-gram: a set does not mind.
                block[j] = np.uint32(finish(total) >> S32)
                if i + j < last:
                    total = (total - hashes[i + j] * oldest) * BASE + hashes[i + j + n]
            _lower(minima, keys, block)
        _join(minima, band_rows, band_hashes[text])


@numba.njit(cache=True, nogil=True)
def _join(minima, band_rows, band_hashes):
    for band in range(len(band_hashes)):
        h = np.uint64(band)
        for row in range(band * band_rows, (band + 1) * band_rows):
            h = finish((h ^ np.uint64(minima[row])) * STEP)
        band_hashes[band] = h
