"""Results of stages that several runs share: each is made once and linked into every run.

STORE/<stage>/<hash of its inputs>/    done.json and the stage's files, of a finished stage
STORE/<stage>/<hash>.lock              held by the process that makes it, as long as it lives

Inputs hold the stage's keys, the content of the files that it reads, its code, and the results of
the stages before it: equal hashes, equal results. The files of runs are hard links to the store's
(copies on another file system); either may be removed without harm to the other.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data.errors import BadInput
from launch.store.rundir import LOCKLESS, RunDir, digest, read_json, remove, write_json

POLL_SECS = 1.0
OWN = ("started.json", "done.json")  # what a run says of its own work on a stage


class Store:
    """A folder of finished stages."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def hold(self, stage: str, inputs: dict, note: Callable[[str], None]) -> Iterator[Path]:
        """The folder of a result, for one process at a time: a second waits for the first.

        Args:
          note: takes a line when it has to wait.

        Raises:
          BadInput: no store can be made there.
        """
        place = self.path / stage / digest(inputs)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be written ({error.strerror}); --store=DIR names another "
                "place for what runs share"
            ) from error
        try:
            _wait(descriptor, lambda: note(f"another run makes the same {stage}; waiting for it"))
            yield place
        finally:
            os.close(descriptor)


def _wait(descriptor: int, note: Callable[[], None]) -> None:
    waited = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                note()
            waited = True
            time.sleep(POLL_SECS)
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise
            return None  # a file system without locks: at worst two make the same


def take(place: Path, run: RunDir, stage: str) -> dict | None:
    """Links a result into a run, where nothing of the stage may be yet.

    Returns:
      The stage's done.json, without the time that it took another run; None if there is no such
      result, or its files have changed.
    """
    done = read_json(place / "done.json", ("inputs", "output", "summary"))
    if done is None:
        return None
    _link(place, run.stage(stage))
    # A link is the same bytes under another name: what has damaged them elsewhere shows here.
    if digest([done["summary"], run.hash_files(stage)]) != done["output"]:
        return None
    done |= {"secs": 0.0, "cpu_secs": 0.0, "products": run.products(stage)}
    write_json(run.stage(stage) / "done.json", done)
    return done


def put(place: Path, run: RunDir, stage: str) -> None:
    """Stores a finished stage of a run, in place of a result that was there."""
    part = place.with_suffix(".part")
    remove(part)
    _link(run.stage(stage), part)
    shutil.copyfile(run.stage(stage) / "done.json", part / "done.json")
    remove(place)
    part.replace(place)


def _link(source: Path, target: Path) -> None:
    """All files of a stage but a run's own."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif path.name not in OWN:
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, copy)
