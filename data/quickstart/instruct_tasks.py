"""Short tasks whose one right answer is known by construction: the verifiable instruction kinds.

Every generator takes `(rng, words)` and returns an Instance. The words are the commonest ones of
Python's own reference manual, so that the text stays within what the tokenizer was trained on.
Expected difficulty for a model of a few million parameters: picking, copying and wrapping are
easy; adding and subtracting middling; `reverse_word`, which needs the letters inside a piece, hard.
Lists and words are written as Python writes them, in quotes: a word then has the same pieces in the
question as at the start of an answer, where no space comes before it.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pydoc_data import topics
from typing import NamedTuple

ORDINALS = ("first", "second", "third", "fourth", "fifth")
SEPARATORS = (("dash", "-"), ("slash", "/"), ("colon", ":"), ("plus sign", "+"), ("dot", "."))
ENCLOSURES = (
    ("double quotes", '"', '"'),
    ("square brackets", "[", "]"),
    ("parentheses", "(", ")"),
    ("curly braces", "{", "}"),
    ("angle brackets", "<", ">"),
)
FIELDS = ("name", "type", "value", "module", "key", "kind", "mode", "path")
# Words that carry grammar rather than a thing read badly as list items.
GRAMMAR = frozenset({
    "the", "and", "for", "are", "that", "not", "with", "can", "from", "other", "this", "which",
    "one", "when", "may", "same", "only", "all", "also", "should", "any", "its", "must", "have",
    "but", "new", "has", "then", "they", "such", "than", "does", "see", "more", "there", "two",
    "was", "within", "use", "most", "each", "else", "their", "where", "either", "always", "before",
    "like", "those", "these", "you", "through", "into", "being", "while", "been", "cannot", "some",
    "both", "over", "means", "whose", "without", "rather", "between", "were", "via", "would",
    "even", "about", "itself", "because", "during", "until", "below", "less", "now", "own", "how",
    "them", "actually", "out", "still", "whether", "never", "once", "above", "already", "around",
    "under", "since", "will", "first", "last", "second", "third", "fourth", "fifth",
})  # fmt: skip
LARGEST_TERM = 20
LARGEST_NUMBER = 30


class Instance(NamedTuple):
    """One task: `key` is the content that decides its split, whatever the phrasing."""

    key: str
    turns: tuple[str, ...]  # user, assistant, ..., user
    reference: str


Generator = Callable[[random.Random, Sequence[str]], Instance]


@functools.cache
def common_words(num_words: int) -> tuple[str, ...]:
    """The commonest plain words of Python's reference manual, commonest first.

    Args:
        num_words: how many words to return.

    Returns:
        Distinct words of 3 to 8 lower-case letters, none of them in GRAMMAR.

    Raises:
        ValueError: the manual has fewer such words.
    """
    counts = Counter()
    for _, text in sorted(topics.topics.items()):
        counts.update(re.findall(r"(?<![\w.])[a-z]{3,8}(?![\w.])", text))
    ranked = sorted(counts.keys() - GRAMMAR, key=lambda word: (-counts[word], word))
    if num_words > len(ranked):
        raise ValueError(f"num_words: {num_words}; this Python's manual has {len(ranked)} words")
    return tuple(ranked[:num_words])


def copy(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = ("Repeat {x}.", "Say {x}.", "Write {x} and nothing else.", "Copy this: {x}")
    phrase = " ".join(rng.sample(words, rng.randint(1, 3)))
    return _instance(rng, phrasings, phrase, phrase, x=repr(phrase))


def first(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "What is the first item of {x}?",
        "Give the first of {x}.",
        "First item only: {x}",
        "Which comes first in the list {x}?",
    )
    items = _items(rng, words, 2, 5)
    return _instance(rng, phrasings, _listed(items), items[0], x=_listed(items))


def last(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "What is the last item of {x}?",
        "Give the last of {x}.",
        "Last item only: {x}",
        "Which comes last in the list {x}?",
    )
    items = _items(rng, words, 2, 5)
    return _instance(rng, phrasings, _listed(items), items[-1], x=_listed(items))


def nth(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "What is the {n} item of {x}?",
        "Give the {n} of {x}.",
        "The {n} item only: {x}",
        "Which is the {n} in the list {x}?",
    )
    items = _items(rng, words, 3, 5)
    place = rng.randrange(1, len(items))
    key = f"{place} {_listed(items)}"
    return _instance(rng, phrasings, key, items[place], n=ORDINALS[place], x=_listed(items))


def count(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "How many items are in {x}?",
        "Count the items of {x}.",
        "Number of items: {x}",
        "How long is the list {x}?",
    )
    items = _items(rng, words, 1, 6)
    return _instance(rng, phrasings, _listed(items), str(len(items)), x=_listed(items))


def join(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "Join with a {s}: {x}",
        "Put a {s} between the items of {x}.",
        "Connect the items of {x} with a {s}.",
    )
    items = _items(rng, words, 2, 3)
    name, mark = rng.choice(SEPARATORS)
    return _instance(
        rng, phrasings, f"{name} {_listed(items)}", mark.join(items), s=name, x=_listed(items)
    )


def reverse_list(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "Reverse the order: {x}",
        "Write in reverse order: {x}",
        "List {x} from last to first.",
    )
    items = _items(rng, words, 2, 4)
    return _instance(rng, phrasings, _listed(items), _listed(items[::-1]), x=_listed(items))


def enclose(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = ("Put {x} in {s}.", "Write {x} inside {s}.", "Surround {x} with {s}.")
    word = " ".join(rng.sample(words, rng.randint(1, 2)))
    name, left, right = rng.choice(ENCLOSURES)
    return _instance(rng, phrasings, word, left + word + right, s=name, x=repr(word))


def json_pair(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = ("Write as JSON: {k}={v}", "JSON for {k}={v}", "Turn {k}={v} into JSON.")
    field, value = rng.choice(FIELDS), rng.choice(words)
    answer = f'{{"{field}": "{value}"}}'
    return _instance(rng, phrasings, f"{field} {value}", answer, k=field, v=repr(value))


def contains(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "Is {w} in {x}?",
        "Does the list {x} contain {w}?",
        "Answer yes or no: is {w} one of {x}?",
    )
    *items, absent = _items(rng, words, 3, 5)
    present = rng.random() < 0.5
    word = rng.choice(items) if present else absent
    answer = "yes" if present else "no"
    return _instance(
        rng, phrasings, f"{word} {_listed(items)}", answer, w=repr(word), x=_listed(items)
    )


def lookup(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "Given {x}, what is {w}?",
        "What is the value of {w} in {x}?",
        "Read {x} and give {w}.",
    )
    names = rng.sample(words, rng.randint(2, 3))
    values = rng.sample(range(10), len(names))
    table = repr(dict(zip(names, values, strict=True)))
    place = rng.randrange(len(names))
    wanted = repr(names[place])
    return _instance(rng, phrasings, f"{place} {table}", str(values[place]), x=table, w=wanted)


def maximum(rng: random.Random, words: Sequence[str]) -> Instance:
    del words
    phrasings = (
        "What is the largest of {x}?",
        "Give the maximum: {x}",
        "Which number is the biggest: {x}?",
    )
    return _extreme(rng, phrasings, max)


def minimum(rng: random.Random, words: Sequence[str]) -> Instance:
    del words
    phrasings = (
        "What is the smallest of {x}?",
        "Give the minimum: {x}",
        "Which number is the least: {x}?",
    )
    return _extreme(rng, phrasings, min)


def compare(rng: random.Random, words: Sequence[str]) -> Instance:
    del words
    phrasings = (
        "Which is larger, {a} or {b}?",
        "Give the larger of {a} and {b}.",
        "{a} or {b}: which is more?",
    )
    a, b = rng.sample(range(LARGEST_NUMBER + 1), 2)
    return _instance(rng, phrasings, _unordered(a, b), str(max(a, b)), a=a, b=b)


def add(rng: random.Random, words: Sequence[str]) -> Instance:
    del words
    phrasings = ("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} =", "{a} plus {b} is what?")
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    return _instance(rng, phrasings, _unordered(a, b), str(a + b), a=a, b=b)


def subtract(rng: random.Random, words: Sequence[str]) -> Instance:
    del words
    phrasings = (
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "{a} - {b} =",
        "{a} minus {b} is what?",
    )
    b, a = sorted((rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)))
    return _instance(rng, phrasings, f"{a} {b}", str(a - b), a=a, b=b)


def reverse_word(rng: random.Random, words: Sequence[str]) -> Instance:
    phrasings = (
        "Spell {x} backwards.",
        "Reverse the letters of {x}.",
        "Write {x} from right to left.",
    )
    word = rng.choice([word for word in words if len(word) <= 5])
    return _instance(rng, phrasings, word, word[::-1], x=repr(word))


def follow_up(rng: random.Random, words: Sequence[str]) -> Instance:
    """Two turns about one list: the second question names no item, so the first must be read."""
    items = _items(rng, words, 3, 4)
    questions = {
        "the first item": items[0],
        "the second item": items[1],
        "the last item": items[-1],
        "the number of items": str(len(items)),
    }
    asked, wanted = rng.sample(sorted(questions), 2)
    opening = rng.choice(("Give {q} of {x}.", "Here is a list: {x}. What is {q}?"))
    again = rng.choice(("And {q}?", "Now {q}.", "What about {q}?"))
    turns = (opening.format(q=asked, x=_listed(items)), questions[asked], again.format(q=wanted))
    return Instance(f"{wanted} {_listed(items)}", turns, questions[wanted])


TASKS: Mapping[str, Generator] = {
    "copy": copy,
    "first": first,
    "last": last,
    "nth": nth,
    "count": count,
    "join": join,
    "reverse_list": reverse_list,
    "enclose": enclose,
    "json_pair": json_pair,
    "contains": contains,
    "lookup": lookup,
    "maximum": maximum,
    "minimum": minimum,
    "compare": compare,
    "add": add,
    "subtract": subtract,
    "reverse_word": reverse_word,
    "follow_up": follow_up,
}


def _instance(
    rng: random.Random, phrasings: Sequence[str], key: str, reference: str, **slots: object
) -> Instance:
    return Instance(key, (rng.choice(phrasings).format(**slots),), reference)


def _items(rng: random.Random, words: Sequence[str], least: int, most: int) -> list[str]:
    return rng.sample(words, rng.randint(least, most))


def _listed(items: Sequence[object]) -> str:
    return repr(list(items))


def _unordered(a: int, b: int) -> str:
    # 3 + 4 asks the same as 4 + 3: both must fall in the same split.
    return f"{min(a, b)} {max(a, b)}"


def _extreme(
    rng: random.Random, phrasings: Sequence[str], choose: Callable[[list[int]], int]
) -> Instance:
    numbers = rng.sample(range(LARGEST_NUMBER + 1), 3)
    key = " ".join(map(str, sorted(numbers)))
    return _instance(rng, phrasings, key, str(choose(numbers)), x=_listed(numbers))
