"""Packed files by what they are: gzip, zstd, bzip2, xz; all that is whole before damage."""

import bz2
import functools
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import zstandard

# What packed bytes that are cut off or damaged raise.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError)
CHUNK_BYTES = 1 << 20
MAGIC_BYTES = 6
# As much at once: what is not yet unpacked is copied at each step.
PACKED_BYTES, GARBAGE_SHOWN = 1 << 14, 16


def unpack(packed: BinaryIO, path: str) -> BinaryIO:
    """Unpacks a stream by its first bytes, or gives it as it is.

    Args:
        packed: a file from its beginning; closed with what is returned.
        path: where it is, for `take_garbage`.

    Raises:
        Those of DAMAGE: here or while reading, if it is damaged.
    """
    stream = io.BufferedReader(packed, CHUNK_BYTES)
    magic = stream.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    for start, begin in UNPACKERS:
        if start.match(magic):
            return _Unpacked(begin(stream), stream, path)
    return stream


class _Members(io.RawIOBase):
    """Packed members one after another, to the end of the last, as `gzip -d` unpacks them.

    Zero bytes behind that are padding. What else is there is `garbage`, a sentence that says so.
    """

    def __init__(self, packing: "_Packing", stream: BinaryIO):
        self._packing, self._stream = packing, stream
        self._member, self._packed, self._plain = packing.begin(), b"", memoryview(b"")
        self.garbage = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain and (not self._member.eof or self._another_follows()):
            self._packed = self._packed or self._stream.read1(PACKED_BYTES)
            plain = self._packing.unpack(self._member, self._packed, len(buffer))
            # What has been taken in may come out later.
            if not (plain or self._packed or self._member.eof):
                raise EOFError(f"it breaks off in the middle of what {self._packing.name} packed")
            self._packed = self._member.unused_data or getattr(self._member, "unconsumed_tail", b"")
            self._plain = memoryview(plain)
        num_bytes = min(len(buffer), len(self._plain))
        buffer[:num_bytes] = self._plain[:num_bytes]
        self._plain = self._plain[num_bytes:]
        return num_bytes

    def _another_follows(self) -> bool:
        """Whether another member begins behind one that has ended."""
        while not (self.garbage or self._packed.lstrip(b"\0")):
            self._packed = self._stream.read1(PACKED_BYTES)
            if not self._packed:
                return False
        packed = self._packed.lstrip(b"\0")
        if len(packed) < MAGIC_BYTES:
            packed += self._stream.read1(PACKED_BYTES)
        self._packed = packed
        if self._packing.magic.match(packed) and not self.garbage:
            self._member = self._packing.begin()
            return True
        start = packed[:GARBAGE_SHOWN]
        self.garbage = (
            self.garbage or f"what follows {self._packing.name} has not packed: {start!r}"
        )
        return False


class _Packing(NamedTuple):
    """How members are told from garbage, begun, and unpacked, to so many bytes if it can be."""

    name: str
    magic: re.Pattern[bytes]
    begin: Callable[[], Any]
    unpack: Callable[[Any, bytes, int], bytes]


GZIP = _Packing(
    "gzip",
    re.compile(rb"\x1f\x8b"),
    lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    lambda member, packed, size: member.decompress(packed, size),
)
# Frames of data, and those to be skipped, such as a seek table. Its own reader of streams says
# nothing of a frame that breaks off.
ZSTD = _Packing(
    "zstd",
    re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    lambda: zstandard.ZstdDecompressor().decompressobj(),
    lambda frame, packed, _size: frame.decompress(packed),
)
UNPACKERS = (
    (GZIP.magic, functools.partial(_Members, GZIP)),
    (ZSTD.magic, functools.partial(_Members, ZSTD)),
    (re.compile(b"BZh"), bz2.BZ2File),
    (re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
)


class _Unpacked(io.BufferedReader):
    """An unpacked stream that closes the packed one with it."""

    def __init__(self, unpacked: BinaryIO, packed: BinaryIO, path: str):
        super().__init__(unpacked, CHUNK_BYTES)
        self._packed, self._path = packed, path

    def close(self) -> None:
        if why := getattr(self.raw, "garbage", ""):
            _garbage[self._path] = why
        super().close()
        self._packed.close()


# By path, what stood behind the packed content when a file was last read: readers stop before it.
_garbage: dict[str, str] = {}


def take_garbage(path: str) -> str:
    """What stood behind the packed content of a file when it was last read to its end and closed.

    Args:
        path: as it was given to `open_plain`.

    Returns:
        A sentence that says so, once; '' if nothing did.
    """
    return _garbage.pop(path, "")
