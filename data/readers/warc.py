"""WARC files as their records, in order, past whatever damage there is.

Source: WARC 1.1, https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/.
A library would hand over the whole records of a sound file as well. It would also end without a
word in a file that is cut off, and stop at the first damage; here the rest is still read: from the
next packed member that begins a record, or else from the next line that begins one.
"""

import io
import operator
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard
from fastwarc.stream_io import BrotliReader

# A longer record is skipped unread, so that a wrong length cannot fill the memory.
MAX_BLOCK_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 16
PLAIN_CHUNK_BYTES = 1 << 16
# Small: where a packed chunk is damaged, nothing of it is unpacked.
PACKED_CHUNK_BYTES = 1 << 11
# How far before the place where damage shows the next member may begin: 4 MiB.
KEPT_CHUNKS = 1 << 11
# So much of a member shows whether it begins with a record: gzip's first blocks, zstd's first.
CHECKED_BYTES = (1 << 9, 1 << 18)
MAX_DICTIONARY_BYTES = 1 << 24

HEADER_END = re.compile(rb"\r?\n\r?\n")
VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
NEXT_RECORD = re.compile(rb"(?<=\n)WARC/\d+\.\d+[ \t]*\r?\n")
STATUS = re.compile(rb"HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})\b")
CHUNK_HEAD = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
FOLD = re.compile(r"\r?\n[ \t]+")
# The longest text that NEXT_RECORD can match, with blanks to spare.
MARK_BYTES = 64

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
# A zstd WARC may bring the dictionary of all its records, in a frame that is skipped otherwise:
# https://iipc.github.io/warc-specifications/specifications/warc-zstd/.
ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
PACKINGS = (GZIP, ZSTD, ZSTD_DICTIONARY)
DAMAGE = (zlib.error, zstandard.ZstdError)
CUT = "the file breaks off here"
SHARED = "the file packs records together, so that damage would cost all that follow; none is lost"


class Block(NamedTuple):
    """One record: its number from 1, its headers by lower-case name, its block, and why broken."""

    number: int
    headers: dict[str, str]
    content: bytes
    why: str


def records(stream: BinaryIO) -> Iterator[Block]:
    """Reads the records of a WARC file: gzip or zstd, with a member a record or not, or plain.

    Args:
        stream: the file as it is stored, at its start.

    Yields:
        Every record in order. A damaged one has no content and says why; so has a record that
        stands for damage where no record is to be seen. What follows the damage is read on. A
        last one without content says so if a packed file has several records in a member.
    """
    source = _Lookahead(_pieces(stream))
    number = 0
    while True:
        while source.fill(1) and source.buffer[0] in b"\r\n":
            source.drop(1)
        if source.buffer:
            number += 1
            headers, content, why = _next(source)
            yield Block(number, headers, content, why)
            if why:
                source.find_next()
        elif source.why:
            if not source.told:
                number += 1
                yield Block(number, {}, b"", source.tell_why())
            source.why = ""
        else:
            break
    if source.num_sound_members and not source.num_damages and number > source.num_sound_members:
        yield Block(number + 1, {}, b"", SHARED)


def fields(raw: bytes) -> dict[str, str]:
    """Reads header lines, WARC's or HTTP's.

    Args:
        raw: `name: value` lines; one that begins with a blank goes on with the line before.

    Returns:
        The first value of each name, by the name in lower case.
    """
    values: dict[str, str] = {}
    for line in FOLD.sub(" ", raw.decode("utf-8", "replace")).split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            values.setdefault(name.strip().lower(), value.strip())
    return values


