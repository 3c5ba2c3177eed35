"""A text classifier: logistic regression over hashed n-grams of words and characters.

scikit-learn fits it; scoring is compiled. Its logits are made probabilities on a fifth of the
examples, held out. Classifiers of fastText (.bin, .ftz) score texts as well.
"""

import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import fasttext
import numba
import numpy as np
from scipy.sparse import csr_array

from data.errors import BadInput
from data.words import (
    BASE,
    CODE,
    S29,
    STEP,
    WORD,
    Words,
    char_table,
    finish,
    frozen,
    read_char,
    split_words,
)

FORMAT = "seedbed classifier 2"
HELD_OUT = 5  # every fifth example of a class is kept for the probabilities
MIN_EXAMPLES = 2 * HELD_OUT  # of each class
MAX_STEPS, BIAS_SCALE = 1000, 10.0  # of the optimiser
HALF_LOGIT = np.float64(35.0)  # beyond it a probability is 0 or 1 in float32
FREE = 1e6  # a penalty that does not count
CHAR_START = np.uint64(0xD56B1FBB9CEBA9E8)  # finish(8): no n-gram of words begins so
SPACE = np.uint32(32)
BINARY_SUFFIXES = (".bin", ".ftz")  # of fastText's models


@dataclass(frozen=True)
class ClassifierConfig:
    """What is counted in a text, the same for `toxicity` and `quality`.

    Attributes:
        bits: n-grams are hashed into 2 ** bits weights, 10 to 24.
        word_ngrams: words in the longest n-gram of words, 0 (none) to 5.
        char_ngrams: characters in the shortest and the longest n-gram of characters, inside words
            and with a blank at either end; 0 and 0 for none, at most 8.
    """

    bits: int = 20
    word_ngrams: int = 2
    char_ngrams: tuple[int, ...] = (0, 0)

    def __post_init__(self):
        for name, low, high in (("bits", 10, 24), ("word_ngrams", 0, 5)):
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"{name}: {getattr(self, name)} must be from {low} to {high}")
        chars = self.char_ngrams
        if len(chars) != 2 or (chars != (0, 0) and not 1 <= chars[0] <= chars[1] <= 8):
            raise BadInput(
                f"char_ngrams: {chars}; allowed: (0, 0), or (shortest, longest) from 1 to 8"
            )
        if not self.word_ngrams and not chars[1]:
            raise BadInput("word_ngrams, char_ngrams: both are 0, so that nothing is counted")


@dataclass(frozen=True)
class Model:
    """A trained classifier.

    Attributes:
        config: what it counts.
        weights: float32 [2 ** bits].
        bias: added to every logit.
        slope, shift: a logit x stands for the probability 1 / (1 + exp(-(slope * x + shift))).
        examples: SHA-256 of the examples and their labels.
        num_positive, num_negative: examples of each class.
    """

    config: ClassifierConfig
    weights: np.ndarray
    bias: float
    slope: float
    shift: float
    examples: str
    num_positive: int
    num_negative: int

    def score(self, data: np.ndarray, offsets: np.ndarray, words: Words) -> np.ndarray:
        """Says how likely texts are of the positive class.

        Args:
            data, offsets: a batch of texts, as of data.words.
            words: its words.

        Returns:
            Probabilities, above 0 and below 1, float32 [texts]; that of a text without n-grams is
            the one of the bias.
        """
        logits = _logits(_Batch(data, offsets, words), self.config, self.weights, self.bias)
        scaled = np.clip(self.slope * logits + self.shift, -HALF_LOGIT, HALF_LOGIT)
        tiny = np.finfo(np.float32).eps / 2
        return np.clip(1 / (1 + np.exp(-scaled)), tiny, 1 - tiny).astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes the model; what was at the path is replaced at once or not at all."""
        header = {"format": FORMAT, "config": asdict(self.config)} | {
            name: getattr(self, name)
            for name in ("bias", "slope", "shift", "examples", "num_positive", "num_negative")
        }
        content = io.BytesIO()
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        np.savez(content, header=text, weights=self.weights)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(content.getvalue())
        part.replace(path)


class FastText:
    """A classifier of fastText's, whose score is the probability of one of its labels."""

    def __init__(self, path: Path, key: str, label: str):
        """`label` is without fastText's prefix; `key` is the setting that names the file.

        Raises:
            BadInput: the file is no model, or the label is not one of its labels.
        """
        try:
            self._model = fasttext.load_model(str(path)).f
        except ValueError as error:
            raise BadInput(f"{key}: {path}: not a model of fastText: {error}") from error
        self._label = f"__label__{label}"
        labels = [name for _, name in self._model.predict("\n", -1, -1.0, "strict")]
        if self._label not in labels:
            allowed = " ".join(sorted(name.removeprefix("__label__") for name in labels))
            raise BadInput(f"{key}: {path}: has no label {label!r}; allowed: {allowed}")

    def score(self, data: np.ndarray, offsets: np.ndarray, _words: Words) -> np.ndarray:
        """As of `Model`; line ends of a text count as blanks."""
        content = data.tobytes().replace(b"\n", b" ")
        scores = []
        for start, end in itertools.pairwise(offsets.tolist()):
            found = self._model.predict(content[start:end] + b"\n", -1, 0.0, "strict")
            scores.append(next((p for p, name in found if name == self._label), 0.0))
        return np.minimum(np.array(scores, np.float32), 1)


