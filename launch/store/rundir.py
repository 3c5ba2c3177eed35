"""A run directory: what is in it, what is finished, and how lines get there.

config.json             the resolved configuration, code and package versions
metrics.jsonl           one object a line: what training and its evaluators measured
tensorboard/<stage>/    the same numbers as TensorBoard events
checkpoints/<stage>/    Orbax checkpoints
cache/<stage>/          finished pieces of a stage, by the hash of their content
<stage>/done.json       the stage is finished: hash of its inputs, seconds, summary
<stage>/...             what else the stage writes
report.html             the report
.lock                   only while something writes here: the process that does
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import BadInput
from launch.store.atomic import write_text
from launch.store.metrics import read_metrics, truncate

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numba", "sentencepiece", "numpy")
ROOT = Path(__file__).resolve().parents[2]
# In tokenizer/, where the tokenizer is an imported run's: the part of that run's config.json which
# export reads. No stage's result depends on it.
ORIGIN = "origin.json"
ORIGIN_KEYS = ("format", "model_type", "dtype", "token_ids", "generation")
LOCK = ".lock"
# What flock gives where a file system has no locks, as some network mounts.
LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Described(dict):
    """A configuration read from a file: errors about it name the file."""

    def __init__(self, path: Path, config: dict):
        nested = {k: Described(path, v) if isinstance(v, dict) else v for k, v in config.items()}
        super().__init__(nested)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise BadInput(f"{self._path}: config has no {key!r}; restore it, or run again")

    def value(self, path: str, kind: type) -> Any:
        """The value at a dotted path, which must be of this type."""
        found: Any = self
        for key in path.split("."):
            found = found[key] if isinstance(found, Described) else None
        if not isinstance(found, kind):
            raise BadInput(
                f"{self._path}: config.{path} is {str(found)[:40]!r}; it must be of type "
                f"{kind.__name__}; restore it, or run again"
            )
        return found


class RunDir:
    """Paths of a run, and the two files every stage appends to or closes with.

    Attributes:
      path: the run directory.
      flag: what the user gave it by, for messages.
    """

    def __init__(self, path: Path, flag: str = "--run"):
        self.path, self.flag = path, flag

    def stage(self, name: str) -> Path:
        """Directory of a stage's own files."""
        return self.path / name

    def cache(self, stage: str) -> Path:
        """Directory of finished pieces that a stage resumes from; safe to remove."""
        return self.path / "cache" / stage

    def checkpoints(self, stage: str) -> Path:
        """Directory of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def read_config(self) -> Described:
        """The configuration that the run was made with."""
        path = self.path / "config.json"
        described = read_json(path, ("config",))
        if described is None:
            raise BadInput(f"{self.flag}={self.path}: no such run; {path}: no such file")
        if not isinstance(described["config"], dict):
            raise BadInput(f"{path}: config must be an object; restore it, or run again")
        return Described(path, described["config"])

    def read_done(self, stage: str) -> dict | None:
        """What a finished stage left, or None."""
        return read_json(self.stage(stage) / "done.json", ("inputs", "summary", "products"))

    def find_replaced(self, stage: str) -> str | None:
        """An upstream stage whose result has changed since `stage` was made, or None.

        All stages upstream count, not only those that `stage` reads itself.
        """
        started = self.read_started(stage) or {"inputs": {}}
        upstream = started["inputs"].get("upstream", {})
        for need, output in upstream.items():
            if output != (self.read_done(need) or {}).get("output"):
                return need
        return next(filter(None, map(self.find_replaced, upstream)), None)

    def products(self, stage: str) -> dict[str, int]:
        """Size of each file of a stage, by its path in the run: its own, checkpoints, page."""
        folders = (self.stage(stage), self.checkpoints(stage))
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        files += self.path.glob(f"{stage}.html")
        return {
            path.relative_to(self.path).as_posix(): path.stat().st_size
            for path in sorted(files)
            if path.name != "done.json"
        }

    def hash_files(self, stage: str) -> dict[str, str]:
        """SHA-256 of each file that a stage made in its directory, by its name there."""
        folder, about = self.stage(stage), ("started.json", "done.json", ORIGIN)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): hash_file(path)
            for path in paths
            if path.name not in about
        }

    def record_products(self, stage: str) -> None:
        """Records the files of a finished stage as they are now: one was made again."""
        done = self.read_done(stage)
        if done is not None:
            write_json(self.stage(stage) / "done.json", done | {"products": self.products(stage)})

    def is_whole(self, done: dict) -> bool:
        """Whether every file that the stage had made when it finished is there, in its size."""
        return self.find_damage(done) is None and all(
            (self.path / name).exists() for name in done["products"]
        )

    def find_damage(self, done: dict) -> str | None:
        """The first file of a finished stage whose size is not what it was, or None.

        A missing file is not damage: the stage resumes from what remains.
        """
        if not isinstance(done["products"], dict):
            path = self.stage(done["stage"]) / "done.json"
            raise BadInput(f"{path}: products has no sizes; remove it and run again")
        for name, size in done["products"].items():
            path = self.path / name
            if path.exists() and path.stat().st_size != size:
                return name
        return None

    def read_started(self, stage: str) -> dict | None:
        """The inputs of the stage's last start, finished or not, and their hash; or None."""
        path = self.stage(stage) / "started.json"
        started = read_json(path, ("hash", "inputs", "code"))
        inputs = started["inputs"] if started else {}
        if not isinstance(inputs, dict) or not isinstance(inputs.get("upstream", {}), dict):
            raise BadInput(f"{path}: inputs and their upstream must be objects; remove it")
        return started

    def check(self) -> None:
        """Raises BadInput if there is something here that no run has made."""
        marks = [self.path / "config.json", *self.path.glob("*/started.json")]
        if self.path.is_dir() and not any(mark.exists() for mark in marks):
            names = [path.name for path in self.path.iterdir() if path.suffix != ".part"]
            strangers = [name for name in names if name != LOCK]
            if strangers:
                raise BadInput(
                    f"{self.flag}={self.path}: holds {min(strangers)!r} and no config.json; it "
                    "must be a run, an empty directory, or a new one"
                )

    def begin(self, stage: str, inputs: Mapping, code: dict, *, fresh: bool) -> None:
        """Prepares a stage's directory; what an earlier try left is kept, or set aside if `fresh`.

        Args:
          stage: its name.
          inputs: what its result depends on.
          code: the version of the code that computes it.
          fresh: whether to start over, inside of `replacing`.
        """
        if fresh:
            self._set_aside(stage)
        else:
            remove(self.stage(stage) / "done.json")
        self.stage(stage).mkdir(parents=True, exist_ok=True)
        started = {"hash": digest(inputs), "inputs": inputs, "code": code}
        write_json(self.stage(stage) / "started.json", started)

    @contextlib.contextmanager
    def replacing(self, stage: str) -> Iterator[None]:
        """While a stage starts over: bad input that leaves nothing new brings the old back.

        Otherwise what `begin` has set aside is deleted, and so is that of a killed process.
        """
        aside = self.path / f".{stage}.before"
        remove(aside)
        try:
            yield
        except BadInput:
            made = [path.name for path in self.stage(stage).glob("*")] if aside.exists() else []
            if aside.exists() and made in ([], ["started.json"]) and not self._has_model(stage):
                self._bring_back(stage, aside)
            raise
        remove(aside)

    def _has_model(self, stage: str) -> bool:
        folder = self.checkpoints(stage)
        return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())

    def _places(self, stage: str) -> dict[str, Path]:
        """Where a stage leaves what it makes, but for its lines of metrics."""
        board = self.path / "tensorboard" / stage
        return {"model": self.checkpoints(stage), "board": board, "stage": self.stage(stage)}

    def _set_aside(self, stage: str) -> None:
        aside, metrics = self.path / f".{stage}.before", self.path / "metrics.jsonl"
        is_second = aside.exists()  # the first has set the old aside; this is what came since
        aside.mkdir(parents=True, exist_ok=True)
        if metrics.exists() and not is_second:
            lines = [f"{line}\n" for line, row in read_metrics(metrics) if row["stage"] == stage]
            write_text(aside / metrics.name, "".join(lines))
        # First of all: a stage of which a part is gone must not count as finished.
        done = self.stage(stage) / "done.json"
        if done.is_file() and not is_second:
            done.replace(aside / done.name)
        for name, path in self._places(stage).items():
            if is_second or path.is_symlink() or not path.is_dir():
                remove(path)
            else:
                path.replace(aside / name)
        self.truncate_metrics(stage, 0)

    def _bring_back(self, stage: str, aside: Path) -> None:
        for name, path in self._places(stage).items():
            remove(path)
            if (aside / name).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(path)
        if (aside / "metrics.jsonl").exists():
            metrics = self.path / "metrics.jsonl"
            kept = metrics.read_text() if metrics.exists() else ""
            write_text(metrics, kept + (aside / "metrics.jsonl").read_text())
        if (aside / "done.json").exists():
            (aside / "done.json").replace(self.stage(stage) / "done.json")
        remove(aside)

    def truncate_metrics(self, stage: str, step: int) -> None:
        """Drops a stage's lines after `step`, which its resumed training will write again."""
        truncate(self.path / "metrics.jsonl", stage, step)

    def write_config(self, settings: dict, devices: str) -> None:
        """Writes config.json."""
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        described = {
            "config": settings,
            "code": code_version(),
            "packages": versions,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "devices": devices,
        }
        self._make()
        write_json(self.path / "config.json", described)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError) as error:
            raise BadInput(f"{self.flag}={self.path}: cannot be made ({error.strerror})") from error

    @contextlib.contextmanager
    def lock(self, note: Callable[[str], None]) -> Iterator[None]:
        """Keeps other processes from writing this run; the lock ends with its process in any case.

        Args:
          note: takes a line where the file system has no locks; it continues without one.

        Raises:
          BadInput: another process writes it.
        """
        self._make()
        path = self.path / LOCK
        descriptor = self._open_lock(path, note)
        try:
            os.ftruncate(descriptor, 0)  # of a killed process
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}".encode())
            yield
        finally:
            # While it is held, so that no other process holds a file that has lost its name.
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _open_lock(self, path: Path, note: Callable[[str], None]) -> int:
        """A descriptor that holds the lock until it is closed."""
        while True:
            # Not inherited by programs that are started from here, workers among them.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid, _, host = os.read(descriptor, 999).decode(errors="replace").partition(" ")
                os.close(descriptor)
                where = f" of {host}" if host not in ("", socket.gethostname()) else ""
                raise BadInput(
                    f"{self.flag}={self.path}: in use by process {pid or 'unknown'}{where}; wait "
                    "for it or give another directory"
                ) from error
            except OSError as error:
                if error.errno not in LOCKLESS:
                    os.close(descriptor)
                    raise
                note(f"{self.path}: no locks there; nothing else may write this run meanwhile")
                return descriptor
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)  # its holder has taken it away when it was done


def code_version() -> dict:
    """Commit of the checkout and whether files differ from it; None outside of git."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if commit is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; an empty section is a leaf."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    leaves = {}
    for key, item in value.items():
        leaves |= flatten(item, f"{path}.{key}" if path else key)
    return leaves


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    if not path.is_file():
        raise BadInput(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Removes a file, a link, or a directory: killed half-way, nothing is left under its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    trash = path.with_name(f".{path.name}.removed")
    if trash.exists():  # of a killed process
        shutil.rmtree(trash)
    path.replace(trash)
    shutil.rmtree(trash)


def read_json(path: Path, keys: tuple[str, ...] = ()) -> dict | None:
    """The object in a JSON file, or None where there is no file.

    Raises:
      BadInput: it is not JSON, or not an object with these keys.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # malformed JSON, or not UTF-8
        raise BadInput(
            f"{path}: not JSON ({error}); if a run wrote it, remove it and run again"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not a JSON object; if a run wrote it, remove it and run again")
    missing = [key for key in keys if key not in value]
    if missing:
        raise BadInput(f"{path}: lacks {missing}; if a run wrote it, remove it and run again")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")
