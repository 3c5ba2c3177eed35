"""Questions about the running Python's own functions, and about names that do not exist.

The facts come from signatures and docstrings, so every answer can be checked on the spot. A made-up
name is asked about in the very phrasings of the real ones: only the name tells them apart.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from data.quickstart.instruct_tasks import Instance

# Importable everywhere and without effect; in the order of this list nothing matters.
MODULES = (
    "base64", "bisect", "calendar", "colorsys", "contextlib", "copy", "csv", "dataclasses",
    "difflib", "dis", "fnmatch", "fractions", "functools", "glob", "heapq", "html", "importlib",
    "inspect", "io", "json", "keyword", "linecache", "locale", "math", "mimetypes", "numbers",
    "operator", "os.path", "pkgutil", "platform", "pprint", "queue", "quopri", "random", "re",
    "secrets", "shlex", "shutil", "statistics", "string", "struct", "sysconfig", "tempfile",
    "textwrap", "threading", "time", "timeit", "token", "tokenize", "types", "unicodedata",
    "urllib.parse", "uuid", "warnings", "weakref", "zlib",
)  # fmt: skip
MAX_SUMMARY_CHARS = 90
MAX_CALL_CHARS = 60

SIGNATURE = (
    "How do I call {f}?",
    "What is the signature of {f}?",
    "Show the signature of {f}.",
    "Which arguments does {f} take?",
    "How is {f} called?",
    "Give me the call of {f}.",
)
SUMMARY = (
    "What does {f} do?",
    "Describe {f}.",
    "What is {f} for?",
    "Explain {f} briefly.",
    "Tell me what {f} does.",
    "In one sentence, what does {f} do?",
)
MODULE_OF = (
    "Which module has the function {f}?",
    "Where is {f} defined?",
    "What module do I import for {f}?",
    "Which module contains {f}?",
    "In which module is {f}?",
    "Where do I find the function {f}?",
)

NUM_PHRASINGS = len(SIGNATURE)  # SUMMARY and MODULE_OF have as many

ONSETS = (
    "b",
    "bl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "k",
    "kl",
    "m",
    "n",
    "pl",
    "s",
    "t",
    "tr",
    "v",
    "z",
)
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "b", "g", "k", "m", "n", "rb", "x", "zz")


class Fact(NamedTuple):
    """One function: its module, its name, how it is called, and what it does in one sentence."""

    module: str
    name: str
    call: str
    summary: str

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"


@functools.cache
def read_facts(num_functions: int) -> tuple[Fact, ...]:
    """Functions of the fixed list of modules that have a short signature and a short summary.

    Args:
        num_functions: at most this many; modules take turns, functions with short calls first.

    Returns:
        Facts in a fixed order for one Python installation.
    """
    ranked = []
    for module in sorted(MODULES):
        facts = sorted(_module_facts(module), key=lambda fact: (len(fact.call), fact.name))
        ranked += [(rank, fact) for rank, fact in enumerate(facts)]
    return tuple(fact for _, fact in sorted(ranked)[:num_functions])


def signature_instances(facts: Sequence[Fact], phrasing: int) -> list[Instance]:
    """How each function is called, asked in the phrasing of this number."""
    return [_parse(SIGNATURE[phrasing], fact.full_name, fact.call) for fact in facts]


def summary_instances(facts: Sequence[Fact], phrasing: int) -> list[Instance]:
    """What each function does, asked in the phrasing of this number."""
    return [_parse(SUMMARY[phrasing], fact.full_name, fact.summary) for fact in facts]


def module_instances(facts: Sequence[Fact], phrasing: int) -> list[Instance]:
    """Which module has each function; names of several listed modules are left out."""
    owners = Counter(fact.name for module in MODULES for fact in _module_facts(module))
    return [
        _parse(MODULE_OF[phrasing], fact.name, fact.module)
        for fact in facts
        if owners[fact.name] == 1
    ]


def draw_unknown(rng: random.Random, facts: Sequence[Fact]) -> Instance:
    """A name that does not exist: random syllables, or a real name in a module without it."""
    if rng.random() < 0.5:
        name = made_up_name(rng)
        bare = rng.random() < 0.25
        module = rng.choice(facts).module
        full_name = name if bare else f"{module}.{name}"
        phrasing = rng.choice(MODULE_OF if bare else SIGNATURE + SUMMARY)
        return Instance(name, (phrasing.format(f=full_name),), unknown_answer(full_name))
    full_name = _misplaced_name(rng, facts)
    phrasing = rng.choice(SIGNATURE + SUMMARY)
    return Instance(full_name, (phrasing.format(f=full_name),), unknown_answer(full_name))


def unknown_answer(name: str) -> str:
    """What to say about a function that does not exist."""
    return f"I do not know a function called {name}."


def made_up_name(rng: random.Random) -> str:
    """Two or three random syllables that no listed module knows."""
    while True:
        syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 2)))
        name = "".join(syllables) + rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        if name not in _known_names():
            return name


def _misplaced_name(rng: random.Random, facts: Sequence[Fact]) -> str:
    while True:
        name, module = rng.choice(facts).name, rng.choice(facts).module
        if not hasattr(_load(module), name):
            return f"{module}.{name}"


def _parse(phrasing: str, name: str, reference: str) -> Instance:
    return Instance(name, (phrasing.format(f=name),), reference)


@functools.cache
def _known_names() -> frozenset[str]:
    return frozenset(name for module in MODULES for name in dir(_load(module)))


def _load(module: str) -> object:
    return importlib.import_module(module)


@functools.cache
def _module_facts(module: str) -> list[Fact]:
    loaded = _load(module)
    # os.path goes by its system's name inside: posixpath or ntpath.
    public = getattr(loaded, "__all__", dir(loaded))
    facts = []
    for name in sorted(set(public)):
        function = getattr(loaded, name)
        if name.startswith("_") or not (
            inspect.isfunction(function) or inspect.isbuiltin(function)
        ):
            continue
        call, summary = _call(f"{module}.{name}", function), _first_sentence(function)
        if call and summary:
            facts.append(Fact(module, name, call, summary))
    return facts


def _call(full_name: str, function: object) -> str:
    """How the function is called, or '' where that is not known, too long, or not repeatable."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C declare none
        return ""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    call = full_name + str(inspect.Signature(plain))
    # Defaults such as <object object at 0x7f...> change from process to process.
    return call if len(call) <= MAX_CALL_CHARS and "<" not in call else ""


def _first_sentence(function: object) -> str:
    """First sentence of the docstring, or '' where there is none, or not a short plain one."""
    paragraph = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].rstrip(".") + "."
    plain = sentence.isascii() and re.match(r"[A-Z][a-z']* ", sentence)
    whole = not sentence.endswith(("e.g.", "i.e.")) and sentence.count("(") == sentence.count(")")
    return sentence if plain and whole and 20 <= len(sentence) <= MAX_SUMMARY_CHARS else ""
