"""Parquet: its rows as they are, and as records."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import storage
from data.document import Record
from data.readers.borders import attempt
from data.readers.fields import META_CHARS, META_FIELDS, Fields, Layout, lay_out, to_record
from data.readers.tables import Row
from data.unpacking import FREE_BYTES, MAX_RATIO, MAX_RECORD_BYTES

CHUNK_BYTES, BATCH_ROWS = 1 << 20, 256
LOOKED_AT_ROWS, MAX_LOOKED_AT = 8, 64  # rows and columns in which what is small is looked for

TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)


def read(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a parquet file; arguments as of `tables.read_json`.

    Yields:
        A record for each row, or one broken record if there is no column for the text.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be opened, or is damaged.
    """
    with _open(path) as (file, num_bytes):
        layout = _lay_out_table(file, num_bytes, fields)
        if layout.why:
            yield Record(1, "", layout.why)
            return
        named = filter(None, (layout.url, layout.date, layout.language))
        columns = dict.fromkeys((*layout.texts, *layout.chat, *named, *layout.others))
        for number, row in _table_rows(file, num_bytes, list(columns)):
            yield (
                Record(number, "", row)
                if isinstance(row, str)
                else attempt(number, to_record, number, row, layout)
            )


def rows(path: str) -> Iterator[tuple[int, Row]]:
    """The rows of a parquet file with all their columns; errors as of `read`."""
    with _open(path) as (file, num_bytes):
        yield from _table_rows(file, num_bytes, file.schema_arrow.names)


@contextlib.contextmanager
def _open(path: str) -> Iterator[tuple[pq.ParquetFile, int]]:
    """The file, and how many bytes it has."""
    stream = fsspec.open(path).open() if storage.URI.match(path) else storage.open_raw(path)
    with stream, pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
        yield file, stream.seek(0, io.SEEK_END)


def _lay_out_table(file: pq.ParquetFile, num_bytes: int, fields: Fields) -> Layout:
    """The layout of a table's columns, without those that cannot hold what they should."""
    schema = file.schema_arrow
    layout = lay_out(tuple(schema.names), fields)
    kinds = {name: schema.field(name).type for name in layout.texts}
    texts = tuple(name for name, kind in kinds.items() if _is_text(kind))
    if fields.text and kinds and pa.types.is_nested(kinds[fields.text]):
        texts = (fields.text,)
    if not layout.why and not texts and not layout.chat:
        why = next(f"field {name!r} is {kind}, not a string" for name, kind in kinds.items())
        return layout._replace(why=why)
    others = _small_columns(file, num_bytes, schema, layout.others, texts[0] if texts else "")
    chat = () if texts else layout.chat
    return layout._replace(texts=texts[:1], chat=chat, others=tuple(others))


def _table_rows(
    file: pq.ParquetFile, num_bytes: int, columns: list[str]
) -> Iterator[tuple[int, Row]]:
    number = 0
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if why := _why_too_much(group, num_bytes):
            yield number + 1, f"the row group of rows {number + 1} on: {why}"
            number += group.num_rows
            continue
        for batch in file.iter_batches(BATCH_ROWS, [index], columns, use_threads=False):
            names = batch.schema.names
            for row in zip(*map(_to_python, batch.columns), strict=True):
                number += 1
                is_long = any(
                    isinstance(cell, str | bytes) and len(cell) > MAX_RECORD_BYTES for cell in row
                )
                why = f"a cell of it has more than {MAX_RECORD_BYTES} bytes"
                yield number, why if is_long else dict(zip(names, row, strict=True))


def _why_too_much(group: pq.RowGroupMetaData, num_packed: int) -> str:
    """Why a row group would fill the memory, by what the footer says: '' if it would not.

    The footer says so of each column, too; Arrow 26 ends the process where that is damaged.
    """
    size = group.total_byte_size
    if size > MAX_RECORD_BYTES * max(1, group.num_rows):
        return f"its rows have more than {MAX_RECORD_BYTES} bytes"
    if size > FREE_BYTES + MAX_RATIO * num_packed:
        return f"it unpacks to more than {MAX_RATIO} times its size"
    return ""


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in TEXT_TYPES


def _small_columns(
    file: pq.ParquetFile, num_bytes: int, schema: pa.Schema, names: tuple[str, ...], text: str
) -> list[str]:
    """Columns of single values, for meta: those of long strings would cost more than they give."""
    kinds = {name: schema.field(name).type for name in names if name != text}
    single = [n for n, kind in kinds.items() if _is_text(kind) or pa.types.is_primitive(kind)]
    single = single[:MAX_LOOKED_AT]
    if not file.num_row_groups or _why_too_much(file.metadata.row_group(0), num_bytes):
        return []
    batches = file.iter_batches(LOOKED_AT_ROWS, [0], single, use_threads=False)
    first = next(batches, None) if single else None
    if first is None:
        return []
    small = (
        name
        for name, column in zip(first.schema.names, first.columns, strict=True)
        if sum(len(cell) for cell in _to_python(column) if isinstance(cell, str | bytes))
        <= META_CHARS * len(first)
    )
    return list(itertools.islice(small, META_FIELDS))


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
