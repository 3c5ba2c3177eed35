"""What a file is: told by its first bytes, and by its name where these are plain."""

import json
import re
from collections.abc import Iterator
from typing import Any

from data import encodings
from data.readers import code
from data.readers.shapes import POST
from data.unpacking import PACKED_SUFFIX

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
AFTER_OBJECT = re.compile(r"[ \t\r]*+(?:[\n,\]]|\Z)")
# How many objects of a file are looked at: first posts may lack what their replies have.
LOOKED_AT, CUT_CHARS = 16, 1 << 15
# What tells a post from a row of another table; and one that is longer than the head.
PARENT_NAMES, REPLIES = ("parent_id", "parent_message_id", "link_id"), "replies"
CUT_POST = re.compile(
    rf"""(?<!\\)"(?:(?:{"|".join(PARENT_NAMES)})"\s*:\s*["\dn]|{REPLIES}"\s*:\s*\[\s*[{{\]])"""
)
BLANKS = re.compile(r"[\s,]*+")
DECODER = json.JSONDecoder()
# Of a tar: members that arXiv has, and papers' sources have.
LATEX_MEMBER = re.compile(
    r"(?i)(?:.*/)?(?:[^/]*\.(?:tex|ltx|latex|bbl|sty|cls)|(?:\d{4}\.\d{4,5}(?:v\d+)?|[a-z-]+\d{7})"
    r"(?:\.gz|\.pdf)?)"
)


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
    stem = PACKED_SUFFIX.sub("", name)
    # Documents and programs are packed as zip, too.
    is_zip = head.startswith(b"PK\x03\x04") and stem.lower().endswith(".zip")
    for kind, is_so in (
        ("warc", start.startswith(b"WARC/")),
        ("parquet", head.startswith(b"PAR1")),
        ("latex", stem.endswith(".tex") or any(map(LATEX_MEMBER.fullmatch, _tar_names(head)))),
        ("archive", head[257:262] == b"ustar" or is_zip),
        ("notebook", stem.endswith(".ipynb")),
        ("wikipedia", start.startswith(b"<") and b"<mediawiki" in start[:2000]),
        ("stackexchange", start.startswith(b"<") and b"<posts" in start[:2000]),
        ("html", _is_html(stem, start)),
        ("threads", _holds_threads(start)),
        ("json", _is_json(stem, start)),
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


def _tar_names(head: bytes) -> Iterator[str]:
    """The names of the members of a tar whose headers are in the head."""
    place = 0
    while head[place + 257 : place + 262] == b"ustar":
        yield head[place : place + 100].rstrip(b"\0").decode(errors="replace")
        size = head[place + 124 : place + 135].strip(b" \0")
        if not size.isdigit() or b"8" in size or b"9" in size:
            return
        place += 512 + -(-int(size, 8) // 512) * 512


def _holds_threads(start: bytes) -> bool:
    """Whether one of the first JSON objects is a post with a parent or replies."""
    if not JSON_START.match(start):
        return False
    text = start.decode(errors="replace")
    in_array = text.startswith("[")
    place = BLANKS.match(text, 1 if in_array else 0).end()
    for _ in range(LOOKED_AT):
        try:
            found, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            is_cut = len(start) > CUT_CHARS
            return is_cut and text.startswith("{", place) and bool(CUT_POST.search(text, place))
        # Of threads, an object has a line of its own.
        if not isinstance(found, dict) or (not in_array and "\n" in text[place:end].rstrip()):
            return False
        if _is_post(found):
            return True
        place = BLANKS.match(text, end).end()
    return False


def _is_post(row: dict[str, Any]) -> bool:
    """Whether an object has what data.readers.forums makes threads of."""
    if isinstance(row.get("prompt"), dict):
        row = row["prompt"]
    replies = row.get(REPLIES)
    has_replies = isinstance(replies, list) and all(isinstance(reply, dict) for reply in replies)
    parents = [row[name] for name in PARENT_NAMES if name in row]
    has_parent = any(
        parent is None or (isinstance(parent, str | int | float) and not isinstance(parent, bool))
        for parent in parents
    )
    has_text = any(isinstance(row.get(name), str) for name in (*POST["text"], *POST["title"]))
    has_identity = any(name in row for name in (*POST["id"], *POST["author"]))
    return (has_replies or has_parent) and has_text and has_identity
