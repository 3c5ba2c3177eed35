"""Zip and tar archives of files of any kind, one in another to MAX_DEPTH."""

import functools
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from data import storage
from data.document import Record
from data.errors import printable
from data.readers.borders import to_the_damage
from data.unpacking import FREE_BYTES, MAX_RATIO, open_tar

MAX_DEPTH, MAX_MEMBER_BYTES = 3, 1 << 30
ZIP = b"PK\x03\x04"
HIDDEN = re.compile(r"(?:\A|/)(?:\.(?!\.?/)|__MACOSX/)")


class _Member(NamedTuple):
    """A file in an archive: its size, at most how much of it is read, and what opens it."""

    name: str
    num_bytes: int
    most: int
    open: Callable[[], IO[bytes]]


def read(path: str, read_file: Callable[[str, str], Iterator[Record]]) -> Iterator[Record]:
    """Reads the files of an archive, one after another, each from a temporary file.

    Args:
        path: local path or object-store URI of a zip or tar, the tar packed or not.
        read_file: reads the records of a file, given its local path and its name in the archive.

    Yields:
        Their records, numbered over all of them; `meta` names the member. One of more than
        MAX_MEMBER_BYTES, or of MAX_RATIO times its packed size, is broken; links and hidden files
        are passed over.

    Raises:
        OSError, tarfile.TarError, zipfile.BadZipFile: it cannot be opened, or is damaged behind the
            last record.
    """
    number = 0
    members = _zip_members if storage.head(path).startswith(ZIP) else _tar_members
    for member in members(path):
        if HIDDEN.search(member.name):
            continue
        for record in to_the_damage(_records(member, read_file)):
            number += 1
            meta = {**record.meta, "member": printable(member.name)}
            yield record._replace(number=number, meta=meta)


def _records(member: _Member, read_file: Callable) -> Iterator[Record]:
    if member.num_bytes > member.most:
        raise OSError(f"{member.num_bytes} bytes, and at most {member.most} are read")
    # Its last name says what it is; what is before that could lead out of the folder.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, posixpath.basename(member.name) or "file")
        with member.open() as source, path.open("xb") as target:
            shutil.copyfileobj(source, target)
        yield from read_file(str(path), member.name)


def _tar_members(path: str) -> Iterator[_Member]:
    with storage.open_plain(path) as stream, open_tar(stream) as archive:
        for one in filter(tarfile.TarInfo.isfile, archive):
            content = functools.partial(archive.extractfile, one)
            yield _Member(one.name, one.size, MAX_MEMBER_BYTES, content)


def _zip_members(path: str) -> Iterator[_Member]:
    with storage.open_raw(path) as stream, zipfile.ZipFile(stream) as archive:
        for one in archive.infolist():
            if not one.is_dir():
                most = min(MAX_MEMBER_BYTES, FREE_BYTES + MAX_RATIO * one.compress_size)
                content = functools.partial(archive.open, one)
                yield _Member(one.filename, one.file_size, most, content)
