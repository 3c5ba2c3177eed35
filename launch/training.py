"""Glue between a run directory and the training rooms: checkpoints, loaders, metrics."""

import datetime
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment import sft
from data import chat, instruct
from data.errors import BadInput
from data.loader import Batch, Loader, lm_batch
from data.tokenizers import pretrained, tokenizer, tokenizer_source
from data.tokenizers.pretrained import Pretrained
from data.tokenizers.tokenizer import Tokenizer
from data.tokenizers.tokenizer_files import copy_tokenizer
from launch import settings
from launch.pipeline import Context
from launch.rundir import (
    ORIGIN,
    ORIGIN_KEYS,
    MetricsWriter,
    RunDir,
    digest,
    hash_file,
    write_json,
)
from launch.settings import to_dict
from model import ring, sharding
from model.config import TransformerConfig
from model.interop import gguf
from model.interop.hf_config import COMPUTED, TRAINED
from model.transformer import Params, declare
from train import checkpoint, loop
from train.checkpoint import Checkpointer
from train.step import LossFn, TrainState

# In what a checkpoint says of its parameters: hash of the tokenizer they were trained with.
TOKENIZER = "tokenizer_sha256"


def on_mesh(body: Callable[[Context], dict]) -> Callable[[Context], dict]:
    """Makes a stage's body run inside the run's device mesh, entered here and nowhere below.

    A program reads its sharding constraints from the mesh in context when it is traced. Outside of
    it there are none, and on several TPU chips a Pallas kernel then does not compile.
    """

    @functools.wraps(body)
    def run(context: Context) -> dict:
        with jax.set_mesh(device_mesh(context)):
            return body(context)

    return run


def fit_stage(
    context: Context,
    name: str,
    loss_fn: LossFn,
    model_config: TransformerConfig,
    params: Params,
    loader: Loader,
    *,
    step_tokens: int,
    seq_len: int,
    evaluators: Mapping[str, Callable],
) -> TrainState:
    """Trains a stage of one model and one loss, in its own section's loop and optimizer."""
    section = getattr(context.settings, name)

    def train(checkpointer, watch):
        return loop.fit(
            section.loop,
            section.optimizer,
            loss_fn,
            model_config,
            params,
            loader,
            device_mesh(context),
            checkpointer,
            watch,
            step_tokens=step_tokens,
            seq_len=seq_len,
            evaluators=evaluators,
        )

    return with_checkpoints(context, name, model_config, train)


def with_checkpoints(
    context: Context,
    name: str,
    model_config: TransformerConfig,
    train: Callable[[Checkpointer, loop.Watch], TrainState],
) -> TrainState:
    """Calls `train` with the stage's checkpointer and metrics, and closes both after it."""
    section = getattr(context.settings, name)
    directory = context.run.checkpoints(name)
    about = {"model": to_dict(model_config), TOKENIZER: tokenizer_hash(context.run)}
    checkpointer = Checkpointer(directory, about, context.inputs, section.loop.keep_checkpoints)
    writer = MetricsWriter(context.run, name)
    try:
        return train(checkpointer, loop.Watch(writer.write, context.progress.log, writer.truncate))
    finally:
        writer.close()
        checkpointer.close()


def make_loader(
    context: Context,
    sources: Mapping[str, tuple[Sequence[Batch], float | Sequence[float]]],
    batch_size: int,
    transform: Callable[[Batch], Batch],
    stage_rows: Sequence[int] = (),
) -> Loader:
    """This process's loader over the sources, seeded by the run; each row's ids are looked at."""
    vocab_size = language_model(context).vocab_size

    def checked(rows: Batch) -> Batch:
        refuse_unknown_ids(rows["tokens"], vocab_size, list(sources))
        return transform(rows)

    return Loader(
        sources,
        batch_size,
        context.settings.seed,
        checked,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        stage_rows=stage_rows,
    )


def refuse_unknown_ids(tokens: np.ndarray, vocab_size: int, names: Sequence[str]) -> None:
    """Raises BadInput if there is a token without an embedding: a lookup would clamp it."""
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= vocab_size:
        raise BadInput(
            f"sources {list(names)}: a row holds token {lowest if lowest < 0 else highest}; ids "
            f"must be in [0, {vocab_size}), the model's vocabulary"
        )


