"""Deduplication without an engine: its settings, which documents belong together, who stays."""

import hashlib
from dataclasses import dataclass

import numpy as np

EXACT = "exact_duplicate"
NEAR = "near_duplicate"


@dataclass(frozen=True)
class DedupConfig:
    """MinHash with banding.

    Two documents with Jaccard similarity s of their word n-grams share a band, and are taken for
    near-duplicates, with probability 1 - (1 - s ** band_rows) ** num_bands.

    Attributes:
        num_bands: bands of a signature; more find more (14, with 8 rows: half at s = 0.68).
        band_rows: permutations in a band; more demand more similarity.
        ngram_words: words in an n-gram; words are parted by blanks, so a language written without
            them is compared whole.
        seed: of the permutations, below 2 ** 32.
    """

    num_bands: int
    band_rows: int
    ngram_words: int
    seed: int

    def __post_init__(self):
        for name in ("num_bands", "band_rows", "ngram_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: {self.seed} must be from 0 to 2 ** 32 - 1")


def digest(text: str) -> str:
    """Hashes a normalised text: equal for equal texts, on every machine.

    Args:
        text: any text that UTF-8 can write.

    Returns:
        32 hexadecimal digits (BLAKE2b of 128 bits).
    """
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def components(num_nodes: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Numbers the connected components of a graph.

    Args:
        num_nodes: nodes are 0 .. num_nodes - 1.
        left, right: the edges' ends, int [number of edges].

    Returns:
        The component of each node, int [num_nodes].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(num_nodes, num_nodes))
    return connected_components(edges, directed=False)[1]


def choose(labels: np.ndarray, ids: list[str], sizes: np.ndarray) -> np.ndarray:
    """Names the document of each component that stays: the longest, then the smallest id.

    Args:
        labels: component of each document, int [number of documents].
        ids: their ids, all different.
        sizes: their lengths, in any one unit, int [number of documents].

    Returns:
        For each document the index of the one that stays, its own where it is that one.
    """
    id_ranks = np.empty(len(ids), np.int64)
    id_ranks[np.argsort(np.array(ids, object), kind="stable")] = np.arange(len(ids))
    order = np.lexsort((id_ranks, -np.asarray(sizes), labels))
    starts = np.unique(labels[order], return_index=True)[1]
    chosen = np.empty(labels.max(initial=-1) + 1, np.int64)
    chosen[labels[order][starts]] = order[starts]
    return chosen[labels]
