"""Decontamination: word n-grams of evaluation sets, looked for in documents."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.words import Words, build_set, find_ngrams, ngrams, split_words

# A text of an evaluation set shorter than an n-gram is looked for whole, if it has so many words.
MIN_WORDS = 8


class Hit(NamedTuple):
    """What a document shares with an evaluation set: the set's name, and the words shared."""

    name: str
    shared: str


class Index:
    """The n-grams of evaluation sets.

    Attributes:
        names: of the sets.
    """

    def __init__(self, names: list[str], lengths: np.ndarray, hashes: np.ndarray, sets: np.ndarray):
        """Takes words, hash and set of each n-gram, in order of words, then hash."""
        self.names = names
        self._lengths, self._hashes, self._sets = lengths, hashes, sets
        self._slots = {int(n): build_set(hashes[lengths == n]) for n in np.unique(lengths).tolist()}

    def find(self, data: np.ndarray, words: Words) -> list[Hit | None]:
        """Looks for shared n-grams in each text of a batch.

        Args:
            data: the texts, uint8 [bytes].
            words: theirs.

        Returns:
            The first hit of each text with the longest n-grams, or None.
        """
        hits: list[Hit | None] = [None] * (len(words.offsets) - 1)
        for n, slots in sorted(self._slots.items(), reverse=True):
            found = find_ngrams(words, n, slots)
            for text in np.flatnonzero(found >= 0).tolist():
                first = int(words.offsets[text] + found[text])
                if hits[text] is None:
                    hits[text] = self._describe(data, words, first, n)
        return hits

    def _describe(self, data: np.ndarray, words: Words, first: int, n: int) -> Hit:
        one = Words(words.hashes[first : first + n], words.chars, words.starts, np.array([0, n]))
        wanted = ngrams(one, n)[0][0]
        begin, end = np.searchsorted(self._lengths, [n, n + 1])
        place = begin + np.searchsorted(self._hashes[begin:end], wanted)
        start, last = int(words.starts[first]), int(words.starts[first + n - 1])
        # The last word by its length: characters may take several bytes each.
        tail = (
            data[last : last + 4 * int(words.chars[first + n - 1])]
            .tobytes()
            .decode("utf-8", "ignore")
        )
        shared = data[start:last].tobytes().decode() + tail[: int(words.chars[first + n - 1])]
        return Hit(self.names[self._sets[place]], " ".join(shared.split()))

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        np.savez(
            path,
            names=np.array(self.names, dtype=np.str_),
            lengths=self._lengths,
            hashes=self._hashes,
            sets=self._sets,
        )

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            names = [str(name) for name in file["names"]]
            return cls(names, file["lengths"], file["hashes"], file["sets"])


def build(texts: Iterable[tuple[str, str]], ngram_words: int) -> Index:
    """Indexes evaluation sets.

    Args:
        texts: (name of the set, one of its texts); any number for each set.
        ngram_words: words in an n-gram.

    Returns:
        Every n-gram of every text, and texts of MIN_WORDS words up to that as a whole. An n-gram
        of several sets counts for the first.

    Source: Brown et al. 2020 (GPT-3), appendix C: 13-grams, lower case, without punctuation;
        digits count as equal here, and a document that shares one is dropped whole.
    """
    listed = [(name, text.encode("utf-8", "ignore")) for name, text in texts]
    names = {name: None for name, _ in listed}
    numbers = {name: number for number, name in enumerate(names)}
    of_text = np.array([numbers[name] for name, _ in listed], np.int32)
    data = np.frombuffer(b"".join(text for _, text in listed), np.uint8)
    words = split_words(data, np.cumsum([0, *(len(text) for _, text in listed)]))
    sizes = np.diff(words.offsets)
    lengths, hashes, sets = [], [], []
    for n in range(min(MIN_WORDS, ngram_words), ngram_words + 1):
        all_hashes, firsts = ngrams(words, n)
        of_hash = np.repeat(np.arange(len(sizes)), np.diff(firsts))
        wanted = (sizes[of_hash] == n) | (n == ngram_words)
        unique, where = np.unique(all_hashes[wanted], return_index=True)
        lengths.append(np.full(len(unique), n, np.int32))
        hashes.append(unique)
        sets.append(of_text[of_hash[wanted][where]])
    return Index(list(names), np.concatenate(lengths), np.concatenate(hashes), np.concatenate(sets))
