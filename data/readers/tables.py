"""Tables and lists of texts: JSON, CSV and plain text, as rows and as records.

All are streamed. A row that cannot be used is a broken record that says why. Dates, languages and
the rest of a row are treated as data/readers/fields.py says.
"""

import csv
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from data import encodings, storage
from data.document import NO_META, Record
from data.readers.borders import attempt
from data.readers.fields import Fields, lay_out, to_record
from data.unpacking import DAMAGE, MAX_RECORD_BYTES, check_end, lines

SEPARATOR = b"<|endoftext|>"
BLANKS = b" \t\r\n"
CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 20, 1 << 22
MAX_FIELDS = 10_000  # of a table: each costs time, whether it is read or not
DELIMITERS = ",\t;|"

# In JSON: a string, its end in group 1 unless it goes on behind the buffer; or punctuation.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:(")|\\?\Z)|[{}\[\],]', re.DOTALL)
DECODER = json.JSONDecoder()

# A row, or why there is none.
Row = Mapping[str, Any] | str


def read_json(path: str, fields: Fields) -> Iterator[Record]:
    """Reads JSON: an object a line, or an array of objects, or objects that go over lines.

    Args:
        path: local path or object-store URI, compressed or not.
        fields: which fields are what.

    Yields:
        A record for each object; numbers count lines where each is an object of its own, empty
        lines too, and else values.

    Raises:
        OSError: the file cannot be opened, or is damaged or breaks off behind the last record.
    """
    with storage.open_plain(path) as stream:
        yield from map(functools.partial(_record, fields=fields), json_rows(stream))


