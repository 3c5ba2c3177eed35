"""MinHash: its chance of a shared band is the one promised, and its sets are those of n-grams."""

import hashlib

import numpy as np
import pytest

from data import minhash
from data.words import Words, ngrams, split_words

MASK = 2**64 - 1
NUM_BANDS, BAND_ROWS = 14, 8
# Of a binomial count; one in 30,000 leaves it by chance, and seeds are fixed.
MAX_DEVIATIONS = 4.2


def batch(texts):
    parts = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    return data, np.cumsum([0, *map(len, parts)])


def words_of(texts):
    return split_words(*batch(texts))


def finish(h):
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & MASK
    return h ^ (h >> 31)


def sign_by_hand(ngram_hashes, num_bands, band_rows, seed):
    """The bands of one text, in plain Python."""
    state, golden, keys = finish((seed + 0x9E3779B97F4A7C15) & MASK), 0x9E3779B97F4A7C15, []
    for kind in range(3):
        keys.append([])
        for _ in range(num_bands * band_rows):
            state = (state + golden) & MASK
            keys[-1].append(finish(state) >> 32 | (kind > 0))
    minima = []
    for flip, first, second in zip(*keys, strict=True):
        mixed = [((h >> 32) ^ flip) * first % 2**32 for h in ngram_hashes]
        minima.append(min((x ^ (x >> 15)) * second % 2**32 for x in mixed))
    bands = []
    for band in range(num_bands):
        h = band
        for low in minima[band * band_rows : (band + 1) * band_rows]:
            h = finish((h ^ low) * 0xD6E8FEB86659FD93 & MASK)
        bands.append(h)
    return bands


@pytest.mark.parametrize("num_words", [3, 4, 5, 6, 7, 8, 9, 40])
def test_bands_follow_their_definition(num_words):
    words = words_of([" ".join(f"w{chr(97 + i % 23)}{i // 23}" for i in range(num_words))])
    hashes = ngrams(words, 3)[0].tolist()
    bands, has_words = minhash.bands(words, 3, 2, 3, 11)
    assert bands.dtype == np.uint64 and has_words.tolist() == [True]
    assert bands[0].tolist() == sign_by_hand(hashes, 3, 2, 11)


def test_a_short_text_is_one_ngram_and_an_empty_one_none():
    bands, has_words = minhash.bands(
        words_of(["one two", "", "...", "One, TWO!", "two one", "one"]), 4, 2, 5, 1
    )
    assert has_words.tolist() == [True, False, False, True, True, True]
    assert not bands[1].any() and not bands[2].any()
    assert bands[0].tolist() == bands[3].tolist()
    assert len({tuple(row) for row in bands[[0, 4, 5]].tolist()}) == 3


def test_order_and_number_of_ngrams_do_not_count():
    """Of single words; the last block of n-grams is filled in every way."""
    texts = ["a b c", "c a b", "a a b c b a c c c", "c b a a"]
    bands, _ = minhash.bands(words_of(texts), 8, 4, 1, 5)
    assert len(np.unique(bands, axis=0)) == 1


def test_a_text_is_signed_alike_in_any_batch():
    texts = [f"text number {chr(97 + i)} of a few words {chr(98 + i)}" for i in range(20)]
    together, _ = minhash.bands(words_of(texts), 3, 2, 4, 9)
    data, offsets = batch(texts)
    part, _ = minhash.bands(split_words(data, offsets[7:12]), 3, 2, 4, 9)
    assert together[7:11].tolist() == part.tolist()


def test_a_seed_makes_other_permutations():
    words = words_of(["the same text for all of them"])
    firsts = [minhash.bands(words, 1, 1, 2, seed)[0][0, 0] for seed in (0, 1, 2**32 - 1)]
    assert len(set(firsts)) == 3


def pairs(similarity, num_pairs, union):
    """Words of pairs of texts that have `similarity` of `union` different words in common."""
    shared = round(similarity * union)
    numbers = np.arange(num_pairs * union, dtype=np.uint64).reshape(num_pairs, union)
    mixed = np.vectorize(lambda x: finish(x + 1), otypes=[np.uint64])(numbers)
    half = (union - shared) // 2
    sides = mixed[:, : shared + half], np.delete(mixed, np.s_[shared : shared + half], axis=1)
    for rows in sides:
        count, length = rows.shape
        firsts = np.arange(count + 1) * length
        ones = np.ones(count * length, np.int32)
        yield Words(rows.ravel(), ones, np.arange(count * length), firsts)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_chance_of_a_shared_band_is_the_one_promised(similarity):
    """Over 4000 pairs, and so is the spread of equal rows: they are independent."""
    num_pairs, num_rows = 4000, NUM_BANDS * BAND_ROWS
    left, right = pairs(similarity, num_pairs, 20)
    sides = [minhash.bands(words, NUM_BANDS, BAND_ROWS, 1, 3)[0] for words in (left, right)]
    found = np.sum((sides[0] == sides[1]).any(axis=1))
    chance = 1 - (1 - similarity**BAND_ROWS) ** NUM_BANDS
    deviation = np.sqrt(num_pairs * chance * (1 - chance))
    assert abs(found - num_pairs * chance) <= MAX_DEVIATIONS * deviation

    sides = [minhash.bands(words, num_rows, 1, 1, 3)[0] for words in (left, right)]
    equal = np.sum(sides[0] == sides[1], axis=1)
    variance = num_rows * similarity * (1 - similarity)
    assert abs(equal.mean() - num_rows * similarity) <= MAX_DEVIATIONS * np.sqrt(
        variance / num_pairs
    )
    assert abs(equal.var() / variance - 1) <= MAX_DEVIATIONS * np.sqrt(2 / num_pairs)


def test_texts_with_one_half_in_common_hardly_ever_share_a_band():
    """0.0021 of them at a similarity of 1/3."""
    left, right = pairs(1 / 3, 3000, 60)
    sides = [minhash.bands(words, NUM_BANDS, BAND_ROWS, 1, 8)[0] for words in (left, right)]
    chance = 1 - (1 - (1 / 3) ** BAND_ROWS) ** NUM_BANDS
    most = 3000 * chance + MAX_DEVIATIONS * np.sqrt(3000 * chance)
    assert np.sum((sides[0] == sides[1]).any(axis=1)) <= most


def test_content_hashes_are_of_the_bytes():
    texts = ["a text", "another", "", "a text", "A text"]
    data, offsets = batch(texts)
    found = minhash.content_hashes(data, offsets)
    assert found.dtype == np.uint64 and found.shape == (5, 2)
    for text, pair in zip(texts, found, strict=True):
        wanted = hashlib.blake2b(text.encode(), digest_size=16).digest()
        assert pair.astype("<u8").tobytes() == wanted
    assert minhash.content_hashes(data, offsets[3:]).tolist() == found[3:].tolist()
    assert minhash.content_hashes(data[:0], offsets[:1]).shape == (0, 2)
