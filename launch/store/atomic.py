"""Directories that get their name only when they are complete."""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.errors import BadInput
from launch.console import Progress


@contextlib.contextmanager
def atomic_directory(out: Path, flag: str, progress: Progress) -> Iterator[Path]:
    """A directory to write into, renamed to `out` when it is complete and removed otherwise.

    Args:
      out: the name.
      flag: what the user gave it by, for messages.
      progress: where a line goes if something is removed.

    Raises:
      BadInput: there is something at `out` already, or it cannot be made.
    """
    try:
        if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise BadInput(f"{flag}={out}: exists already; it must be a new or an empty directory")
        if not out.parent.is_dir():
            raise BadInput(f"{flag}={out}: {out.parent} is no directory")
        out = out.resolve()
        _sweep(out, progress)
        part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
        part.mkdir()
        lock = _lock(part)
    except OSError as error:
        raise BadInput(f"{flag}={out}: cannot be made ({error.strerror})") from error
    try:
        yield part
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _sweep(out: Path, progress: Progress) -> None:
    """Removes what killed processes have left beside `out`; a running one holds a lock."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.????????.part"):
        try:
            lock = _lock(path)
        except OSError:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        progress.note(f"removed {path}, which a killed process has left")


def _lock(directory: Path) -> int:
    """A descriptor that holds the directory's lock until it is closed; OSError if another does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
