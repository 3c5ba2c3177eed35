"""Files anywhere: local paths and object stores, found by glob, opened, unpacked, hashed."""

import contextlib
import fnmatch
import functools
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from data import unpacking
from data.errors import BadInput

HEAD_BYTES = 1 << 16
HEAD_STEP_BYTES = 1 << 10
# What packed bytes that are cut off or damaged raise.
DAMAGE = unpacking.DAMAGE
# What a file system raises that is not installed, does not answer, or not for us.
UNREACHED = (OSError, ValueError, NotImplementedError, ImportError)
CHUNK_BYTES = 1 << 20
WILDCARD = re.compile(r"[*?\[]")
URI = re.compile(r"([a-z][a-z0-9+.-]+)://")
# Not content: what version control and systems keep beside it.
HIDDEN_FOLDERS = (".git", ".hg", ".svn", "__pycache__", "node_modules")
# Of these Arrow has clients; those of fsspec are packages of their own.
ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs")
# How long a store may take to answer at all; how much is told of why it did not.
REACH_SECS, MAX_WHY_CHARS = 30, 400

Entry = dict[str, Any]  # as fsspec lists it: name, size, type, and what else the store says


@dataclass(frozen=True)
class File:
    """One input file.

    Attributes:
        name: its path inside what was given, with '/': stable when the whole is moved.
        path: local path or URI.
        root: the folder that `name` is relative to, a path or URI.
        num_bytes: its size as stored.
        changed: what a store says of it, hashed: another when it has been written again.
        why: of a folder that cannot be listed, which stands for what is in it: why not; else ''.
        leads_to: where a link leads that leaves `root`; else ''.
    """

    name: str
    path: str
    root: str
    num_bytes: int
    changed: str = ""
    why: str = ""
    leads_to: str = ""


def find(key: str, pattern: str) -> list[File]:
    """Finds files, sorted by name.

    Args:
        key: the setting that `pattern` is of, for messages.
        pattern: a file, a folder (read recursively), a glob with * ? [] and ** for any depth, or
            several of these with commas between; local or on an object store (s3://, gs://, hf://
            and what else fsspec knows). A name that is there as it stands is that, whatever commas
            and brackets are in it.

    Returns:
        The files, each once. Files and folders whose names begin with a dot are skipped below a
        folder or glob. A folder below them that cannot be listed is among the files, with the
        reason, and so is a link to a folder, which is not followed.

    Raises:
        BadInput: one of several at which nothing is; a store that is unknown or does not answer.
    """
    found: dict[str, File] = {}
    parts = [pattern] if _is_there(pattern) else map(str.strip, pattern.split(","))
    for part in parts:
        files = list(_find_one(part))
        if not files:
            shown = part or "''"
            raise BadInput(f"{key}: {shown}: no file found; a file, folder or glob is needed")
        for file in files:
            found.setdefault(file.path, file)
    return sorted(found.values(), key=lambda file: (file.name, file.path))


def _is_there(pattern: str) -> bool:
    """Whether something local has that very name."""
    path = pattern.removeprefix("file://")
    with contextlib.suppress(OSError, ValueError):  # Longer than a name, as lists of files are.
        return path != "" and Path(path).exists()
    return False


def _find_one(pattern: str) -> Iterator[File]:
    if not pattern:
        return
    try:
        store = _store_of(pattern)
        wild = None if _is_there(pattern) else WILDCARD.search(store.path)
        root = store.path[: wild.start()].rpartition("/")[0] if wild else store.path
        info = store.system.info(root or "/")
    except FileNotFoundError:
        return
    except UNREACHED as error:
        raise BadInput(f"{pattern}: cannot be listed: {_why(error)}") from error
    if info["type"] == "file":
        yield _file(store, info, posixpath.dirname(root))
    elif info["type"] == "directory":
        matches = _matcher(store.path) if wild else None
        for entry, why in _walk(pattern, store.system, info["name"]):
            if matches is None or why or matches(entry["name"]):
                yield _file(store, entry, root, why)


def _file(store: "_Store", entry: Entry, root: str, why: str = "") -> File:
    said = repr(sorted((key, str(value)) for key, value in entry.items())).encode()
    changed = hashlib.blake2b(said, digest_size=8).hexdigest()
    name, size = posixpath.relpath(entry["name"], root or "/"), entry.get("size") or 0
    target = os.path.realpath(entry["name"]) if entry.get("islink") else ""
    inside = not target or Path(target).is_relative_to(os.path.realpath(root))
    path, folder = store.prefix + entry["name"], store.prefix + root
    return File(name, path, folder, size, changed, why, "" if inside else target)


