"""Tables and lists of texts: JSON, parquet, CSV, plain text, and TFDS data sets, as records.

All are streamed. A row that cannot be used is a broken record that says why; damage to a file ends
it with one. Dates, languages and the rest of a row are treated as data/readers/fields.py says.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from data import encodings, storage
from data.document import NO_META, Record
from data.readers import examples, steps
from data.readers.fields import META_CHARS, META_FIELDS, TALK_NAMES, Fields, lay_out, to_record

SEPARATOR = b"<|endoftext|>"
BLANKS = b" \t\r\n"
# One longer line or value is broken, so that a file without ends cannot fill the memory.
MAX_RECORD_BYTES = 1 << 28
CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 25
BATCH_ROWS = 256
DELIMITERS = ",\t;|"
# The one column of a parquet file that TFDS has written: an example, as in an ArrayRecord file.
EXAMPLE_COLUMN = "data"

# In JSON: a string, its end in group 1 unless it goes on behind the buffer; or punctuation.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:(")|\\?\Z)|[{}\[\],]', re.DOTALL)
DECODER = json.JSONDecoder()

TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)


def read_json(path: str, fields: Fields) -> Iterator[Record]:
    """Reads JSON: an object a line, or an array of objects, or objects that go over lines.

    Args:
        path: local path or object-store URI, compressed or not.
        fields: which fields are what.

    Yields:
        A record for each object; numbers count lines where each is an object of its own, empty
        lines too, and else values.

    Raises:
        OSError: the file cannot be opened.
    """
    with steps.open_file(path) as stream:
        yield from steps.to_the_damage(_json_records(stream, fields))


def read_parquet(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a parquet file, of columns, or of examples as TFDS writes them.

    Args:
        path: local path or object-store URI.
        fields: which columns are what.

    Yields:
        A record for each row, or one broken record if there is no column for the text.

    Raises:
        OSError: the file cannot be opened.
    """
    with _open_seekable(path) as stream:
        yield from steps.to_the_damage(_parquet_records(path, stream, fields))


