"""The door: `seedbed VERB --config=FILE.py[:ARG] [--config.section.key=value ...]`.

`python -m launch.run` is the same. Nothing heavy is imported before the flags are understood.
"""

import errno
import inspect
import json
import os
import platform
import re
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from data.errors import BadInput

VERBS = {
    "run": "all stages of the pipeline that the config names; finished ones are skipped",
    "curate": "sources to clean, distinct documents",
    "tokenizer": "documents to a tokenizer and packed shards",
    "pretrain": "shards to a base model",
    "sft": "demonstrations to a model that answers",
    "reward": "its answers to preference pairs, and those to a reward model",
    "dpo": "preference pairs to a policy",
    "ppo": "prompts and the reward model to a policy",
    "eval": "every model of the run, measured",
    "report": "the page to look at: RUN/report.html",
    "chat": "talk to a run, or let a base model go on with a text",
    "import": "a Hugging Face directory or a GGUF file to a run",
    "export": "a run to a Hugging Face directory",
    "bench": "speed of the config's step and decoder on this machine",
}
# Those that compute for more than seconds.
COMPUTING = ("run", "pretrain", "sft", "reward", "dpo", "ppo", "eval", "bench", "chat")
# What the other verbs have: --config --run --fresh --json.
FLAGS = {
    "chat": ("run", "stage", "prompt", "tokens", "json"),
    "import": ("hf", "gguf", "out", "json"),
    "export": ("run", "stage", "hf", "json"),
    "report": ("run", "json"),
    "bench": ("config", "json"),
}
# Flags without which a verb cannot start.
NEEDED = {"chat": ("run",), "report": ("run",), "import": ("out",), "export": ("run", "hf")}
# Of files: said in one line, since it is not the program that is wrong.
MACHINE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC)
DONE, BAD_INPUT, PREEMPTED, INTERRUPTED = 0, 2, 75, 130

USAGE = """usage: seedbed VERB --config=FILE.py[:ARG] [--config.SECTION.KEY=VALUE ...] [flags]

verbs
{verbs}

flags
  --config=FILE.py[:ARG]  the configuration; --config.SECTION.KEY=VALUE overrides one key
  --run=DIR               run directory; runs/NAME unless given (chat, report, export need it)
  --json                  one JSON object on standard output, nothing else there
  --fresh                 throw away what the stages to run have left, and start them over
  --stage=STAGE           chat, export: whose model (sft, dpo, ppo, ...); the newest unless given
  --prompt=TEXT           chat: answer this and end
  --tokens=N              chat: longest answer; the run's own limit unless given
  --hf=DIR                import: config.json, safetensors, tokenizer; export: where they go
  --gguf=FILE             import: a GGUF file, its tokenizer included
  --out=DIR               import: the run to make

exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM and saved: start me again
"""


def main() -> None:
    """Entry point of the `seedbed` command."""
    _use_huge_pages()
    sys.exit(run_command(sys.argv[1:]))


