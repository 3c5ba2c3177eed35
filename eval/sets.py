"""The texts of evaluation sets, from the files that tasks read: what training may not hold."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from data import storage
from data.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


def texts(path: str, note: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Yields every text of every evaluation set below a path.

    Args:
      path: files of JSON lines, JSON, CSV or TSV, packed or not; a folder or glob of them, local
        or on an object store; '' for none.
      note: takes a line on files there that are of no such kind.

    Yields:
      (set, text): the set is the folder below `path`, or the file's first name where there is
      none; a text is one string of a row, however deep, or all strings of a row, as a question and
      its options.

    Raises:
      BadInput: nothing of these kinds there, or a file that is not what its name says.
    """
    if not path:
        return
    there = storage.find("eval.sets", path)
    found = [file for file in there if unpacked_name(file.name).endswith(SUFFIXES)]
    others = [file.name for file in there if file not in found]
    if others:
        note(f"eval.sets: {len(others)} files of other kinds are not read, as {others[0]}")
    if not found:
        allowed = ", ".join(SUFFIXES)
        raise BadInput(f"eval.sets: {path}: no file of {allowed} found; packed ones count")
    is_empty = True
    for file in found:
        folder, slash, name = file.name.partition("/")
        label = folder if slash else name.partition(".")[0] or folder.partition(".")[0]
        for row in rows("eval.sets", file):
            for unit in _units(row) if unpacked_name(file.name).endswith(".json") else (row,):
                strings = [text for text in _strings(unit) if text]
                is_empty = is_empty and not strings
                whole = ["\n".join(strings)] if len(strings) > 1 else []
                yield from ((label, text) for text in strings + whole)
    if is_empty:
        raise BadInput(f"eval.sets: {path}: not one text in {len(found)} file(s)")


def unpacked_name(name: str) -> str:
    """A file's name without the suffix of its packing."""
    for packing in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(packing)
    return name


def rows(key: str, file: storage.File) -> Iterator[Any]:
    """Yields the rows of a file: lists of strings from CSV or TSV, any object from JSON.

    Args:
      key: the setting that the file is of, for messages.
      file: of one of SUFFIXES, compressed or not.

    Raises:
      BadInput: it is not what its name says.
    """
    name = unpacked_name(file.name)
    try:
        with storage.open_plain(file.path) as stream:
            if name.endswith(".jsonl"):
                yield from (json.loads(line) for line in stream if line.strip())
            elif name.endswith(".json"):
                yield json.load(stream)
            else:
                lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
                yield from csv.reader(
                    lines, delimiter="\t" if name.endswith(".tsv") else ",", strict=True
                )
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise BadInput(f"{key}: {file.path}: cannot be read: {error}") from error


def _units(value: Any) -> Iterator[Any]:
    """The rows of a JSON file: the items of its list, or of the lists of objects in its object."""
    inside = value.values() if isinstance(value, dict) else [value]
    lists = [item for item in inside if isinstance(item, list)]
    tables = [rows for rows in lists if any(isinstance(row, dict | list) for row in rows)]
    yield from (row for table in tables for row in table)
    if isinstance(value, dict):
        yield {key: item for key, item in value.items() if item not in tables}
    elif not tables:
        yield value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
