"""The settings of a run: one frozen dataclass, and what must hold between its sections."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax

from alignment.dpo import DPOConfig
from alignment.grpo import GRPOConfig
from alignment.policy import RolloutConfig
from alignment.ppo import PPOConfig
from alignment.reward import RewardConfig
from alignment.sft import SFTConfig
from data.curate import CurateConfig
from data.errors import BadInput
from data.mixture.plan import MixtureConfig
from data.quickstart.instruct import InstructConfig
from data.tokens.trainer import TokenizerConfig
from eval import task
from launch.schema import check_keys, hint_of, keys_of, to_dataclass
from launch.stages.stage import STAGES, TRAINED, sections_of
from model import layer_pipeline, ring, sharding
from model.config import LAYOUT, Layout, TransformerConfig, require, stacks
from model.sharding import MeshConfig
from model.transformer import declare
from train.lm import LMConfig
from train.loop import LoopConfig
from train.optimizer import OptimizerConfig, make_schedule, split

MAX_SHOTS = 1000


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What turns seconds into energy: an estimate, and the report says so."""

    machine_watts: float = 30.0  # W under load, an estimate

    def __post_init__(self):
        require(self, machine_watts=(self.machine_watts > 0, "above 0"))

    def energy_wh(self, secs: float) -> float:
        """Watt-hours of so many seconds."""
        return secs * self.machine_watts / 3600


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Sizes of the evaluation."""

    batch_size: int = 64  # rows or prompts at once
    max_new_tokens: int = 48  # longest answer, tokens
    # Least number of prompts on which a policy is compared with its start; every k-th is taken.
    num_comparisons: int = 400
    # Held out, for the losses while training: documents of each domain, conversations of each kind.
    num_heldout: int = 8
    sets: str = ""  # files of evaluation sets, for the gate contamination; none is evaluated
    tasks: tuple[str, ...] = ()  # benchmarks to measure each model on: files of eval/tasks
    data: str = ""  # folder with a folder of files for each of them: mmlu/, gsm8k/
    num_shots: int = -1  # examples shown before a question; -1: as many as the task shows
    limit: int = 0  # questions asked of each task, spread evenly over it; 0: all

    def __post_init__(self):
        for key in ("batch_size", "max_new_tokens", "num_comparisons"):
            require(self, **{key: (getattr(self, key) >= 1, "at least 1")})
        for key in ("num_heldout", "limit"):
            require(self, **{key: (getattr(self, key) >= 0, "0 or more")})
        shots = (-1 <= self.num_shots <= MAX_SHOTS, f"between -1 and {MAX_SHOTS}")
        require(self, num_shots=shots)
        self._check_tasks()

    def _check_tasks(self):
        """Refuses names that no benchmark has, and names without their files."""
        for name in self.tasks:
            if name not in task.names():
                allowed = ", ".join(task.names())
                raise ValueError(f"tasks has {name!r}; allowed: {allowed}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks is {self.tasks}; each must be named once")
        if self.tasks and not self.data:
            raise ValueError(f"data is ''; it must be the folder that holds {self.tasks[0]}/")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole configuration; a section that none of its stages reads is None."""

    name: str  # the run directory is runs/NAME unless --run says otherwise
    stages: tuple[str, ...]  # what to run, in the order of the table of stages
    seed: int = 0  # of initialisation, shuffling and sampling
    start: str = ""  # RUN[:STAGE[:STEP]]: a model to start from, imported or trained here
    start_optimizer: bool = False  # its optimizer's moments too; the schedule starts over
    eval: EvalConfig = EvalConfig()
    cost: CostConfig = CostConfig()
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(data=-1), metadata=LAYOUT)
    layout: Layout = dataclasses.field(default=Layout(), metadata=LAYOUT)
    data: CurateConfig | None = None
    mixture: MixtureConfig | None = None
    tokenizer: TokenizerConfig | None = None
    instruct: InstructConfig | None = None
    model: TransformerConfig | None = None
    pretrain: LMConfig | None = None
    sft: SFTConfig | None = None
    reward: RewardConfig | None = None
    dpo: DPOConfig | None = None
    ppo: PPOConfig | None = None
    grpo: GRPOConfig | None = None

    def __post_init__(self):
        require(self, seed=(0 <= self.seed < 2**31, "in [0, 2**31)"))


# Sections whose keys are the defaults of every training stage; its own section overrides them.
SHARED = {"optimizer": OptimizerConfig, "loop": LoopConfig, "rollout": RolloutConfig}


@dataclasses.dataclass(frozen=True)
class Whole(Settings):
    """All that a configuration may hold: the settings, and the shared sections."""

    optimizer: OptimizerConfig | None = None
    loop: LoopConfig | None = None
    rollout: RolloutConfig | None = None


