"""The user's own conversations, prompts and preference pairs, in the shapes of readers/shapes.py.

A set is a file, a folder or a glob of JSON lines, JSON arrays, CSV or parquet, packed or not.
Held-out rows are chosen by the content of the prompt, so that one prompt is on one side only.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from data import kinds, storage
from data.errors import BadInput, printable
from data.quickstart.instruct import Example
from data.readers import parquet, shapes, tables
from data.readers.borders import DAMAGES
from data.readers.shapes import Message

KINDS = ("json", "threads", "csv", "parquet")


@dataclasses.dataclass(frozen=True)
class OwnSet:
    """A set of the user's own."""

    path: str  # file, folder or glob, several separated by commas
    weight: float = 1.0  # of its rows in training, against 1 of the built-in set and other sets'
    heldout_fraction: float = 0.05  # share of its prompts that are only measured on

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: '' is no path; give a file, folder or glob")
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; it must be above 0")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction is {self.heldout_fraction}; it must be at least 0, below 1"
            )


class PairText(NamedTuple):
    """Two answers to one prompt."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str


class Read(NamedTuple):
    """What a set holds: rows to train on, rows to measure on, and {file, record, why} of others."""

    train: list
    heldout: list
    broken: list[dict]


def read_conversations(key: str, own: OwnSet, *, needs_answer: bool) -> Read:
    """Reads conversations, or prompts, as `Example`s whose kind is the last part of the key.

    Args:
        key: of the set in the configuration, for messages.
        own: where it is.
        needs_answer: whether each must end with the assistant's turn. Otherwise such a turn is the
            reference if it is there, and the prompt is what is before it.

    Raises:
        BadInput: nothing is there, a file cannot be read, or no row of it can be used.
    """

    def convert(row: Mapping, where: str) -> Iterator[Example]:
        for number, chat in enumerate(shapes.read(row)):
            messages = chat.messages()
            is_answered = messages and messages[-1]["role"] == "assistant"
            answer = messages.pop()["content"] if is_answered else ""
            if needs_answer and not is_answered:
                raise ValueError("has no answer: the last message must be the assistant's")
            _check_turns(messages)
            name = f"{where}.{number}" if number else where
            kind = key.rpartition(".")[2]
            yield Example(name, kind, tuple(messages), answer, "overlap", answer)

    return _read(key, own, convert, lambda example: example.messages)


def read_pairs(key: str, own: OwnSet) -> Read:
    """Reads preference pairs as `PairText`s; arguments and errors as `read_conversations`."""

    def convert(row: Mapping, where: str) -> Iterator[PairText]:
        del where
        found = [pair for chat in shapes.read(row, ranked=True) for pair in chat.pairs()]
        if not found:
            raise ValueError('has no "chosen" and "rejected", nor answers with ranks')
        for prompt, better, worse in found:
            _check_turns(prompt)
            if better == worse:
                raise ValueError("the better answer and the worse are the same text")
            yield PairText(tuple(prompt), better, worse)

    return _read(key, own, convert, lambda pair: pair.messages)


def _read(
    key: str,
    own: OwnSet,
    convert: Callable[[Mapping, str], Iterable[Any]],
    prompt_of: Callable[[Any], tuple[Message, ...]],
) -> Read:
    found = Read([], [], [])
    for file in storage.find(f"{key}.path", own.path):
        name = printable(file.name)
        for number, row in _rows(key, file):
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                made = list(convert(row, f"{key}-{name}-{number}"))
            # Whatever a stranger's row is, the others are read.
            except Exception as error:
                found.broken.append({"file": name, "record": number, "why": str(error)})
                continue
            for one in made:
                prompt = json.dumps(prompt_of(one), sort_keys=True).encode()
                digest = hashlib.blake2b(prompt, digest_size=8).digest()
                draw = int.from_bytes(digest, "big") / 2**64
                (found.heldout if draw < own.heldout_fraction else found.train).append(one)
    if not found.train:
        why = "; {file}: {why}".format(**found.broken[0]) if found.broken else ""
        raise BadInput(f"{key}.path={own.path}: no usable row to train on{why}")
    return found


def _rows(key: str, file: storage.File) -> Iterator[tuple[int, tables.Row]]:
    """(number from 1, row or why there is none) of a file; posts of trees are joined."""
    try:
        kind = kinds.recognise(file.name, storage.head(file.path))
        if kind not in KINDS:
            yield 1, "it is empty" if file.num_bytes == 0 else "neither JSON, CSV nor parquet"
        elif kind == "parquet":
            yield from _joined(parquet.rows(file.path))
        else:
            open_rows = tables.csv_rows if kind == "csv" else tables.json_rows
            with storage.open_plain(file.path) as stream:
                yield from _joined(open_rows(stream))
    except DAMAGES as error:
        why = f"{printable(file.path)}: cannot be read: {error}"
        raise BadInput(f"{key}.path: {why}") from error


def _joined(rows: Iterator[tuple[int, tables.Row]]) -> Iterator[tuple[int, tables.Row]]:
    first = next(rows, None)
    if first is None:
        return
    rows = itertools.chain([first], rows)
    if isinstance(first[1], str) or not shapes.is_post(first[1]):
        yield from rows
        return
    good = []
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
        else:
            good.append((number, row))
    yield from shapes.join_posts(good)


def _check_turns(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != (["user", "assistant"] * len(turns))[: len(turns)] or len(turns) % 2 == 0:
        raise ValueError(
            f"roles {roles} before the answer: an optional system, then user and assistant in turn"
        )