def read_csv(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a table in CSV, with the columns' names in its first line.

    The delimiter is the one of DELIMITERS that is most often in that line. Quotes are as in RFC
    4180: a field that breaks its rules breaks its row.

    Args:
        path: local path or object-store URI, compressed or not.
        fields: which columns are what.

    Yields:
        A record for each row, or one broken record if there is no column for the text.

    Raises:
        OSError: the file cannot be opened.
    """
    with steps.open_file(path) as stream:
        yield from steps.to_the_damage(_csv_records(stream, fields))


def read_text(path: str) -> Iterator[Record]:
    """Reads the texts between lines of SEPARATOR; a file without such a line is one text.

    Args:
        path: local path or object-store URI, packed or not; UTF-8, UTF-16 or UTF-32 as its mark
            says, or another encoding, which is found as encodings.decode says.

    Yields:
        A record for each text; what is behind the last separator only if it is not blank. `meta`
        has the encoding where it is not faultless UTF-8, and as `replaced` how many U+FFFD stand
        for bytes that are wrong.

    Raises:
        OSError: the file cannot be opened.
    """
    with steps.open_file(path) as stream:
        yield from steps.to_the_damage(_texts(stream))


def read_tfds(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a shard of a data set of TensorFlow Datasets, an ArrayRecord file, without TensorFlow.

    Args:
        path: local path of the shard; its folder has the data set's features.json.
        fields: which features are what.

    Yields:
        A record for each example, or one broken record if there is no feature for the text, or
        if the shard is of another format: TFRecord cannot be read without TensorFlow.

    Raises:
        OSError: the file cannot be opened.
    """
    with storage.open_raw(path):
        pass
    if ".tfrecord" in path.rpartition("/")[2]:
        yield Record(1, "", "TFRecord shards need TensorFlow; prepare them as array_record")
        return
    yield from steps.to_the_damage(examples.read_array_record(path, fields))


def _json_records(stream: BinaryIO, fields: Fields) -> Iterator[Record]:
    stream, _ = steps.after_mark(stream)
    number = 1
    while (begin := stream.peek(1)[:1]) and begin in BLANKS:
        number += stream.read(1) == b"\n"
    # An array may be one line, which is as long as the file.
    line = stream.read(1) if begin == b"[" else stream.readline(MAX_RECORD_BYTES + 1)
    # The first line of an object that goes over lines. A line of its own that breaks off just
    # there has another object behind it.
    goes_on = line.rstrip(BLANKS)[-1:] in (b"{", b"[", b",") and stream.peek(1)[:1] != b"{"
    if begin == b"[" or (begin == b"{" and goes_on):
        values = enumerate(_json_values(line, stream), 1)
    else:
        values = _json_lines(number, line, stream)
    for number, value in values:
        yield _json_record(number, value, fields)


def _json_lines(number: int, line: bytes, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while line:
        if line.strip(BLANKS):
            yield number, line
        while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_RECORD_BYTES + 1)
        number, line = number + 1, stream.readline(MAX_RECORD_BYTES + 1)


def _json_values(start: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The values of an array, or those that stand one after another, not yet parsed."""
    in_array = start.startswith(b"[")
    buffer, begin, scanned, depth = b"", 0, 0, 0
    for chunk in itertools.chain([start], _growing(stream)):
        buffer, scanned, begin = buffer[begin:] + chunk, scanned - begin, 0
        if len(buffer) - len(chunk) > MAX_RECORD_BYTES:
            raise EOFError(f"a value has more than {MAX_RECORD_BYTES} bytes")
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
    except steps.DAMAGE:
        yield b"".join(parts)
        raise
    yield b"".join(parts)


def _json_record(number: int, value: bytes, fields: Fields) -> Record:
    if len(value) > MAX_RECORD_BYTES:
        return Record(number, "", f"it has more than {MAX_RECORD_BYTES} bytes")
    try:
        row = DECODER.decode(value.removeprefix(encodings.UTF8_MARK).decode())
    except UnicodeDecodeError as error:
        return Record(number, "", f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return Record(number, "", f"malformed JSON: {error}")
    if not isinstance(row, dict):
        return Record(number, "", f"a JSON {type(row).__name__}, not an object")
    return to_record(number, row, lay_out(tuple(row), fields))


def _open_seekable(path: str) -> BinaryIO:
    if not storage.URI.match(path):
        return storage.open_raw(path)
    system, inside = fs.FileSystem.from_uri(path)
    return system.open_input_file(inside)


def _parquet_records(path: str, stream: BinaryIO, fields: Fields) -> Iterator[Record]:
    with pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
        schema = file.schema_arrow
        is_examples = schema.names == [EXAMPLE_COLUMN] and fields.text != EXAMPLE_COLUMN
        if is_examples and pa.types.is_binary(schema.field(0).type):
            batches = file.iter_batches(BATCH_ROWS, use_threads=False)
            serialised = itertools.chain.from_iterable(batch[0].to_pylist() for batch in batches)
            yield from examples.read(path, serialised, fields)
            return
        layout = lay_out(tuple(schema.names), fields)
        kinds = {name: schema.field(name).type for name in layout.texts}
        texts = [name for name, kind in kinds.items() if _can_hold_text(kind, name)]
        if layout.why or not texts:
            whys = (f"field {name!r} is {kind}, not a string" for name, kind in kinds.items())
            yield Record(1, "", layout.why or next(whys))
            return
        named = [name for name in (layout.url, layout.date, layout.language) if name]
        others = _small_columns(file, layout.others, texts[0])
        layout = layout._replace(texts=(texts[0],), others=tuple(others))
        columns = [texts[0], *named, *others]
        numbers = itertools.count(1)
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            names = batch.schema.names
            for row in zip(*map(_to_python, batch.columns), strict=True):
                yield to_record(next(numbers), dict(zip(names, row, strict=True)), layout)


def _can_hold_text(kind: pa.DataType, name: str) -> bool:
    is_talk = name in TALK_NAMES and (pa.types.is_nested(kind))
    return is_talk or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in TEXT_TYPES


def _small_columns(file: pq.ParquetFile, names: tuple[str, ...], text: str) -> list[str]:
    """Columns of single values, for meta: those of long strings would cost more than they give."""
    sizes: dict[str, int] = {}
    if file.metadata.num_row_groups:
        group = file.metadata.row_group(0)
        for index in range(group.num_columns):
            column = group.column(index)
            sizes[column.path_in_schema] = column.total_uncompressed_size // (group.num_rows or 1)
    kinds = {name: file.schema_arrow.field(name).type for name in names if name != text}
    small = [
        name
        for name, kind in kinds.items()
        if sizes.get(name, 0) <= META_CHARS
        if _is_text(kind) or pa.types.is_primitive(kind)
    ]
    return small[:META_FIELDS]


def _to_python(column: pa.Array) -> list[Any]:
    kind = column.type
    try:
        if pa.types.is_timestamp(kind):
            # Nanoseconds have no Python type, and not every zone's name is known everywhere.
            target = pa.timestamp("us", "UTC" if kind.tz else None)
            column = column.cast(options=pc.CastOptions(target, allow_time_truncate=True))
        return column.to_pylist()
    except UnicodeDecodeError:
        # Bytes stand for UTF-8, so that only the wrong ones break their row.
        return column.cast(pa.large_binary()).to_pylist()
    except (ValueError, OverflowError):  # Beyond the years that Python knows.
        return [None] * len(column)


def _csv_records(stream: BinaryIO, fields: Fields) -> Iterator[Record]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    stream, _ = steps.after_mark(stream)
    encoded = iter(lambda: stream.readline(MAX_RECORD_BYTES), b"")
    lines = (line.decode("utf-8", "surrogateescape") for line in encoded)
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header, layout = [], lay_out((), fields)
    for number in itertools.count():
        try:
            row = next(filter(None, rows), None)
        except csv.Error as error:
            yield Record(max(1, number), "", f"not CSV: {error}")
            continue
        if row is None:
            return
        if not header:
            header = row
            layout = lay_out(tuple(header), fields)
            if layout.why:
                yield Record(1, "", layout.why)
                return
        elif len(row) != len(header):
            why = f"it has {len(row)} fields, and the header has {len(header)}"
            yield Record(number, "", why)
        else:
            values = (cell if cell.isascii() else _to_bytes(cell) for cell in row)
            yield to_record(number, dict(zip(header, values, strict=True)), layout)


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _texts(stream: BinaryIO) -> Iterator[Record]:
    number, lines, is_utf8 = 1, [], False
    stream, recoded_from = steps.after_mark(stream)
    for line in stream:
        if line.strip() == SEPARATOR:
            record = _text_record(number, b"".join(lines), recoded_from, is_utf8)
            is_utf8 = is_utf8 or not (record.text.isascii() or record.meta)
            yield record
            number, lines = number + 1, []
        else:
            lines.append(line)
    rest = b"".join(lines)
    if rest.strip():
        yield _text_record(number, rest, recoded_from, is_utf8)


def _text_record(number: int, data: bytes, recoded_from: str, is_utf8: bool) -> Record:
    found = encodings.decode(data, is_utf8)
    meta = {}
    if encoding := recoded_from or found.encoding:
        meta["encoding"] = encoding
    if found.replaced:
        meta["replaced"] = found.replaced
    return Record(number, found.text, found.why, meta=meta or NO_META)