def parse(config: Any, overridden: Collection[str] = ()) -> Settings:
    """Turns a whole configuration into settings.

    Args:
      config: a ConfigDict or nested mapping. Sections that none of its stages reads are not looked
        at.
      overridden: dotted paths of the keys that the command line gives.

    Returns:
      Settings, frozen; `model.vocab_size` is the tokenizer's where the configuration has 0.

    Raises:
      BadInput: an unknown or missing key, a wrong type, a value out of range, or sections that do
        not fit together; the message names the key, the value and what is allowed.
    """
    given = dict(config.items())
    read = sections_of(_check_stages(given) if "stages" in given else ())
    sections = {field.name for field in dataclasses.fields(Settings) if field.default is None}
    given = {key: value for key, value in given.items() if key not in sections - read}
    for section in sections & read - {"model"}:
        given.setdefault(section, {})
    given = _spread_shared(given)
    if "model" in given:
        given["model"] = _with_vocabulary(given)
    try:
        settings = to_dataclass(Settings, given, "")
    except BadInput as error:
        raise BadInput(_name_shared(str(error), config)) from error
    if settings.model:
        model = dataclasses.replace(settings.model, layout=settings.layout)
        settings = dataclasses.replace(settings, model=model)
    _check_optimizers(settings)
    _check_mixture(settings)
    _check_model(settings)
    _check_sets(settings)
    for path in overridden:
        _check_read(config, settings.stages, path)
    return settings


def _spread_shared(given: Mapping) -> dict:
    """Puts the keys of the shared sections into those of each training stage that lacks them."""
    given, shared = dict(given), {}
    for name, cls in SHARED.items():
        shared[cls] = given.pop(name, {})
        check_keys(cls, shared[cls], name)
    for stage in set(TRAINED) & given.keys():
        if not hasattr(given[stage], "items"):
            continue  # refused as no section
        section = given[stage] = dict(given[stage].items())
        for key in keys_of(hint_of(Settings, stage)):
            own, common = section.get(key, {}), shared.get(hint_of(Settings, f"{stage}.{key}"))
            if common is not None and hasattr(own, "items"):
                section[key] = {**dict(common.items()), **dict(own.items())}
    return given


def _name_shared(message: str, config: Mapping) -> str:
    """A message on a stage's key as one on the key of the shared section, if that was given."""
    stage, *rest = message.partition(" ")[0].split(".")
    if stage not in TRAINED or len(rest) < 2:
        return message
    section, key = rest[:2]
    for shared, cls in SHARED.items():
        is_of = hint_of(Settings, f"{stage}.{section}") is cls
        own = config.get(stage, {}).get(section, {})
        if is_of and key in config.get(shared, {}) and key not in own:
            return message.replace(f"{stage}.{section}.", f"{shared}.", 1)
    return message


def _check_read(given: Mapping, stages: Collection[str], path: str) -> None:
    """Refuses a key of a shared section that every stage has a key of its own in place of."""
    shared, _, key = path.partition(".")
    own = []
    for stage in (name for name in TRAINED if name in stages and shared in SHARED):
        for name in keys_of(hint_of(Settings, stage)):
            if hint_of(Settings, f"{stage}.{name}") is SHARED[shared]:
                if key not in given.get(stage, {}).get(name, {}):
                    return
                own.append(f"{stage}.{name}.{key}")
    if own:
        raise BadInput(
            f"--config.{path}: changes nothing; give --config.{own[0]}, as each training stage "
            f"has its own: {', '.join(own)}"
        )


def _check_stages(given: Mapping) -> tuple[str, ...]:
    stages = given["stages"]
    if not isinstance(stages, tuple | list):
        raise BadInput(f"stages is {stages!r}; it must be a tuple")
    for name in stages:
        if name not in STAGES:
            raise BadInput(f"stages has {name!r}; allowed: {', '.join(STAGES)}")
        row, wanted = STAGES[name], list(STAGES[name].needs)
        if row.starts and not row.parent(stages) and not given.get("start"):
            wanted.append(row.starts[0])
        if "reward" in wanted and _section(given, "reward").get("function"):
            wanted.remove("reward")
        if name == "tokenizer" and "pretrain" not in stages and _is_taken(given):
            wanted.remove("curate")  # one is taken as it is, and no text is packed
        for need in wanted:
            if need not in stages:
                raise BadInput(f"stages has {name!r}; it needs {need!r} too")
    in_order = tuple(name for name in STAGES if name in stages)
    if not stages or tuple(stages) != in_order:
        allowed = tuple(STAGES)
        raise BadInput(
            f"stages is {stages}; it must be some of {allowed}, each once, in this order"
        )
    return in_order


def _is_taken(given: Mapping) -> bool:
    """Whether the tokenizer is one that is there already."""
    return bool(given.get("start") or _section(given, "tokenizer").get("path"))


def _section(given: Mapping, name: str) -> Any:
    """A section, or {} where there is none (or what is refused as no section)."""
    section = given.get(name, {})
    return section if hasattr(section, "items") else {}