def lm_rows(mesh: sharding.MeshConfig, seq_len: int) -> Callable[[Batch], Batch]:
    """Packed rows to a batch of `train.lm`, laid out so that a context axis has even work."""
    order_L = ring.balanced_order(seq_len, mesh.axis_sizes()["context"])

    def transform(rows: Batch) -> Batch:
        return {name: x_BL[:, order_L] for name, x_BL in lm_batch(rows).items()}

    return transform


def device_mesh(context: Context) -> Mesh:
    """The configured mesh over the devices at hand."""
    return sharding.make_mesh(context.settings.mesh)


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
    """What gives the run's tokenizer in any process, jax or no."""
    described = run.read_config()
    rows = described.value("model.vocab_size", int) or described.value("tokenizer.vocab_size", int)
    return _loader(
        run.stage("tokenizer").resolve(),
        described.value("start", str),
        described.value("tokenizer.path", str),
        rows,
        described.value("tokenizer.control", list),
    )


def _loader(
    folder: Path, start: str, path: str, rows: int, control: Sequence[str]
) -> Callable[[], Tokenizer | Pretrained]:
    if not start and (not path or is_own(folder)):
        return functools.partial(tokenizer.load, folder)
    return functools.partial(pretrained.load_for_training, folder, rows, tuple(control))


def tokenizer_hash(run: RunDir) -> str:
    """What the run's tokenizer hashes to: its files, and how the configuration has them used."""
    paths = sorted(path for path in run.stage("tokenizer").iterdir() if path.is_file())
    marks = ("started.json", "done.json", "shards.json", ORIGIN)
    files = [[path.name, hash_file(path)] for path in paths if path.name not in marks]
    used = run.read_config().get("tokenizer", {})  # an imported run has none
    return digest([files, {key: used.get(key) for key in ("control", "vocab_size")}])


def refuse_other_tokenizer(run: RunDir, stage: str, saved: Mapping[str, Any]) -> None:
    """Raises BadInput if the run's tokenizer is not what a stage's model was trained with.

    Beside an imported model lies what was imported; whoever edits its chat template may.
    """
    folder = run.stage("tokenizer")
    known = tokenizer_hash(run) if folder.is_dir() else "absent"
    if saved.get(TOKENIZER, known) != known:
        raise BadInput(
            f"{folder}: not the tokenizer that {stage} was trained with; restore its files, or "
            f"start {stage} over with --fresh"
        )


def note_doubts(run: RunDir, stage: str, note: Callable[[str], None]) -> None:
    """Notes that a stage is unfinished, or that a stage before it has another result by now."""
    if run.read_done(stage) is None:
        note(f"{stage} is not finished: this is the newest checkpoint that it has so far")
    if need := run.find_replaced(stage):
        note(f"{stage} stands on an earlier result of stage {need!r} than there is now")


def take_tokenizer(chosen: Any, folder: Path) -> None:
    """Copies the tokenizer of the run that `start` names, or that of `tokenizer.path`.

    Args:
      chosen: the settings.
      folder: where to.

    Raises:
      BadInput: it does not fit the configuration, or training.
    """
    config, rows = chosen.tokenizer, settings.model_config(chosen).vocab_size
    if chosen.start:
        start = RunDir(Path(chosen.start))
        copy_tokenizer(start.stage("tokenizer"), folder)
        described = start.read_config()
        write_json(folder / ORIGIN, {key: described[key] for key in ORIGIN_KEYS})
    else:
        tokenizer_source.take(Path(config.path), folder, _read_gguf)
    if not is_own(folder):
        pretrained.load_for_training(folder, rows, config.control)
    elif (num_ids := tokenizer.load(folder).vocab_size) > rows:
        raise BadInput(f"{folder}: the tokenizer has {num_ids} ids, and the model {rows} rows")


