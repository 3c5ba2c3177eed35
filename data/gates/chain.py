"""Gates: does a document stay, and with which text? One pass, cheap first, first failure recorded.

Each gate is a pure function of a document and the configuration. `pii` only edits; the others say
what is wrong: the gate, a reason to be counted, a detail to be read.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data import storage
from data.errors import BadInput
from data.gates import classifier, contamination, language, pii, repair, rules, toxicity, urls
from data.readers import code
from data.words import Words, split_words

EMPTY = "empty"
# Of a dropped text, enough to see why.
DROPPED_CHARS = 2000
# In the order in which they are asked: cheap to dear, what reads words after what does not.
NAMES = (
    "blocked",
    "opt_out",
    "length",
    "generated",
    "language",
    *rules.RULES,
    "toxic_words",
    "toxicity",
    "quality",
    "contamination",
    "pii",
)
EDITS = ("pii",)
# Languages in which a character counts as a word: the length of words says nothing there.
BLANKLESS = ("zh", "ja", "th", "lo", "km", "my", "yue", "wuu")
LENGTHS = np.uint32(1 << rules.RULES.index("gopher_mean_word_length"))
GOPHER, C4, FINEWEB = (
    tuple(rule for rule in rules.RULES if rule.startswith(family))
    for family in ("gopher_", "c4_", "fineweb_")
)
# All of a family by its first name.
FAMILIES = {"gopher": GOPHER, "c4": C4, "fineweb": FINEWEB}
ANYWHERE = ("blocked", "opt_out", "length", "contamination", "pii")
READ = (*ANYWHERE, "language", "toxic_words", "toxicity", "quality")
# Repeated lines and n-grams are how tables, verse, speakers and formulas look.
REPETITION = ("gopher_duplicate_lines", "gopher_duplicate_paragraphs", "gopher_duplicate_ngrams")
GOPHER_QUALITY = tuple(rule for rule in GOPHER if rule not in REPETITION)
# What suits a kind of source, where its configuration says 'auto'.
FOR_WEB = (*READ, *GOPHER, *C4, *FINEWEB)
FOR_TEXT = (*READ, *GOPHER, "c4_lorem_ipsum", "c4_javascript_lines", "c4_policy_lines")
FOR_PROSE = (*READ, *GOPHER_QUALITY, "c4_lorem_ipsum")
FOR_LATEX = (*READ, "gopher_word_count", "c4_lorem_ipsum")
FOR_CODE = (*ANYWHERE, "generated")


@dataclass(frozen=True)
class QualityConfig:
    """The quality classifier.

    Attributes:
        model: what `--fit-quality` wrote, or a classifier of fastText (.bin, .ftz); '' for none,
            and no score.
        label: of a classifier of fastText, the one whose probability is the score.
        good, bad: what it is fitted from: paths of texts as in a source; '' for none.
        min_score: a text scored below it is dropped, from 0 to 1.
        l2: when it is fitted, the penalty of the weights against the sum of the losses.
    """

    model: str = ""
    label: str = ""
    good: str = ""
    bad: str = ""
    min_score: float = 0.0
    l2: float = 3.0

    def __post_init__(self):
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score: {self.min_score} must be from 0 to 1")
        if not self.l2 >= 0:
            raise ValueError(f"l2: {self.l2} must be at least 0")
        if self.min_score and not self.model:
            raise ValueError(f"min_score: {self.min_score} needs a model, as --fit-quality writes")


@dataclass(frozen=True)
class GateConfig:
    """Thresholds. A text passes at the threshold itself.

    Attributes:
        min_chars, max_chars: `length`, in characters.
        blocked: `blocked`, a file of host names, one a line; their subdomains count. '' for none.
        opt_out: `opt_out`, a file of URLs, or SHA-256 of texts (UTF-8, without blanks around it)
            in hexadecimal, one a line. '' for none.
        language: `language`, what may stay.
        gopher, c4, fineweb: the rules named after these papers.
        toxicity: `toxic_words` and `toxicity`.
        quality: `quality`.
        classifier: what `--fit-quality` and `--fit-toxicity` count in a text.
        contamination_words: `contamination`, words in a row that no evaluation set may share.
        pii: `pii`, kinds of pii.KINDS to replace.
    """

    min_chars: int = 200
    max_chars: int = 1_000_000
    blocked: str = ""
    opt_out: str = ""
    language: language.LanguageConfig = language.LanguageConfig()
    gopher: rules.GopherConfig = rules.GopherConfig()
    c4: rules.C4Config = rules.C4Config()
    fineweb: rules.FineWebConfig = rules.FineWebConfig()
    toxicity: toxicity.ToxicityConfig = toxicity.ToxicityConfig()
    quality: QualityConfig = QualityConfig()
    classifier: classifier.ClassifierConfig = classifier.ClassifierConfig()
    contamination_words: int = 13
    pii: tuple[str, ...] = ("mail", "phone", "ip", "card", "iban", "national_number", "key")

    def __post_init__(self):
        if not 0 <= self.min_chars <= self.max_chars:
            values = f"{self.min_chars} and {self.max_chars}"
            raise ValueError(
                f"min_chars, max_chars: {values}; allowed: 0 <= min_chars <= max_chars"
            )
        if self.contamination_words < 1:
            raise ValueError(f"contamination_words: {self.contamination_words} must be at least 1")
        for kind in self.pii:
            if kind not in pii.KINDS:
                raise ValueError(f"pii: {kind!r} is not one of {', '.join(pii.KINDS)}")


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Gates by name, families replaced by their rules, each once, in the order of NAMES.

    Raises:
        ValueError: a name that is neither.
    """
    wanted = set()
    for name in names:
        if name not in NAMES and name not in FAMILIES:
            allowed = ", ".join((*FAMILIES, *NAMES))
            raise ValueError(f"gates: {name!r} is not one of {allowed}")
        wanted |= set(FAMILIES.get(name, (name,)))
    return tuple(name for name in NAMES if name in wanted)


