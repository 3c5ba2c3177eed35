"""Command line: `seedbed VERB --config=FILE.py[:ARG] [--config.section.key=value ...]`.

`python -m launch.cli` is the same. Nothing heavy is imported before the flags are understood.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from data.engine import WorkerDied
from data.errors import BadInput, printable
from launch.flags import CURATE_MODES, SAMPLING, VERBS, Parsed, parse, usage
from launch.stages.stage import TRAINED

# Those that compute for more than seconds.
COMPUTING = ("run", *TRAINED, "eval", "bench", "chat")
# Of files: reported in one line, since the program is not at fault.
MACHINE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
)
GOOGLE_PCI = "0x1ae0"  # vendor of TPU chips
DONE, FAILED, BAD_INPUT, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130


def main() -> None:
    """Entry point of the `seedbed` command."""
    _use_huge_pages()
    _keep_compiled()
    try:
        code = run_command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)


def _use_huge_pages() -> None:
    """Starts the process over with huge pages for large arrays, where glibc has them.

    On a CPU a training step writes hundreds of megabytes of fresh temporaries; with pages of 4 kB
    their faults cost a quarter of the step (LOG.md). glibc reads this variable at start only.
    """
    wanted = platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ
    if wanted and set(sys.argv[1:2]) & set(COMPUTING):
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compiled() -> None:
    """Lets jax keep compiled programs in the user's cache, unless the environment names a place.

    Processors have a folder each, by what they can do: a program for another one may not run.
    """
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    able = next((line for line in about.splitlines() if line.startswith(("flags", "Feat"))), about)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"jax-{hashlib.sha256(able.encode()).hexdigest()[:8]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "seedbed" / name))


def run_command(arguments: list[str]) -> int:
    """Runs one command line.

    Returns:
      The exit code.
    """
    if arguments[:1] == ["help"] or {"--help", "-h"} & set(arguments):
        print(usage(next((word for word in arguments if word in VERBS), "")))
        return DONE
    try:
        if not arguments:
            raise BadInput("a verb is missing; `seedbed --help` lists them")
        return _run_verb(arguments[0], arguments[1:])
    except BadInput as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print(
            "seedbed: interrupted; the same command resumes from the newest checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except FloatingPointError as error:
        return _refuse(
            f"training diverged: {error}; a lower peak_lr or clip_norm is the usual cure", FAILED
        )
    except WorkerDied as error:
        return _refuse(str(error), FAILED)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        named = f"{error.filename}: " if error.filename is not None else ""
        return _refuse(f"{named}{error.strerror or error}")


def _refuse(message: str, code: int = BAD_INPUT) -> int:
    line = " ".join(message.split())
    print("seedbed:", printable(line, len(line)), file=sys.stderr)
    return code


def _run_verb(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise BadInput(f"verb {verb!r} is unknown; allowed: {', '.join(VERBS)}")
    _quieten()
    parsed = parse(verb, arguments)
    given = parsed.given
    if verb == "config":
        return _print_config(parsed)
    if verb == "chat":
        result = _chat(given)
    elif verb == "report":
        result = _report(given)
    elif verb in ("import", "export"):
        result = _convert(verb, given)
    else:
        result = _run_config(verb, parsed)
    if given.json:
        print(json.dumps(result))
    elif verb != "chat":
        print(_table(result))
    return PREEMPTED if result.get("preempted") else DONE


def _print_config(parsed: Parsed) -> int:
    """Prints every key of a configuration."""
    from launch import settings
    from launch.schema import to_dict
    from launch.verbs.config import run_config

    rows = run_config(
        parsed.config, settings.parse(parsed.config, parsed.overridden), parsed.overridden
    )
    if parsed.given.json:
        print(
            json.dumps(
                {"verb": "config", "keys": [row | {"value": to_dict(row["value"])} for row in rows]}
            )
        )
    else:
        for row in rows:
            cells = f"{row['key']:43}  {row['value']!s:23}  {row['origin']:12}  {row['about']}"
            print(cells.rstrip())
    return DONE


def _has_tpu() -> bool:
    """Whether the machine has a device of Google's, or a node through which containers see one."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    nodes = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(nodes) or any(path.read_text().strip() == GOOGLE_PCI for path in vendors)


def _quieten() -> None:
    """Silences third-party logs; warnings about our own code stay."""
    if not _has_tpu():
        # Installed to compile for TPUs, libtpu would be started by jax, and write errors on
        # standard error. With None here it cannot be imported, as if it were not installed.
        sys.modules.setdefault("libtpu", None)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", module="google|tensorflow_datasets|etils")


def _run_config(verb: str, from_flags: Parsed) -> dict:
    from launch import settings

    given, config = from_flags.given, from_flags.config
    if verb == "bench":  # measures the pretraining step, whatever stages the config names
        config = {**config, "stages": ("curate", "tokenizer", "pretrain")}
    parsed = settings.parse(config, from_flags.overridden)
    trains = {*TRAINED, "eval"} & set(parsed.stages)
    # Curation and the tokenizer need no devices.
    if trains and verb not in ("curate", "tokenizer"):
        parsed = settings.fit_mesh(parsed)
    if verb == "bench":
        from launch.verbs.bench import run_bench

        return {"verb": verb, **run_bench(parsed)}
    asked = [name for name in CURATE_MODES if given[name].present]
    if asked:
        return {"verb": verb, **_curate_aside(asked, given, parsed)}
    return _run_pipeline(verb, given, parsed)


