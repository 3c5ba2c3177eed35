"""Which documents and paragraphs were seen before: keys on disk, grouped range by range.

Each reading task leaves its keys sorted by hash. A range of hashes is read out of all of them, so
that memory is bounded by the range, not by the corpus; ranges are independent tasks. What shares a
key is linked; a cluster is a connected component of links, and one document of it stays.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data import ranges

URL, EXACT, NEAR, PARAGRAPHS = (
    "url_duplicate",
    "exact_duplicate",
    "near_duplicate",
    "repeated_paragraphs",
)
# In the order in which they are looked for; each sees only what the ones before have left.
WAYS = (URL, EXACT, NEAR)
PREFERENCES = ("quality", "longest", "newest")
# Mixes the two halves of a hash.
ODD = np.uint64(0x9E3779B97F4A7C15)
# 28 bytes each: a range takes about 150 MB while it is grouped.
KEYS_PER_RANGE = 1 << 21

# `check` are further bits of the hash; `row` is the document in its task; `part` is its paragraph,
# of so many characters, where paragraphs are compared.
KEY = np.dtype(
    [("hash", "<u8"), ("check", "<u8"), ("row", "<u4"), ("part", "<u4"), ("chars", "<u4")]
)


@dataclass(frozen=True)
class DedupConfig:
    """What counts as seen before.

    Two documents with Jaccard similarity s of their word n-grams share a band, and are taken for
    near-duplicates, with probability 1 - (1 - s ** band_rows) ** num_bands.

    Attributes:
        num_bands: bands of a MinHash signature; more find more (14, with 8 rows: half at s = 0.68).
        band_rows: permutations in a band; more demand more similarity.
        ngram_words: words in an n-gram; in scripts without blanks each character is a word.
        equal_digits: whether numbers of as many digits are one word of an n-gram, so that texts
            which differ in numbers alone are copies.
        urls: whether of the documents with one URL only the newest stays.
        paragraph_chars: a paragraph of at least so many characters that was seen before is taken
            out; 0 leaves all.
        min_left: a document is dropped when less than this share of it is left, from 0 to 1.
        prefer: which of a cluster stays, first by the first of PREFERENCES named; in the end the
            one that was read first.
    """

    num_bands: int = 16
    band_rows: int = 8
    ngram_words: int = 5
    equal_digits: bool = False
    urls: bool = True
    paragraph_chars: int = 0
    min_left: float = 0.5
    prefer: tuple[str, ...] = ("longest",)

    def __post_init__(self):
        for name in ("num_bands", "band_rows", "ngram_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.paragraph_chars < 0:
            raise ValueError(f"paragraph_chars: {self.paragraph_chars} must be 0 or more")
        if not 0 <= self.min_left <= 1:
            raise ValueError(f"min_left: {self.min_left} must be from 0 to 1")
        for name in self.prefer:
            if name not in PREFERENCES:
                raise ValueError(f"prefer: {name!r} must be one of {', '.join(PREFERENCES)}")


def write_keys(path: Path, keys: np.ndarray) -> None:
    """Writes keys as a .npy file, sorted by hash, then document, then part.

    Args:
        path: where to.
        keys: of KEY [keys].
    """
    np.save(path, keys[np.lexsort((keys["part"], keys["row"], keys["check"], keys["hash"]))])


def write_parts(path: Path, key_files: Sequence[Path], starts: Sequence[int]) -> None:
    """Writes where the keys of each reading task lie, and the number of its first document."""
    pairs = [(str(file), start) for file, start in zip(key_files, starts, strict=True)]
    path.write_text(json.dumps(pairs))


def find_links(out: Path, parts: str, low: int, high: int, alive: str) -> dict:
    """Links documents that share a key of a range to the first one with it; a task's body.

    Args:
        out: gets links.npy, int64 [links, 2]: the first document, another.
        parts: a file that `write_parts` wrote: key files of all reading tasks.
        low, high: the range of hashes.
        alive: .npy of bool, one a document: the others do not count.

    Returns:
        {links}.
    """
    keys, docs = _read_range(parts, low, high, alive)
    firsts = _firsts(keys)
    links = np.stack([docs[firsts], docs], 1)[docs[firsts] != docs]
    links = np.unique(links, axis=0)
    np.save(out / "links.npy", links)
    return {"links": len(links)}


def find_repeats(out: Path, parts: str, low: int, high: int, alive: str) -> dict:
    """Finds the paragraphs of a range that stand in several places; a task's body.

    Args: as of find_links.

    Returns:
        {repeats}; out gets repeats.npy, int64 [repeats, 4]: document, paragraph, its characters,
        and a number that its copies share, the first among them.
    """
    keys, docs = _read_range(parts, low, high, alive)
    firsts = _firsts(keys)
    several = np.bincount(firsts, minlength=len(keys))[firsts] > 1
    shared = (keys["hash"] ^ keys["check"] * ODD).view(np.int64)
    columns = (docs, keys["part"], keys["chars"], shared)
    repeats = np.stack([column[several].astype(np.int64) for column in columns], 1)
    np.save(out / "repeats.npy", repeats)
    return {"repeats": int(len(keys) - len(np.unique(firsts)))}


def take_out(
    repeats: np.ndarray, chars: np.ndarray, min_left: float
) -> tuple[np.ndarray, np.ndarray]:
    """Decides which repeated paragraphs go, and which documents for having too little left.

    Documents are taken in order. A paragraph goes if a document that stays, or this one, had it
    before, so that a copy in a document that is dropped never takes one from another.

    Args:
        repeats: int64 [repeats, 4] of find_repeats, in order of document and paragraph.
        chars: characters of the documents np.unique(repeats[:, 0]), in that order.
        min_left: the least share of a document's characters that may be left, from 0 to 1.

    Returns:
        The paragraphs that go, int64 [gone, 3], without those of dropped documents; and these.
    """
    docs, firsts = np.unique(repeats[:, 0], return_index=True)
    groups = np.unique(repeats[:, 3], return_inverse=True)[1].reshape(-1)
    gone, dropped = np.zeros(len(repeats), bool), np.zeros(len(docs), bool)
    ends = np.append(firsts[1:], len(repeats)).astype(np.int64)
    most_gone = chars - np.maximum(1, min_left * chars)
    holder = np.full(groups.max(initial=-1) + 1, -1, np.int64)
    sizes = np.ascontiguousarray(repeats[:, 2])
    _take_out(firsts.astype(np.int64), ends, groups, sizes, most_gone, holder, gone, dropped)
    return repeats[gone, :3], docs[dropped]


@numba.njit(cache=True, nogil=True)
def _take_out(firsts, ends, groups, sizes, most_gone, holder, gone, dropped):
    """`holder` is the document that stays with a group's paragraph, -1 while there is none."""
    for doc in range(len(firsts)):
        first, end, total = firsts[doc], ends[doc], 0
        for row in range(first, end):
            gone[row] = holder[groups[row]] >= 0
            if gone[row]:
                total += sizes[row]
            else:
                holder[groups[row]] = doc
        dropped[doc] = total > most_gone[doc]
        if dropped[doc]:
            for row in range(first, end):
                if not gone[row]:
                    holder[groups[row]] = -1
                gone[row] = False