class Batch:
    """Documents on their way through the gates.

    Attributes:
        rows: data.document.SCHEMA by column, and `markup`; texts are repaired in place.
        why, reason, detail: of each document; why is '' while it stays.
        language_score, quality, toxicity: float32, nan where nothing was measured.
        edits: what was changed in each text: {what: how often}.
    """

    def __init__(self, rows: list[Mapping[str, Any]]):
        size = len(rows)
        self.rows = rows
        self.raw = [row["text"] for row in rows]
        # Code is brought to one form, but what its strings say is its own.
        self.texts = [
            repair.normalise(row["text"]) if row["markup"] == "code" else repair.repair(row["text"])
            for row in rows
        ]
        self.urls = [row["url"] for row in rows]
        self.languages = [row["language"] for row in rows]
        self.why, self.reason, self.detail = ([""] * size for _ in range(3))
        self.language_score, self.quality, self.toxicity = (
            np.full(size, np.nan, np.float32) for _ in range(3)
        )
        self.edits: list[dict[str, int]] = [{} for _ in rows]

    def drop(self, index: int, why: str, reason: str = "", detail: str = "") -> None:
        """Records the gate that a document failed."""
        self.why[index], self.reason[index], self.detail[index] = why, reason, detail

    def alive(self) -> list[int]:
        """Documents that no gate has dropped yet."""
        return [index for index, why in enumerate(self.why) if not why]


class View:
    """The words of some documents of a batch, found once for all gates that read words."""

    def __init__(self, texts: list[str], indices: list[int]):
        encoded = [texts[index].encode() for index in indices]
        self.indices = indices
        self.data = np.frombuffer(b"".join(encoded), np.uint8)
        self.offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @cached_property
    def words(self) -> Words:
        return split_words(self.data, self.offsets)


