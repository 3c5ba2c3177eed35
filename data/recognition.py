"""What a file is: told by its first bytes, and by its name where these are plain."""

import json
import re
from collections.abc import Iterator
from typing import Any

from data import encodings
from data.readers import code

# A LaTeX document: its class, after lines that are empty, comments or begin with a command.
LATEX_START = re.compile(rb"(?:[ \t]*+(?:%[^\n]*+|\\[a-zA-Z@]++[^\n]*+|\r)?+\n)*?[ \t]*+"
                         rb"\\document(?:class|style)\b")  # fmt: skip
# An object: its first key, or nothing before its end, which ends the line or the value; or an
# array of such.
JSON_START = re.compile(
    rb'(?:\[\s*+)?+\{\s*+(?:"(?:[^"\\]|\\.)*+"\s*+:|\}[ \t\r]*+(?:[,\]\n]|\Z))', re.DOTALL
)
# Names that say what a file is, whatever it speaks of.
JSON_NAMES = (".json", ".jsonl", ".ndjson")
TABLE_NAMES = (".csv", ".tsv")
PROSE_NAMES = (".md", ".markdown", ".mdx", ".rst", ".adoc", ".org")
HTML_START = re.compile(rb"(?is)(?:<\?xml[^>]*>\s*)?<(!doctype html|html|head|body)\b")

# What tells a post from a row of another table, beside a text and who wrote it or its id.
PARENT_NAMES, REPLIES = ("parent_id", "parent_message_id", "link_id"), "replies"
# How many objects of a file are looked at: first posts may lack what their replies have.
LOOKED_AT = 16
FIELD = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*+")\s*:\s*', re.DOTALL)
BLANKS = re.compile(r"[\s,]*+")
DECODER = json.JSONDecoder()


def recognise(name: str, head: bytes) -> str:
    """Tells what a file is by its first bytes (unpacked), and by its name where these are plain.

    Args:
        name: its path.
        head: up to files.HEAD_BYTES of it.

    Returns:
        One of data.sources.KINDS, or a sentence that says why it is none.
    """
    text = encodings.head_as_utf8(head)
    start = text.lstrip()
    stem = re.sub(r"\.(gz|zst|bz2|xz)$", "", name)
    for kind, is_so in (
        ("warc", start.startswith(b"WARC/")),
        ("parquet", head.startswith(b"PAR1")),
        ("tfds", ".array_record" in stem or ".tfrecord" in stem),
        ("latex", head[257:262] == b"ustar" or stem.endswith(".tex")),
        ("wikipedia", start.startswith(b"<") and b"<mediawiki" in start[:2000]),
        ("stackexchange", start.startswith(b"<") and b"<posts" in start[:2000]),
        ("html", HTML_START.match(start) is not None),
        ("threads", _holds_threads(start)),
        ("json", _is_json(stem, start)),
        ("mail", _is_mail(start)),
        ("csv", stem.endswith(TABLE_NAMES)),
        ("code", code.is_code(stem)),
        ("latex", not stem.endswith(PROSE_NAMES) and LATEX_START.match(start) is not None),
    ):
        if is_so:
            return kind
    if not head:
        return "it is empty"
    if b"\0" in text or encodings.decode(text).why:
        return "neither text nor a format that we read"
    return "text"


def _is_json(stem: str, start: bytes) -> bool:
    """Whether an object or an array of objects is there; by name, whether one may be."""
    is_named = stem.endswith(JSON_NAMES) and start.startswith((b"{", b"["))
    return is_named or JSON_START.match(start) is not None


def _holds_threads(start: bytes) -> bool:
    """Whether one of the first JSON objects is a post with a parent or replies."""
    return JSON_START.match(start) is not None and any(map(_is_post, _first_objects(start)))


def _first_objects(start: bytes) -> Iterator[dict[str, Any]]:
    """The first objects of lines or of an array, as far as they are there; see `_fields`."""
    text = start.decode(errors="replace")
    in_array = text.startswith("[")
    place = BLANKS.match(text, 1 if in_array else 0).end()
    for _ in range(LOOKED_AT):
        if not text.startswith("{", place):
            return
        try:
            found, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            found, end = _fields(text, place), len(text)
        # Of threads, an object has a line of its own.
        if not in_array and "\n" in text[place:end].rstrip():
            return
        yield found
        place = BLANKS.match(text, end).end()


def _fields(text: str, place: int) -> dict[str, Any]:
    """What is there of an object that breaks off, the last value cut like itself."""
    found: dict[str, Any] = {}
    place += 1
    while field := FIELD.match(text, place):
        key, place = field[1][1:-1], field.end()
        try:
            found[key], place = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            begin = text[place : place + 1]
            inner = BLANKS.match(text, place + 1).end()
            cut = {"{": {}, "[": [], '"': ""}
            found[key] = cut.get(begin)
            if begin == "{":
                found[key] = _fields(text, place)
            elif begin == "[" and text[inner : inner + 1] in cut:
                found[key] = [cut[text[inner]]]
            break
    return found


def _is_post(row: dict[str, Any]) -> bool:
    """Whether an object has what data.readers.forums makes threads of."""
    # Late, for a command that only reads its configuration answers sooner without it.
    from data.readers.forums import NAMES

    if isinstance(row.get("prompt"), dict):
        row = row["prompt"]
    replies = row.get(REPLIES)
    has_replies = isinstance(replies, list) and all(isinstance(reply, dict) for reply in replies)
    parents = [row[name] for name in PARENT_NAMES if name in row]
    has_parent = any(
        parent is None or (isinstance(parent, str | int | float) and not isinstance(parent, bool))
        for parent in parents
    )
    has_text = any(isinstance(row.get(name), str) for name in (*NAMES["text"], *NAMES["title"]))
    has_identity = any(name in row for name in (*NAMES["id"], *NAMES["author"]))
    return (has_replies or has_parent) and has_text and has_identity


def _is_mail(start: bytes) -> bool:
    if start.startswith(b"From "):
        start = start.partition(b"\n")[2]
    header = re.match(rb"(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*){2,}", start)
    names = (b"from:", b"message-id:", b"received:", b"subject:")
    return header is not None and sum(name in header[0].lower() for name in names) >= 2