def load(path: Path, key: str, label: str = "") -> Model | FastText:
    """Reads a model that `Model.save` wrote, or one of fastText's.

    Args:
        path: of the file.
        key: the setting that names it.
        label: of a model of fastText, the one whose probability is the score.

    Raises:
        BadInput: there is none, or not in this format.
    """
    if path.suffix in BINARY_SUFFIXES:
        return FastText(path, key, label)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            weights = arrays["weights"]
        if header.pop("format") != FORMAT:
            raise ValueError("of another format")
        config = header.pop("config")
        config = ClassifierConfig(**config | {"char_ngrams": tuple(config["char_ngrams"])})
        if weights.shape != (1 << config.bits,) or weights.dtype != np.float32:
            raise ValueError("weights of another size")
        return Model(config, weights, **header)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{key}: {path}: not a classifier; allowed: what --fit-quality or --fit-toxicity "
            "writes, or a model of fastText (.bin, .ftz)"
        ) from error


def train(
    texts: Sequence[str],
    labels: Sequence[bool],
    config: ClassifierConfig,
    l2: float,
    groups: Sequence[int] | None = None,
) -> Model:
    """Trains a classifier; each class of each group weighs the same, whatever its examples.

    Args:
        texts: examples, normalised as those that are scored later.
        labels: True for the positive class.
        config: what is counted.
        l2: penalty of the weights, half of their squares times this, against the sum of the
            losses.
        groups: where each example is from, from 0; None for one group.

    Returns:
        The model. Its probabilities are for even odds: how often each class occurs in a corpus
        its examples do not say.

    Raises:
        BadInput: fewer than MIN_EXAMPLES examples of a class.

    Source: Platt 1999 for the probabilities.
    """
    positive = np.asarray(labels, bool)
    for name, count in (("positive", positive.sum()), ("negative", (~positive).sum())):
        if count < MIN_EXAMPLES:
            raise BadInput(f"examples: {count} {name}; at least {MIN_EXAMPLES} are needed")
    parts = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    batch = _Batch(data, offsets, split_words(data, offsets))
    cells = positive + 2 * np.asarray(np.zeros(len(positive)) if groups is None else groups, int)
    sizes = np.bincount(cells)
    costs = (len(cells) / np.count_nonzero(sizes) / np.maximum(sizes, 1))[cells]
    held_out = np.zeros(len(positive), bool)
    for cell in np.flatnonzero(sizes):
        held_out[np.flatnonzero(cells == cell)[HELD_OUT - 1 :: HELD_OUT]] = True
    rows = _rows(batch, config)
    penalty = 1 / max(l2, 1e-9)
    weights, bias = _fit(rows[~held_out], positive[~held_out], costs[~held_out], penalty)
    logits = rows[held_out] @ weights + bias
    slope, shift = _calibrate(logits, positive[held_out], costs[held_out])
    weights, bias = _fit(rows, positive, costs, penalty)
    digest = hashlib.sha256(data.tobytes() + offsets.tobytes() + cells.astype("<i8").tobytes())
    counts = int(positive.sum()), int((~positive).sum())
    return Model(
        config,
        weights.astype(np.float32),
        bias,
        slope,
        shift,
        digest.hexdigest(),
        *counts,
    )


