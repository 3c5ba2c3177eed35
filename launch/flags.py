"""The command line: verbs, their flags, configuration files and overrides of their keys."""

import inspect
import math
import re
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from data.errors import BadInput
from launch.stages.stage import STAGES

VERBS = {
    "run": "all stages of the pipeline that the config names; finished ones are skipped",
    **{name: stage.about for name, stage in STAGES.items()},
    "chat": "chat with a run, or let a base model continue a text",
    "import": "a Hugging Face directory or a GGUF file to a run",
    "export": "a run to a Hugging Face directory",
    "bench": "speed of the config's step and decoder on this machine",
    "config": "every key of the config with its value, where that is from, and its meaning",
}
SAMPLING = ("temperature", "top-p", "seed")  # of chat
# What the other verbs have: --config --run --fresh --json.
FLAGS = {
    **dict.fromkeys(
        ("run", "tokenizer"),
        ("config", "run", "store", "fresh", "runner", "workers", "ray-address", "json"),
    ),
    "curate": (
        *("config", "run", "out", "store", "fresh", "runner", "workers", "ray-address", "json"),
        *("fit-quality", "fit-toxicity", "explain"),
    ),
    "chat": ("run", "stage", "prompt", "tokens", *SAMPLING, "json"),
    "import": ("hf", "gguf", "out", "json"),
    "export": ("run", "stage", "hf", "json"),
    "report": ("run", "json"),
    "bench": ("config", "json"),
    "config": ("config", "json"),
}
# What `curate` does instead of curating.
CURATE_MODES = ("explain", "fit-quality", "fit-toxicity")
# Must not be empty: that would mean the current directory.
PLACES = ("run", "out", "store", "hf", "gguf", "explain")
LOCAL_PLACES = ("run", "out", "store", "hf", "gguf")
DATA_FLAGS = ("runner", "ray-address", "explain")
# Flags without which a verb cannot start.
NEEDED = {"chat": ("run",), "report": ("run",), "import": ("out",), "export": ("run", "hf")}
# As given, and what it is; those that only some verbs have name them.
FLAG_LINES = {
    "config": (
        "--config=FILE.py[:ARG]",
        "the configuration; --config.SECTION.KEY=VALUE overrides one key",
    ),
    "run": ("--run=DIR", "run directory; runs/NAME unless given (chat, report, export need it)"),
    "store": (
        "--store=DIR",
        "run, curate, tokenizer: where runs share these; .store beside the run unless given",
    ),
    "json": ("--json", "one JSON object on standard output, nothing else there"),
    "fresh": ("--fresh", "delete earlier output of the stages to run, and start them over"),
    "stage": (
        "--stage=STAGE",
        "chat, export: whose model (sft, dpo, ppo, ...); the newest unless given",
    ),
    "prompt": ("--prompt=TEXT", "chat: answer this and end"),
    "tokens": ("--tokens=N", "chat: longest answer; the run's own limit unless given"),
    "temperature": ("--temperature=T", "chat: sample at this temperature; 0, greedy, unless given"),
    "top-p": ("--top-p=P", "chat: sample from the fewest tokens of probability P; 1 unless given"),
    "seed": ("--seed=N", "chat: of sampling; 0 unless given"),
    "hf": (
        "--hf=DIR",
        "import: config.json, safetensors, tokenizer; export: where they go",
    ),
    "gguf": ("--gguf=FILE", "import: a GGUF file, its tokenizer included"),
    "out": ("--out=DIR", "import, curate: the run to make"),
    "runner": (
        "--runner=native|ray",
        "run, curate, tokenizer: where data is worked on; native is this machine",
    ),
    "workers": ("--workers=N", "processes for it; all cores unless given"),
    "ray-address": (
        "--ray-address=ADDRESS",
        "of a Ray cluster; without it Ray is started on this machine",
    ),
    "explain": ("--explain=ID", "curate: the history of one document of a finished curation"),
    "fit-quality": (
        "--fit-quality",
        "curate: fit the quality model from data.gates.quality.good and bad",
    ),
    "fit-toxicity": (
        "--fit-toxicity",
        "curate: fit the toxicity model from data.gates.toxicity.examples",
    ),
}
OVERRIDES = "--config=FILE.py[:ARG] [--config.SECTION.KEY=VALUE ...]"
USAGE = """usage: seedbed {usage} [flags]

{about}

flags
{flags}

{more}exit codes: 0 done, 1 training diverged, 2 bad input or config, 75 stopped by SIGTERM
and saved: start me again, 130 interrupted
"""
# What a value must be, by the name that its flag has for its type.
MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "multi tuple": "a tuple such as (1, 2)",
}


