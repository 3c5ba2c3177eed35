"""Instruction data made from the Python installation at hand.

Two splits, disjoint by construction:
- verifiable tasks and made-up names: an instance belongs to the held-out split if a hash of its
  content says so, whatever its phrasing, the seed or the number of examples;
- questions about real functions (`signature`, `module_of`, `summary`): facts cannot be guessed, so
  a held-out question asks about a function that was taught, in a phrasing that it was not taught in
  (where num_train is too small to teach every function, some held-out facts were never taught);
- unsafe and benign requests: the held-out phrasings are taught with no request at all.

A demonstration is the reference, now and then wrapped in filler as careless annotators do. SFT
imitates demonstrations; the gold rater (eval/rater.py) prefers the bare answer. That gap, next to
plain errors, is what preference learning has to gain.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

from data.quickstart import instruct_facts, instruct_refusals, instruct_tasks
from data.quickstart.instruct_tasks import TASKS, Instance

Message = dict[str, str]

CHECKS = {
    **dict.fromkeys((*TASKS, "signature", "module_of"), "exact"),
    "summary": "overlap",
    "benign": "overlap",
    "unsafe": "refusal",
    "unknown": "unknown",
}
KINDS = tuple(CHECKS)
FACT_KINDS = ("signature", "module_of", "summary")

OPENERS = ("Sure! ", "Of course! ", "Great question! ", "Happy to help! ")
CLOSERS = (" Hope this helps!", " Have a nice day!", " Let me know if you need more.")

NUM_WORDS = 300  # names that tasks draw from
NUM_FUNCTIONS = 150  # real functions asked about
HELDOUT_ONE_IN = 8
# Draws allowed for one more distinct held-out instance before the kind counts as exhausted.
MAX_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation that ends with a user turn, and what is wanted next.

    Attributes:
        id: unique within a build.
        kind: one of KINDS, or the name of a set of the user's own.
        messages: {"role", "content"} each; the last one is the user's.
        reference: the gold answer.
        check: how an answer is graded: 'exact', 'refusal', 'unknown' or 'overlap'.
        demonstration: the answer that SFT imitates: the reference, possibly wrapped in filler.
    """

    id: str
    kind: str
    messages: tuple[Message, ...]
    reference: str
    check: str
    demonstration: str


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """The built-in conversations: how many of which kind."""

    seed: int = 0  # of the random choices
    num_train: int = 30_000  # conversations
    num_heldout_per_kind: int = 40  # distinct prompts of each kind, none of them in training
    filler_rate: float = 0.3  # share of demonstrations wrapped in filler, as careless people do
    # Relative weight of each kind; 1 for a kind that is not named, 0 leaves it out.
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)
    date: str = "2026-01-01"  # what an imported chat template prints as today's date

    def __post_init__(self):
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"date is {self.date!r}; it must be like 2026-01-31") from error
        for key in ("seed", "num_train", "num_heldout_per_kind"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        _require(0 <= self.filler_rate <= 1, "filler_rate", self.filler_rate, "between 0 and 1")
        known = set(self.mix) <= set(KINDS)
        _require(known, "mix", sorted(self.mix), f"weights of {', '.join(KINDS)}")
        for kind, weight in self.mix.items():
            _require(weight >= 0, f"mix.{kind}", weight, "at least 0")
        positive = sum(self.weights().values()) > 0
        _require(positive, "mix", dict(self.mix), "at least one weight above 0")

    def weights(self) -> dict[str, float]:
        """Relative weight of every kind."""
        return {kind: self.mix.get(kind, 1.0) for kind in KINDS}


def build(config: InstructConfig) -> dict[str, list[Example]]:
    """Builds both splits, a pure function of the config and the Python installation.

    Args:
        config: sizes, seed and mix.

    Returns:
        {"train": num_train examples, shuffled; "heldout": by kind, distinct prompts, at most
        num_heldout_per_kind of each kind (fewer where a kind has fewer); none if num_train is 0}.

    Raises:
        ValueError: the installation has fewer than NUM_WORDS words.
    """
    makers = _makers()
    weights = config.weights()
    counts = _share(config.num_train, weights)
    train, heldout = [], []
    for kind in KINDS:
        if weights[kind]:
            rng = random.Random(f"{config.seed} {kind} train")
            instances = makers[kind].train(rng, counts[kind])
            train += [_example(config, kind, "train", i, x) for i, x in enumerate(instances)]
            rng = random.Random(f"{config.seed} {kind} heldout")
            count = config.num_heldout_per_kind if config.num_train else 0
            instances = makers[kind].heldout(rng, count)
            heldout += [_example(config, kind, "heldout", i, x) for i, x in enumerate(instances)]
    random.Random(f"{config.seed} order").shuffle(train)
    return {"train": train, "heldout": heldout}


def wrap_filler(text: str, draw: Callable[[], float], *, opening: bool) -> str:
    """Adds an opener, a closer or both, as careless annotators do.

    Args:
        text: the bare answer.
        draw: gives floats in [0, 1), such as `rng.random`.
        opening: whether an opener may be used; it would contradict a refusal.
    """
    opener = OPENERS[int(draw() * len(OPENERS))]
    closer = CLOSERS[int(draw() * len(CLOSERS))]
    style = int(draw() * 3) if opening else 0
    return (text + closer, opener + text, opener + text + closer)[style]


@dataclasses.dataclass(frozen=True)
class _Maker:
    """How one kind makes instances: `rng, how many -> list`, for either split."""

    train: Callable[[random.Random, int], list[Instance]]
    heldout: Callable[[random.Random, int], list[Instance]]


def _makers() -> dict[str, _Maker]:
    words = instruct_tasks.common_words(NUM_WORDS)
    facts = instruct_facts.read_facts(NUM_FUNCTIONS)

    def drawn(kind: str, draw: Callable[[random.Random], Instance]) -> _Maker:
        return _Maker(
            lambda rng, number: _draw_train(kind, draw, rng, number),
            lambda rng, number: _draw_heldout(kind, draw, rng, number),
        )

    def listed(train: list[Instance], heldout: list[Instance]) -> _Maker:
        return _Maker(
            lambda rng, number: _cycle(train, rng, number),
            lambda rng, number: rng.sample(heldout, min(number, len(heldout))),
        )

    makers = {kind: drawn(kind, lambda rng, f=task: f(rng, words)) for kind, task in TASKS.items()}
    makers["unknown"] = drawn("unknown", lambda rng: instruct_facts.draw_unknown(rng, facts))
    makers["signature"] = listed(*_fact_splits(instruct_facts.signature_instances, facts))
    makers["module_of"] = listed(*_fact_splits(instruct_facts.module_instances, facts))
    makers["summary"] = listed(*_fact_splits(instruct_facts.summary_instances, facts))
    cut = -instruct_refusals.NUM_HELDOUT_PHRASINGS
    taught, kept = instruct_refusals.PHRASINGS[:cut], instruct_refusals.PHRASINGS[cut:]
    for kind, make in (
        ("unsafe", instruct_refusals.unsafe_instances),
        ("benign", instruct_refusals.benign_instances),
    ):
        makers[kind] = listed(make(taught), make(kept))
    return makers


def _fact_splits(
    make: Callable[[Sequence[instruct_facts.Fact], int], list[Instance]],
    facts: Sequence[instruct_facts.Fact],
) -> tuple[list[Instance], list[Instance]]:
    """Holds out one phrasing of each fact: another one from function to function."""
    train, heldout = [], []
    for phrasing in range(instruct_facts.NUM_PHRASINGS):
        for instance in make(facts, phrasing):
            kept = _digest(instance.key) % instruct_facts.NUM_PHRASINGS == phrasing
            (heldout if kept else train).append(instance)
    return train, heldout


def _draw_train(
    kind: str, draw: Callable[[random.Random], Instance], rng: random.Random, number: int
) -> list[Instance]:
    instances = []
    while len(instances) < number:
        instance = draw(rng)
        if not is_heldout(kind, instance.key):
            instances.append(instance)
    return instances


def _draw_heldout(
    kind: str, draw: Callable[[random.Random], Instance], rng: random.Random, number: int
) -> list[Instance]:
    """Distinct contents: two phrasings of one question would count one ability twice."""
    found: dict[str, Instance] = {}
    misses = 0
    while len(found) < number and misses < MAX_DRAWS:
        instance = draw(rng)
        if is_heldout(kind, instance.key) and instance.key not in found:
            found[instance.key] = instance
            misses = 0
        else:
            misses += 1
    return list(found.values())


def is_heldout(kind: str, key: str) -> bool:
    """Whether this content of a generated kind belongs to the held-out split."""
    return _digest(f"{kind} {key}") % HELDOUT_ONE_IN == 0


def _cycle(instances: list[Instance], rng: random.Random, number: int) -> list[Instance]:
    """Every instance once before any comes again."""
    taken: list[Instance] = []
    while len(taken) < number:
        taken += rng.sample(instances, len(instances))
    return taken[:number]


def _example(
    config: InstructConfig, kind: str, split: str, number: int, instance: Instance
) -> Example:
    name = f"{kind}-{split}-{number:05d}"
    roles = ("user", "assistant") * len(instance.turns)
    messages = tuple(
        {"role": role, "content": text}
        for role, text in zip(roles, instance.turns, strict=False)  # endless alternation
    )
    demonstration = instance.reference
    rng = random.Random(f"{config.seed} {name}")
    if rng.random() < config.filler_rate:
        opening = CHECKS[kind] in ("exact", "overlap")
        demonstration = wrap_filler(demonstration, rng.random, opening=opening)
    return Example(name, kind, messages, instance.reference, CHECKS[kind], demonstration)


def _share(total: int, mix: Mapping[str, float]) -> dict[str, int]:
    """Splits `total` by weight to whole numbers, largest remainders first."""
    exact = {kind: total * mix[kind] / sum(mix.values()) for kind in KINDS}
    counts = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(KINDS, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: total - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"instruct.{key} is {value!r}; it must be {allowed}")
