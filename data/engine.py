"""Where work is done: in this process, on the cores of this machine, or on a Ray cluster.

Work is a list of tasks, each a pure function of its arguments and of files it names. A task leaves
one folder of files, named by the hash of everything that its content depends on, so that nothing
stale can be taken for it; what is there is not done again, whoever was killed and whenever. How
many workers there are, and of which kind, changes nothing but the time. The only module that
imports ray.
"""

import ast
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import BadInput

RUNNERS = ("native", "ray")
# Tasks handed out at once for each worker: enough that none waits, few enough to bound memory.
TASKS_IN_FLIGHT = 2
SUMMARY = "summary.json"
HALVED = "halved"  # in the summary of a task that its parts have replaced
# How long the head of a Ray cluster may take to accept a connection.
REACH_SECS = 5
# prctl(2): the signal that a process gets when its parent is gone.
PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Runner:
    """Where tasks run; no part of any hash.

    Attributes:
        kind: native (processes on this machine) or ray.
        workers: processes at once; 0: one a core (of the cluster, with ray).
        address: of a Ray cluster; '' starts Ray on this machine.
    """

    kind: str = "native"
    workers: int = 0
    address: str = ""

    def __post_init__(self):
        if self.kind not in RUNNERS:
            raise BadInput(f"--runner={self.kind}: must be one of {', '.join(RUNNERS)}")
        if self.workers < 0:
            raise BadInput(f"--workers={self.workers}: must be 0 (all cores) or more")
        if self.address and self.kind != "ray":
            raise BadInput(f"--ray-address={self.address}: needs --runner=ray")


class Task(NamedTuple):
    """One piece of work.

    Attributes:
        body: a function of a module, `body(out, **arguments) -> summary`; it writes files into the
            folder `out` and returns what JSON can hold.
        key: hash of all that the content of those files depends on.
        arguments: what picklable things it is given; paths among them may differ for equal keys.
        label: what it works on, for messages.
        halve: gives the tasks that take its place where its process dies each time, the parts of
            what it works on; None where there is no such thing, and the work ends.
    """

    body: Callable[..., dict]
    key: str
    arguments: Mapping[str, Any]
    label: str
    halve: Callable[[], "list[Task]"] | None = None


class WorkerDied(Exception):
    """A process ended in the middle of a task: out of memory, or a fault in compiled code."""