def _use_huge_pages() -> None:
    """Starts the process over with huge pages for large arrays, where glibc has them.

    On a CPU a training step writes hundreds of megabytes of fresh temporaries; with pages of 4 kB
    their faults cost a quarter of the step (LOG.md). glibc reads this variable at start only.
    """
    wanted = platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ
    if wanted and set(sys.argv[1:2]) & set(COMPUTING):
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_command(arguments: list[str]) -> int:
    """Runs one command line.

    Returns:
      The exit code.
    """
    if arguments[:1] == ["help"] or {"--help", "-h"} & set(arguments):
        lines = (f"  {verb:10} {does}" for verb, does in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)))
        return DONE
    try:
        if not arguments:
            raise BadInput("a verb is missing; `seedbed --help` lists them")
        return _run_verb(arguments[0], arguments[1:])
    except BadInput as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print(
            "seedbed: interrupted; the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except FloatingPointError as error:
        return _refuse(
            f"training diverged: {error}; a lower peak_lr or clip_norm is the usual cure"
        )
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> int:
    print("seedbed:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


def _run_verb(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise BadInput(f"verb {verb!r} is unknown; allowed: {', '.join(VERBS)}")
    given, config = _parse_flags(verb, arguments)
    _quieten()
    if verb == "chat":
        result = _chat(given)
    elif verb == "report":
        result = _report(given)
    elif verb in ("import", "export"):
        result = _convert(verb, given)
    else:
        result = _run_config(verb, given, config)
    if given.json:
        print(json.dumps(result))
    elif verb != "chat":
        print(_table(result))
    return PREEMPTED if result.get("preempted") else DONE


def _parse_flags(verb: str, arguments: list[str]) -> tuple[flags.FlagValues, ConfigDict | None]:
    """The verb's flags, and the configuration with its overrides."""
    given = flags.FlagValues()
    flags.DEFINE_string("config", None, "config", flag_values=given)
    for name in ("run", "stage", "prompt", "hf", "gguf", "out"):
        flags.DEFINE_string(name, "", name, flag_values=given)
    flags.DEFINE_integer("tokens", None, "tokens", lower_bound=1, flag_values=given)
    for name in ("json", "fresh"):
        flags.DEFINE_bool(name, False, name, flag_values=given)
    argv = _read_flags(given, arguments, known_only=True)
    _check_flags(verb, given)
    overrides, config = flags.FlagValues(), None
    if given.config is not None:
        config = _load_config(given.config)
        _check_overrides(config, argv)
        config_flags.DEFINE_config_dict("config", config, sys_argv=argv, flag_values=overrides)
    rest = _read_flags(overrides, argv, known_only=False)
    if rest:
        raise BadInput(f"argument {rest[0]!r} is unknown; flags begin with --")
    return given, config


def _read_flags(values: flags.FlagValues, arguments: list[str], known_only: bool) -> list[str]:
    """Parses into `values`; returns what is left."""
    try:
        return values(["seedbed", *arguments], known_only=known_only)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(f"flags: {error}") from error


def _load_config(file: str) -> ConfigDict:
    """Runs FILE.py[:ARG]'s get_config(ARG)."""
    path, colon, argument = file.partition(":")
    if not Path(path).is_file():
        raise BadInput(f"--config={file}: no such file {path!r}; FILE.py or FILE.py:ARG is needed")
    arguments, needed = [argument] if colon else [], ""
    try:
        get_config = runpy.run_path(path).get("get_config")
        needed = _needed(get_config) if get_config and not colon else ""
        config = get_config(*arguments) if get_config and not needed else None
    except Exception as error:  # the file is the user's and may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        place = path + "".join(lines[-1:])
        raise BadInput(f"--config={file}: {place}: {type(error).__name__}: {error}") from error
    if needed:
        raise BadInput(f"--config={file}: {path} needs an argument: {path}:{needed.upper()}")
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"--config={file}: {path} must have a function get_config() that returns an "
            f"ml_collections.ConfigDict; it gives {type(config).__name__}"
        )
    return config


def _needed(get_config: Callable) -> str:
    """The name of the argument that it cannot do without, or ''."""
    parameters = inspect.signature(get_config).parameters.values()
    named = (p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return next((p.name for p in named if p.default is p.empty), "")


def _check_overrides(config: ConfigDict, arguments: list[str]) -> None:
    """Refuses `--config.a.b=` where the configuration has no a.b."""
    for argument in arguments:
        found = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        section = config
        for key in found[1].split(".") if found else ():
            allowed = list(section.keys()) if isinstance(section, ConfigDict) else []
            if key not in allowed:
                raise BadInput(f"--config.{found[1]}: unknown key {key!r}; allowed here: {allowed}")
            section = section[key]
        if found and isinstance(section, ConfigDict):
            raise BadInput(f"--config.{found[1]}: a section; give one of its keys: {list(section)}")


def _check_flags(verb: str, given: flags.FlagValues) -> None:
    """Refuses flags that the verb does not read, and misses those that it needs."""
    allowed = FLAGS.get(verb, ("config", "run", "fresh", "json"))
    for name in given:
        if given[name].present and name not in allowed:
            raise BadInput(f"--{name}: `seedbed {verb}` has no such flag; allowed: {allowed}")
    if "config" in allowed and given.config is None:
        raise BadInput("--config is missing; for example --config=configs/quickstart.py")
    for name in NEEDED.get(verb, ()):
        if not given[name].value:
            raise BadInput(f"--{name} is missing; `seedbed {verb}` needs a directory")


def _quieten() -> None:
    """Third-party chatter off; warnings about our own use stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", module="google|tensorflow_datasets|etils")


def _run_config(verb: str, given: flags.FlagValues, config: ConfigDict) -> dict:
    from launch import settings

    parsed = settings.parse(config)
    settings.check_mesh(parsed)
    if verb == "bench":
        from launch.bench import run_bench

        return {"verb": verb, **run_bench(parsed)}
    return _run_pipeline(verb, given, parsed)


def _run_pipeline(verb: str, given: flags.FlagValues, parsed: Any) -> dict:
    import jax

    from launch.console import Progress
    from launch.rundir import RunDir

    run = RunDir(Path(given.run or f"runs/{parsed.name}"))
    run.check()
    from launch.pipeline import run_stages
    from launch.stages import TABLE

    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    progress = Progress()
    only = None if verb == "run" else verb

    def work() -> dict:
        outcome = run_stages(parsed, run, progress, TABLE, devices, only=only, fresh=given.fresh)
        return {"stages": outcome}

    # Training stages save first: train/loop.py.
    done = _until_stopped(work, progress, "stopped by SIGTERM; what is finished is kept")
    return {"verb": verb, "run": str(run.path), **done}


def _until_stopped(work: Callable[[], dict], progress: Any, message: str) -> dict:
    """What `work` returns, or {"preempted": why} when the process is told to stop."""
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
    from launch import convert
    from launch.console import Progress
    from launch.rundir import RunDir

    progress = Progress()

    def work() -> dict:
        if verb == "import":
            return convert.run_import(given.hf, given.gguf, Path(given.out), progress)
        return convert.run_export(RunDir(Path(given.run)), given.stage, Path(given.hf), progress)

    return {"verb": verb} | _until_stopped(work, progress, "stopped by SIGTERM; nothing is left")


def _chat(given: flags.FlagValues) -> dict:
    from launch.chat import run_chat
    from launch.rundir import RunDir

    answered = run_chat(
        RunDir(Path(given.run)), given.stage, given.prompt, given.tokens, given.json
    )
    return {"verb": "chat", "run": given.run, **answered}


def _report(given: flags.FlagValues) -> dict:
    from launch.report import write_report

    return {"verb": "report", "run": given.run, "page": str(write_report(Path(given.run)))}


def _table(result: dict) -> str:
    """The result as indented lines for people."""
    lines: list[str] = []

    def add(name: str, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            lines.append(f"{'  ' * depth}{name}")
            for key, item in value.items():
                add(key, item, depth + 1)
        else:
            lines.append(f"{'  ' * depth}{name:24} {value}")

    for key, item in result.items():
        add(key, item, 0)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
