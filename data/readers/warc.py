"""WARC files as their records, in order, past whatever damage there is.

Source: WARC 1.1, https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/.
FastWARC's iterator gives the same records of a sound file. It ends at the first damage, and does
not tell a record whose length is wrong from one that something else follows, so framing is done
here: behind damage, reading goes on at the next packed member, or else the next line, that begins
a record.
"""

import io
import operator
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from fastwarc.stream_io import BrotliReader

from data.unpacking import zstd

# A longer record is skipped unread, so that a wrong length cannot fill the memory.
MAX_BLOCK_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 16
PLAIN_CHUNK_BYTES = 1 << 16
# Small: where a packed chunk is damaged, nothing of it is unpacked.
PACKED_CHUNK_BYTES = 1 << 11
# How far before the place where damage shows the next member may begin: 4 MiB.
KEPT_CHUNKS = 1 << 11
MAX_DICTIONARY_BYTES = 1 << 24

HEADER_END = re.compile(rb"\r?\n\r?\n")
VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
NEXT_RECORD = re.compile(rb"(?<=\n)WARC/\d+\.\d+[ \t]*\r?\n")
MARK_BYTES = 64  # The longest text that NEXT_RECORD can match, with blanks to spare.
STATUS = re.compile(rb"HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})\b")
CHUNK_HEAD = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
FOLD = re.compile(r"\r?\n[ \t]+")
BLANK_LINES = re.compile(rb"[\r\n]*")

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
# A zstd WARC may bring the dictionary of all its records, in a frame that is skipped otherwise:
# https://iipc.github.io/warc-specifications/specifications/warc-zstd/.
ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
# So much of a member shows whether it begins with a record: gzip's first block, zstd's first.
CHECKED_BYTES = {GZIP: 1 << 9, ZSTD: 1 << 18}
DAMAGE = (zlib.error, zstd.ZstdError)
CUT = "the file breaks off here"


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
        stands for damage where no record is to be seen. What follows the damage is read on.
    """
    source = _Lookahead(_pieces(stream))
    number = 0
    while source.is_more():
        number += 1
        headers, content, why = _next(source)
        yield Block(number, headers, content, why)
        if why:
            source.find_next()


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
    start = 0
    while (line := STATUS.match(content, start)) and (
        end := HEADER_END.search(content, start, start + MAX_HEADER_BYTES)
    ):
        # An interim response stands before the one that it announces.
        if not (line[1].startswith(b"1") and content.startswith(b"HTTP/", end.end())):
            header = fields(content[line.end() : end.start()])
            return int(line[1]), header, content[end.end() :]
        start = end.end()
    return 0, {}, b""


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
        return {}, b"", source.why or why
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
        return headers, b"", f"{there}: {source.why or CUT}"
    if why := source.why_no_end(num_bytes):
        return headers, b"", why
    return headers, source.take(num_bytes), ""


class _Lookahead:
    """The unpacked bytes of a file, as far as one wants to see, up to the next damaged place.

    Attributes:
        buffer: the bytes that are read and not yet used.
        why: what is broken behind them, '' where nothing is known to be.
        num_sure: how many of them are of members that have ended soundly.
    """

    def __init__(self, pieces: Iterator[bytes | str]):
        self.buffer = bytearray()
        self.why = ""
        self.num_sure = 0
        self._pieces = pieces

    def fill(self, num_bytes: int) -> bool:
        """Reads until so many bytes are there; False if they end or are damaged before."""
        while len(self.buffer) < num_bytes and not self.why:
            try:
                piece = next(self._pieces, None)
            except OSError as error:
                piece = f"the file cannot be read on: {error}"
            if isinstance(piece, str):
                self.why = piece
            elif piece:
                self.buffer += piece
            else:
                self.num_sure = len(self.buffer)
            if piece is None:
                return False
        return len(self.buffer) >= num_bytes

    def is_more(self) -> bool:
        """Whether a record or damage follows on blank lines."""
        while self.fill(1) and self.buffer[0] in b"\r\n":
            self.take(BLANK_LINES.match(self.buffer).end())
        return bool(self.buffer or self.why)

    def take(self, num_bytes: int) -> bytes:
        with memoryview(self.buffer) as view:
            taken = bytes(view[:num_bytes])
        del self.buffer[:num_bytes]
        self.num_sure = max(0, self.num_sure - num_bytes)
        return taken

    def take_header(self) -> bytes:
        """The WARC header at the start, to its empty line; b'' if there is none."""
        self.fill(MARK_BYTES)
        if not VERSION.match(self.buffer):
            return b""
        while not (end := HEADER_END.search(self.buffer, 0, MAX_HEADER_BYTES)):
            if len(self.buffer) >= MAX_HEADER_BYTES or not self.fill(len(self.buffer) + 1):
                return b""
        return self.take(end.end())

    def why_no_end(self, num_bytes: int) -> str:
        """Why a record cannot end there: only an empty line, another record or the end may follow.

        A record that its own member is damaged behind is broken too: its checksum may be wrong.
        """
        end = num_bytes
        while self.fill(end + 1) and self.buffer[end] in b"\r\n":
            end = BLANK_LINES.match(self.buffer, end).end()
        self.fill(end + 5)
        if self.why not in ("", CUT) and end == len(self.buffer) > self.num_sure:
            return self.why
        has_line = self.buffer.startswith(b"\r\n\r\n", num_bytes)
        if has_line or b"WARC/".startswith(self.buffer[end : end + 5]):
            return ""
        return f"it does not end after the {num_bytes} bytes of its Content-Length"

    def find_next(self):
        """Drops what is before the next line that begins a record, at most up to the damage."""
        is_same = bool(self.why) and not self.buffer
        while not (mark := NEXT_RECORD.search(self.buffer)):
            is_same = is_same or len(self.buffer) > self.num_sure
            self.take(max(0, len(self.buffer) - MARK_BYTES))
            if not self.fill(len(self.buffer) + 1):
                # Bytes of the damaged member are among those dropped: it has been said.
                is_same = is_same or len(self.buffer) > self.num_sure
                self.take(len(self.buffer))
                self.why = "" if is_same else self.why
                return
        self.take(mark.start())


def _pieces(stream: BinaryIO) -> Iterator[bytes | str]:
    """Unpacked bytes; b'' where a member has ended soundly; a str where it has not: what is wrong.

    After the str come the bytes of the next member that begins a record.
    """
    first = stream.read(PACKED_CHUNK_BYTES)
    # One of these bytes may be the damaged one.
    packings = (GZIP, ZSTD, ZSTD_DICTIONARY)
    likeness = {magic: sum(map(operator.eq, first, magic)) - len(magic) for magic in packings}
    if max(likeness.values()) < -1:
        yield first
        yield from iter(lambda: stream.read(PLAIN_CHUNK_BYTES), b"")
        return
    chunks = iter(lambda: stream.read(PACKED_CHUNK_BYTES), b"")
    if likeness[GZIP] >= -1:
        yield from _members(first, chunks, GZIP, lambda: zlib.decompressobj(31))
        return
    try:
        dictionary, first = _dictionary(first, stream)
    except (*DAMAGE, ValueError) as error:
        yield f"its zstd dictionary is damaged: {error}"
        return
    yield from _members(first, chunks, ZSTD, lambda: zstd.ZstdDecompressor(dictionary))


def _dictionary(first: bytes, stream: BinaryIO) -> tuple[zstd.ZstdDict | None, bytes]:
    """The file's own dictionary if it has one, and what comes after that."""
    if not first.startswith(ZSTD_DICTIONARY):
        return None, first
    end = 8 + int.from_bytes(first[4:8], "little")
    if end > MAX_DICTIONARY_BYTES:
        raise ValueError(f"it is longer than {MAX_DICTIONARY_BYTES} bytes")
    first += stream.read(max(0, end - len(first)))
    content = first[8:end]
    if content.startswith(ZSTD):
        content = zstd.ZstdDecompressor().decompress(content, MAX_DICTIONARY_BYTES)
    return zstd.ZstdDict(content), first[end:]


