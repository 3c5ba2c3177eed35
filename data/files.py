"""Files anywhere: local paths and object stores, found by glob, opened, unpacked, hashed."""

import bz2
import fnmatch
import functools
import gzip
import hashlib
import io
import lzma
import posixpath
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard
from pyarrow import fs

from data.errors import BadInput

HEAD_BYTES = 1 << 16
HEAD_STEP_BYTES = 1 << 10
# What packed bytes that are cut off or damaged raise.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError)
CHUNK_BYTES = 1 << 20
WILDCARD = re.compile(r"[*?\[]")
URI = re.compile(r"[a-z][a-z0-9+.-]+://")
# Not content: what version control and systems keep beside it.
HIDDEN_FOLDERS = (".git", ".hg", ".svn", "__pycache__", "node_modules")
# How long a store may take to answer at all; how much is told of why it did not.
REACH_SECS, MAX_WHY_CHARS = 30, 400


@dataclass(frozen=True)
class File:
    """One input file.

    Attributes:
        name: its path inside what was given, with '/': stable when the whole is moved.
        path: local path or URI.
        root: the folder that `name` is relative to, a path or URI.
        num_bytes: its size as stored.
        changed: when it was last written, nanoseconds since 1970.
    """

    name: str
    path: str
    root: str
    num_bytes: int
    changed: int


def find(key: str, pattern: str) -> list[File]:
    """Finds files, sorted by name.

    Args:
        key: the setting that `pattern` is of, for messages.
        pattern: a file, a folder (read recursively), a glob with * ? [] and ** for any depth, or
            several of these with commas between; local or on an object store (s3://, gs://,
            hdfs:// and what else Arrow's file systems know).

    Returns:
        The files, each once. Files and folders whose names begin with a dot are passed over below a
        folder or glob.

    Raises:
        BadInput: one of several at which nothing is; a store that is unknown or does not answer.
    """
    found: dict[str, File] = {}
    parts = [pattern] if Path(pattern).is_file() else map(str.strip, pattern.split(","))
    for part in parts:
        files = list(_find_one(part))
        if not files:
            shown = part or "''"
            raise BadInput(f"{key}: {shown}: no file found; a file, folder or glob is needed")
        for file in files:
            found.setdefault(file.path, file)
    return sorted(found.values(), key=lambda file: (file.name, file.path))


def _find_one(pattern: str) -> Iterator[File]:
    if not pattern:
        return
    system, path = _system(pattern)
    scheme = URI.match(pattern)
    prefix = scheme[0] if scheme else ""
    wild = WILDCARD.search(path)
    root = path[: wild.start()].rpartition("/")[0] if wild else path
    root = root or ("/" if path.startswith("/") else ".")
    info = _ask(pattern, lambda: system.get_file_info(root))
    if info.type == fs.FileType.File:
        folder, _, name = path.rpartition("/")
        yield File(name, prefix + path, prefix + folder, info.size, info.mtime_ns or 0)
        return
    if info.type != fs.FileType.Directory:
        return
    matches = _matcher(path) if wild else None
    for entry in sorted(_walk(pattern, system, root), key=lambda entry: entry.path):
        entry_path = posixpath.normpath(entry.path) if not prefix else entry.path
        if matches is None or matches(entry_path):
            name = posixpath.relpath(entry_path, root)
            yield File(name, prefix + entry_path, prefix + root, entry.size, entry.mtime_ns or 0)


def _walk(pattern: str, system: fs.FileSystem, root: str) -> Iterator[fs.FileInfo]:
    """All files below a folder; hidden ones are not entered."""
    for entry in _ask(pattern, lambda: system.get_file_info(fs.FileSelector(root))):
        name = entry.base_name
        if name.startswith(".") or name in HIDDEN_FOLDERS:
            continue
        if entry.type == fs.FileType.Directory:
            yield from _walk(pattern, system, entry.path)
        elif entry.type == fs.FileType.File:
            yield entry


def _matcher(pattern: str):
    """A glob as a predicate on paths: * and ? stay inside a folder, ** does not."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", posixpath.normpath(pattern))
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = [
        translated.get(piece)
        or (fnmatch.translate(piece)[4:-3] if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    ]
    whole = re.compile("".join(parts))
    # A folder that matches stands for what is in it.
    below = re.compile("".join(parts) + "/.*")
    return lambda path: bool(whole.fullmatch(path) or below.fullmatch(path))


def _system(path: str) -> tuple[fs.FileSystem, str]:
    if not URI.match(path) or path.startswith("file://"):
        return fs.LocalFileSystem(), path.removeprefix("file://")
    return _remote(path)


@functools.cache
def _store(prefix: str) -> fs.FileSystem:
    # Google's client would try for a quarter of an hour to reach what cannot be reached.
    limit = f"?retry_limit_seconds={REACH_SECS}" if prefix.startswith(("gs:", "gcs:")) else ""
    return fs.FileSystem.from_uri(prefix + limit)[0]


def _remote(path: str) -> tuple[fs.FileSystem, str]:
    scheme, _, rest = path.partition("://")
    bucket = rest.partition("/")[0]

    def connect() -> fs.FileSystem:
        return _store(f"{scheme}://{bucket}")

    return _ask(path, connect), rest


def _ask(path: str, question):
    try:
        return question()
    except (OSError, ValueError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:MAX_WHY_CHARS]
        raise BadInput(f"{path}: cannot be listed: {why}") from error


def open_raw(path: str) -> BinaryIO:
    """Opens a file as it is stored; readable, local ones seekable.

    Raises:
        OSError: it is gone or cannot be read.
    """
    system, inside = _system(path)
    if isinstance(system, fs.LocalFileSystem):
        return Path(inside).open("rb")
    return io.BufferedReader(system.open_input_stream(inside), CHUNK_BYTES)


def open_plain(path: str) -> BinaryIO:
    """Opens a file and unpacks it by its content: gzip, zstd, bzip2, xz, or none of them.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: here or while reading, if it is damaged.
    """
    stream = io.BufferedReader(open_raw(path), CHUNK_BYTES)
    magic = stream.peek(6)[:6]
    for start, unpack in UNPACKERS.items():
        if magic.startswith(start):
            return _Unpacked(unpack(stream), stream)
    return stream


def _unpack_zstd(stream: BinaryIO) -> BinaryIO:
    return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)


UNPACKERS = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


class _Unpacked(io.BufferedReader):
    """An unpacked stream that closes the packed one with it."""

    def __init__(self, unpacked: BinaryIO, packed: BinaryIO):
        super().__init__(unpacked, CHUNK_BYTES)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def head(path: str) -> bytes:
    """The first bytes of a file, unpacked; fewer where the packing is damaged.

    Raises:
        OSError: it cannot be read at all.
    """
    found = bytearray()
    with open_plain(path) as stream:
        try:
            # In small steps: a step that meets the damage gives nothing.
            while len(found) < HEAD_BYTES and (part := stream.read1(HEAD_STEP_BYTES)):
                found += part
        except DAMAGE:
            pass
    return bytes(found[:HEAD_BYTES])


def hash_content(path: str) -> str:
    """Hashes a file's stored bytes, a megabyte at a time: 32 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_raw(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
