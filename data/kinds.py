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
# Pages that browsers have saved begin with a comment.
HTML_START = re.compile(
    rb"(?is)(?:(?:<\?xml[^>]*>|<!--.*?-->)\s*)*+<(?:!doctype html|html|head|body|title|meta|div)\b"
)
HTML_NAMES = (".html", ".htm", ".xhtml")
# What may follow the first object of a file of them.
MAIL_NAMES = {b"date", b"message-id", b"received", b"to"}
AFTER_OBJECT = re.compile(r"[ \t\r]*+(?:[\n,\]]|\Z)")

# What tells a post from a row of another table, beside a text and who wrote it or its id.
PARENT_NAMES, REPLIES = ("parent_id", "parent_message_id", "link_id"), "replies"
# How many objects of a file are looked at: first posts may lack what their replies have.
LOOKED_AT = 16
LEVELS = 2  # of objects in objects: a prompt in a thread
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
        ("html", _is_html(stem, start)),
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


def _is_html(stem: str, start: bytes) -> bool:
    is_named = stem.endswith(HTML_NAMES) and start.startswith(b"<")
    return is_named or HTML_START.match(start) is not None


def _is_json(stem: str, start: bytes) -> bool:
    """Whether objects or an array of them is there, or the name says so."""
    if stem.endswith(JSON_NAMES) or not JSON_START.match(start):
        return stem.endswith(JSON_NAMES) and start != b""
    text = start.decode(errors="replace")
    try:
        end = DECODER.raw_decode(text, BLANKS.match(text, text.startswith("[")).end())[1]
    except (ValueError, RecursionError):
        return True  # The head cuts it, or it is broken: its reader says so.
    return AFTER_OBJECT.match(text, end) is not None


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
            found, end = _fields(text, place, LEVELS), len(text)
        # Of threads, an object has a line of its own.
        if not in_array and "\n" in text[place:end].rstrip():
            return
        yield found
        place = BLANKS.match(text, end).end()


def _fields(text: str, place: int, levels: int) -> dict[str, Any]:
    """What is there of an object that breaks off, the last value cut like itself to some levels."""
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
            if begin == "{" and levels > 1:
                found[key] = _fields(text, place, levels - 1)
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
    # Books and notes say whom they are from and what their subject is, too.
    names = (
        {line.partition(b":")[0].lower() for line in header[0].splitlines()} if header else set()
    )
    return b"from" in names and bool(names & MAIL_NAMES)