def usage(verb: str = "") -> str:
    """What `seedbed --help` prints, or `seedbed VERB --help`."""
    names = flags_of(verb) if verb else FLAG_LINES
    lines = (f"  {FLAG_LINES[name][0]:23} {FLAG_LINES[name][1]}" for name in names)
    needed = [OVERRIDES] if "config" in names else []
    needed += [FLAG_LINES[name][0] for name in NEEDED.get(verb, ())]
    verbs = (f"  {name:10} {does}" for name, does in VERBS.items())
    return USAGE.format(
        usage=" ".join([verb or "VERB", *needed]),
        about=f"  {VERBS[verb]}" if verb else "\n".join(["verbs", *verbs]),
        flags="\n".join(lines),
        more="" if verb else "`seedbed VERB --help` says which of them a verb takes\n",
    )


def flags_of(verb: str) -> tuple[str, ...]:
    """Names of the flags that a verb takes."""
    return FLAGS.get(verb, ("config", "run", "fresh", "json"))


class Parsed(NamedTuple):
    """The verb's flags, the configuration with its overrides, and the dotted paths of these."""

    given: flags.FlagValues
    config: ConfigDict | None
    overridden: tuple[str, ...]


def parse(verb: str, arguments: list[str]) -> Parsed:
    """The flags of a verb, and its configuration.

    Raises:
      BadInput: a flag or key that is unknown, missing or of another type; a file that is no
        configuration.
    """
    given = flags.FlagValues()
    flags.DEFINE_string("config", None, "config", flag_values=given)
    for name in (*("run", "stage", "prompt", "hf", "gguf", "out", "store"), *DATA_FLAGS):
        flags.DEFINE_string(name, "", name, flag_values=given)
    flags.DEFINE_integer("tokens", None, "tokens", lower_bound=1, flag_values=given)
    flags.DEFINE_float("temperature", 0.0, "temperature", lower_bound=0.0, flag_values=given)
    flags.DEFINE_float("top-p", 1.0, "top-p", lower_bound=0.0, upper_bound=1.0, flag_values=given)
    flags.DEFINE_integer("seed", 0, "seed", 0, 2**31 - 1, flag_values=given)
    flags.DEFINE_integer("workers", 0, "workers", lower_bound=0, flag_values=given)
    for name in ("json", "fresh", "fit-quality", "fit-toxicity"):
        flags.DEFINE_bool(name, False, name, flag_values=given)
    argv = _read_flags(verb, given, arguments, known_only=True)
    _check_flags(verb, given)
    overrides, config, overridden = flags.FlagValues(), None, ()
    if given.config is not None:
        config = _load_config(given.config)
        overridden = _check_overrides(config, argv)
        config_flags.DEFINE_config_dict("config", config, sys_argv=argv, flag_values=overrides)
    rest = _read_flags(verb, overrides, argv, known_only=False)
    if rest:
        raise BadInput(f"argument {rest[0]!r} is unknown; flags begin with --")
    return Parsed(given, config, overridden)


def _read_flags(
    verb: str, values: flags.FlagValues, arguments: list[str], known_only: bool
) -> list[str]:
    """Parses into `values`; returns what is left."""
    try:
        return values(["seedbed", *arguments], known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        raise BadInput(f"--{error.flagname}: {_takes(verb)}") from error
    except flags.IllegalFlagValueError as error:
        raise BadInput(_name_value(values, error)) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(f"flags: {error}") from error


def _takes(verb: str) -> str:
    allowed = ", ".join(f"--{name}" for name in flags_of(verb))
    return f"`seedbed {verb}` has no such flag; allowed: {allowed}"


def _name_value(values: flags.FlagValues, error: flags.IllegalFlagValueError) -> str:
    """One line about a value of the wrong type, without Python's own message."""
    found = re.match(r"flag (--([^=]+)=.*)", str(error), re.DOTALL)
    flag = values[found[2]] if found and found[2] in values else None
    kind = MUST_BE.get(flag.flag_type()) if flag is not None else None
    if kind is None:
        return f"flags: {error}"
    lowest, highest = (getattr(flag.parser, f"{end}_bound", None) for end in ("lower", "upper"))
    bound = "" if lowest is None else f", {lowest:.10g} or more"
    bound += "" if highest is None else f" and {highest:.10g} or less"
    return f"{found[1].removesuffix(f': {error.__context__}')}: must be {kind}{bound}"


def _load_config(file: str) -> ConfigDict:
    """Runs FILE.py[:ARG]'s get_config(ARG)."""
    path, colon, argument = file.partition(":")
    if not Path(path).is_file():
        raise BadInput(f"--config={file}: no such file {path!r}; FILE.py or FILE.py:ARG is needed")
    arguments, wrong = [argument] if colon else [], ""
    try:
        get_config = runpy.run_path(path).get("get_config")
        wrong = _check_argument(get_config, path, colon) if get_config else ""
        config = get_config(*arguments) if get_config and not wrong else None
    except Exception as error:  # the file is the user's and may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
        place = path + "".join(lines[-1:])
        raise BadInput(f"--config={file}: {place}: {type(error).__name__}: {error}") from error
    if wrong:
        raise BadInput(f"--config={file}: {wrong}")
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"--config={file}: {path} must have a function get_config() that returns an "
            f"ml_collections.ConfigDict; it gives {type(config).__name__}"
        )
    return config


