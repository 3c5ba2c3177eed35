"""Files of rows and texts, unpacked in small steps up to any damage, as UTF-8 after their mark."""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from data import encodings, storage
from data.document import Record

CHUNK_BYTES = 1 << 20
STEP_BYTES = 1 << 14
# What a file that is damaged or cut off raises in the middle of reading it.
DAMAGE = (*storage.DAMAGE, pa.ArrowException)


class _Steps(io.RawIOBase):
    """An unpacked file in small steps, since of a step that meets damage nothing is had."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        step = self._stream.read1(min(len(buffer), STEP_BYTES))
        buffer[: len(step)] = step
        return len(step)

    def close(self):
        super().close()
        self._stream.close()


def open_file(path: str) -> BinaryIO:
    """Opens a file and unpacks it; what it raises at damage, it raises behind all that was there.

    Args:
        path: local path or object-store URI, compressed or not.

    Raises:
        OSError: it cannot be opened.
    """
    return io.BufferedReader(_Steps(storage.open_plain(path)), CHUNK_BYTES)


def to_the_damage(records: Iterator[Record]) -> Iterator[Record]:
    """The records, and a broken one where the file is damaged."""
    number = 0
    try:
        for record in records:
            number = record.number
            yield record
    except DAMAGE as error:
        yield Record(number + 1, "", f"the file is damaged or breaks off here: {error}")


def after_mark(stream: BinaryIO) -> tuple[BinaryIO, str]:
    """A stream behind its byte order mark, as UTF-8.

    Args:
        stream: the whole file, one that can be peeked into.

    Returns:
        The stream, and the encoding that it was recoded from as its mark says, '' if it was not.
    """
    start = stream.peek(len(encodings.UTF8_MARK))
    if start.startswith(encodings.UTF8_MARK):
        stream.read(len(encodings.UTF8_MARK))
    recoding, encoding = encodings.recoded(stream, start)
    return (io.BufferedReader(recoding, CHUNK_BYTES), encoding) if encoding else (stream, "")
