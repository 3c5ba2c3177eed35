"""From a ConfigDict to frozen dataclasses, key by key, with one clear message for each mistake."""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from data.errors import BadInput

STAGES = ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "eval", "report")
TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo")
PAIRED = ("reward", "dpo")  # a row of these is a pair of answers, each a row of the model
INFINITY = "inf"
# The first stage that reads a section. Where a configuration does not name it, the section's values
# are not checked: they are there only because every configuration has every key.
READ_FROM = {
    "mixture": "tokenizer",
    "tokenizer": "tokenizer",
    "pretrain": "tokenizer",
    "eval": "pretrain",
    "model": "pretrain",  # but for vocab_size
    "mesh": "pretrain",
    "instruct": "sft",
    **{stage: stage for stage in TRAINED[1:]},
}
# The one stage without which a stage has nothing to work on.
STANDS_ON = {
    "tokenizer": "curate",
    "pretrain": "tokenizer",
    "sft": "pretrain",
    "reward": "sft",
    "dpo": "reward",
    "ppo": "reward",
    "eval": "pretrain",
    "report": "curate",
}


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What turns seconds into energy; an estimate, and the report says so."""

    machine_watts: float

    def __post_init__(self):
        if self.machine_watts <= 0:
            raise ValueError(f"machine_watts is {self.machine_watts}; it must be above 0")

    def energy_wh(self, secs: float) -> float:
        """Watt-hours of so many seconds."""
        return secs * self.machine_watts / 3600


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Sizes of the evaluation."""

    batch_size: int
    max_new_tokens: int
    temperature: float
    num_duels: int
    num_samples: int
    num_heldout: int
    ngram_order: int
    sets: str

    def __post_init__(self):
        for key in ("batch_size", "max_new_tokens", "num_duels", "ngram_order"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("temperature", "num_samples", "num_heldout"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be 0 or more")


def parse(config: Any) -> Any:
    """Turns a whole pipeline configuration into `Settings`.

    Args:
      config: a ConfigDict or nested mapping with the sections of configs/quickstart.py.

    Returns:
      Settings, frozen.

    Raises:
      BadInput: an unknown or missing key, a wrong type, a value out of range in a section that a
        stage reads, or sections that do not fit together; the message names the key, the value and
        what is allowed.
    """
    settings = to_dataclass(settings_class(), config, "", _unread(config))
    if not 0 <= settings.seed < 2**31:
        raise BadInput(f"seed is {settings.seed}; it must be in [0, 2**31)")
    _check_stages(settings.stages)
    _check_schedules(settings)
    _check_mixture(settings)
    if "pretrain" in settings.stages:
        model_config(settings)
    _check_answers(settings)
    _check_sets(settings)
    return settings


def _unread(config: Any) -> tuple[str, ...]:
    """The sections that none of the stages reads, which `_check_stages` looks at later."""
    stages = config.get("stages", ())
    named = stages if isinstance(stages, tuple | list) else STAGES
    return tuple(section for section, first in READ_FROM.items() if first not in named)


def _check_stages(stages: tuple[str, ...]) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise BadInput(f"stages has {stage!r}; allowed: {', '.join(STAGES)}")
        if STANDS_ON.get(stage, stage) not in stages:
            raise BadInput(f"stages has {stage!r}; it needs {STANDS_ON[stage]!r} too")
    in_order = tuple(stage for stage in STAGES if stage in stages)
    if not stages or stages != in_order:
        raise BadInput(f"stages is {stages}; it must be some of {STAGES}, each once, in this order")


def _trained(settings: Any) -> list[str]:
    """The training stages that the configuration names; sections of others go unchecked."""
    return [name for name in TRAINED if name in settings.stages]


def _check_answers(settings: Any) -> None:
    """Refuses answers that leave no room for a prompt in the rows of a stage that is named."""
    longest = settings.eval.max_new_tokens
    for name in ("sft", "reward"):
        seq_len = getattr(settings, name).seq_len
        if name in settings.stages and longest >= seq_len:
            raise BadInput(
                f"eval.max_new_tokens is {longest}; it must be below {name}.seq_len = {seq_len}, "
                "which prompt and answer share"
            )


def _check_sets(settings: Any) -> None:
    """Refuses evaluation sets that no source is decontaminated against."""
    sources = settings.data.sources
    if not settings.eval.sets or isinstance(sources, str):  # every gate applies to a path
        return
    if not any({"contamination", "auto"} & set(source.gates) for source in sources.values()):
        raise BadInput(
            f"eval.sets is {settings.eval.sets!r}, but no source has the gate 'contamination', "
            "which keeps their words out of training; it must be in data.sources.NAME.gates of at "
            "least one, or eval.sets must be ''"
        )


def _check_mixture(settings: Any) -> None:
    """Refuses domains that no source has, where the configuration names its sources."""
    if isinstance(settings.data.sources, str) or "tokenizer" not in settings.stages:
        return
    named = {"mixture.domain_max_epochs": settings.mixture.domain_max_epochs}
    named |= {
        f"mixture.stages[{number}].weights": stage.weights
        for number, stage in enumerate(settings.mixture.stages)
    }
    for path, domains in named.items():
        for domain in domains:
            if domain not in settings.data.sources:
                allowed = ", ".join(settings.data.sources)
                raise BadInput(f"{path} has {domain!r}; allowed: {allowed}")


def _check_schedules(settings: Any) -> None:
    from train.optimizer import make_schedule

    for name in _trained(settings):
        section = getattr(settings, name)
        optimizers, updates = {"optimizer": section.optimizer}, section.loop.num_steps
        if name == "ppo":
            optimizers["critic_optimizer"] = section.critic_optimizer
            updates *= section.num_epochs * section.num_minibatches
        for key, optimizer in optimizers.items():
            try:
                make_schedule(optimizer, updates)
            except ValueError as error:
                raise BadInput(f"{name}.{key}: {error}") from error


@functools.cache
def settings_class() -> type:
    """The Settings dataclass; jax and the data room are imported here and no sooner."""
    from alignment.dpo import DPOConfig
    from alignment.ppo import PPOConfig
    from alignment.reward import RewardConfig
    from data.curate import CurateConfig
    from data.instruct import InstructConfig
    from data.mixture import MixtureConfig
    from data.tokenizers.tokenizer import TokenizerConfig
    from model.config import LAYOUT, TransformerConfig
    from model.sharding import MeshConfig
    from train.lm import LMConfig

    hints = typing.get_type_hints(TransformerConfig)
    model = [
        (field.name, hints[field.name], dataclasses.field(metadata=field.metadata))
        for field in dataclasses.fields(TransformerConfig)
    ]
    sections = {
        "name": str,
        "seed": int,
        "start": str,
        "stages": tuple[str, ...],
        "data": CurateConfig,
        "mixture": MixtureConfig,
        "tokenizer": TokenizerConfig,
        "instruct": InstructConfig,
        "model": dataclasses.make_dataclass("ModelConfig", model, frozen=True),
        "mesh": (MeshConfig, dataclasses.field(metadata=LAYOUT)),
        "pretrain": LMConfig,
        "sft": LMConfig,
        "reward": RewardConfig,
        "dpo": DPOConfig,
        "ppo": PPOConfig,
        "eval": EvalConfig,
        "cost": CostConfig,
    }
    fields = [
        (name, *given) if isinstance(given, tuple) else (name, given)
        for name, given in sections.items()
    ]
    return dataclasses.make_dataclass("Settings", fields, frozen=True)


def model_config(settings: Any) -> Any:
    """The TransformerConfig of a run's language model.

    Its embedding has `model.vocab_size` rows, or as many as the tokenizer has ids where that is 0.
    """
    from model.config import TransformerConfig

    rows, ids = settings.model.vocab_size, settings.tokenizer.vocab_size
    is_trained = not settings.start and not settings.tokenizer.path
    if is_trained and 0 < rows < ids:
        raise BadInput(
            f"model.vocab_size is {rows}; it must be 0 or at least the tokenizer's {ids}"
        )
    given = {
        field.name: getattr(settings.model, field.name)
        for field in dataclasses.fields(settings.model)
    }
    try:
        config = TransformerConfig(**{**given, "vocab_size": rows or ids})
    except ValueError as error:
        raise BadInput(str(error)) from error
    if config.head == "scalar":
        raise BadInput("model.head is 'scalar'; it must be 'tied' or 'untied'")
    return config


def fit_mesh(settings: Any) -> Any:
    """Gives the mesh axis that is -1 its size on the devices present, and checks the whole mesh.

    Returns:
      The settings with a size for every axis.

    Raises:
      BadInput: devices, weights or rows do not fit the mesh; with the numbers that clash.
    """
    import jax

    from model import sharding
    from model.transformer import declare

    model = model_config(settings)
    try:
        filled = settings.mesh.fill(jax.device_count())
        settings, sizes = dataclasses.replace(settings, mesh=filled), filled.axis_sizes()
        mesh = sharding.make_mesh(filled)
        sharding.weight_shardings(declare(model), mesh)
        _check_rows(settings, model, sizes)
        _check_lengths(settings, model)
    except ValueError as error:
        raise BadInput(str(error)) from error
    share, most = sharding.replicated(declare(model), sizes), settings.mesh.max_replicated
    if share > most:
        raise BadInput(
            f"mesh: {share:.1%} of the weight bytes would be stored more often than planned, as "
            f"dims do not divide by their axes ({sizes}); at most mesh.max_replicated = {most:.1%}"
        )
    return settings


def _check_rows(settings: Any, model: Any, sizes: Mapping[str, int]) -> None:
    """Raises ValueError if a stage's rows cannot be cut as the mesh cuts them.

    What must fit is what passes through the model at once: a part of the batch where
    `num_microbatches` or PPO's `num_minibatches` cut it, and two rows for each pair of answers.
    """
    from model import pipeline, ring
    from model.config import stacks

    ways = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    longest = max(stack.repeats for stack in stacks(model))

    def check_pipeline(name: str, rows: int) -> None:
        if sizes["stage"] > 1:
            try:
                pipeline.check(model, longest, sizes["stage"], rows)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    if {"pretrain", "eval"} & set(settings.stages):  # its rows need not divide by the other axes
        check_pipeline("eval", settings.eval.batch_size)
    for name in _trained(settings):
        section = getattr(settings, name)
        parts = section.loop.num_microbatches * (section.num_minibatches if name == "ppo" else 1)
        rows = section.loop.batch_size // parts
        if rows % ways:
            cut = f", {rows} in each of {parts} parts" if parts > 1 else ""
            raise ValueError(
                f"{name}.loop.batch_size is {section.loop.batch_size}{cut}; it must divide by "
                f"mesh.data x mesh.fsdp x mesh.expert, which is {ways}"
            )
        check_pipeline(name, rows * (1 + (name in PAIRED)))
        if name in ("pretrain", "sft"):
            ring.balanced_order(section.seq_len, sizes["context"])


def _check_lengths(settings: Any, model: Any) -> None:
    """Raises ValueError if a stage's rows are longer than the positions that the model learns."""
    ppo = settings.ppo
    lengths = {
        "pretrain.seq_len": settings.pretrain.seq_len,
        "sft.seq_len": settings.sft.seq_len,
        "reward.seq_len": settings.reward.seq_len,
        "ppo.max_prompt_tokens + ppo.max_new_tokens": ppo.max_prompt_tokens + ppo.max_new_tokens,
    }
    for key, length in lengths.items():
        if key.split(".")[0] in settings.stages:
            model.check_length(f"a row by {key}", length)


class Frozen(dict):
    """A mapping that stays as it is, and that other processes can be sent."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(f"{key!r}: settings cannot be changed")

    def __reduce__(self):
        return Frozen, (dict(self),)


def to_dataclass(cls: type, section: Any, path: str, unread: Collection[str] = ()) -> Any:
    """Builds `cls` from a mapping with exactly its fields, checking types on the way.

    What lies in a section by the path of one of `unread` may have any value of its type.
    """
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise BadInput(f"{path} is {section!r}; it must be a section with keys")
    hints, given = typing.get_type_hints(cls), dict(section.items())
    for key in given:
        if key not in hints:
            raise BadInput(f"{_join(path, key)}: unknown key; allowed here: {', '.join(hints)}")
    for key in hints:
        if key not in given:
            raise BadInput(f"{_join(path, key)}: missing; the section needs {', '.join(hints)}")
    values = {key: _convert(hints[key], given[key], _join(path, key), unread) for key in hints}
    if path.partition(".")[0] in unread:
        made = object.__new__(cls)  # without its own checks
        vars(made).update(values)
        return made
    try:
        return cls(**values)
    except ValueError as error:
        named = not path or str(error).startswith(path)
        # A message that begins with a key goes on with the path to it.
        begins = re.match(r"\w+", str(error))
        joint = "." if begins and begins[0] in hints else ": "
        raise BadInput(str(error) if named else f"{path}{joint}{error}") from error


def _convert(hint: Any, value: Any, path: str, unread: Collection[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, path, unread)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # a string, or a section
        return _convert(str if isinstance(value, str) else arguments[1], value, path, unread)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise BadInput(f"{path} is {value!r}; it must be a tuple")
        items = ((f"{path}[{i}]", item) for i, item in enumerate(value))
        return tuple(_convert(arguments[0], item, place, unread) for place, item in items)
    if origin is not None and issubclass(origin, Mapping):
        if not hasattr(value, "items"):
            raise BadInput(f"{path} is {value!r}; it must be a section with keys")
        return Frozen(
            {
                key: _convert(arguments[1], item, _join(path, key), unread)
                for key, item in value.items()
            }
        )
    if hint is float and (type(value) is int or value == INFINITY):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{path} is larger than any float") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadInput(f"{path} is {value!r}; it must be of type {hint.__name__}")
    if value != value:
        raise BadInput(f"{path} is not a number; it must be one")
    return value


def to_dict(value: Any) -> Any:
    """Plain JSON-able form of settings; JSON has no infinity, so that it is a string."""
    return _plain(value, lambda _: True)


def identity(value: Any) -> Any:
    """As `to_dict`, without the fields that cannot change a result (model.config.LAYOUT)."""
    return _plain(value, lambda field: field.metadata.get("identity", True))


def _plain(value: Any, is_wanted: Callable[[dataclasses.Field], bool]) -> Any:
    if dataclasses.is_dataclass(value):
        fields = filter(is_wanted, dataclasses.fields(value))
        return {field.name: _plain(getattr(value, field.name), is_wanted) for field in fields}
    if isinstance(value, Mapping):
        return {key: _plain(item, is_wanted) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, is_wanted) for item in value]
    return INFINITY if value == math.inf else value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)
