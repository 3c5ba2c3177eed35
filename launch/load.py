"""Loads what a run holds: its tokenizer, parameters of each stage, a model to start from."""

import datetime
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from data.errors import BadInput
from data.tokens import tokenizer
from data.tokens.tokenizer import Tokenizer
from launch.schema import to_dataclass, to_dict
from launch.stages.stage import MODELS
from launch.store.rundir import ORIGIN, RunDir, digest, flatten, hash_file
from model import sharding
from model.config import TransformerConfig
from model.interop.hf_config import COMPUTED, TRAINED
from model.sharding import MeshConfig
from model.transformer import Params, declare
from train import checkpoint
from train.step import map_count

# RUN[:STAGE[:STEP]]
START = re.compile(r"(?P<run>.+?)(?::(?P<stage>[a-z]+)(?::(?P<step>\d+))?)?")
IMPORTED = "import"
# What makes a language model, those that answer in turns last.
MAKERS = (IMPORTED, *MODELS)

# In what a checkpoint says of its parameters: hash of the tokenizer they were trained with.
TOKENIZER = "tokenizer_sha256"


class Start(NamedTuple):
    """A model to start from: the stage that made it, and the step if one is named."""

    run: RunDir
    stage: str
    step: int | None


def find_start(start: str, flag: str = "start") -> Start:
    """The model that `start` names: RUN, RUN:STAGE or RUN:STAGE:STEP; `flag` names it in messages.

    Raises:
      BadInput: there is no such run, or it has no such model.
    """
    found = START.fullmatch(start)
    run, step = RunDir(Path(found["run"]), flag), found["step"]
    run.read_config()
    stage = choose_stage(run, found["stage"], f"{flag}={run.path}:")
    if step is None and run.read_done(stage) is None:
        raise BadInput(f"{flag}={start}: {stage} is not finished; name a step: RUN:STAGE:STEP")
    return Start(run, stage, None if step is None else int(step))


def choose_stage(run: RunDir, stage: str | None, flag: str = "--stage=") -> str:
    """The stage that a flag names, or else the last of MAKERS that is finished.

    Raises:
      BadInput: none is finished, or the one named makes no language model.
    """
    stage = stage or next((name for name in reversed(MAKERS) if run.read_done(name)), "")
    if not stage:
        raise BadInput(f"{run.path}: no finished stage; it needs one of {', '.join(MAKERS)}")
    if stage not in MAKERS:
        raise BadInput(f"{flag}{stage}: must be one of {', '.join(MAKERS)}")
    if not run.checkpoints(stage).is_dir():
        made = ", ".join(name for name in MAKERS if run.checkpoints(name).is_dir())
        raise BadInput(f"{flag}{stage}: no model of it is in {run.path}; it has {made or 'none'}")
    return stage


def weights_hash(start: Start) -> str:
    """Hash of the weights of a model to start from."""
    if start.stage == IMPORTED:
        config = start.run.read_config()
        if "weights_sha256" not in config:
            raise BadInput(
                f"start={start.run.path}: config.json has no 'weights_sha256'; import it again, "
                "with this version"
            )
        return config["weights_sha256"]
    if start.step is None:
        return start.run.read_done(start.stage)["summary"]["params_sha256"]
    return digest(start.run.hash_files(f"checkpoints/{start.stage}/{start.step}/params"))


def load_run(path: Path | str, stage: str = "") -> tuple[TransformerConfig, Params, Any]:
    """Loads a model with its tokenizer, onto the first device.

    Args:
      path: a run directory.
      stage: whose model; '' for that of the last stage that is finished.

    Returns:
      (config, params, tokenizer), for `model.transformer.forward` and `model.decode.generate`.

    Raises:
      BadInput: there is no such run, it has no such model, or a file of it is damaged.
    """
    found = find_start(f"{path}:{stage}" if stage else str(path), "path")
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    config, params = load_model(found.run, found.stage, mesh)
    return config, params, load_tokenizer(found.run)


def load_tokenizer(run: RunDir) -> Tokenizer:
    """The run's tokenizer: trained here, or that of the model it started from."""
    described = run.read_config()
    if "model_type" in described:  # an imported run
        rows = described.value("model.vocab_size", int)
        return tokenizer.load(run.stage("tokenizer"), rows)
    loaded = tokenizer_loader(run)()
    if loaded.chat_template is not None and "instruct" in described:  # only of stages that chat
        loaded.date = datetime.datetime.fromisoformat(described.value("instruct.date", str))
    return loaded


def tokenizer_loader(run: RunDir) -> Callable[[], Tokenizer]:
    """A function that loads the run's tokenizer in any process, with or without jax."""
    described = run.read_config()
    rows = described.value("model.vocab_size", int)
    return make_loader(
        run.stage("tokenizer").resolve(),
        described.value("start", str),
        described.value("tokenizer.path", str),
        rows,
        described.value("tokenizer.control", list),
    )


def make_loader(
    folder: Path, start: str, path: str, rows: int, control: Sequence[str]
) -> Callable[[], Tokenizer]:
    """A function that loads a folder's tokenizer: trained here, or imported for so many rows."""
    if not (start or path) or is_own(folder):
        return functools.partial(tokenizer.load_own, folder)
    return functools.partial(tokenizer.load_for_training, folder, rows, tuple(control))


