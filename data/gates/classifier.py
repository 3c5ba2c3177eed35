"""A text classifier: logistic regression over hashed n-grams of words and characters.

Trained by following the regularised leader, example by example; its logits are made probabilities
on a fifth of the examples, held out. Same examples and settings, same file, byte for byte.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import numpy as np

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

FORMAT = "seedbed classifier 1"
HELD_OUT = 5  # every fifth example of a class is kept for the probabilities
MIN_EXAMPLES = 2 * HELD_OUT  # of each class
MAX_NEWTON_STEPS = 100
HALF_LOGIT = np.float64(35.0)  # beyond it a probability is 0 or 1 in float32
CHAR_START = np.uint64(0xD56B1FBB9CEBA9E8)  # finish(8): no n-gram of words begins so
SPACE = np.uint32(32)
EPOCHS = 5  # passes over the examples
LEARNING_RATE = 2.0  # alpha of the paper


@dataclass(frozen=True)
class ClassifierConfig:
    """What is counted, and how weights are found.

    Attributes:
        bits: n-grams are hashed into 2 ** bits weights, 10 to 24.
        word_ngrams: words in the longest n-gram of words, 0 (none) to 5.
        char_ngrams: characters in the shortest and the longest n-gram of characters, inside words
            and with a blank at either end; 0 and 0 for none, at most 8.
        l2: of the weights, against the sum of the losses of one pass.
    """

    bits: int = 20
    word_ngrams: int = 2
    char_ngrams: tuple[int, ...] = (0, 0)
    l2: float = 1.0

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
        if not self.l2 >= 0:
            raise BadInput(f"l2: {self.l2} must be at least 0")


@dataclass(frozen=True)
class Model:
    """A trained classifier.

    Attributes:
        config: how it was trained.
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


def load(path: Path, key: str) -> Model:
    """Reads a model that `Model.save` wrote; `key` is the setting that names it.

    Raises:
        BadInput: there is none, or not in this format.
    """
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
            f"{key}: {path}: not a classifier; allowed: what --fit-quality or --fit-toxicity writes"
        ) from error


