"""Toxicity: lists of words, and a classifier trained from labelled examples. Neither is shipped.

The lists are folders of <language>.txt with a word or phrase a line, as LDNOOBW gives them
(https://github.com/LDNOOBW). A text is held against the list of its language; one in another
language than English also against the longer English entries, for short ones are harmless words
somewhere: in Latin, Tagalog, Swedish and German texts nearly all that such entries found was so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from data.errors import BadInput
from data.gates import classifier, language, repair
from data.readers import parquet, tables
from data.readers.fields import Fields
from data.unpacking import DAMAGE
from data.words import Words, build_set, finish, frozen, ngrams, probe, roll, split_words

ENGLISH = "en"
MIN_LETTERS_ABROAD = 6  # of an English entry in texts of other languages
# Entries that mean something harmless far more often.
# Source: the lists' use for mC4 (Xue et al. 2021, https://arxiv.org/abs/2010.11934).
HARMLESS = {"ja": ("sm", "グロ", "女の子"), "zh": ("性",)}


@dataclass(frozen=True)
class ExamplesConfig:
    """Labelled texts to learn from.

    Attributes:
        path: CSV with a header, parquet or JSON lines, compressed or not.
        text: the column or key of the text.
        label: that of the label.
        toxic: the labels, as strings, that mean toxic; every other means not.
    """

    path: str
    text: str
    label: str
    toxic: tuple[str, ...]

    def __post_init__(self):
        if not self.toxic:
            raise BadInput(f"toxic: () for {self.path!r}; name at least one label")


@dataclass(frozen=True)
class ToxicityConfig:
    """What counts as toxic.

    Attributes:
        lists: folder of lists of words, '' for none.
        max_hits_per_word: more hits of the lists for a word are too many, from 0 to 1.
        model: what `--fit-toxicity` wrote; '' for none, and no score.
        max_score: a higher probability is too high, from 0 to 1.
        max_score_by_language: other highest scores for single languages.
        examples: what the model is trained from, by name; each set weighs the same.
        l2: when it is trained, the penalty of the weights against the sum of the losses.
    """

    lists: str = ""
    max_hits_per_word: float = 0.03
    model: str = ""
    max_score: float = 0.9
    max_score_by_language: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, ExamplesConfig] = field(default_factory=dict)
    l2: float = 0.1

    def __post_init__(self):
        limits = {"max_hits_per_word": self.max_hits_per_word, "max_score": self.max_score} | {
            f"max_score_by_language.{code}": limit
            for code, limit in self.max_score_by_language.items()
        }
        for name, limit in limits.items():
            if not 0 <= limit <= 1:
                raise BadInput(f"{name}: {limit} must be from 0 to 1")
        if not self.l2 >= 0:
            raise BadInput(f"l2: {self.l2} must be at least 0")
        for code in self.max_score_by_language:
            if code not in language.languages():
                allowed = " ".join(sorted(language.languages()))
                raise BadInput(f"max_score_by_language: {code!r} is not one of {allowed}")


def paths(config: ToxicityConfig) -> list[str]:
    """The files that it reads: lists and the model.

    Raises:
        BadInput: the folder of lists has none.
    """
    lists = [str(path) for path in _list_paths(config.lists).values()] if config.lists else []
    return [*lists, config.model] if config.model else lists


def _list_paths(folder: str) -> dict[str, Path]:
    """The list of each language; files whose name is no language's code are not lists."""
    found = {}
    for path in sorted(Path(folder).glob("*.txt")):
        if path.stem.isalpha() and path.stem.islower() and len(path.stem) <= 3:
            found[language.to_iso639_1(path.stem)] = path
    if not found:
        raise BadInput(f"data.gates.toxicity.lists: {folder}: no <language>.txt is there")
    return found


class Findings(NamedTuple):
    """What was found in a batch of texts; every field [texts].

    Attributes:
        hits: words and phrases of the lists, int64.
        too_many: are they more than allowed?
        scores: probabilities that a text is toxic, float32; nan without a model.
        too_high: are they higher than allowed?
    """

    hits: np.ndarray
    too_many: np.ndarray
    scores: np.ndarray
    too_high: np.ndarray