def tokenizer_hash(run: RunDir) -> str:
    """Hash of the run's tokenizer: its files, and the keys that say how they are used."""
    paths = sorted(path for path in run.stage("tokenizer").iterdir() if path.is_file())
    marks = ("started.json", "done.json", "shards.json", ORIGIN)
    files = [[path.name, hash_file(path)] for path in paths if path.name not in marks]
    used = run.read_config().get("tokenizer", {})  # an imported run has none
    return digest([files, {key: used.get(key) for key in ("control", "vocab_size")}])


def refuse_other_tokenizer(run: RunDir, stage: str, saved: Mapping[str, Any]) -> None:
    """Raises BadInput if the run's tokenizer is not what a stage's model was trained with.

    The tokenizer of an imported run may change: its user may edit the chat template.
    """
    folder = run.stage("tokenizer")
    known = tokenizer_hash(run) if folder.is_dir() else "absent"
    if saved.get(TOKENIZER, known) != known:
        raise BadInput(
            f"{folder}: not the tokenizer that {stage} was trained with; restore its files, or "
            f"start {stage} over with --fresh"
        )


def note_doubts(run: RunDir, stage: str, note: Callable[[str], None]) -> None:
    """Notes that a stage is unfinished, or that an earlier stage has another result by now."""
    if run.read_done(stage) is None:
        note(f"{stage} is not finished: this is the newest checkpoint that it has so far")
    if need := run.find_replaced(stage):
        note(f"{stage} was made from an earlier result of stage {need!r} than there is now")


def is_own(folder: Path) -> bool:
    """Whether the tokenizer in a folder is one that was trained here."""
    try:
        tokenizer.load_own(folder)
    except BadInput:
        return False
    return True


def load_model(run: RunDir, stage: str, mesh: Mesh) -> tuple[TransformerConfig, Params]:
    """Shape and parameters from a stage's newest checkpoint.

    Raises:
      BadInput: there is none, it is damaged, or the run's tokenizer is another than its own.
    """

    def abstract(saved: dict) -> Any:
        refuse_other_tokenizer(run, stage, saved)
        config = saved_config(saved)
        places = sharding.weight_shardings(declare(config), mesh)
        return abstract_params(config, places)

    saved, params = checkpoint.load(run.checkpoints(stage), abstract)
    return saved_config(saved), params


def load_start(start: Start, config: TransformerConfig, mesh: Mesh) -> Params:
    """Parameters of a model to start from, the vocabulary padded as this run's is.

    Raises:
      BadInput: its model computes another function than that of `config`.
    """

    def abstract(saved: dict) -> Any:
        refuse_other_tokenizer(start.run, start.stage, saved)
        found = saved_config(saved)
        refuse_other_model(found, config, start.run.path)
        # Its vocabulary may not divide by the mesh's axes: such a dim is read whole, then padded.
        places = sharding.weight_shardings(declare(found), mesh, strict=False)
        return abstract_params(found, places)

    _, params = checkpoint.load(start.run.checkpoints(start.stage), abstract, start.step)

    def pad(x: jax.Array, place: Any, weight: sharding.Weight) -> jax.Array:
        more = [(0, now - was) for was, now in zip(x.shape, weight.shape, strict=True)]
        return jax.device_put(jnp.pad(x, more), place) if x.shape != weight.shape else x

    wanted = declare(config)
    return jax.tree.map(pad, params, sharding.weight_shardings(wanted, mesh), wanted)


def load_moments(start: Start, opt_state: optax.OptState) -> optax.OptState:
    """Moments of its optimizer in place of fresh ones; the schedule starts over.

    Raises:
      BadInput: the optimizer was another one, or there is none, as of an imported model.
    """
    if start.stage == IMPORTED:
        raise BadInput("start_optimizer is True; an imported model has no optimizer's moments")
    like = {"step": jnp.zeros((), jnp.int32), "opt_state": opt_state}
    found = checkpoint.load_rest(start.run.checkpoints(start.stage), start.step, like)
    return map_count(jnp.zeros_like, found["opt_state"])


def refuse_other_model(found: TransformerConfig, wanted: TransformerConfig, start: Path) -> None:
    """Raises BadInput if two models differ in more than how they are computed and trained."""
    free = {*COMPUTED, *(f"moe.{name}" for name in TRAINED)}
    was, now = flatten(to_dict(found)), flatten(to_dict(wanted))
    for key in was:
        if key not in free and was[key] != now[key]:
            raise BadInput(
                f"model.{key} is {now[key]!r}; it must be {was[key]!r}, as in start={start}"
            )


def abstract_params(config: TransformerConfig, places: Any) -> Any:
    """The parameters' shapes, with a tree of shardings."""
    return jax.tree.map(
        lambda place, weight: jax.ShapeDtypeStruct(weight.shape, "float32", sharding=place),
        places,
        declare(config),
    )


def saved_config(saved: dict) -> TransformerConfig:
    """The shape of the model in a checkpoint."""
    return to_dataclass(TransformerConfig, saved["model"], "model")
