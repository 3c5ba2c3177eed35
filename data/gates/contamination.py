"""Decontamination: stretches of evaluation sets, looked for in documents.

A stretch of so many words of an evaluation text counts as found when a document has it with at most
one word replaced, put in or left out. Words are compared in simple lower case and common form;
numbers are compared, but do not count as words; words of one ASCII letter, which label options,
are passed over. A text that is shorter than a stretch is looked for whole.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from data.gates import repair
from data.words import (
    BASE,
    EMPTY_SLOT,
    START,
    Words,
    build_set,
    finish,
    frozen,
    ngrams,
    power,
    probe,
    roll,
    split_words,
)

# A text of fewer words is looked for only if it is a question with MIN_CONTENT words that are not
# among COMMON, and then word for word.
MIN_WORDS, MIN_SHORT, MIN_CONTENT = 8, 5, 2
COMMON = """
    about after all also an and are as at be been before best between but by can come could did do
    does each ever example following for from get go good had happens has have he her him his how if
    in into is it its know like likely make many mean means more most much my no not of on one only
    or other our people say she should so some such take than that the their them then there these
    they thing things think this those to true type up use used want was way we were what when where
    which who whom whose why will with word would you your
"""
LETTERS = list("abcdefghijklmnopqrstuvwxyz_")  # as words they are passed over
SEED = 4  # words in a row by which a stretch is found; two of them must be no numbers
MAX_PLACES = 32  # of evaluation texts that are compared for one seed
# Of a stretch so large a share of words must be no numbers, and so many different ones of them.
LETTERED, DISTINCT = 2 / 3, 6
BEHIND = 2  # equal words that a different word must have on either side
WHOLE = np.int32(-1)  # of a short text: no word may differ


class Hit(NamedTuple):
    """What a document shares with an evaluation set: the set's name, and the words shared."""

    name: str
    shared: str


class Index:
    """Evaluation sets, ready to be looked for.

    Attributes:
        names: of the sets.
    """

    def __init__(self, names: list[str], arrays: dict[str, np.ndarray]):
        """Takes `hashes`, the words of all texts; of each text its first word, `firsts`, its set,
        `sets`, and `stretch`, how many of its words make a hit, or WHOLE, or 0; `seeds`, hashes of
        n-grams in order, and the word where each begins, `places`."""
        self.names = names
        self._arrays, self._sets = arrays, arrays["sets"]
        self._compiled = (*(arrays[name] for name in ("hashes", "firsts", "stretch")),)
        slots, begins = _table(arrays["seeds"])
        texts = np.repeat(np.arange(len(self._sets), dtype=np.int32), np.diff(arrays["firsts"]))
        self._compiled += (texts, slots, begins, arrays["places"])

    def find(self, data: np.ndarray, offsets: np.ndarray) -> list[Hit | None]:
        """Looks for evaluation texts in each text of a batch.

        Args:
            data, offsets: the texts, as of data.words.

        Returns:
            The first hit of each text, or None.
        """
        mine, lettered = _compared(data, split_words(data, offsets, equal_digits=False))
        found = np.full((len(offsets) - 1, 3), -1, np.int64)
        _find(mine.hashes, mine.offsets, lettered, *self._compiled, found)
        return [
            Hit(self.names[self._sets[text]], _shown(data, mine, first, last))
            if text >= 0
            else None
            for text, first, last in found.tolist()
        ]

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        np.savez(path, names=np.array(self.names, dtype=np.str_), **self._arrays)

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return cls([str(name) for name in arrays.pop("names")], arrays)