def _check_argument(get_config: Callable, path: str, colon: str) -> str:
    """What is wrong with giving it an argument, or none; or ''."""
    parameters = inspect.signature(get_config).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ""
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if colon:
        return "" if named else f"{path} takes no :ARG; give it as {path}"
    needed = next((p.name for p in named if p.default is p.empty), "")
    return needed and f"{path} needs an argument: {path}:{needed.upper()}"


def _check_overrides(config: ConfigDict, arguments: list[str]) -> tuple[str, ...]:
    """The paths a.b of `--config.a.b=`, each made settable in the configuration."""
    found = [re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in arguments]
    paths = tuple(match[1] for match in found if match)
    if paths:
        from launch import schema, settings  # slow, and needed here alone

        for path in paths:
            if why := _find_fault(schema, settings.Whole, config, path):
                raise BadInput(f"--config.{path}: {why}")
            schema.place(settings.Whole, config, path)
    return paths


def _find_fault(schema: ModuleType, whole: type, config: ConfigDict, path: str) -> str:
    """Why a key cannot be given on the command line, or ''."""
    above, keys, section = "", path.split("."), config
    for number, key in enumerate(keys):
        hint, here = schema.hint_of(whole, above), f"config.{above}".rstrip(".")
        if not isinstance(section, ConfigDict):
            return f"unknown key {key!r}; {here} is {section!r} and has no keys"
        if schema.hint_of(hint, key) is None and not schema.is_section(hint):
            return f"unknown key {key!r}; {here} has no keys"
        above = ".".join(keys[: number + 1])
        if schema.hint_of(whole, above) is None:
            return f"unknown key {key!r}; allowed here: {list(schema.keys_of(hint))}"
        section = section[key] if key in section else ConfigDict()
    hint = schema.hint_of(whole, path)
    if schema.is_section(hint):
        return f"a section; give one of {list(schema.keys_of(hint))}"
    return f"a section; give --config.{path}.NAME=VALUE" if schema.is_mapping(hint) else ""


def _check_flags(verb: str, given: flags.FlagValues) -> None:
    """Refuses flags that the verb does not read, and misses those that it needs."""
    allowed = flags_of(verb)
    for name in given:
        if given[name].present and name not in allowed:
            raise BadInput(f"--{name}: {_takes(verb)}")
    for name in PLACES:
        if given[name].present and not given[name].value:
            raise BadInput(f"--{name}=: is empty; it must be {FLAG_LINES[name][0]}")
    if given["prompt"].present and not given.prompt.strip():
        raise BadInput("--prompt=: is empty; give a question, or leave it out for standard input")
    for name in ("temperature", "top-p"):
        if not math.isfinite(given[name].value):
            raise BadInput(f"--{name}={given[name].value}: must be a finite number")
    for name in LOCAL_PLACES:
        if "://" in given[name].value:
            raise BadInput(
                f"--{name}={given[name].value}: runs and models are read and written on file "
                f"systems alone, no object stores; it must be a directory of this machine"
            )
    if given["config"].present > 1:
        raise BadInput(f"--config={given.config}: given twice; give one of them")
    if "config" in allowed and given.config is None:
        raise BadInput("--config is missing; for example --config=configs/quickstart.py")
    for name in NEEDED.get(verb, ()):
        if not given[name].value:
            raise BadInput(f"--{name} is missing; `seedbed {verb}` needs a directory")