class _Batch:
    """Texts and their words, in the form that compiled code takes."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, words: Words):
        self.offsets = frozen(offsets, np.int64)
        self.arrays = (
            frozen(data, np.uint8),
            self.offsets,
            char_table(),
            frozen(words.hashes, np.uint64),
            frozen(words.offsets, np.int64),
        )


def _counts(config: ClassifierConfig) -> tuple[np.uint64, int, int, int]:
    """What is counted, for compiled code: how far hashes are shifted, and lengths of n-grams."""
    return (np.uint64(64 - config.bits), config.word_ngrams, *config.char_ngrams)


def _logits(
    batch: _Batch, config: ClassifierConfig, weights: np.ndarray, bias: float
) -> np.ndarray:
    logits = np.empty(len(batch.offsets) - 1)
    seen = np.full(len(weights), -1, np.int32)
    _sum_weights(*batch.arrays, _counts(config), frozen(weights, np.float32), seen, logits)
    return logits + bias


def _rows(batch: _Batch, config: ClassifierConfig) -> csr_array:
    """What a weight is multiplied with in each text: the same as in `_sum_weights`."""
    size = len(batch.offsets) - 1
    places, firsts = _list_places(*batch.arrays, _counts(config))
    values = np.repeat(1 / np.sqrt(np.maximum(np.diff(firsts), 1)), np.diff(firsts))
    return csr_array((values, places, firsts), shape=(size, 1 << config.bits))


def _fit(
    rows: csr_array, positive: np.ndarray, costs: np.ndarray, penalty: float
) -> tuple[np.ndarray, float]:
    """Weights and bias; the losses of examples count as much as their costs."""
    from sklearn.linear_model import LogisticRegression

    # Newton's method in a trust region, which takes no chance; the bias hardly counts for the l2.
    model = LogisticRegression(
        C=penalty, solver="liblinear", intercept_scaling=BIAS_SCALE, max_iter=MAX_STEPS
    )
    used = np.union1d(rows.indices, [0])
    part = rows[:, used]
    part.indices, part.indptr = part.indices.astype(np.int32), part.indptr.astype(np.int32)
    model.fit(part, positive, sample_weight=costs)
    weights = np.zeros(rows.shape[1])
    weights[used] = model.coef_[0]
    return weights, float(model.intercept_[0])


def _calibrate(logits: np.ndarray, positive: np.ndarray, costs: np.ndarray) -> tuple[float, float]:
    """Slope and shift that make logits probabilities, examples counting as much as their costs.

    Source: Platt 1999, with the targets of its equation 7: each example is of both classes.
    """
    num_positive, num_negative = positive.sum(), (~positive).sum()
    targets = np.where(positive, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    both = csr_array(np.tile(logits, 2)[:, None])
    halves = np.concatenate((costs * targets, costs * (1 - targets)))
    slope, shift = _fit(both, np.repeat([True, False], len(logits)), halves, FREE)
    return float(slope[0]), shift


@numba.njit(cache=True, nogil=True)
def _room(offsets, firsts, counts):
    """The most n-grams that a text of the batch may have."""
    _, word_ngrams, shortest, longest = counts
    most = 0
    for text in range(len(offsets) - 1):
        num_words = firsts[text + 1] - firsts[text]
        num_chars = offsets[text + 1] - offsets[text] + 2
        most = max(most, num_words * word_ngrams + num_chars * (longest - shortest + 1))
    return most


@numba.njit(cache=True, nogil=True)
def _ngrams(data, start, end, entries, hashes, first, last, counts, out):
    """Writes the number of each n-gram of a text, repeats included, and says how many."""
    shift, word_ngrams, shortest, longest = counts
    size = 0
    for i in range(first, last):
        total, power = np.uint64(0), np.uint64(1)
        for j in range(i, max(first, i - word_ngrams + 1) - 1, -1):
            total += hashes[j] * power
            power *= BASE
            out[size] = finish(total) >> shift
            size += 1
    if longest > 0:
        size = _char_ngrams(data, start, end, entries, shift, shortest, longest, out, size)
    return size


@numba.njit(cache=True, nogil=True)
def _char_ngrams(data, start, end, entries, shift, shortest, longest, out, size):
    """Writes the number of each n-gram of folded characters, inside words between two blanks."""
    word = np.empty(end - start + 2, np.uint32)
    word[0], length, i = SPACE, 1, start
    while i <= end:
        entry, width = np.uint32(0), 1
        if i < end:
            point, width = read_char(data, i)
            entry = entries[point]
        if entry & WORD != 0:
            word[length] = entry & CODE
        elif length > 1:
            word[length] = SPACE
        if entry & WORD != 0 or length > 1:
            h = CHAR_START
            for n in range(1, min(longest, length + 1) + 1):
                h = (h ^ np.uint64(word[length - n + 1])) * STEP
                h ^= h >> S29
                if n >= shortest:
                    out[size] = finish(h) >> shift
                    size += 1
            length += 1
        if entry & WORD == 0:
            length = 1
        i += width
    return size


@numba.njit(cache=True, nogil=True)
def _sum_weights(data, offsets, entries, hashes, firsts, counts, weights, seen, logits):
    """The mean weight of each text's different n-grams, times the root of how many they are."""
    out = np.empty(_room(offsets, firsts, counts), np.uint32)
    for text in range(len(logits)):
        span = offsets[text], offsets[text + 1]
        words = firsts[text], firsts[text + 1]
        size = _ngrams(data, span[0], span[1], entries, hashes, words[0], words[1], counts, out)
        total, different = 0.0, 0
        for k in range(size):
            if seen[out[k]] != text:
                seen[out[k]] = text
                total += weights[out[k]]
                different += 1
        logits[text] = total / np.sqrt(max(different, 1))


@numba.njit(cache=True, nogil=True)
def _list_places(data, offsets, entries, hashes, firsts, counts):
    """The different n-grams of each text, back to back in order, and where each text's begin."""
    out = np.empty(_room(offsets, firsts, counts), np.uint32)
    places = np.empty(len(hashes) + 1, np.int32)
    begins = np.zeros(len(offsets), np.int64)
    for text in range(len(offsets) - 1):
        span = offsets[text], offsets[text + 1]
        words = firsts[text], firsts[text + 1]
        size = _ngrams(data, span[0], span[1], entries, hashes, words[0], words[1], counts, out)
        different = np.unique(out[:size])
        end = begins[text] + len(different)
        if end > len(places):
            places = np.concatenate((places, np.empty(end, np.int32)))
        places[begins[text] : end] = different
        begins[text + 1] = end
    return places[: begins[-1]], begins
