"""The command line: verbs, their flags, configuration files and overrides of their keys."""

import inspect
import re
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path

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
# What the other verbs have: --config --run --fresh --json.
FLAGS = {
    **dict.fromkeys(
        ("run", "tokenizer"),
        ("config", "run", "fresh", "runner", "workers", "ray-address", "json"),
    ),
    "curate": (
        *("config", "run", "out", "fresh", "runner", "workers", "ray-address", "json"),
        *("fit-quality", "fit-toxicity", "explain", "score"),
    ),
    "chat": ("run", "stage", "prompt", "tokens", "json"),
    "import": ("hf", "gguf", "out", "json"),
    "export": ("run", "stage", "hf", "json"),
    "report": ("run", "json"),
    "bench": ("config", "json"),
}
# What `curate` does instead of curating.
ASIDES = ("explain", "score", "fit-quality", "fit-toxicity")
DATA_FLAGS = ("runner", "ray-address", "explain", "score")
# Flags without which a verb cannot start.
NEEDED = {"chat": ("run",), "report": ("run",), "import": ("out",), "export": ("run", "hf")}
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
  --out=DIR               import, curate: the run to make
  --runner=native|ray     run, curate, tokenizer: where data is worked on; native is this machine
  --workers=N             processes for it; all cores unless given
  --ray-address=ADDRESS   of a Ray cluster; without it Ray is started on this machine
  --explain=ID            curate: the story of one document of a finished curation
  --fit-quality           curate: fit the quality model from data.gates.quality.good and bad
  --fit-toxicity          curate: fit the toxicity model from data.gates.toxicity.examples
  --score=DIR             curate: measure the gates on the labelled sets in DIR

exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM and saved: start me again
"""


def usage() -> str:
    """What `seedbed --help` prints."""
    lines = (f"  {verb:10} {does}" for verb, does in VERBS.items())
    return USAGE.format(verbs="\n".join(lines))


def parse(verb: str, arguments: list[str]) -> tuple[flags.FlagValues, ConfigDict | None]:
    """The verb's flags, and the configuration with its overrides.

    Raises:
      BadInput: a flag or key that is unknown, missing or of another type; a file that is no
        configuration.
    """
    given = flags.FlagValues()
    flags.DEFINE_string("config", None, "config", flag_values=given)
    for name in (*("run", "stage", "prompt", "hf", "gguf", "out"), *DATA_FLAGS):
        flags.DEFINE_string(name, "", name, flag_values=given)
    flags.DEFINE_integer("tokens", None, "tokens", lower_bound=1, flag_values=given)
    flags.DEFINE_integer("workers", 0, "workers", lower_bound=0, flag_values=given)
    for name in ("json", "fresh", "fit-quality", "fit-toxicity"):
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
