"""The one form of a document, whatever it was read from."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

NO_META: Mapping[str, Any] = MappingProxyType({})
# Ways to take the text out of HTML: the main content, the whole page, or what trafilatura finds.
EXTRACTORS = ("main", "page", "trafilatura")


class Record(NamedTuple):
    """One record of a file, as a reader gives it.

    Attributes:
        number: its number in the file, from 1.
        text: what it holds, in the markup named; '' where it is broken.
        why: why it is broken, '' where it is not; a broken record is counted and skipped.
        url: where it was found, '' if nowhere.
        date: ISO 8601 date or time, '' if unknown.
        language: ISO 639 code that the source itself states, '' if none. Of code: its language.
        markup: what `text` is written in: plain, html, latex, wikitext or code.
        meta: whatever else is known, of JSON types.
    """

    number: int
    text: str
    why: str = ""
    url: str = ""
    date: str = ""
    language: str = ""
    markup: str = "plain"
    meta: Mapping[str, Any] = NO_META


# `source` is the file inside the source, with the record's number where a file has several; `id`
# adds the domain, and the part's number where a text was cut. `meta` is a JSON object.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("text", pa.large_string()),
        ("meta", pa.string()),
    ]
)


def place(name: str) -> float:
    """A number from 0 to 1 by the hash of a name: where it stands among others, for ever."""
    return order(name) / 2**64


def order(name: str) -> int:
    """The same as an integer of 64 bits."""
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