class Gates:
    """The gates of one domain, with the lists and models that they read; loaded once a task."""

    def __init__(self, config: GateConfig, names: tuple[str, ...], evaluation: Path | None):
        """`evaluation` is an index of contamination, or None where nothing is evaluated.

        Raises:
            BadInput: a list or model that is missing or not what it should be.
        """
        self._config, self._names = config, names
        self._rules = rules.RuleConfig(config.gopher, config.c4, config.fineweb)
        self._enabled = np.uint32(
            sum(1 << number for number, name in enumerate(rules.RULES) if name in names)
        )
        self._blocked = urls.read_hosts(config.blocked, "data.gates.blocked")
        self._opt_out = urls.read_opt_outs(config.opt_out, "data.gates.opt_out")
        self._hashes = any(map(urls.is_hash, self._opt_out))
        self._toxicity = toxicity.Toxicity(config.toxicity)
        self._quality = (
            classifier.load(
                Path(config.quality.model), "data.gates.quality.model", config.quality.label
            )
            if config.quality.model
            else None
        )
        self._evaluation = _load_index(evaluation) if evaluation else None

    def decide(self, rows: list[Mapping[str, Any]]) -> Batch:
        """Sends documents through all gates."""
        batch = Batch(rows)
        for index, text in enumerate(batch.texts):
            if not text:
                batch.drop(index, EMPTY)
        for name, gate in (
            ("blocked", self._block),
            ("opt_out", self._leave_out),
            ("length", self._measure),
            ("generated", self._look_at_code),
        ):
            if name in self._names:
                gate(batch)
        self._find_language(batch)
        view = View(batch.texts, batch.alive())
        if view.indices:
            self._read_words(batch, view)
        if "pii" in self._names:
            self._mask(batch)
        return batch

    def _read_words(self, batch: Batch, view: View) -> None:
        for gate in (self._follow_rules, self._find_toxicity, self._find_quality):
            gate(batch, view)
        if "contamination" in self._names and self._evaluation:
            for index, hit in zip(
                view.indices, self._evaluation.find(view.data, view.offsets), strict=True
            ):
                if hit and not batch.why[index]:
                    batch.drop(index, "contamination", hit.name, hit.shared)

    def _block(self, batch: Batch) -> None:
        for index in batch.alive():
            host = urls.host(batch.urls[index])
            labels = host.split(".")
            parents = {".".join(labels[i:]) for i in range(len(labels))}
            if found := parents & self._blocked:
                batch.drop(index, "blocked", max(found, key=len), host)

    def _leave_out(self, batch: Batch) -> None:
        for index in batch.alive() if self._opt_out else ():
            url = urls.plain(batch.urls[index])
            if url and url in self._opt_out:
                batch.drop(index, "opt_out", "url", url)
            elif self._hashes:
                for text in (batch.raw[index], batch.texts[index]):
                    digest = hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()
                    if digest in self._opt_out:
                        batch.drop(index, "opt_out", "hash", digest)
                        break

    def _measure(self, batch: Batch) -> None:
        for index in batch.alive():
            num_chars = len(batch.texts[index])
            if num_chars < self._config.min_chars:
                batch.drop(index, "length", "short", f"{num_chars} characters")
            elif num_chars > self._config.max_chars:
                batch.drop(index, "length", "long", f"{num_chars} characters")

    def _look_at_code(self, batch: Batch) -> None:
        for index in batch.alive():
            if reason := code.why_not(batch.texts[index], batch.rows[index]["source"]):
                batch.drop(index, "generated", reason)

    def _find_language(self, batch: Batch) -> None:
        """Every prose text gets a language, whether or not it may be dropped for it."""
        prose = [i for i in batch.alive() if batch.rows[i]["markup"] != "code"]
        found, scores = language.detect([batch.texts[index] for index in prose])
        for index, name, score in zip(prose, found, scores, strict=True):
            batch.languages[index], batch.language_score[index] = name, score
            if "language" in self._names and not language.passes(
                name, float(score), self._config.language
            ):
                batch.drop(index, "language", name, f"{name} {score:.2f}")

    def _follow_rules(self, batch: Batch, view: View) -> None:
        languages = [batch.languages[index] for index in view.indices]
        blankless = np.array([name in BLANKLESS for name in languages], bool)
        enabled = np.where(blankless, self._enabled & ~LENGTHS, self._enabled).astype(np.uint32)
        failures, values = rules.first_failures(
            view.data, view.offsets, view.words, languages, enabled, self._rules
        )
        for place in np.flatnonzero(failures >= 0).tolist():
            rule = rules.RULES[failures[place]]
            batch.drop(view.indices[place], rule, "", f"{values[place]:.4g}")

    def _find_toxicity(self, batch: Batch, view: View) -> None:
        languages = [batch.languages[index] for index in view.indices]
        found = self._toxicity.find(view.data, view.offsets, view.words, languages)
        for place, index in enumerate(view.indices):
            batch.toxicity[index] = found.scores[place]
            if batch.why[index]:
                continue
            if "toxic_words" in self._names and found.too_many[place]:
                detail = f"{found.hits[place]} in {np.diff(view.words.offsets)[place]} words"
                batch.drop(index, "toxic_words", batch.languages[index], detail)
            elif "toxicity" in self._names and found.too_high[place]:
                batch.drop(index, "toxicity", batch.languages[index], f"{found.scores[place]:.3f}")

    def _find_quality(self, batch: Batch, view: View) -> None:
        if self._quality is None:
            return
        scores = self._quality.score(view.data, view.offsets, view.words)
        for index, score in zip(view.indices, scores, strict=True):
            batch.quality[index] = score
            is_low = "quality" in self._names and score < self._config.quality.min_score
            if is_low and not batch.why[index]:
                batch.drop(index, "quality", "", f"{score:.3f}")

    def _mask(self, batch: Batch) -> None:
        for index, why in enumerate(batch.why):
            text = batch.texts[index][:DROPPED_CHARS] if why else batch.texts[index]
            batch.texts[index], counts = pii.replace(text, self._config.pii)
            batch.edits[index] |= {f"pii_{kind}": count for kind, count in counts.items()}


@functools.lru_cache(maxsize=1)
def _load_index(path: Path) -> contamination.Index:
    """Loads an index once a worker; its file is named after its content."""
    return contamination.Index.load(path)


def fingerprint(config: GateConfig) -> str:
    """Hashes the files that gates read: lists, models.

    Raises:
        BadInput: one that is missing.
    """
    paths = [("blocked", config.blocked), ("opt_out", config.opt_out)]
    paths += [("quality.model", config.quality.model)]
    paths += [("toxicity", path) for path in toxicity.paths(config.toxicity)]
    hashes = []
    for key, path in paths:
        try:
            # A list's name is its language.
            hashes += [Path(path).name, storage.hash_content(path)] if path else []
        except OSError as error:
            raise BadInput(f"data.gates.{key}: {path}: {error.strerror}") from error
    return "-".join(hashes)


def list_idle(names: Iterable[str], config: GateConfig, is_evaluated: bool) -> list[str]:
    """Those of some gates that have nothing to go by: no list, no model, no evaluation set."""
    stand_on = {
        "blocked": config.blocked,
        "opt_out": config.opt_out,
        "toxic_words": config.toxicity.lists,
        "toxicity": config.toxicity.model,
        "quality": config.quality.model,
        "contamination": is_evaluated,
    }
    return [name for name in dict.fromkeys(names) if not stand_on.get(name, True)]
