"""Loads what a run holds: its tokenizer, and the parameters of each stage."""

import datetime
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from data.errors import BadInput
from data.tokenizers import pretrained, tokenizer
from data.tokenizers.pretrained import Pretrained
from data.tokenizers.tokenizer import Tokenizer
from launch.schema import to_dataclass
from launch.stages.stage import MODELS
from launch.store.rundir import ORIGIN, RunDir, digest, hash_file
from model import sharding
from model.config import TransformerConfig
from model.sharding import MeshConfig
from model.transformer import Params, declare
from train import checkpoint

# RUN[:STAGE[:STEP]]
START = re.compile(r"(?P<run>.+?)(?::(?P<stage>[a-z]+)(?::(?P<step>\d+))?)?")
IMPORTED = "import"

# In what a checkpoint says of its parameters: hash of the tokenizer they were trained with.
TOKENIZER = "tokenizer_sha256"


class Start(NamedTuple):
    """A model to start from: the stage that made it, and the step if one is named."""

    run: RunDir
    stage: str
    step: int | None


def find_start(start: str) -> Start:
    """The model that `start` names: RUN, RUN:STAGE or RUN:STAGE:STEP.

    Raises:
      BadInput: there is no such run, or it has no such model.
    """
    found = START.fullmatch(start)
    run, step = RunDir(Path(found["run"]), "start"), found["step"]
    run.read_config()
    stages = (IMPORTED, *MODELS)
    stage = found["stage"] or next((s for s in reversed(stages) if run.read_done(s)), "")
    if stage not in stages or not run.checkpoints(stage).is_dir():
        made = [name for name in stages if run.checkpoints(name).is_dir()]
        raise BadInput(f"start={start}: no model of stage {stage!r} is there; it has {made}")
    if step is None and run.read_done(stage) is None:
        raise BadInput(f"start={start}: {stage} is not finished; name a step, as in RUN:STAGE:STEP")
    return Start(run, stage, None if step is None else int(step))


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
    found = find_start(f"{path}:{stage}" if stage else str(path))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    config, params = load_model(found.run, found.stage, mesh)
    return config, params, load_tokenizer(found.run)


def load_tokenizer(run: RunDir) -> Tokenizer | Pretrained:
    """The run's tokenizer: trained here, or that of the model it started from."""
    described = run.read_config()
    if "model_type" in described:  # an imported run
        rows = described.value("model.vocab_size", int)
        return pretrained.load(run.stage("tokenizer"), rows)
    loaded = tokenizer_loader(run)()
    if isinstance(loaded, Pretrained):
        loaded.date = datetime.datetime.fromisoformat(described.value("instruct.date", str))
    return loaded


def tokenizer_loader(run: RunDir) -> Callable[[], Tokenizer | Pretrained]:
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
) -> Callable[[], Tokenizer | Pretrained]:
    """A function that loads a folder's tokenizer: trained here, or imported for so many rows."""
    if not (start or path) or is_own(folder):
        return functools.partial(tokenizer.load, folder)
    return functools.partial(pretrained.load_for_training, folder, rows, tuple(control))


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
        tokenizer.load(folder)
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
