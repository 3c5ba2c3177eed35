"""Files anywhere: local paths and object stores, found by glob, opened, unpacked, hashed."""

import contextlib
import fnmatch
import functools
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from data import unpacking
from data.errors import BadInput

HEAD_BYTES = 1 << 16
HEAD_STEP_BYTES = 1 << 10
# What packed bytes that are cut off or damaged raise.
DAMAGE = unpacking.DAMAGE
# What a file system raises that does not answer, or not for us.
UNREACHED = (OSError, ValueError, NotImplementedError)
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
        why: of a folder that cannot be listed, which stands for what is in it: why not; else ''.
    """

    name: str
    path: str
    root: str
    num_bytes: int
    changed: int
    why: str = ""


def find(key: str, pattern: str) -> list[File]:
    """Finds files, sorted by name.

    Args:
        key: the setting that `pattern` is of, for messages.
        pattern: a file, a folder (read recursively), a glob with * ? [] and ** for any depth, or
            several of these with commas between; local or on an object store (s3://, gs://,
            hdfs:// and what else Arrow's file systems know). A name that is there as it stands
            is that, whatever commas and brackets are in it.

    Returns:
        The files, each once. Files and folders whose names begin with a dot are skipped below a
        folder or glob, and of a local folder that several links lead to, all but one. A folder
        below them that cannot be listed is among the files, with the reason.

    Raises:
        BadInput: one of several at which nothing is; a store that is unknown or does not answer.
    """
    found: dict[str, File] = {}
    is_one = _is_there(pattern)
    parts = [pattern] if is_one else map(str.strip, pattern.split(","))
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
    system, path = _system(pattern)
    scheme = URI.match(pattern)
    prefix = scheme[0] if scheme else ""
    wild = None if _is_there(pattern) else WILDCARD.search(path)
    root = path[: wild.start()].rpartition("/")[0] if wild else path
    root = root or ("/" if path.startswith("/") else ".")
    info = _parse(pattern, lambda: system.get_file_info(root))
    if info.type == fs.FileType.File:
        folder, _, name = path.rpartition("/")
        yield File(name, prefix + path, prefix + folder, info.size, info.mtime_ns or 0)
        return
    if info.type != fs.FileType.Directory:
        return
    matches = _matcher(path) if wild else None
    for entry, why in sorted(_walk(pattern, system, info, matches), key=lambda row: row[0].path):
        entry_path = posixpath.normpath(entry.path) if not prefix else entry.path
        if matches is None or why or matches(entry_path):
            name = posixpath.relpath(entry_path, root)
            size, changed = entry.size or 0, entry.mtime_ns or 0
            yield File(name, prefix + entry_path, prefix + root, size, changed, why)


def _walk(
    pattern: str, system: fs.FileSystem, root: fs.FileInfo, matches: Callable[[str], bool] | None
) -> Iterator[tuple[fs.FileInfo, str]]:
    """All files below a folder, with ''; folders that cannot be listed, with the reason.

    Hidden ones are not entered. Local folders are entered once, and through a link only where that
    is the only way: their own names come first. Where a glob chooses among the names, it may be a
    link's that it gives; then only links to a folder above them are not followed.
    """
    is_local = isinstance(system, fs.LocalFileSystem)
    entered: set[str] = set()
    # Folders and links to folders that are to be entered: what they are, and the folders above.
    folders, links = [(root, frozenset())], []
    while folders or links:
        folder, above = folders.pop() if folders else links.pop()
        real = os.path.realpath(folder.path) if is_local else folder.path
        if real in above or (matches is None and real in entered):
            continue
        entered.add(real)
        try:
            inside = _list(system, folder.path)
        except UNREACHED as error:
            if not above:
                raise BadInput(f"{pattern}: cannot be listed: {_why(error)}") from error
            yield folder, _why(error)
            continue
        named, unnamed = _by_name(inside)
        if unnamed:
            yield folder, unnamed
        for entry in named:
            if entry.base_name.startswith(".") or entry.base_name in HIDDEN_FOLDERS:
                continue
            if entry.type == fs.FileType.Directory:
                is_link = is_local and Path(entry.path).is_symlink()
                (links if is_link else folders).append((entry, above | {real}))
            elif entry.type == fs.FileType.File:
                yield entry, ""


def _by_name(inside: list[fs.FileInfo]) -> tuple[list[fs.FileInfo], str]:
    """Those of a folder from the last name on; and why some have none that Arrow can tell."""
    named, why = [], ""
    for entry in inside:
        try:
            named.append((entry.path, entry))
        except UnicodeDecodeError as error:
            why = f"a name in it is not UTF-8: {_why(error)}"
    return [entry for _, entry in sorted(named, key=lambda row: row[0], reverse=True)], why


def _list(system: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    return system.get_file_info(fs.FileSelector(folder))


def _matcher(pattern: str) -> Callable[[str], bool]:
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

    return _parse(path, connect), rest


def _parse(path: str, question):
    try:
        return question()
    except UNREACHED as error:
        raise BadInput(f"{path}: cannot be listed: {_why(error)}") from error


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_WHY_CHARS]


def open_raw(path: str) -> BinaryIO:
    """Opens a file as it is stored; readable, local ones seekable.

    Raises:
        OSError: it is gone or cannot be read.
    """
    system, inside = _system(path)
    if isinstance(system, fs.LocalFileSystem):
        return Path(inside).open("rb")
    return io.BufferedReader(system.open_input_stream(inside, compression=None), CHUNK_BYTES)


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
