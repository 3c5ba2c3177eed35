"""The space of 64-bit hashes, cut into ranges that are worked on one by one."""

import bisect

import numpy as np


def cut(count: int, size: int) -> list[tuple[int, int]]:
    """Cuts all hashes into equal ranges [low, high), as many as hold `count` of `size` each."""
    number = max(1, -(-count // size))
    edges = [2**64 * i // number for i in range(number + 1)]
    return list(zip(edges, edges[1:], strict=False))


def find(hashes: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Where a range begins and ends among sorted hashes; touches a few pages of a mapped file."""

    def first_from(edge: int) -> int:
        return bisect.bisect_left(range(len(hashes)), edge, key=lambda i: int(hashes[i]))

    return first_from(low), first_from(high)