class Toxicity:
    """Lists and model, loaded once."""

    def __init__(self, config: ToxicityConfig):
        """Loads what the configuration names.

        Raises:
            BadInput: a folder without lists, a list that is no text, a file that is no model.
        """
        self._config = config
        lists = _list_paths(config.lists) if config.lists else {}
        self._phrases = {code: _read_list(code, path) for code, path in lists.items()}
        self._tables: dict[str, _Table] = {}
        self._model = (
            classifier.load(Path(config.model), "data.gates.toxicity.model")
            if config.model
            else None
        )

    def find(
        self,
        data: np.ndarray,
        offsets: np.ndarray,
        words: Words,
        languages: Sequence[str],
    ) -> Findings:
        """Looks for toxic words, and scores texts.

        Args:
            data, offsets: a batch of texts, as of data.words.
            words: its words.
            languages: of each text, as of language.

        Returns:
            What was found.
        """
        size = len(offsets) - 1
        hits = np.zeros(size, np.int64)
        codes = np.array(languages, object)
        for code in dict.fromkeys(languages) if self._phrases else ():
            table = self._table(code)
            _count_hits(
                frozen(words.hashes, np.uint64),
                frozen(words.offsets, np.int64),
                frozen(np.flatnonzero(codes == code), np.int64),
                *(frozen(slots, np.uint64) for slots in (table.firsts, table.ngrams)),
                table.max_words,
                hits,
            )
        too_many = hits > self._config.max_hits_per_word * np.diff(words.offsets)
        if self._model is None:
            return Findings(hits, too_many, np.full(size, np.nan, np.float32), np.zeros(size, bool))
        limits = self._config.max_score_by_language
        highest = np.array([limits.get(code, self._config.max_score) for code in languages])
        scores = self._model.score(data, offsets, words)
        return Findings(hits, too_many, scores, scores > highest)

    def _table(self, code: str) -> "_Table":
        code = code if code in self._phrases else ""
        if code not in self._tables:
            phrases = set(self._phrases.get(code, ()))
            if code != ENGLISH:
                english = self._phrases.get(ENGLISH, ())
                phrases |= {p for p in english if sum(map(str.isalpha, p)) >= MIN_LETTERS_ABROAD}
            self._tables[code] = _build_table(sorted(phrases))
        return self._tables[code]


class _Table(NamedTuple):
    """Phrases to look for: sets of their first words, and of whole ones, and the longest."""

    firsts: np.ndarray
    ngrams: np.ndarray
    max_words: int


def _read_list(code: str, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"data.gates.toxicity.lists: {path}: {error}") from error
    phrases = (repair.normalise(line).strip() for line in lines)
    return [p for p in phrases if p not in HARMLESS.get(code, ()) and _says_enough(p)]


def _says_enough(phrase: str) -> bool:
    """Numbers match every number, and single letters stand in much: neither is a phrase."""
    letters = [char for char in phrase if char.isalpha()]
    alone = all(len(word) == 1 for word in phrase.split())
    return len(letters) > 1 and not (alone and phrase.isascii())


def _build_table(phrases: list[str]) -> _Table:
    parts = [phrase.encode() for phrase in phrases]
    words = split_words(
        np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)], dtype=np.int64)
    )
    lengths = np.diff(words.offsets)
    whole = [np.empty(0, np.uint64)]
    for n in np.unique(lengths[lengths > 0]).tolist():
        hashes, firsts = ngrams(words, n)
        whole.append(hashes[firsts[:-1][lengths == n]])
    firsts = words.hashes[words.offsets[:-1][lengths > 0]]
    longest = int(lengths.max(initial=0))
    return _Table(build_set(firsts), build_set(np.concatenate(whole)), longest)


@numba.njit(cache=True, nogil=True)
def _count_hits(hashes, offsets, texts, firsts, ngrams, max_words, hits):
    """Counts the phrases in each text, the longest where several begin, none inside another."""
    for text in texts:
        i, end = offsets[text], offsets[text + 1]
        while i < end:
            length = 0
            if firsts[probe(firsts, hashes[i])] == hashes[i]:
                for n in range(1, min(max_words, end - i) + 1):
                    h = finish(roll(hashes, i, n))
                    if ngrams[probe(ngrams, h)] == h:
                        length = n
            hits[text] += length > 0
            i += max(length, 1)


def fit(config: ToxicityConfig, counted: classifier.ClassifierConfig) -> classifier.Model:
    """Trains the classifier from the examples.

    Raises:
        BadInput: no examples, or examples that cannot be read.
    """
    if not config.examples:
        raise BadInput("data.gates.toxicity.examples: none are named to fit a model from")
    texts, labels, groups = [], [], []
    for group, (name, examples) in enumerate(sorted(config.examples.items())):
        for text, label in _read_examples(name, examples):
            texts.append(repair.repair(text))
            labels.append(label in examples.toxic)
            groups.append(group)
    return classifier.train(texts, labels, counted, config.l2, groups)


def _read_examples(name: str, config: ExamplesConfig) -> Iterator[tuple[str, str]]:
    where = f"data.gates.toxicity.examples.{name}: {config.path}"
    read = tables.read_json
    for reader, suffixes in (
        (tables.read_csv, (".csv", ".tsv")),
        (parquet.read, (".parquet",)),
    ):
        if any(suffix in suffixes for suffix in Path(config.path).suffixes):
            read = reader
    try:
        for record in read(config.path, Fields(config.text, "", "", "")):
            if not record.why and config.label not in record.meta:
                found = ", ".join(map(repr, record.meta)) or "nothing"
                record = record._replace(why=f"no {config.label!r}, but {found}")
            if record.why:
                raise BadInput(f"{where}: row {record.number}: {record.why}")
            yield record.text, str(record.meta[config.label])
    except DAMAGE as error:
        raise BadInput(f"{where}: {error}") from error
