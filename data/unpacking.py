"""Packed files by what they are, unpacked in small steps up to any damage, and within bounds.

The bounds hold for whatever a stranger's file unpacks to, under all readers: MAX_RECORD_BYTES for
what is held at once (a line, a value, a cell), MAX_HEADER_BYTES for a header of a tar,
MAX_WHOLE_BYTES for a file that is one record, and MAX_RATIO for how much more than its packed bytes
a file may be.
"""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_RECORD_BYTES, MAX_WHOLE_BYTES, MAX_HEADER_BYTES = 1 << 24, 1 << 26, 1 << 20
# Beyond FREE_BYTES. Of what people pack, logs come near a tenth of this ratio.
MAX_RATIO, FREE_BYTES = 1000, 1 << 28
# What packed bytes that are cut off or damaged raise.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)
CHUNK_BYTES = 1 << 20
STEP_BYTES = 1 << 14  # of a step that meets damage nothing is had
# Dumps of Reddit have windows of 2 GiB (zstd --long=31); by itself zstd stops at 128 MiB.
ZSTD_OPTIONS = {zstd.DecompressionParameter.window_log_max: 31}
# All of them read on at the next member or frame, and zeros may pad a gzip file.
UNPACKERS = (
    (re.compile(rb"\x1f\x8b"), lambda stream: gzip.GzipFile(fileobj=stream)),
    (
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        functools.partial(zstd.ZstdFile, options=ZSTD_OPTIONS),
    ),
    (re.compile(rb"BZh"), bz2.BZ2File),
    (re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
)
NO_MEMBER = ("Not a gzipped file", "Unknown frame descriptor")
PACKED_SUFFIX = re.compile(r"\.(gz|zst|bz2|xz)$")


def unpack(packed: BinaryIO) -> io.BufferedReader:
    """Unpacks a stream by its first bytes, or gives it as it is.

    Args:
        packed: a file from its beginning; closed with what is returned.

    Returns:
        The stream. Behind all that could be unpacked it raises what is wrong: one of DAMAGE, an
        OSError for more than MAX_RATIO allows too. Where something follows that is not packed, it
        ends; `check_end` says so.
    """
    counted = _Counted(packed)
    stream = io.BufferedReader(counted, CHUNK_BYTES)
    start = stream.peek(6)
    for magic, begin in UNPACKERS:
        if magic.match(start):
            return io.BufferedReader(_Unpacked(begin(stream), counted), CHUNK_BYTES)
    return stream


def check_end(stream: io.BufferedReader) -> None:
    """Raises Trailing where something follows what was packed, and was not read."""
    if behind := getattr(stream.raw, "behind", None):
        raise behind


def lines(stream: io.BufferedReader, line: bytes = b"") -> Iterator[tuple[bytes, str]]:
    """Reads lines in bounded memory.

    Args:
        stream: open and unpacked.
        line: what is read of the first one, up to a byte more than MAX_RECORD_BYTES.

    Yields:
        Each line with its end and '', or b"" and why it is broken: it is too long.
    """
    while line := line or stream.readline(MAX_RECORD_BYTES + 1):
        is_long = len(line) > MAX_RECORD_BYTES
        yield (b"", f"it has more than {MAX_RECORD_BYTES} bytes") if is_long else (line, "")
        while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_RECORD_BYTES + 1)
        line = b""
    check_end(stream)


@contextlib.contextmanager
def whole(stream: io.BufferedReader) -> Iterator[bytes]:
    """A file that is one record, read to its end.

    Raises:
        OSError: it has more than MAX_WHOLE_BYTES; or behind the body of the statement, where the
            file was whole and something follows what was packed.
        Those of DAMAGE: it is damaged.
    """
    data = stream.read(MAX_WHOLE_BYTES + 1)
    if len(data) > MAX_WHOLE_BYTES:
        raise OSError(f"more than {MAX_WHOLE_BYTES} bytes, which is the most that is read")
    yield data
    check_end(stream)


def open_tar(stream: BinaryIO) -> tarfile.TarFile:
    """A tar as a stream, whose headers are bounded like everything else."""
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member)


class _Member(tarfile.TarInfo):
    """A member; the names and attributes that a header of its own brings are read whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)


class Trailing(OSError):
    """A packed file is whole, and something else follows it."""


class _Counted(io.RawIOBase):
    """A file, and how many of its bytes are read."""

    def __init__(self, file: BinaryIO):
        self._file, self.num_bytes = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.num_bytes += len(chunk)
        return len(chunk)

    def close(self) -> None:
        super().close()
        self._file.close()


class _Unpacked(io.RawIOBase):
    """What a file unpacks to, in steps, until it is too much for what it was packed in."""

    def __init__(self, unpacked: BinaryIO, packed: _Counted):
        self._unpacked, self._packed, self._num_bytes = unpacked, packed, 0
        self.behind: Trailing | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.behind:
            return 0
        try:
            step = self._unpacked.read1(min(len(buffer), STEP_BYTES))
        except (gzip.BadGzipFile, zstd.ZstdError) as error:
            if not self._num_bytes or not any(sign in str(error) for sign in NO_MEMBER):
                raise
            self.behind, step = Trailing(f"what follows is not packed: {error}"), b""
        self._num_bytes += len(step)
        if self._num_bytes > FREE_BYTES + MAX_RATIO * self._packed.num_bytes:
            raise OSError(f"it unpacks to more than {MAX_RATIO} times its size")
        buffer[: len(step)] = step
        return len(step)

    def close(self) -> None:
        super().close()
        self._unpacked.close()
        self._packed.close()