def split_http(content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Splits an HTTP response.

    Args:
        content: what a `response` record holds.

    Returns:
        Its status, its header fields by lower-case name, and its body as it was sent; a status
        of 0 where it is no HTTP response.
    """
    end = HEADER_END.search(content, 0, MAX_HEADER_BYTES)
    line = STATUS.match(content)
    if not (end and line):
        return 0, {}, b""
    return int(line[1]), fields(content[line.end() : end.start()]), content[end.end() :]


def unpack_http(header: dict[str, str], body: bytes) -> tuple[bytes, str]:
    """Undoes the transfer and content codings of a body: chunks; gzip, deflate, br, zstd.

    Args:
        header: the response's header fields by lower-case name.
        body: as it was sent; or already without codings that the header names, as some archives
            keep it.

    Returns:
        The body, as far as it can be had, and what is wrong with it, '' if nothing is.
    """
    why = ""
    if header.get("transfer-encoding", "").lower() == "chunked":
        body, why = _join_chunks(body)
    for coding in reversed(header.get("content-encoding", "").lower().split(",")):
        body, reason = _unpack(body, coding.strip())
        why = why or reason
    return body, why


def _next(source: "_Lookahead") -> tuple[dict[str, str], bytes, str]:
    """The record at the start of the buffer: headers, content, and why it is broken."""
    header = source.take_header()
    if not header:
        begun = source.buffer.startswith(b"WARC/")
        why = "its header does not end" if begun else "no WARC header where a record should begin"
        return {}, b"", source.tell_why() or why
    headers = fields(header)
    declared = headers.get("content-length", "")
    if not (declared.isascii() and declared.isdecimal()):
        return headers, b"", f"Content-Length {declared[:20]!r} is not a number of bytes"
    if "warc-type" not in headers:
        return headers, b"", "it has no WARC-Type"
    num_bytes = int(declared[:20])
    if num_bytes > MAX_BLOCK_BYTES:
        return headers, b"", f"its {num_bytes} bytes are more than {MAX_BLOCK_BYTES}"
    if not source.fill(num_bytes):
        there = f"{len(source.buffer)} of its {num_bytes} bytes are there"
        return headers, b"", f"{there}: {source.tell_why() or CUT}"
    if not source.is_end(num_bytes):
        return headers, b"", f"it does not end after the {num_bytes} bytes of its Content-Length"
    if source.is_doubtful(num_bytes):
        return headers, b"", source.tell_why()
    return headers, source.take(num_bytes), ""


class _Lookahead:
    """The unpacked bytes of a file, as far as one wants to see, up to the next damaged place.

    Attributes:
        buffer: the bytes that are read and not yet used.
        why: what is broken behind them, '' where nothing is known to be.
        told: whether a record has said so.
        num_sound_members, num_damages: how many members have ended soundly so far, how many not.
    """

    def __init__(self, pieces: Iterator[bytes | str]):
        self.buffer = bytearray()
        self.why = ""
        self.told = False
        self.num_sound_members = self.num_damages = 0
        # Whether the member that the last bytes came from has not ended soundly, so far.
        self._open = False
        self._pieces = pieces

    def fill(self, num_bytes: int) -> bool:
        """Reads until so many bytes are there; False if they end or are damaged before."""
        while len(self.buffer) < num_bytes and not self.why:
            try:
                piece = next(self._pieces, None)
            except OSError as error:
                piece = f"the file cannot be read on: {error}"
            if piece is None:
                return False
            if isinstance(piece, str):
                self.why, self.told = piece, False
                self.num_damages += 1
            else:
                self.buffer += piece
                self._open = bool(piece)
                self.num_sound_members += not piece
        return len(self.buffer) >= num_bytes

    def take(self, num_bytes: int) -> bytes:
        with memoryview(self.buffer) as view:
            taken = bytes(view[:num_bytes])
        self.drop(num_bytes)
        return taken

    def drop(self, num_bytes: int):
        del self.buffer[:num_bytes]

    def tell_why(self) -> str:
        self.told = True
        return self.why

    def take_header(self) -> bytes:
        """The WARC header at the start, to its empty line; b'' if there is none."""
        self.fill(MARK_BYTES)
        if not VERSION.match(self.buffer):
            return b""
        while not (end := HEADER_END.search(self.buffer, 0, MAX_HEADER_BYTES)):
            if len(self.buffer) >= MAX_HEADER_BYTES or not self.fill(len(self.buffer) + 1):
                return b""
        return self.take(end.end())

    def is_end(self, num_bytes: int) -> bool:
        """Whether a record can end there: an empty line, or another record, or the end."""
        self.fill(num_bytes + 4)
        if self.buffer[num_bytes : num_bytes + 4] == b"\r\n\r\n":
            return True
        while self.fill(num_bytes + 1) and self.buffer[num_bytes] in b"\r\n":
            num_bytes += 1
        self.fill(num_bytes + 5)
        return b"WARC/".startswith(self.buffer[num_bytes : num_bytes + 5])

    def is_doubtful(self, num_bytes: int) -> bool:
        """Whether so many bytes are the last before damage that their own member shows."""
        while self.fill(num_bytes + 1) and self.buffer[num_bytes] in b"\r\n":
            num_bytes += 1
        is_here = self._open and not self.told and self.why not in ("", CUT)
        return is_here and len(self.buffer) == num_bytes

    def find_next(self):
        """Drops what is before the next line that begins a record, at most up to the damage."""
        while not (mark := NEXT_RECORD.search(self.buffer)):
            self.drop(max(0, len(self.buffer) - MARK_BYTES))
            if not self.fill(len(self.buffer) + 1):
                self.buffer.clear()
                # The damaged member's bytes are among those dropped: it is the same damage.
                self.told = self.told or self._open
                return
        self.drop(mark.start())


def _pieces(stream: BinaryIO) -> Iterator[bytes | str]:
    """Unpacked bytes; b'' where a member has ended soundly; a str where it has not: what is wrong.

    After the str come the bytes of the next member that begins a record.
    """
    first = stream.read(PACKED_CHUNK_BYTES)
    # One of these bytes may be the damaged one.
    likeness = {magic: sum(map(operator.eq, first, magic)) - len(magic) for magic in PACKINGS}
    if max(likeness.values()) < -1:
        yield first
        yield from iter(lambda: stream.read(PLAIN_CHUNK_BYTES), b"")
        return
    chunks = iter(lambda: stream.read(PACKED_CHUNK_BYTES), b"")
    if likeness[GZIP] >= -1:
        yield from _members(first, chunks, GZIP, lambda: zlib.decompressobj(31))
        return
    try:
        unpacker, first = _zstd(first, stream)
    except DAMAGE as error:
        yield f"its zstd dictionary is damaged: {error}"
        return
    yield from _members(first, chunks, ZSTD, unpacker.decompressobj)


def _zstd(first: bytes, stream: BinaryIO) -> tuple[zstandard.ZstdDecompressor, bytes]:
    """The unpacker, with the file's own dictionary if it has one, and what comes after that."""
    if not first.startswith(ZSTD_DICTIONARY):
        return zstandard.ZstdDecompressor(), first
    end = 8 + int.from_bytes(first[4:8], "little")
    if end > MAX_DICTIONARY_BYTES:
        raise zstandard.ZstdError(f"it is longer than {MAX_DICTIONARY_BYTES} bytes")
    first += stream.read(max(0, end - len(first)))
    content = first[8:end]
    if content.startswith(ZSTD):
        content = zstandard.ZstdDecompressor().decompress(content, MAX_DICTIONARY_BYTES)
    dictionary = zstandard.ZstdCompressionDict(content)
    return zstandard.ZstdDecompressor(dict_data=dictionary), first[end:]


def _members(
    raw: bytes, chunks: Iterator[bytes], magic: bytes, new: Callable[[], Any]
) -> Iterator[bytes | str]:
    while raw := _top_up(raw, chunks):
        kept: deque[bytes] = deque(maxlen=KEPT_CHUNKS)
        unpacker = new()
        try:
            while not unpacker.eof:
                kept.append(raw)
                if piece := unpacker.decompress(raw):
                    yield piece
                if not unpacker.eof and not (raw := next(chunks, b"")):
                    break
            why = "" if unpacker.eof else CUT
        except DAMAGE as error:
            why = f"the packed file is damaged here: {error}"
        yield why or b""
        # Where its end is damaged, a member can seem to run on over those behind it.
        raw = _find_member(b"".join(kept), chunks, magic, new) if why else unpacker.unused_data


def _top_up(raw: bytes, chunks: Iterator[bytes]) -> bytes:
    """At least four bytes, if there are so many; zeros that pad the file are skipped."""
    while len(raw := raw.lstrip(b"\0")) < 4 and (chunk := next(chunks, b"")):
        raw += chunk
    return raw


def _find_member(raw: bytes, chunks: Iterator[bytes], magic: bytes, new: Callable) -> bytes:
    """The file from its next member that begins with a record, b'' if there is none."""
    raw = raw[1:]
    while True:
        while (at := raw.find(magic)) < 0:
            if not (chunk := next(chunks, b"")):
                return b""
            raw = raw[1 - len(magic) :] + chunk
        raw = raw[at:]
        while len(raw) < CHECKED_BYTES[-1] and (chunk := next(chunks, b"")):
            raw += chunk
        if any(_begins_record(raw[:size], new()) for size in CHECKED_BYTES):
            return raw
        raw = raw[1:]


def _begins_record(raw: bytes, unpacker) -> bool:
    try:
        return unpacker.decompress(raw).startswith(b"WARC/")
    except DAMAGE:
        return False


def _join_chunks(body: bytes) -> tuple[bytes, str]:
    """A chunked body in one, as far as it goes, and what is wrong with it.

    Some archives hold bodies already joined, under the header that calls them chunked.
    """
    parts, at = [], 0
    while head := CHUNK_HEAD.match(body, at):
        size, at = int(head[1], 16), head.end()
        parts.append(body[at : at + size])
        if not size or at + size > len(body):
            return b"".join(parts), "its last chunk breaks off" if size else ""
        at += size
        at += len(body[at : at + 2]) - len(body[at : at + 2].lstrip(b"\r\n"))
    if not parts:
        return body, ""
    return b"".join(parts), "its chunks are damaged" if body[at:].strip() else ""


def _unpack(body: bytes, coding: str) -> tuple[bytes, str]:
    """A body without its content coding, as far as it goes, and what is wrong with it.

    Some archives hold bodies already unpacked, under the header that calls them packed.
    """
    is_whole = True
    try:
        if coding in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
            body, is_whole = _inflate(body, 31)
        elif coding == "deflate" and body:
            is_zlib = body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
            body, is_whole = _inflate(body, 15 if is_zlib else -15)
        elif coding == "br" and body:
            body = BrotliReader(io.BytesIO(body)).read(MAX_BLOCK_BYTES + 1)
        elif coding == "zstd" and body.startswith(b"\x28\xb5\x2f\xfd"):
            body = zstandard.ZstdDecompressor().stream_reader(body).read(MAX_BLOCK_BYTES + 1)
    except (OSError, *DAMAGE) as error:
        is_plain = coding in ("deflate", "br") and body.lstrip()[:1] == b"<"
        return (body, "") if is_plain else (b"", f"its {coding} body is damaged: {error}")
    if len(body) > MAX_BLOCK_BYTES:
        return b"", f"its {coding} body unpacks to more than {MAX_BLOCK_BYTES} bytes"
    return body, "" if is_whole else f"its {coding} body breaks off"


def _inflate(body: bytes, window_bits: int) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj(window_bits)
    unpacked = unpacker.decompress(body, MAX_BLOCK_BYTES + 1)
    return unpacked, unpacker.eof or len(unpacked) > MAX_BLOCK_BYTES