def _with_vocabulary(given: Mapping) -> Any:
    """The section `model`; its embedding has as many rows as the tokenizer ids if it says 0."""
    model = given["model"]
    tokenizer = given.get("tokenizer", {})
    if not hasattr(model, "items"):
        return model  # refused as no section
    model = dict(model.items())
    if not hasattr(tokenizer, "items"):
        return model | {"vocab_size": model.get("vocab_size") or 1}  # the other is refused
    ids = tokenizer.get("vocab_size", TokenizerConfig.vocab_size)
    rows = model.get("vocab_size", 0)
    if type(ids) is not int or type(rows) is not int:
        return model | {"vocab_size": rows or 1}  # refused by the type of the other
    if not _is_taken(given) and 0 < rows < ids:
        raise BadInput(
            f"model.vocab_size is {rows}; it must be 0 or at least the tokenizer's {ids}"
        )
    return model | {"vocab_size": rows or ids}


def _trained(settings: Settings) -> list[str]:
    """The training stages that the configuration names."""
    return [name for name in TRAINED if name in settings.stages]


def _check_model(settings: Settings) -> None:
    """Refuses a reward model in place of the language model."""
    if settings.model and settings.model.head == "scalar":
        raise BadInput("model.head is 'scalar'; it must be 'tied' or 'untied'")


def _check_sets(settings: Settings) -> None:
    """Refuses evaluation sets that no source is decontaminated against."""
    sources = settings.data.sources if settings.data else ""
    if not settings.eval.sets or isinstance(sources, str):  # every gate applies to a path
        return
    if not any({"contamination", "auto"} & set(source.gates) for source in sources.values()):
        raise BadInput(
            f"eval.sets is {settings.eval.sets!r}, but no source has the gate 'contamination', "
            "which keeps their words out of training; it must be in data.sources.NAME.gates of at "
            "least one, or eval.sets must be ''"
        )


def _check_mixture(settings: Settings) -> None:
    """Refuses domains that no source has, where the configuration names its sources."""
    if settings.data is None or isinstance(settings.data.sources, str) or not settings.mixture:
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


def _check_optimizers(settings: Settings) -> None:
    """Refuses warmups as long as training, and frozen weights that the model does not have."""
    for name in _trained(settings):
        section = getattr(settings, name)
        optimizers, updates = {"optimizer": section.optimizer}, section.loop.num_steps
        if name == "ppo":
            optimizers["critic_optimizer"] = section.critic_optimizer
        if hasattr(section, "rollout"):
            updates *= section.rollout.num_updates()
        for key, optimizer in optimizers.items():
            try:
                make_schedule(optimizer, updates)
                if optimizer.frozen:
                    split(declare(settings.model), optimizer.frozen)
            except ValueError as error:
                raise BadInput(f"{name}.{key}: {error}") from error


def fit_mesh(settings: Settings) -> Settings:
    """Gives the mesh axis that is -1 its size on the devices present, and checks the whole mesh.

    Returns:
      The settings with a size for every axis.

    Raises:
      BadInput: devices, weights or rows do not fit the mesh; with the numbers that clash.
    """
    model = settings.model
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


def _check_rows(settings: Settings, model: TransformerConfig, sizes: Mapping[str, int]) -> None:
    """Raises ValueError if a stage's rows cannot be cut as the mesh cuts them.

    What must fit is what passes through the model at once: a part of the batch where
    `num_microbatches` or PPO's `num_minibatches` cut it, and two rows for each pair of answers.
    """
    axes = sharding.table_of(sizes)["B"][1]
    ways = math.prod(sizes[axis] for axis in axes)
    longest = max(stack.repeats for stack in stacks(model))

    def check_pipeline(name: str, rows: int) -> None:
        if sizes["stage"] > 1:
            try:
                layer_pipeline.check(model, longest, sizes["stage"], rows)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    if {"pretrain", "eval"} & set(settings.stages):  # its rows need not divide by the other axes
        check_pipeline("eval", settings.eval.batch_size)
    for name in _trained(settings):
        section = getattr(settings, name)
        rollout = getattr(section, "rollout", None)
        parts = section.loop.num_microbatches * (rollout.num_minibatches if rollout else 1)
        rows = section.loop.batch_size * getattr(section, "group_size", 1) // parts
        if rows % ways:
            cut = f", {rows} in each of {parts} parts" if parts > 1 else ""
            raise ValueError(
                f"{name}.loop.batch_size is {section.loop.batch_size}{cut}; it must divide by "
                f"{' x '.join(f'mesh.{axis}' for axis in axes)}, which is {ways}"
            )
        check_pipeline(name, rows * STAGES[name].sides)
        if name in ("pretrain", "sft"):
            ring.balanced_order(section.seq_len, sizes["context"])


def _check_lengths(settings: Settings, model: TransformerConfig) -> None:
    """Raises ValueError if a stage's rows are longer than the positions that the model learns."""
    lengths = {
        f"{name}.seq_len": getattr(settings, name).seq_len
        for name in _trained(settings)
        if hasattr(getattr(settings, name), "seq_len")
    }
    for name in _trained(settings):
        if rollout := getattr(getattr(settings, name), "rollout", None):
            length = rollout.max_prompt_tokens + rollout.max_new_tokens
            lengths[f"{name}.rollout.max_prompt_tokens + max_new_tokens"] = length
    for key, length in lengths.items():
        model.check_length(f"a row by {key}", length)