def build(texts: Iterable[tuple[str, str]], stretch_words: int) -> Index:
    """Indexes evaluation sets.

    Args:
        texts: (name of the set, one of its texts); any number for each set. They are repaired as
            documents are.
        stretch_words: words of a text that no document may have in a row.

    Returns:
        The index. What several texts share counts for the first.

    Source: Brown et al. 2020 (GPT-3), appendix C: 13-grams, lower case, without punctuation. One
        word of them may differ here, and a document that shares one is dropped whole.
    """
    listed = dict.fromkeys((name, repair.repair(text)) for name, text in texts)
    names = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in listed))}
    data, offsets = _packed([text for _, text in listed])
    all_words = split_words(data, offsets, equal_digits=False)
    num_words = np.diff(all_words.offsets)
    words, lettered = _compared(data, all_words)
    questions = np.array([text.rstrip().endswith(("?", "\uff1f")) for _, text in listed], bool)
    sizes = np.diff(words.offsets)
    common = split_words(*_packed([COMMON])).hashes
    content = np.concatenate(([0], np.cumsum(lettered & ~np.isin(words.hashes, common))))
    is_told = np.diff(content[words.offsets]) >= MIN_CONTENT
    # Fewer by the share of its words that are passed over.
    stretch = (sizes * stretch_words // np.maximum(num_words, stretch_words)).astype(np.int32)
    short = num_words < min(MIN_WORDS, stretch_words)
    stretch[short] = np.where(questions & (num_words >= MIN_SHORT) & is_told, WHOLE, 0)[short]
    seeds, starts = ngrams(words, SEED)
    texts = np.repeat(np.arange(len(sizes)), np.diff(starts))
    places = np.arange(len(seeds)) - starts[texts] + words.offsets[texts]
    num_lettered = np.concatenate(([0], np.cumsum(lettered)))
    wanted = (stretch[texts] != 0) & (num_lettered[places + SEED] - num_lettered[places] >= 2)
    seeds, places = seeds[wanted], places[wanted]
    order = np.argsort(seeds, kind="stable")
    arrays = {"hashes": words.hashes, "firsts": words.offsets, "stretch": stretch}
    sets = np.array([names[name] for name, _ in listed], np.int32)
    arrays |= {"sets": sets, "seeds": seeds[order], "places": places[order]}
    return Index(list(names), arrays)


def _packed(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode("utf-8", "ignore") for text in texts]
    data = np.frombuffer(b"".join(encoded), np.uint8)
    return data, np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def _compared(data: np.ndarray, words: Words) -> tuple[Words, np.ndarray]:
    """The words that are compared, and which of them are no numbers."""
    leads = data[words.starts]
    is_number = (leads >= ord("0")) & (leads <= ord("9"))
    letters = split_words(*_packed(LETTERS)).hashes
    kept = (words.chars > 1) | is_number
    kept[~kept] = ~np.isin(words.hashes[~kept], letters)
    offsets = np.concatenate(([0], np.cumsum(kept)))[words.offsets]
    mine = Words(words.hashes[kept], words.chars[kept], words.starts[kept], offsets)
    return mine, ~is_number[kept]


def _shown(data: np.ndarray, words: Words, first: int, last: int) -> str:
    """The text from one word to another, in one line."""
    start, end, num_chars = words.starts[first], words.starts[last], int(words.chars[last])
    # The last word by its length: characters may take several bytes each.
    tail = data[end : end + 4 * num_chars].tobytes().decode("utf-8", "ignore")[:num_chars]
    return " ".join((data[start:end].tobytes().decode() + tail).split())


def _table(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slots of the seeds, and where among them those of each slot begin and end."""
    unique, firsts, counts = np.unique(seeds, return_index=True, return_counts=True)
    slots = build_set(unique)
    begins = np.zeros((len(slots), 2), np.int32)
    _place(slots, frozen(unique, np.uint64), firsts, np.minimum(counts, MAX_PLACES), begins)
    return slots, begins


@numba.njit(cache=True, nogil=True)
def _place(slots, unique, firsts, counts, begins):
    for i in range(len(unique)):
        slot = probe(slots, unique[i] if unique[i] != EMPTY_SLOT else START)
        begins[slot, 0], begins[slot, 1] = firsts[i], firsts[i] + counts[i]


@numba.njit(cache=True, nogil=True)
def _find(
    hashes, offsets, lettered, texts_hashes, firsts, stretch, texts, slots, begins, places, found
):
    oldest = power(SEED - 1)
    for doc in range(len(offsets) - 1):
        first, end = offsets[doc], offsets[doc + 1]
        total = roll(hashes, first, SEED) if first + SEED <= end else np.uint64(0)
        for i in range(first, end - SEED + 1):
            seed = finish(total)
            seed = seed if seed != EMPTY_SLOT else START
            slot = probe(slots, seed)
            if slots[slot] == seed:
                for k in range(begins[slot, 0], begins[slot, 1]):
                    text = texts[places[k]]
                    low, high = _shared(
                        hashes, first, end, i,
                        texts_hashes, firsts[text], firsts[text + 1], places[k], stretch[text],
                    )  # fmt: skip
                    if high > low and _tells(hashes, lettered, low, high, stretch[text]):
                        found[doc, 0], found[doc, 1], found[doc, 2] = text, low, high - 1
                        break
            if found[doc, 0] >= 0:
                break
            if i + SEED < end:
                total = (total - hashes[i] * oldest) * BASE + hashes[i + SEED]


@numba.njit(cache=True, nogil=True)
def _run(left, i, left_end, right, j, right_end, step):
    """How many words are equal from i and j on, forwards or backwards to before the ends."""
    count = 0
    while i != left_end and j != right_end and left[i] == right[j]:
        i, j, count = i + step, j + step, count + 1
    return count


@numba.njit(cache=True, nogil=True)
def _beyond(left, i, left_end, right, j, right_end, step):
    """The same behind a word that differs: (equal words, words of the left one passed over)."""
    best, passed = 0, 0
    for skip_left, skip_right in ((1, 1), (1, 0), (0, 1)):
        if abs(left_end - i) >= skip_left and abs(right_end - j) >= skip_right:
            count = _run(
                left, i + step * skip_left, left_end, right, j + step * skip_right, right_end, step
            )
            if count > best:
                best, passed = count, skip_left
    return best, passed


@numba.njit(cache=True, nogil=True)
def _shared(doc, first, end, i, text, text_first, text_end, j, stretch):
    """Where the document has as much of a text, around an equal seed, as makes a hit; else 0, 0."""
    before = _run(doc, i - 1, first - 1, text, j - 1, text_first - 1, -1)
    behind = _run(doc, i + SEED, end, text, j + SEED, text_end, 1)
    low, high, equal = i - before, i + SEED + behind, before + SEED + behind
    if stretch == WHOLE:
        return (low, high) if equal == text_end - text_first else (0, 0)
    if equal >= stretch:
        return low, high
    more, passed = _beyond(doc, high, end, text, j + SEED + behind, text_end, 1)
    if more >= BEHIND and equal + more >= stretch - 1:
        return low, high + passed + more
    more, passed = _beyond(doc, low - 1, first - 1, text, j - before - 1, text_first - 1, -1)
    if more >= BEHIND and equal + more >= stretch - 1:
        return low - passed - more, high
    return 0, 0


@numba.njit(cache=True, nogil=True)
def _tells(hashes, lettered, low, high, stretch):
    """Whether enough of the words are no numbers, and different."""
    if stretch == WHOLE:
        return True
    count, different = 0, 0
    for i in range(low, high):
        if lettered[i]:
            count += 1
            is_new = True
            for j in range(low, i):
                is_new &= hashes[j] != hashes[i]
            different += is_new
            if different >= DISTINCT and count >= LETTERED * stretch:
                return True
    return False