def _walk(
    pattern: str, system: fsspec.AbstractFileSystem, root: str
) -> Iterator[tuple[Entry, str]]:
    """All files below a folder, with ''; folders that are not listed, with the reason.

    Hidden ones are not entered, and neither are links to folders.
    """
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            inside = _list(system, folder)
        except UNREACHED as error:
            if folder == root:
                raise BadInput(f"{pattern}: cannot be listed: {_why(error)}") from error
            yield {"name": folder}, _why(error)
            continue
        for entry in inside:
            base = posixpath.basename(entry["name"].rstrip("/"))
            if base.startswith(".") or base in HIDDEN_FOLDERS or entry["name"] == folder:
                continue
            if not _is_unicode(entry["name"]):
                yield {"name": folder}, f"a name in it is not UTF-8: {base!r}"
            elif entry["type"] == "directory":
                waiting.append(entry["name"])
            elif entry["type"] == "file" or (entry.get("islink") and Path(entry["name"]).is_file()):
                yield entry, ""
            elif entry.get("islink") and Path(entry["name"]).is_dir():
                yield entry, "a link to a folder, which is not followed; give the folder itself"


def _list(system: fsspec.AbstractFileSystem, folder: str) -> list[Entry]:
    return system.ls(folder, detail=True)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matcher(pattern: str) -> Callable[[str], bool]:
    """A glob as a predicate on paths: * and ? stay inside a folder, ** does not."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", posixpath.normpath(pattern))
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = [
        translated.get(piece)
        or (fnmatch.translate(piece)[4:-3] if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    ]
    # A folder that matches stands for what is in it.
    matcher = re.compile("".join(parts) + "(?:/.*)?")
    return lambda path: matcher.fullmatch(path) is not None


class _Store(NamedTuple):
    """A file system, a path as it names it, and what stands before its names in URIs."""

    system: fsspec.AbstractFileSystem
    path: str
    prefix: str


def _store_of(path: str) -> _Store:
    scheme = URI.match(path)
    if not scheme or scheme[1] == "file":
        return _Store(
            LocalFileSystem(), posixpath.normpath(LocalFileSystem._strip_protocol(path)), ""
        )
    inside = path[scheme.end() :]
    system = _connect(scheme[1], inside.partition("/")[0])
    if isinstance(system, ArrowFSWrapper):
        return _Store(system, inside, scheme[0])
    inside = system._strip_protocol(path)
    return _Store(system, inside, path[: len(path) - len(inside)] if path.endswith(inside) else "")


@functools.cache
def _connect(scheme: str, bucket: str) -> fsspec.AbstractFileSystem:
    if scheme not in ARROW_SCHEMES:
        return fsspec.filesystem(scheme)
    # Google's client would try for a quarter of an hour to reach what cannot be reached.
    limit = f"?retry_limit_seconds={REACH_SECS}" if scheme in ("gs", "gcs") else ""
    return ArrowFSWrapper(fs.FileSystem.from_uri(f"{scheme}://{bucket}{limit}")[0])


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_WHY_CHARS]


def open_raw(path: str) -> BinaryIO:
    """Opens a file as it is stored; readable and seekable.

    Raises:
        OSError: it is gone or cannot be read.
    """
    store = _store_of(path)
    return store.system.open(store.path, "rb", block_size=CHUNK_BYTES)


def open_plain(path: str) -> BinaryIO:
    """Opens a file and unpacks it by its content: gzip, zstd, bzip2, xz, or none of them.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: here or while reading, if it is damaged.
    """
    return unpacking.unpack(open_raw(path))


def head(path: str) -> bytes:
    """The first bytes of a file, unpacked; fewer where the packing is damaged behind them.

    Raises:
        OSError: it cannot be read at all.
        Those of DAMAGE: it is damaged before anything could be unpacked.
    """
    found = bytearray()
    with open_plain(path) as stream:
        try:
            # In small steps: a step that meets the damage gives nothing.
            while len(found) < HEAD_BYTES and (part := stream.read1(HEAD_STEP_BYTES)):
                found += part
        except DAMAGE:
            if not found:
                raise
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


def fingerprint(key: str, pattern: str) -> list[list[str]]:
    """Names and hashes of files.

    Args:
        key: the setting that `pattern` is of, for messages.
        pattern: as of `find`.

    Raises:
        BadInput: as of `find`, and a file or folder that cannot be read.
    """
    hashes = []
    for file in find(key, pattern):
        try:
            hashes.append([file.name, hash_content(file.path)])
        except OSError as error:
            raise BadInput(f"{key}: {file.path}: cannot be read: {_why(error)}") from error
    return hashes
