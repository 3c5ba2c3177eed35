"""Baselines: compressors against their own sizes, the n-gram model against a slow one."""

import gzip
import lzma
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from eval import baseline

TOLERANCE = 1e-9
TRAIN = ["abracadabra", "the cat sat on the mat. the cat ran.", "", "é\x00zz"]
HELDOUT = ["the rat sat", "abra\x00", "unseen: ÿ"]


def slow_probability(train_texts, context, byte, order):
    """Witten-Bell by its definition, counting afresh each time."""
    if order == 0:
        return 1 / 256
    counts = defaultdict(Counter)
    for text in train_texts:
        data = bytes(order - 1) + text.encode()
        for i in range(order - 1, len(data)):
            counts[data[i - order + 1 : i]][data[i]] += 1
    lower = slow_probability(train_texts, context, byte, order - 1)
    seen = counts.get(bytes(context[len(context) - order + 1 :]))
    if seen is None:
        return lower
    return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_equals_the_slow_model(order):
    bits, num_bytes = 0.0, 0
    for text in HELDOUT:
        data = bytes(order - 1) + text.encode()
        for i in range(order - 1, len(data)):
            probability = slow_probability(TRAIN, data[i - order + 1 : i], data[i], order)
            bits -= math.log2(probability)
            num_bytes += 1
    fast = baseline.ngram_bits_per_byte(TRAIN, HELDOUT, order)
    assert fast == pytest.approx(bits / num_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("order", [1, 2, 5, 8])
def test_ngram_probabilities_sum_to_one(order):
    levels = baseline.count_levels(baseline.pack_grams(TRAIN, order), order)
    contexts = np.concatenate([baseline.pack_grams([*TRAIN, *HELDOUT], order), [0, 2**63]])
    # The last byte of each gram is replaced by every byte in turn.
    base = (contexts.astype(np.uint64) >> np.uint64(8)) << np.uint64(8)
    grams = base[:, None] | np.arange(256, dtype=np.uint64)[None]
    probability = baseline.probabilities(levels, grams.ravel()).reshape(grams.shape)
    assert (probability > 0).all()
    np.testing.assert_allclose(probability.sum(1), 1, atol=TOLERANCE)


def test_ngram_learns():
    text = ["the quick brown fox jumps over the lazy dog. " * 20]
    assert baseline.ngram_bits_per_byte(text, text, 5) < 0.5
    assert baseline.ngram_bits_per_byte(["zzzz"], text, 5) > 7.5


def test_compressors_see_the_whole_domain_at_once():
    rng = np.random.default_rng(0)
    text = "".join(chr(c) for c in rng.integers(97, 123, 3000)) + "é"
    size = len(text.encode())
    expected = {
        "gzip": len(gzip.compress((text * 2).encode(), 9, mtime=0)),
        "xz": len(lzma.compress((text * 2).encode(), preset=9)),
    }
    for method, compressed in expected.items():
        whole = baseline.compress_bits_per_byte([[text, text]], method)
        assert whole == 8 * compressed / (2 * size)
        alone = baseline.compress_bits_per_byte([[text]], method)
        assert whole < 0.6 * alone
        assert baseline.compress_bits_per_byte([[text], [], [text]], method) == alone


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: baseline.compress_bits_per_byte([["a"]], "zip"), "method 'zip'"),
        (lambda: baseline.compress_bits_per_byte([[""]], "gzip"), "no text"),
        (lambda: baseline.ngram_bits_per_byte(["a"], ["b"], 9), "order is 9"),
        (lambda: baseline.ngram_bits_per_byte(["a"], [""], 2), "no text"),
    ],
)
def test_bad_calls(call, named):
    with pytest.raises(ValueError, match=named):
        call()
