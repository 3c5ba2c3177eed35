"""The user's own conversations, prompts and preference pairs, in the formats that they come in.

A set is a file, folder or glob of JSON lines, JSON arrays or parquet, compressed or not. A row is
recognised by its fields:

conversation  {"messages": [{"role", "content"}]},
              {"conversations": [{"from", "value"}]} (ShareGPT),
              {"instruction", "input" or "context", "output" or "response"} (Alpaca, Dolly),
              {"prompt", "completion" or "response" or "answer"}, {"question", "answer"}
pair          {"chosen", "rejected"} as texts, messages or whole conversations, with a prompt as
              above, or with it inside of both (two conversations; or the "\\n\\nHuman: ... \\n\\n
              Assistant: ..." of arXiv 2204.05862)

Held-out rows are chosen by the content of the prompt, so that one prompt is on one side only.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data import storage
from data.errors import BadInput
from data.quickstart.instruct import Example, Message

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    "system": "system",
}
PROMPTS = ("prompt", "question", "instruction")
INPUTS = ("input", "context")  # what an instruction is about
ANSWERS = ("output", "response", "completion", "answer")
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")
JSON_NAME = re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$")
BATCH_ROWS = 1024


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

    def convert(row: Mapping, where: str) -> Example:
        messages = _messages(row)
        answer = messages.pop() if messages and messages[-1]["role"] == "assistant" else None
        if needs_answer and answer is None:
            raise ValueError("has no answer: the last message must be the assistant's")
        _check_turns(messages)
        text = answer["content"] if answer else ""
        return Example(where, key.rpartition(".")[2], tuple(messages), text, "overlap", text)

    return _read(key, own, convert, lambda example: example.messages)


def read_pairs(key: str, own: OwnSet) -> Read:
    """Reads preference pairs as `PairText`s; arguments and errors as `read_conversations`."""

    def convert(row: Mapping, where: str) -> PairText:
        del where
        if "chosen" not in row or "rejected" not in row:
            raise ValueError('has no "chosen" and "rejected"')
        sides = [_as_messages(row[side]) for side in ("chosen", "rejected")]
        prompt = _messages(row) if any(field in row for field in _PROMPT_KEYS) else []
        prompt = prompt or [
            a for a, b in itertools.takewhile(_is_shared, zip(*sides, strict=False))
        ]
        answers = [side[-1]["content"] for side in sides if side[-1]["role"] == "assistant"]
        if len(answers) < 2 or any(len(side) > len(prompt) + 1 for side in sides):
            raise ValueError("chosen and rejected are not two answers to one prompt")
        _check_turns(prompt)
        return PairText(tuple(prompt), *answers)

    return _read(key, own, convert, lambda pair: pair.messages)


def _is_shared(turns: tuple[Message, Message]) -> bool:
    return turns[0] == turns[1]


_PROMPT_KEYS = ("messages", "conversations", *PROMPTS)


def _read(
    key: str,
    own: OwnSet,
    convert: Callable[[Mapping, str], Any],
    prompt_of: Callable[[Any], tuple[Message, ...]],
) -> Read:
    found = Read([], [], [])
    for file in storage.find(f"{key}.path", own.path):
        for number, row in _rows(key, file):
            try:
                if isinstance(row, ValueError):
                    raise row
                if not isinstance(row, Mapping):
                    raise ValueError("not an object")
                made = convert(row, f"{key}-{file.name}-{number}")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                found.broken.append({"file": file.name, "record": number, "why": str(error)})
                continue
            prompt = json.dumps(prompt_of(made), sort_keys=True).encode()
            draw = int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "big") / 2**64
            (found.heldout if draw < own.heldout_fraction else found.train).append(made)
    if not found.train:
        why = f"; record 1: {found.broken[0]['why']}" if found.broken else ""
        raise BadInput(f"{key}.path={own.path}: no usable row to train on{why}")
    return found


def _rows(key: str, file: storage.File) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of a file; a line that is not JSON is a ValueError in a row's place."""
    try:
        head = storage.head(file.path)
        if head.startswith(b"PAR1"):
            with (
                storage.open_raw(file.path) as raw,
                pq.ParquetFile(pa.py_buffer(raw.read())) as table,
            ):
                batches = table.iter_batches(BATCH_ROWS)
                rows = (row for batch in batches for row in batch.to_pylist())
                yield from enumerate(rows, start=1)
            return
        with storage.open_plain(file.path) as stream:
            text = stream.read().decode("utf-8-sig", "surrogateescape")
    except (*storage.DAMAGE, pa.ArrowException) as error:
        raise BadInput(f"{key}.path: {file.path}: cannot be read: {error}") from error
    if not JSON_NAME.search(file.name) and text.lstrip()[:1] not in ("{", "["):
        yield 1, ValueError("neither JSON nor parquet")
        return
    if text.lstrip()[:1] == "[":
        yield from enumerate(_parse(key, file, text), start=1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"malformed JSON: {error}")


def _parse(key: str, file: storage.File, text: str) -> list:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{key}.path: {file.path}: malformed JSON: {error}") from error


def _messages(row: Mapping) -> list[Message]:
    """The conversation in a row; without an answer it ends with the user's turn."""
    for key in ("messages", "conversations"):
        if key in row:
            return _system(row) + _as_messages(row[key])
    prompt = next((row[key] for key in PROMPTS if row.get(key)), None)
    if prompt is None:
        raise ValueError(f"has none of the fields messages, conversations, {', '.join(PROMPTS)}")
    if not isinstance(prompt, str):
        messages = _as_messages(prompt)
    else:
        about = next((row[key] for key in INPUTS if row.get(key)), "")
        messages = [_message("user", f"{prompt}\n\n{about}" if about else prompt)]
    answer = next((row[key] for key in ANSWERS if row.get(key)), None)
    return _system(row) + messages + ([_message("assistant", answer)] if answer else [])


def _system(row: Mapping) -> list[Message]:
    return [_message("system", row["system"])] if row.get("system") else []


def _as_messages(value: Any) -> list[Message]:
    """Messages of a list of them, of one, of a transcript, or of an answer's text."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        parts = TRANSCRIPT.split(value)
        if len(parts) == 1:
            return [_message("assistant", value)]
        turns = zip(parts[1::2], parts[2::2], strict=True)
        return [_message(role.lower(), text.strip()) for role, text in turns]
    return [
        _message(turn.get("role", turn.get("from")), turn.get("content", turn.get("value")))
        for turn in value
    ]


def _message(role: Any, content: Any) -> Message:
    if role not in ROLES:
        raise ValueError(f"role {role!r} is unknown; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("a message has no text")
    content.encode()  # a lone surrogate is no Unicode text
    return {"role": ROLES[role], "content": content}


def _check_turns(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != (["user", "assistant"] * len(turns))[: len(turns)] or len(turns) % 2 == 0:
        raise ValueError(
            f"roles {roles} before the answer: an optional system, then user and assistant in turn"
        )