def read_csv(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a table in CSV, with the columns' names in its first line.

    The delimiter is the one of DELIMITERS that is most often in that line. Quotes are as in RFC
    4180: a field that breaks its rules breaks its row. Arguments and errors as of `read_json`.

    Yields:
        A record for each row, or one broken record if there is no column for the text.
    """
    with storage.open_plain(path) as stream:
        for number, row in csv_rows(stream):
            if not isinstance(row, str) and (why := lay_out(tuple(row), fields).why):
                yield Record(1, "", why)
                return
            yield _record((number, row), fields)


def _record(numbered: tuple[int, Row], fields: Fields) -> Record:
    number, row = numbered
    if isinstance(row, str):
        return Record(number, "", row)
    return attempt(number, to_record, number, row, lay_out(tuple(row), fields))


def read_text(path: str) -> Iterator[Record]:
    """Reads the texts between lines of SEPARATOR; a file without such a line is one text.

    A text of more than MAX_RECORD_BYTES becomes several records, parted at line ends.

    Args:
        path: local path or object-store URI, packed or not; UTF-8, UTF-16 or UTF-32 as its mark
            says, or another encoding, which is found as encodings.decode says.

    Yields:
        A record for each text; what is behind the last separator only if it is not blank. `meta`
        has the encoding where it is not faultless UTF-8, and as `replaced` how many U+FFFD stand
        for bytes that are wrong.

    Raises:
        OSError: the file cannot be opened, or is damaged or breaks off behind the last record.
    """
    with storage.open_plain(path) as stream:
        yield from _texts(stream)


def json_rows(stream: BinaryIO) -> Iterator[tuple[int, Row]]:
    """The objects of an open file of JSON, numbered as `read_json` does."""
    stream, _ = encodings.after_mark(stream)
    number = 1
    while (begin := stream.peek(1)[:1]) and begin in BLANKS:
        number += stream.read(1) == b"\n"
    # An array may be one line, which is as long as the file.
    line = stream.read(1) if begin == b"[" else stream.readline(MAX_RECORD_BYTES + 1)
    # The first line of an object that goes over lines. A line of its own that breaks off just
    # there has another object behind it.
    goes_on = line.rstrip(BLANKS)[-1:] in (b"{", b"[", b",") and stream.peek(1)[:1] != b"{"
    if begin == b"[" or (begin == b"{" and goes_on):
        values = ((value, "") for value in _json_values(line, stream))
        number = 1
    else:
        values = lines(stream, line)
    for place, (value, why) in enumerate(values, number):
        if why or value.strip(BLANKS):
            yield place, why or _parse(value)


def _parse(value: bytes) -> Row:
    try:
        row = DECODER.decode(value.removeprefix(encodings.codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    except (ValueError, RecursionError) as error:
        return f"malformed JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _json_values(start: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The values of an array, or those that stand one after another, not yet parsed."""
    in_array = start.startswith(b"[")
    buffer, begin, scanned, depth = b"", 0, 0, 0
    for chunk in itertools.chain([start], _growing(stream)):
        buffer, scanned, begin = buffer[begin:] + chunk, scanned - begin, 0
        if len(buffer) - len(chunk) > MAX_RECORD_BYTES:
            raise OSError(f"a value has more than {MAX_RECORD_BYTES} bytes")
        for token in TOKEN.finditer(buffer, scanned):
            mark = buffer[token.start() : token.start() + 1]
            end = -1
            if mark == b'"' and not token[1]:
                break
            if mark in (b"{", b"["):
                depth += 1
                begin = token.end() if in_array and depth == 1 else begin
            elif mark in (b"}", b"]"):
                depth = max(0, depth - 1)
                end = -1 if depth else token.start() if in_array else token.end()
            elif mark == b"," and in_array and depth == 1:
                end = token.start()
            if end >= 0:
                yield from filter(None, [buffer[begin:end].strip(BLANKS)])
                begin, in_array = token.end(), in_array and depth == 1
            scanned = token.end()
    yield from filter(None, [buffer[begin:].strip(BLANKS)])
    if in_array:
        raise EOFError("the array does not end")


def _growing(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in longer and longer pieces, and all of it that is before any damage."""
    parts, num_bytes, wanted = [], 0, CHUNK_BYTES
    try:
        while part := stream.read1(CHUNK_BYTES):
            parts.append(part)
            num_bytes += len(part)
            if num_bytes >= wanted:
                yield b"".join(parts)
                parts, num_bytes, wanted = [], 0, min(2 * wanted, MAX_CHUNK_BYTES)
    except DAMAGE:
        yield b"".join(parts)
        raise
    yield b"".join(parts)
    check_end(stream)


def csv_rows(stream: BinaryIO) -> Iterator[tuple[int, Row]]:
    """The rows of an open file of CSV; as `read_csv` says."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    stream, _ = encodings.after_mark(stream)
    text = _Lines(line.decode("utf-8", "surrogateescape") for line, _ in lines(stream))
    delimiter = max(DELIMITERS, key=text.peek().count)
    header: list[str] = []
    for number in itertools.count():
        row = text.next_row(delimiter, len(header))
        if row is None:
            return
        if isinstance(row, str):
            yield max(1, number), row
        elif not header:
            header = row
            if len(header) > MAX_FIELDS:
                raise OSError(f"it has {len(header)} columns; at most {MAX_FIELDS} are read")
        elif len(row) != len(header):
            yield number, f"it has {len(row)} fields, and the header has {len(header)}"
        else:
            cells = (cell if cell.isascii() else _to_bytes(cell) for cell in row)
            yield number, dict(zip(header, cells, strict=True))


class _Lines:
    """Lines that a row may turn out not to need: its quote is never closed, or far away.

    How much is read in vain is bounded by what is read at all, so that many such quotes do not
    take the square of the time.
    """

    def __init__(self, lines: Iterator[str]):
        self._lines, self._back = lines, []  # those to be read again, last first
        self._taken: list[str] = []
        self._num_read, self._num_vain = 0, 0

    def __iter__(self):
        return self

    def __next__(self) -> str:
        is_too_much = self._num_vain > self._num_read + MAX_RECORD_BYTES
        if self._taken and (is_too_much or self._num_taken > MAX_RECORD_BYTES):
            raise csv.Error("a quote that does not end")
        line = self._back.pop() if self._back else next(self._lines)
        self._taken.append(line)
        self._num_taken += len(line)
        return line

    def peek(self) -> str:
        self._back = list(itertools.islice(self._lines, 1))
        return self._back[0] if self._back else ""

    def next_row(self, delimiter: str, num_fields: int) -> list[str] | str | None:
        """The next row that is not empty, why it is none, or None at the end."""
        row: list[str] | str | None = []
        while row == []:
            self._taken, self._num_taken = [], 0
            try:
                row = next(csv.reader(self, delimiter=delimiter, strict=True), None)
            except csv.Error as error:
                row = f"not CSV: {error}"
            is_wrong = isinstance(row, str) or (num_fields and len(row or ()) != num_fields)
            if len(self._taken) > 1 and is_wrong and row is not None:
                row = row if isinstance(row, str) else "not CSV: a quote that ends in another row"
                self._back += self._taken[:0:-1]
                self._num_vain += self._num_taken
            else:
                self._num_read += self._num_taken
        return row


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _texts(stream: BinaryIO) -> Iterator[Record]:
    stream, recoded_from = encodings.after_mark(stream)
    number, parts, num_bytes, is_utf8 = 1, [], 0, False
    while True:
        line = stream.readline(MAX_RECORD_BYTES)
        is_end = line.strip() == SEPARATOR
        if not line or is_end or num_bytes + len(line) > MAX_RECORD_BYTES:
            data, rest = b"".join(parts), b""
            if not (line and is_end) and line and data[-1:] != b"\n":
                data, rest = _at_character(data)
            if is_end or data.strip():
                record = _text_record(number, data, recoded_from, is_utf8)
                is_utf8 = is_utf8 or not (record.text.isascii() or record.meta)
                yield record
                number += 1
            if not line:
                check_end(stream)
                return
            parts, num_bytes = [rest], len(rest)
        if not is_end:
            parts.append(line)
            num_bytes += len(line)


def _at_character(data: bytes) -> tuple[bytes, bytes]:
    """Bytes that may end within a character of UTF-8, and those of it."""
    for end in range(len(data) - 1, max(0, len(data) - 4), -1):
        if data[end] >= 0xC0:
            return data[:end], data[end:]
    return data, b""


def _text_record(number: int, data: bytes, recoded_from: str, is_utf8: bool) -> Record:
    found = encodings.decode(data, is_utf8)
    meta = {}
    if encoding := recoded_from or found.encoding:
        meta["encoding"] = encoding
    if found.replaced:
        meta["replaced"] = found.replaced
    return Record(number, found.text, found.why, meta=meta or NO_META)
