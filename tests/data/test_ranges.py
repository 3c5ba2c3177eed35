"""Ranges cover every hash once, and find their part of sorted hashes."""

import numpy as np
import pytest

from data import ranges


@pytest.mark.parametrize("count", [0, 1, 10, 11, 95])
def test_ranges_cover_every_hash_once(count):
    edges = ranges.cut(count, 10)
    assert len(edges) == max(1, -(-count // 10))
    assert edges[0][0] == 0 and edges[-1][1] == 2**64
    assert all(left[1] == right[0] for left, right in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("count", [0, 1, 57])
def test_each_hash_is_in_its_range_and_no_other(count):
    source = np.random.default_rng(0)
    hashes = np.sort(source.integers(0, 2**64, count, np.uint64, endpoint=False))
    hashes[-1:] = 2**64 - 1
    found = []
    for low, high in ranges.cut(70, 10):
        begin, end = ranges.find(hashes, low, high)
        found += hashes[begin:end].tolist()
        assert all(low <= h < high for h in hashes[begin:end].tolist())
    assert found == hashes.tolist()