def check_chat(chosen: Any) -> None:
    """Refuses stages that chat with a tokenizer that has no way to, before the first stage.

    Raises:
      BadInput: as `take_tokenizer`; nothing can be trained to chat with it; or the user's own
        conversations cannot be read, or are refused by its template (one of each order of roles is
        tried).
    """
    if "sft" not in chosen.stages:
        return
    own = instruct.load(Path(chosen.instruct.path))[0] if chosen.instruct.path else []
    if not (chosen.start or chosen.tokenizer.path):
        return
    with tempfile.TemporaryDirectory() as folder:
        take_tokenizer(chosen, Path(folder))
        rows, config = settings.model_config(chosen).vocab_size, chosen.tokenizer
        taken = _loader(Path(folder), chosen.start, config.path, rows, config.control)()
    tried = {tuple(message["role"] for message in example.messages): example for example in own}
    try:
        chat.check(taken)
        for example in tried.values():
            sft.render(taken, example)
    except BadInput as error:
        raise BadInput(f"stages has 'sft': {error}") from error


def is_own(folder: Path) -> bool:
    """Whether the tokenizer in a folder is one that was trained here."""
    try:
        tokenizer.load(folder)
    except BadInput:
        return False
    return True


def _read_gguf(path: Path) -> dict[str, Any]:
    return gguf.open_gguf(path)[1]


def load_start(context: Context, config: TransformerConfig, mesh: Mesh) -> Params:
    """Parameters of the run that `start` names, with the vocabulary padded as this run's is.

    Raises:
      BadInput: its model is another function than this run's.
    """
    start = RunDir(Path(context.settings.start))

    def abstract(saved: dict) -> Any:
        found = _saved_config(saved)
        _refuse_other_model(found, config, start.path)
        # Its vocabulary may not divide by the mesh's axes: such a dim is read whole, then padded.
        return _abstract(found, sharding.weight_shardings(declare(found), mesh, strict=False))

    _, params = checkpoint.load(start.checkpoints("import"), abstract)
    context.refuse_changed_files()

    def pad(x: jax.Array, place: Any, weight: tuple) -> jax.Array:
        more = [(0, now - was) for was, now in zip(x.shape, weight[1], strict=True)]
        return jax.device_put(jnp.pad(x, more), place) if x.shape != weight[1] else x

    wanted = declare(config)
    return jax.tree.map(pad, params, sharding.weight_shardings(wanted, mesh), wanted)


def _refuse_other_model(found: TransformerConfig, wanted: TransformerConfig, start: Path) -> None:
    free = {*COMPUTED, *(f"moe.{name}" for name in TRAINED)}
    was, now = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): value
            for path, value in jax.tree.leaves_with_path(
                to_dict(config), is_leaf=lambda x: not isinstance(x, dict)
            )
        }
        for config in (found, wanted)
    )
    for key in was:
        if key not in free and was[key] != now[key]:
            raise BadInput(
                f"model.{key} is {now[key]!r}; it must be {was[key]!r}, as in start={start}"
            )


def load_params(context: Context, stage: str) -> Params:
    """A finished stage's parameters, placed on the mesh."""
    return load_model(context.run, stage, device_mesh(context))[1]


def load_model(run: RunDir, stage: str, mesh: Mesh) -> tuple[TransformerConfig, Params]:
    """Shape and parameters from a stage's newest checkpoint.

    Raises:
      BadInput: there is none, it is damaged, or the run's tokenizer is another than its own.
    """

    def abstract(saved: dict) -> Any:
        refuse_other_tokenizer(run, stage, saved)
        config = _saved_config(saved)
        places = sharding.weight_shardings(declare(config), mesh)
        return _abstract(config, places)

    saved, params = checkpoint.load(run.checkpoints(stage), abstract)
    return _saved_config(saved), params


def _abstract(config: TransformerConfig, places: Any) -> Any:
    """The parameters' shapes, with a tree of shardings."""
    return jax.tree.map(
        lambda place, weight: jax.ShapeDtypeStruct(weight[1], "float32", sharding=place),
        places,
        declare(config),
    )


def _saved_config(saved: dict) -> TransformerConfig:
    return settings.to_dataclass(TransformerConfig, saved["model"], "model")


def language_model(context: Context) -> TransformerConfig:
    """Shape of the run's language model."""
    return settings.model_config(context.settings)
