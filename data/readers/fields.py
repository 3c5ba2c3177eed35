"""Rows of named values as records: which field holds the text, the URL, the date, the language."""

import datetime
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email import utils
from typing import Any, NamedTuple

from langcodes import data_dicts

from data.document import Record
from data.readers import shapes

TEXT_NAMES = ("text", "content", "body", "raw_content", "markdown", "document", "selftext")
URL_NAMES = ("url", "source_url", "uri", "link")
DATE_NAMES = ("date", "timestamp", "created", "created_at", "published", "crawl_date")
LANGUAGE_NAMES = ("language", "lang")

META_FIELDS = 16
META_CHARS = 200
MAX_NAMED_FIELDS = 20
MAX_INTEGER = 1 << 63

DATE_ONLY = re.compile(r"\d{4}(?:-\d\d(?:-\d\d)?)?", re.ASCII)
ISO_START = re.compile(r"\d{4}-\d\d-\d\d[T ]", re.ASCII)
# 20200102 and 20200102030405, as archives write them.
COMPACT_DATE = re.compile(r"(?:19|20)\d{6}(?:\d{6})?", re.ASCII)
# RFC 5322, section 3.3.
MAIL_DATE = re.compile(r"(?:[A-Za-z]{3}, )?\d{1,2} [A-Za-z]{3} \d{4} \d\d:\d\d.*", re.ASCII)
# Epoch seconds are believed from 1973 on; above these, they are milli-, micro-, nanoseconds.
MIN_EPOCH = 1e8
EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
LANGUAGE = re.compile(r"([A-Za-z]{2,3})(?:[-_][\w-]+)?")
# ISO 639-3 codes and their ISO 639-1 codes, but for those that ISO has withdrawn; and Norwegian
# Bokmål as data.gates.language gives it.
WITHDRAWN = ("iw", "in", "jw", "mo", "bh")
TWO_LETTERS = {
    three: two
    for two, three in data_dicts.LANGUAGE_ALPHA3.items()
    if len(two) == 2 and two not in WITHDRAWN
} | {"nob": "no", "nb": "no"}
NO_LANGUAGE = ("und", "mul", "mis", "zxx")


@dataclass(frozen=True)
class Fields:
    """What a row's fields are called; '' takes the first usual name that is there.

    Attributes:
        text: usual names are TEXT_NAMES, of those that hold a string; else what data.readers.shapes
            makes a conversation of.
        url, date, language: usual names are URL_NAMES, DATE_NAMES and LANGUAGE_NAMES.
    """

    text: str = ""
    url: str = ""
    date: str = ""
    language: str = ""


class Layout(NamedTuple):
    """Which fields of a row are what, '' where none is; `why` says why there is no text.

    Attributes:
        texts: in the order in which they are tried.
        chat: those that make a conversation, where no text is.
        others: those that may go to meta.
    """

    texts: tuple[str, ...]
    chat: tuple[str, ...]
    url: str
    date: str
    language: str
    others: tuple[str, ...]
    why: str


@functools.lru_cache(maxsize=1 << 12)
def lay_out(names: tuple[str, ...], fields: Fields) -> Layout:
    """Tells which fields are what.

    Args:
        names: the names of a row's fields, or of a table's columns.
        fields: what the fields are called.
    """
    why = ""
    texts = (fields.text,) if fields.text else TEXT_NAMES
    texts = tuple(name for name in texts if name in names)
    is_chat = not fields.text and shapes.is_chat(names)
    chat = tuple(name for name in names if name in shapes.NAMES) if is_chat else ()
    asked = (fields.text, fields.url, fields.date, fields.language)
    missing = [name for name in asked if name and name not in names]
    if missing or not (texts or chat):
        wanted = repr(missing[0]) if missing else f"for a text ({', '.join(TEXT_NAMES)}, or a chat)"
        shown = sorted(names)[:MAX_NAMED_FIELDS]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        why = f"no field {wanted}; its fields are {[name[:META_CHARS] for name in shown]}{more}"

    def choose(name: str, usual: tuple[str, ...]) -> str:
        return name or next((name for name in usual if name in names), "")

    url = choose(fields.url, URL_NAMES)
    date = choose(fields.date, DATE_NAMES)
    language = choose(fields.language, LANGUAGE_NAMES)
    others = tuple(name for name in names if name not in (url, date, language) and _is_sound(name))
    return Layout(texts, chat, url, date, language, others, why)