def _read_range(parts: str, low: int, high: int, alive: str) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a range in order of (hash, check, document, part), and their documents."""
    is_alive = np.load(alive, mmap_mode="r")
    found, docs = [np.empty(0, KEY)], [np.empty(0, np.int64)]
    for path, start in json.loads(Path(parts).read_text()):
        keys = np.load(path, mmap_mode="r")
        begin, end = ranges.find(keys["hash"], low, high)
        part = np.array(keys[begin:end])
        numbers = part["row"].astype(np.int64) + start
        living = is_alive[numbers]
        found.append(part[living])
        docs.append(numbers[living])
    keys, numbers = np.concatenate(found), np.concatenate(docs)
    order = np.lexsort((keys["part"], numbers, keys["check"], keys["hash"]))
    return keys[order], numbers[order]


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Of sorted keys: where the run of equal hashes that each belongs to begins."""
    begins = np.ones(len(keys), bool)
    begins[1:] = (keys["hash"][1:] != keys["hash"][:-1]) | (keys["check"][1:] != keys["check"][:-1])
    return np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))


def resolve(
    links: np.ndarray, facts: Mapping[str, np.ndarray], prefer: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Decides which documents of each cluster go, and which one stays.

    Memory grows with the links, not with the corpus.

    Args:
        links: int64 [links, 2], as find_links leaves them.
        facts: {chars, quality, day}, each of the documents np.unique(links), in that order.
        prefer: names of PREFERENCES, the first counts most; ties go to the smallest number.

    Returns:
        Documents to drop, ascending, and the one that stays in place of each: int64 [dropped].
    """
    docs, ends = np.unique(links, return_inverse=True)
    ends = ends.reshape(-1, 2)
    labels = components(len(docs), ends[:, 0], ends[:, 1])
    values = {"quality": "quality", "longest": "chars", "newest": "day"}
    ranks = [-facts[values[name]].astype(np.float64) for name in prefer]
    chosen = choose(labels, ranks)
    gone = chosen != np.arange(len(docs))
    return docs[gone], docs[chosen[gone]]


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


def choose(labels: np.ndarray, ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Names the one of each component that stays.

    Args:
        labels: component of each node, int [nodes].
        ranks: arrays [nodes]; the smallest of the first stays, of equals that of the next, in the
            end the first node.

    Returns:
        For each node the index of the one that stays, its own where it is that one.
    """
    order = np.lexsort((np.arange(len(labels)), *reversed(ranks), labels))
    starts = np.unique(labels[order], return_index=True)[1]
    chosen = np.empty(labels.max(initial=-1) + 1, np.int64)
    chosen[labels[order][starts]] = order[starts]
    return chosen[labels]