def train(
    texts: Sequence[str],
    labels: Sequence[bool],
    config: ClassifierConfig,
    groups: Sequence[int] | None = None,
) -> Model:
    """Trains a classifier; each class of each group weighs the same, whatever its examples.

    Args:
        texts: examples, normalised as those that are scored later.
        labels: True for the positive class.
        config: what is counted, and how.
        groups: where each example is from, from 0; None for one group.

    Returns:
        The model. Its probabilities are for even odds: how often each class occurs in a corpus
        its examples do not say.

    Raises:
        BadInput: fewer than MIN_EXAMPLES examples of a class.

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", algorithm 1
    (FTRL-Proximal) without its L1; Platt 1999 for the probabilities.
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
    weights, bias = _fit(batch, positive, costs, np.flatnonzero(~held_out), config)
    logits = _logits(batch, config, weights, bias)
    slope, shift = _calibrate(logits[held_out], positive[held_out], costs[held_out])
    weights, bias = _fit(batch, positive, costs, np.arange(len(positive)), config)
    digest = hashlib.sha256(data.tobytes() + offsets.tobytes() + cells.astype("<i8").tobytes())
    counts = int(positive.sum()), int((~positive).sum())
    return Model(config, weights, bias, slope, shift, digest.hexdigest(), *counts)


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


def _fit(
    batch: _Batch,
    positive: np.ndarray,
    costs: np.ndarray,
    chosen: np.ndarray,
    config: ClassifierConfig,
) -> tuple[np.ndarray, float]:
    """Weights and bias from the chosen examples, whose losses count as much as their costs."""
    size = 1 << config.bits
    gradients, squares = np.zeros(size + 1, np.float32), np.zeros(size + 1, np.float32)
    seen = np.full(size, -1, np.int64)
    for epoch in range(EPOCHS):
        order = chosen[np.argsort(_shuffle(len(chosen), np.uint64(epoch)))]
        _follow(
            *batch.arrays, _counts(config), order, positive, costs, LEARNING_RATE, config.l2,
            seen, epoch, gradients, squares,
        )  # fmt: skip
    rates = (1 + np.sqrt(squares)) / LEARNING_RATE
    weights = -gradients / (rates + np.append(np.full(size, config.l2 * EPOCHS), 0))
    return weights[:-1].astype(np.float32), float(weights[-1])


def _calibrate(logits: np.ndarray, positive: np.ndarray, costs: np.ndarray) -> tuple[float, float]:
    """Slope and shift that make logits probabilities, examples counting as much as their costs.

    Source: Platt 1999, with the targets of its equation 7 and Newton's method with halved steps as
    in Lin, Lin and Weng 2007, https://doi.org/10.1007/s10994-007-5018-6.
    """
    num_positive, num_negative = positive.sum(), (~positive).sum()
    targets = np.where(positive, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    columns = np.stack([logits, np.ones_like(logits)])
    parameters = np.zeros(2)

    def loss(parameters):
        scaled = parameters @ columns
        return np.sum(costs * (np.logaddexp(0, scaled) - targets * scaled))

    for _ in range(MAX_NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-(parameters @ columns)))
        gradient = columns @ (costs * (chances - targets))
        if np.abs(gradient).max() < 1e-9 * len(logits):
            break
        curvature = (columns * (costs * chances * (1 - chances))) @ columns.T + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(parameters - size * step) > loss(parameters) and size > 1e-10:
            size /= 2
        parameters = parameters - size * step
    return float(parameters[0]), float(parameters[1])


@numba.njit(cache=True, nogil=True)
def _shuffle(count, start):
    """Hashes, all different, by which so many things are sorted into a random order."""
    hashes = np.empty(count, np.uint64)
    for i in range(count):
        hashes[i] = finish(finish(start) ^ np.uint64(i))
    return hashes


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
def _follow(
    data, offsets, entries, hashes, firsts, counts, order, positive, costs, rate, l2_of_pass,
    seen, epoch, gradients, squares,
):  # fmt: skip
    """One pass of FTRL-Proximal over the examples in an order; the bias is the last weight.

    The penalty grows with the losses followed so far, so that their proportion is always the same.
    """
    turn = epoch * len(costs)
    out = np.empty(_room(offsets, firsts, counts) + 1, np.uint32)
    bias = len(gradients) - 1
    for step in range(len(order)):
        text = order[step]
        l2 = l2_of_pass * (epoch + step / len(order))
        span = offsets[text], offsets[text + 1]
        words = firsts[text], firsts[text + 1]
        size = _ngrams(data, span[0], span[1], entries, hashes, words[0], words[1], counts, out)
        different, logit = 0, 0.0
        for k in range(size):
            place = out[k]
            if seen[place] != turn + text:
                seen[place] = turn + text
                out[different] = place
                different += 1
                logit += _weight(gradients[place], squares[place], rate, l2)
        value = 1 / np.sqrt(max(different, 1))
        logit = logit * value + _weight(gradients[bias], squares[bias], rate, 0.0)
        slope = (1 / (1 + np.exp(-logit)) - positive[text]) * costs[text]
        out[different] = bias
        for k in range(different + 1):
            place = out[k]
            gradient = slope * (value if k < different else 1.0)
            root = np.sqrt(squares[place])
            squares[place] += gradient * gradient
            weight = _weight(gradients[place], root * root, rate, l2 if k < different else 0.0)
            gradients[place] += gradient - (np.sqrt(squares[place]) - root) / rate * weight


@numba.njit(cache=True, nogil=True, inline="always")
def _weight(gradient, square, rate, l2):
    return -gradient / ((1 + np.sqrt(square)) / rate + l2)
