"""Which source each row of a run comes from: even at every moment, exact at the end of a stage.

The source is found from the row's number alone, so that a run can be taken up anywhere. Two
sources are interleaved by rounding: of the first j of n rows, round(j * a / n) are of the one that
has a of them. More are paired into a tree, the two rarest first (Huffman 1952). A pair is at most
half a row off its share, and its parts half of theirs beside their part of that: as rows at least
double every second pair up the tree, it comes to less than two rows in all.
"""

import bisect
import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from data.errors import BadInput

# For ever: Grain's own length for that, 2**63 - 1, overflows in batches of one row.
MAX_ROWS = 1 << 53
# A stage without an end is told by the shares of so many rows, which it then repeats.
ENDLESS = 1 << 32


class _Node(NamedTuple):
    """Rows of a source (a leaf, without branches) or of all sources below."""

    rows: int
    source: int
    branches: tuple["_Node", "_Node"] | tuple[()] = ()


class Schedule:
    """Maps the number of a row to (source, index), index counting the rows of that source.

    A source goes on in the next stage where it stopped in the last. At every row, each source is
    within two rows of its share of the stage so far, and at the end of the stage within one of its
    share of the whole. After the last stage its shares go on.

    Attributes:
        counts: rows of each source in each stage.
    """

    def __init__(self, stage_rows: Sequence[int], weights: Sequence[Sequence[float]]):
        """Divides the rows of each stage among the sources.

        Args:
            stage_rows: rows of each stage, in order, above 0; () is one stage without an end.
            weights: of each stage the weight of each source, relative, at least 0.

        Raises:
            BadInput: a stage without rows.
        """
        for number, rows in enumerate(stage_rows, start=1):
            if rows < 1:
                raise BadInput(f"stage {number} of the mixture has {rows} rows; must have some")
        lengths = list(stage_rows) or [ENDLESS]
        self.counts = [_apportion(n, w) for n, w in zip(lengths, weights, strict=True)]
        self._roots = [_pair(counts) for counts in self.counts]
        self._starts = [0, *itertools.accumulate(lengths[:-1])]
        sums = [list(itertools.accumulate(parts)) for parts in zip(*self.counts, strict=True)]
        # Rows of each source before each stage.
        self._before = [[0, *row[:-1]] for row in sums]

    def __len__(self) -> int:
        return MAX_ROWS

    def __getitem__(self, row: int) -> tuple[int, int]:
        stage = bisect.bisect_right(self._starts, row) - 1
        node = self._roots[stage]
        turn, row = divmod(row - self._starts[stage], node.rows)
        while node.branches:
            left, right = node.branches
            taken = _taken(row, left.rows, node.rows)
            if _taken(row + 1, left.rows, node.rows) > taken:
                node, row = left, taken
            else:
                node, row = right, row - taken
        return node.source, self._before[node.source][stage] + turn * node.rows + row

    def count(self, num_rows: int) -> list[list[int]]:
        """Rows of each source among the first `num_rows`, by stage."""
        ends = [*self._starts[1:], MAX_ROWS]
        found = []
        for start, end, root, counts in zip(
            self._starts, ends, self._roots, self.counts, strict=True
        ):
            turns, rest = divmod(max(0, min(num_rows, end) - start), root.rows)
            found.append([turns * rows for rows in counts])
            nodes = [(root, rest)]
            while nodes:
                node, row = nodes.pop()
                if node.branches:
                    left, right = node.branches
                    taken = _taken(row, left.rows, node.rows)
                    nodes += [(left, taken), (right, row - taken)]
                else:
                    found[-1][node.source] += row
        return found


def _taken(row: int, rows: int, of_rows: int) -> int:
    """row * rows / of_rows to the nearest, halves up."""
    return (2 * row * rows + of_rows) // (2 * of_rows)


def _apportion(num_rows: int, weights: Sequence[float]) -> list[int]:
    """Whole rows in proportion to weights: the largest remainders are rounded up."""
    total = sum(weights)
    exact = [num_rows * (weight / total) for weight in weights]
    counts = [int(rows) for rows in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: num_rows - sum(counts)]:
        counts[i] += 1
    return counts


def _pair(counts: Sequence[int]) -> _Node:
    nodes = [(rows, i, _Node(rows, i)) for i, rows in enumerate(counts) if rows]
    heapq.heapify(nodes)
    while len(nodes) > 1:
        (few, _, left), (more, order, right) = heapq.heappop(nodes), heapq.heappop(nodes)
        heapq.heappush(nodes, (few + more, order, _Node(few + more, -1, (left, right))))
    return nodes[0][2]