def key_of(body: Callable, *parts: Any, modules: Iterable[str] = ()) -> str:
    """Hashes a task's body with all code that it imports, and JSON-able parts.

    Args:
        body: a function of a module.
        parts: what else the content of its files depends on.
        modules: others, named, that it imports by name.

    Returns:
        32 hexadecimal digits.
    """
    code = [body.__qualname__, *map(hash_module, (body.__module__, *modules))]
    text = json.dumps([code, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@functools.cache
def hash_module(name: str) -> str:
    """Hashes a module's source and those of all modules of this checkout that it imports.

    Late imports count. An edit of another module changes nothing.
    """
    found, waiting = {}, [name]
    while waiting:
        module = waiting.pop()
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if module in found or not path.is_file():
            continue
        found[module] = path.read_bytes()
        for node in ast.walk(ast.parse(found[module])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    digest = hashlib.blake2b(digest_size=16)
    for module in sorted(found):
        digest.update(module.encode() + b"\0" + found[module] + b"\0")
    return digest.hexdigest()


@functools.cache
def hash_code(*paths: Path) -> str:
    """Hashes files, and those with code in folders, to 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        found = [file for file in path.rglob("*") if file.suffix in (".py", ".jinja")]
        for file in sorted(found) if path.is_dir() else [path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Engine:
    """Runs tasks; made by `start`."""

    def __init__(
        self,
        submit: Callable[..., Any],
        wait_any: Callable,
        num_workers: int,
        restart: Callable[[], None],
    ):
        self._submit, self._wait_any, self._restart = submit, wait_any, restart
        self.num_workers = num_workers

    def run(
        self, folder: Path, tasks: Sequence[Task], log: Callable[[str], None]
    ) -> list[tuple[Path, dict]]:
        """Does what of the tasks is not done.

        Args:
            folder: what holds a folder a task, by its key.
            tasks: in the order in which results are wanted; two may share a key.
            log: takes a line of progress now and then.

        Returns:
            The folder and summary of each task, of one that was halved those of its parts.

        Raises:
            What a task raises: the first to fail ends the work, and finished ones stay.
            WorkerDied: its process did each time, and it cannot be halved.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.part*"):
            shutil.rmtree(part, ignore_errors=True)
        waiting = {task.key: task for task in tasks if not (folder / task.key / SUMMARY).exists()}
        total = len(waiting)
        for number, label in enumerate(self._finish(folder, list(waiting.values())), 1):
            log(f"{number}/{total} parts ({len(tasks) - total} cached), {label}")
        found = []
        for task in tasks:
            summary = read_summary(folder / task.key)
            if HALVED in summary:
                found += self.run(folder, task.halve(), log)
            else:
                found.append((folder / task.key, summary))
        return found

    def _finish(self, folder: Path, tasks: list[Task]) -> Iterator[str]:
        """Hands tasks out, a few for each worker at once, and yields labels as they end."""
        left, running = deque(tasks), {}
        while left or running:
            try:
                while left and len(running) < TASKS_IN_FLIGHT * self.num_workers:
                    running[self._send(folder, left[0])] = left[0]
                    left.popleft()
                for done in self._wait_any(list(running)):
                    yield running.pop(done).label
            except WorkerDied:
                self._restart()
                for task in running.values():
                    self._perform_alone(folder, task)
                    yield task.label
                running = {}

    def _send(self, folder: Path, task: Task) -> Any:
        return self._submit(_perform, folder, task._replace(halve=None))

    def _perform_alone(self, folder: Path, task: Task) -> None:
        """Does a task that may have killed its process; if it does again, it is to be halved."""
        if (folder / task.key / SUMMARY).exists():
            return
        try:
            self._wait_any([self._send(folder, task)])
        except WorkerDied as error:
            self._restart()
            if task.halve is None:
                raise WorkerDied(f"{task.label}: the process that worked on it died") from error
            _perform(folder, task._replace(body=_mark_halved, arguments={}))


def _mark_halved(_: Path) -> dict:
    return {HALVED: True}


def read_summary(folder: Path) -> dict:
    """What a finished task returned."""
    return json.loads((folder / SUMMARY).read_text())


def _perform(folder: Path, task: Task) -> None:
    """Does a task under another name, which its folder loses when all is written."""
    # By process, since on a cluster two may do the same after a worker was thought dead.
    part = folder / f"{task.key}.part{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        summary = task.body(part, **task.arguments)
        (part / SUMMARY).write_text(json.dumps(summary))
        if not (folder / task.key / SUMMARY).exists():
            shutil.rmtree(folder / task.key, ignore_errors=True)
            part.replace(folder / task.key)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def start(runner: Runner) -> Iterator[Engine]:
    """Starts workers, and ends them.

    Raises:
        BadInput: a Ray cluster that is not there, or Ray is not installed.
    """
    if runner.kind == "ray":
        with _start_ray(runner) as engine:
            yield engine
        return
    num_workers = runner.workers or len(os.sched_getaffinity(0))
    if num_workers == 1:
        yield Engine(_at_once, _results, 1, lambda: None)
        return
    pools = _Pools(num_workers)
    try:
        yield Engine(pools.submit, _first_results, num_workers, pools.restart)
    except BaseException:
        pools.end()
        raise
    pools.pool.shutdown()


class _Pools:
    """A pool of processes, replaced by another when one of its processes has died."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._begin()

    def _begin(self) -> None:
        # Not forked: the parent may hold threads and locks of other libraries.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(
            self._num_workers, mp_context=context, initializer=_end_with
        )

    def submit(self, *arguments: Any) -> Future:
        try:
            return self.pool.submit(*arguments)
        except BrokenProcessPool as error:
            raise WorkerDied from error

    def end(self) -> None:
        # What runs now would be waited for; what it leaves half done is swept later.
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    def restart(self) -> None:
        self.end()
        self._begin()


def _end_with() -> None:
    """In a worker: ends it when its parent has been killed, and leaves interrupts to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have been killed before this was set.
    if os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)


def _at_once(function: Callable, *arguments: Any) -> Future:
    done: Future = Future()
    function(*arguments)
    done.set_result(None)
    return done


def _results(futures: list[Future]) -> list[Future]:
    return futures


def _first_results(futures: list[Future]) -> list[Future]:
    done = wait(futures, return_when=FIRST_COMPLETED).done
    for future in done:
        try:
            future.result()
        except BrokenProcessPool as error:
            raise WorkerDied from error
    return [future for future in futures if future in done]


@contextmanager
def _start_ray(runner: Runner) -> Iterator[Engine]:
    """Ray's driver in a process of its own: it forks, and JAX's threads here forbid that."""
    if not importlib.util.find_spec("ray"):
        raise BadInput("--runner=ray: Ray is missing; pip install -e '.[ray]'")
    if runner.address not in ("", "auto"):
        _reach(runner.address)
    manager = _DriverManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(_end_with)
    with manager:
        driver = manager.Driver()
        try:
            yield Engine(driver.submit, driver.wait_any, driver.connect(runner), lambda: None)
        finally:
            driver.close()


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"--ray-address={address}: must be HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), REACH_SECS).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"--ray-address={address}: no Ray there ({error})") from error


class _Driver:
    """Hands tasks to Ray; named by number where Ray's own references cannot go."""

    def __init__(self):
        self._references: dict[int, Any] = {}
        self._numbers = itertools.count()

    def connect(self, runner: Runner) -> int:
        """Starts Ray, or finds the cluster; returns the number of workers."""
        import ray

        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            ray.init(
                address=runner.address or "local",
                num_cpus=None if runner.address else runner.workers or None,
                include_dashboard=None if runner.address else False,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(f"--ray-address={runner.address or 'local'}: {error}") from error
        self._perform = ray.remote(max_retries=1)(_call)
        return runner.workers or int(ray.cluster_resources().get("CPU", 1))

    def submit(self, function: Callable, *arguments: Any) -> int:
        number = next(self._numbers)
        self._references[number] = self._perform.remote(function, *arguments)
        return number

    def wait_any(self, numbers: list[int]) -> list[int]:
        import ray

        of = {self._references[number]: number for number in numbers}
        done, _ = ray.wait(list(of), num_returns=1)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.WorkerCrashedError as error:
            raise WorkerDied(str(error)) from None
        return [of[reference] for reference in done]

    def close(self) -> None:
        import ray

        ray.shutdown()


class _DriverManager(BaseManager):
    """The process that a _Driver lives in; Ray ends with it."""


_DriverManager.register("Driver", _Driver)


def _call(function: Callable, *arguments: Any) -> None:
    function(*arguments)