def _open_run(given: flags.FlagValues, parsed: Any) -> Any:
    """The run directory: --run, for `curate` also called --out."""
    from launch.store.rundir import RunDir

    if given.run and given.out:
        raise BadInput(f"--run={given.run}, --out={given.out}: the same thing; give one of them")
    if given.out:
        return RunDir(Path(given.out), "--out")
    return RunDir(Path(given.run or f"runs/{parsed.name}"))


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Gives errors of files that name none the path of what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(place)
        raise


def _curate_aside(asked: list[str], given: flags.FlagValues, parsed: Any) -> dict:
    """What `curate` does besides curating."""
    from launch.console import Progress
    from launch.verbs import curation

    if len(asked) > 1:
        raise BadInput(f"{' '.join(f'--{name}' for name in asked)}: one of them at a time")
    progress = Progress()
    progress.stage("curate")
    run = _open_run(given, parsed)
    try:
        if asked == ["explain"]:
            return curation.explain(run, given.explain)
        return curation.fit(asked[0].removeprefix("fit-"), parsed.data, progress)
    finally:
        progress.close()


def _run_pipeline(verb: str, given: flags.FlagValues, parsed: Any) -> dict:
    import jax

    from data import sources
    from data.engine import Runner
    from launch.console import Progress
    from launch.verbs import curation

    run = _open_run(given, parsed)
    run.check()
    runner = Runner(given.runner or "native", given.workers, given["ray-address"].value)
    if verb in ("run", "curate") and "curate" in parsed.stages:
        sources.refuse_missing(parsed.data.sources)
        sources.refuse_around(parsed.data.sources, run.path)
    from launch.checks import check
    from launch.pipeline import run_stages
    from launch.store.shared import Store

    only = None if verb == "run" else verb
    check(parsed, run, parsed.stages if only is None else (only,))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    progress = Progress()
    store = Store(Path(given.store or run.path.resolve().parent / ".store"))

    def work() -> dict:
        outcome = run_stages(
            parsed, run, progress, devices, runner, store, only=only, fresh=given.fresh
        )
        return {"stages": outcome} | (curation.headline(run) if verb == "curate" else {})

    # Training stages save first: train/loop.py.
    with _naming(run.path):
        done = _until_stopped(work, progress, "stopped by SIGTERM; what is finished is kept")
    return {"verb": verb, "run": str(run.path), **done}


def _until_stopped(work: Callable[[], dict], progress: Any, message: str) -> dict:
    """What `work` returns, or {"preempted": why} when the process is asked to stop."""
    from train.loop import PreemptedError

    def stop(*_: Any) -> None:
        raise PreemptedError(message)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return work()
    except PreemptedError as stopped:
        progress.note(str(stopped))
        return {"preempted": str(stopped)}
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.close()


def _convert(verb: str, given: flags.FlagValues) -> dict:
    from launch.console import Progress
    from launch.store.rundir import RunDir
    from launch.verbs import convert

    progress = Progress()

    def work() -> dict:
        if verb == "import":
            return convert.run_import(given.hf, given.gguf, Path(given.out), progress)
        return convert.run_export(RunDir(Path(given.run)), given.stage, Path(given.hf), progress)

    with _naming(Path(given.out if verb == "import" else given.hf)):
        done = _until_stopped(work, progress, "stopped by SIGTERM; nothing is left")
    return {"verb": verb} | done


def _chat(given: flags.FlagValues) -> dict:
    from launch.store.rundir import RunDir

    RunDir(Path(given.run)).read_config()  # refused before anything slow is imported
    from launch.verbs.chat import run_chat

    sampling = {name.replace("-", "_"): given[name].value for name in SAMPLING}
    answered = run_chat(
        RunDir(Path(given.run)), given.stage, given.prompt, given.tokens, sampling, given.json
    )
    return {"verb": "chat", "run": given.run, **answered}


def _report(given: flags.FlagValues) -> dict:
    from launch.identity import find_faults
    from launch.report.page import write_report
    from launch.store.rundir import RunDir

    run = RunDir(Path(given.run))
    with _naming(run.path):
        page = write_report(run.path)
        run.record_products("report")
    missing = find_faults(run)
    if missing:
        named = ", ".join(missing)
        print(f"seedbed: {run.path}: not finished, or out of date: {named}", file=sys.stderr)
    found = {"verb": "report", "run": given.run, "page": str(page)}
    return {**found, "unfinished": missing} if given.json else found


def _table(result: dict) -> str:
    """The result as indented lines for people."""
    lines: list[str] = []

    def add(name: str, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            lines.append(f"{'  ' * depth}{name}")
            for key, item in value.items():
                add(key, item, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{'  ' * depth}{name}")
            for row in value:
                shown = [f"{key} {_number(item)}" for key, item in row.items() if item != ""]
                lines.append("  " * (depth + 1) + ", ".join(shown))
        else:
            lines.append(f"{'  ' * depth}{name:24} {value}")

    for key, item in result.items():
        add(key, item, 0)
    return "\n".join(lines)


def _number(value: Any) -> Any:
    """A fraction in four digits; anything else as it is."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"


if __name__ == "__main__":
    main()
