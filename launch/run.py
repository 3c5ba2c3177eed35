"""The door: `seedbed VERB --config=FILE.py[:ARG] [--config.section.key=value ...]`.

`python -m launch.run` is the same. Nothing heavy is imported before the flags are understood.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

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
    "chat": "talk to a run",
    "bench": "speed of the config's step and decoder on this machine",
}
WITHOUT_CONFIG = ("chat", "report")
DONE, BAD_INPUT, PREEMPTED = 0, 2, 75

USAGE = """usage: seedbed VERB --config=FILE.py[:ARG] [--config.SECTION.KEY=VALUE ...] [flags]

verbs
{verbs}

flags
  --config=FILE.py[:ARG]  the configuration; --config.SECTION.KEY=VALUE overrides one key
  --run=DIR               run directory; runs/NAME unless given (chat and report need it)
  --json                  one JSON object on standard output, nothing else there
  --fresh                 throw away what the stages to run have left, and start them over
  --stage=STAGE           chat: whose model answers (sft, dpo, ppo); the newest unless given
  --prompt=TEXT           chat: answer this and end

exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM and saved: start me again
"""


def main() -> None:
    """Entry point of the `seedbed` command."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Runs one command line.

    Returns:
      The exit code.
    """
    if not arguments or {"--help", "-h", "help"} & set(arguments[:2]):
        lines = (f"  {verb:10} {does}" for verb, does in VERBS.items())
        print(USAGE.format(verbs="\n".join(lines)))
        return DONE if arguments else BAD_INPUT
    try:
        return _run_verb(arguments[0], arguments[1:])
    except BadInput as error:
        print(f"seedbed: {error}", file=sys.stderr)
        return BAD_INPUT


def _run_verb(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise BadInput(f"verb {verb!r} is unknown; allowed: {', '.join(VERBS)}")
    given = _parse_flags(arguments)
    if verb not in WITHOUT_CONFIG and given.config is None:
        raise BadInput("--config is missing; for example --config=configs/quickstart.py")
    if verb in WITHOUT_CONFIG and not given.run:
        raise BadInput(f"--run is missing; `seedbed {verb}` needs a run directory")
    _quieten()
    if verb == "chat":
        result = _chat(given)
    elif verb == "report":
        result = _report(given)
    else:
        result = _run_config(verb, given)
    if given.json:
        print(json.dumps(result))
    elif verb != "chat":
        print(_table(result))
    return PREEMPTED if result.get("preempted") else DONE


def _parse_flags(arguments: list[str]) -> flags.FlagValues:
    file = [argument for argument in arguments if argument.startswith("--config=")][-1:]
    try:
        if file:
            plain, _ = _read_flags(file)
            _check_overrides(plain.config, arguments)
        values, rest = _read_flags(arguments)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{file[0]}: no such file") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(f"flags: {_last_line(error)}") from error
    if rest:
        raise BadInput(f"argument {rest[0]!r} is unknown; flags begin with --")
    return values


def _read_flags(arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    values, argv = flags.FlagValues(), ["seedbed", *arguments]
    options = {"flag_values": values}
    config_flags.DEFINE_config_file(
        "config", None, "configuration", lock_config=True, sys_argv=argv, **options
    )
    flags.DEFINE_string("run", "", "run directory", **options)
    flags.DEFINE_bool("json", False, "JSON on standard output", **options)
    flags.DEFINE_bool("fresh", False, "start over", **options)
    flags.DEFINE_string("stage", "", "whose model chats", **options)
    flags.DEFINE_string("prompt", "", "one question", **options)
    return values, values(argv)[1:]


def _check_overrides(config: Any, arguments: list[str]) -> None:
    """Refuses `--config.a.b=` where the configuration has no a.b.

    Raises:
      BadInput: names the key and those allowed in its place.
      OSError: the file of the configuration does not load.
    """
    config.lock()  # a file that did not load raises here
    for argument in arguments:
        if not argument.startswith("--config."):
            continue
        path, section = argument.removeprefix("--config.").partition("=")[0], config
        for key in path.split("."):
            allowed = list(section.keys()) if hasattr(section, "keys") else []
            if key not in allowed:
                raise BadInput(f"--config.{path}: unknown key {key!r}; allowed here: {allowed}")
            section = section[key]


def _last_line(error: Exception) -> str:
    """The last line says what is wrong; a traceback stands before it."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def _quieten() -> None:
    """Third-party chatter off; warnings about our own use stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", module="google|tensorflow_datasets|etils")


def _run_config(verb: str, given: flags.FlagValues) -> dict:
    from launch import settings

    parsed = settings.parse(given.config)
    if verb == "bench":
        from launch.bench import run_bench

        return {"verb": verb, **run_bench(parsed)}
    return _run_pipeline(verb, given, parsed)


def _run_pipeline(verb: str, given: flags.FlagValues, parsed: Any) -> dict:
    import jax

    from launch.console import Progress
    from launch.pipeline import run_stages
    from launch.rundir import RunDir
    from launch.settings import check_mesh, to_dict
    from launch.stages import TABLE
    from train.loop import PreemptedError

    check_mesh(parsed)
    run = RunDir(Path(given.run or f"runs/{parsed.name}"))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    run.write_config(to_dict(parsed), devices)
    progress = Progress()
    only = None if verb == "run" else verb
    try:
        outcome = run_stages(parsed, run, progress, TABLE, only=only, fresh=given.fresh)
    except PreemptedError as stop:
        progress.note(str(stop))
        return {"verb": verb, "run": str(run.path), "preempted": str(stop)}
    finally:
        progress.close()
    return {"verb": verb, "run": str(run.path), "stages": outcome}


def _chat(given: flags.FlagValues) -> dict:
    from launch.chat import run_chat
    from launch.rundir import RunDir

    answered = run_chat(RunDir(Path(given.run)), given.stage, given.prompt, given.json)
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