def _members(
    raw: bytes, chunks: Iterator[bytes], magic: bytes, new: Callable[[], Any]
) -> Iterator[bytes | str]:
    while raw := _top_up(raw, chunks):
        kept: deque[bytes] = deque(maxlen=KEPT_CHUNKS)
        unpacker, why = new(), ""
        try:
            while not unpacker.eof and raw:
                kept.append(raw)
                if piece := unpacker.decompress(raw):
                    yield piece
                raw = unpacker.unused_data if unpacker.eof else next(chunks, b"")
            why = "" if unpacker.eof else CUT
        except DAMAGE as error:
            why = f"the packed file is damaged here: {error}"
        yield why or b""
        if why:  # Where its end is damaged, a member can seem to run on over those behind it.
            raw = _find_member(b"".join(kept)[1:], chunks, magic, new)


def _top_up(raw: bytes, chunks: Iterator[bytes]) -> bytes:
    """At least four bytes, if there are so many; zeros that pad the file are skipped."""
    while len(raw := raw.lstrip(b"\0")) < 4 and (chunk := next(chunks, b"")):
        raw += chunk
    return raw


def _find_member(raw: bytes, chunks: Iterator[bytes], magic: bytes, new: Callable) -> bytes:
    """The file from its next member that begins with a record, b'' if there is none."""
    start = 0
    while True:
        while (at := raw.find(magic, start)) < 0:
            if not (chunk := next(chunks, b"")):
                return b""
            raw, start = raw[max(start, len(raw) - len(magic) + 1) :] + chunk, 0
        while len(raw) - at < CHECKED_BYTES[magic] and (chunk := next(chunks, b"")):
            raw += chunk
        try:
            if new().decompress(raw[at : at + CHECKED_BYTES[magic]], 5) == b"WARC/":
                return raw[at:]
        except DAMAGE:
            pass
        start = at + 1


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
            body = zstd.ZstdDecompressor().decompress(body, MAX_BLOCK_BYTES + 1)
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