def to_record(number: int, row: Mapping[str, Any], layout: Layout) -> Record:
    """Makes a record of a row.

    Args:
        number: the row's number, from 1.
        row: values of JSON types; bytes, which stand for UTF-8; dates and times.
        layout: which of its fields are what, from `lay_out` of its names.

    Returns:
        The record: the text, or a conversation as shapes.text gives it; the date in ISO 8601, ''
        where it cannot be told; the language as its ISO 639 code, '' where it is none. Other
        fields, and a date or language that says nothing, go to meta if they are finite numbers,
        truth values or strings of 1 to META_CHARS, the first META_FIELDS of them.
    """
    if layout.why:
        return Record(number, "", layout.why)
    try:
        used, text = _find_text(row, layout)
    except ValueError as error:
        return Record(number, "", str(error))
    url = date = language = ""
    rest = layout.others
    if layout.url and not (url := _to_string(row[layout.url])):
        rest = (*rest, layout.url)
    if layout.date and not (date := iso_date(row[layout.date])):
        rest = (*rest, layout.date)
    if layout.language and not (language := language_code(row[layout.language])):
        rest = (*rest, layout.language)
    meta = {}
    for other in rest:
        if other not in used and (value := _to_meta(row[other])) is not None:
            meta[other] = value
            if len(meta) == META_FIELDS:
                break
    return Record(number, text, "", url, date, language, "plain", meta)


def _find_text(row: Mapping[str, Any], layout: Layout) -> tuple[tuple[str, ...], str]:
    """The fields that the text is from, and the text."""
    for name in layout.texts:
        value, used = row[name], (name,)
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"field {name!r} is not UTF-8: {error}") from error
        if isinstance(value, list | dict) and len(layout.texts) == 1:
            value = shapes.text({"messages": value})
        if isinstance(value, str):
            break
    else:
        if not layout.chat:
            kind = type(row[layout.texts[0]]).__name__
            raise ValueError(f"field {layout.texts[0]!r} is {kind}, not a string")
        value, used = shapes.text(row), layout.chat
    if not _is_sound(value):
        raise ValueError(f"field {used[0]!r} is not Unicode text: it has half a surrogate pair")
    return used, value


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_string(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value.strip() if isinstance(value, str) and _is_sound(value) else ""


def _to_meta(value: Any) -> str | float | None:
    """What is kept of a field for meta, None if nothing is."""
    if isinstance(value, bytes):
        value = value[: 4 * META_CHARS + 1].decode(errors="replace")
    elif isinstance(value, datetime.date):
        value = value.isoformat()
    if isinstance(value, str):
        return value if 0 < len(value) <= META_CHARS and _is_sound(value) else None
    if isinstance(value, int):
        return value if -MAX_INTEGER <= value < MAX_INTEGER else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def language_code(text: Any) -> str:
    """A language's ISO 639 code, of two letters where there is one.

    Args:
        text: a code of two or three letters; what follows after - or _ is dropped.

    Returns:
        The code in lower case; '' where the text is none, or names no language.
    """
    found = LANGUAGE.fullmatch(_to_string(text))
    code = found[1].lower() if found else ""
    return "" if code in NO_LANGUAGE else TWO_LETTERS.get(code, code)


def iso_date(value: Any) -> str:
    """A date or time in ISO 8601.

    Args:
        value: a date; a string in ISO 8601, RFC 5322 or like 20200102030405; or a number: a year,
            or seconds, milli-, micro- or nanoseconds since 1970 (from 1973 on).

    Returns:
        ISO 8601, UTC as Z; '' where the value is none of these.
    """
    if isinstance(value, datetime.date):
        return _iso(value)
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
        return ""
    try:
        return _read_date(f"{value:.0f}" if isinstance(value, float | int) else _to_string(value))
    except (ValueError, TypeError, OverflowError):
        return ""


def _iso(moment: datetime.date) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _read_date(text: str) -> str:
    if DATE_ONLY.fullmatch(text):
        datetime.date.fromisoformat(text + "0000-01-01"[len(text) :])
        return text
    if ISO_START.match(text):
        return _iso(datetime.datetime.fromisoformat(text.replace(" UTC", "Z").replace(" +", "+")))
    if MAIL_DATE.fullmatch(text):
        return _iso(utils.parsedate_to_datetime(text))
    if COMPACT_DATE.fullmatch(text):
        if len(text) == 8:
            return _iso(datetime.date.fromisoformat(text))
        return _iso(datetime.datetime.fromisoformat(f"{text[:8]}T{text[8:]}Z"))
    number = float(text)
    if not MIN_EPOCH <= number < math.inf:
        return ""
    seconds = next((number / unit for above, unit in EPOCH_UNITS if number >= above), number)
    return _iso(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
