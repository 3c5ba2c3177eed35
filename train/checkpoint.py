"""Checkpoints: parameters, the rest of the state, the loader's position and the configuration."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from data.errors import BadInput

TREES, NOTES = ("params", "rest"), ("loader", "config")
# Of a parameter that is written part by part: what lies on disk as one piece. Writing one takes
# about ten times its memory.
CHUNK_BYTES = 1 << 23


class Checkpointer:
    """Saves and restores one training stage through Orbax, atomically and in the background.

    A checkpoint is seen only when whole: a process killed while writing leaves a directory that
    the next start removes.
    """

    def __init__(self, directory: Path, config: dict, inputs: Mapping, max_to_keep: int):
        """Opens a directory for one training run.

        Args:
          directory: of the stage's checkpoints.
          config: JSON-able description that readers of the parameters need.
          inputs: JSON-able; all that the result depends on. A checkpoint of others is refused.
          max_to_keep: newest checkpoints that are kept.
        """
        quiet_orbax()
        self._config = {**config, "inputs": inputs}
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, create=True, cleanup_tmp_directories=True
            ),
        )

    def save(self, step: int, params: Any, rest: Any, loader_state: dict) -> None:
        """Starts writing a checkpoint; the arrays may be donated as soon as this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                loader=ocp.args.JsonSave(loader_state),
                config=ocp.args.JsonSave(self._config),
            ),
        )

    def restore(self, params: Any, rest: Any) -> tuple[int, Any, Any, dict] | None:
        """Reads the newest checkpoint into arrays placed like those given.

        Returns:
          (step, params, rest, loader state), or None where there is no checkpoint yet.

        Raises:
          BadInput: the checkpoint was written under another configuration, or by code whose
            state has other names or shapes; or it is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        inputs = saved.config.get("inputs", {})
        _refuse_other_inputs(self._manager.directory, inputs, self._config["inputs"])
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, dict(zip(TREES, (params, rest), strict=True))
        )
        trees = {item: ocp.args.StandardRestore(tree) for item, tree in abstract.items()}
        wanted = ocp.args.Composite(**trees, loader=ocp.args.JsonRestore())
        with _as_damage(Path(self._manager.directory) / str(step)):
            _refuse_other_shapes(self._manager, step, abstract)
            found = self._manager.restore(step, args=wanted)
        return step, found.params, found.rest, found.loader

    def is_empty(self) -> bool:
        """Whether there is no checkpoint yet."""
        return self._manager.latest_step() is None

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and releases the directory."""
        self._manager.close()


def read_config(directory: Path, step: int | None = None) -> dict:
    """A checkpoint's configuration; of the newest unless a step is named.

    Raises:
      BadInput: there is no finished checkpoint, or it is damaged.
    """
    with _newest(directory, step) as (config, _, _):
        return config


def load(
    directory: Path, abstract: Callable[[dict], Any], step: int | None = None
) -> tuple[dict, Any]:
    """Reads a checkpoint's configuration and parameters.

    Args:
      directory: a stage's checkpoint directory.
      abstract: given the saved configuration, the tree of jax.ShapeDtypeStruct with shardings
        that the parameters are read into.
      step: which one; None for the newest.

    Returns:
      (configuration, parameters).

    Raises:
      BadInput: there is no finished checkpoint, it is damaged, it holds other parameters, or
        `abstract` finds that it cannot be read so.
    """
    with _newest(directory, step) as (config, manager, step):
        params = _parse(abstract, config, directory / str(step))
        with _as_damage(directory / str(step)):
            _refuse_other_shapes(manager, step, {"params": params})
            wanted = ocp.args.Composite(params=ocp.args.StandardRestore(params))
            return config, manager.restore(step, args=wanted).params


def load_rest(directory: Path, step: int | None, like: Any) -> Any:
    """Reads what a checkpoint has beside parameters into arrays placed like those given.

    Args:
      directory: a stage's checkpoint directory.
      step: which one; None for the newest.
      like: {"step", "opt_state"} of a training state of the same shapes.

    Raises:
      BadInput: there is none, it is damaged, or its state has other shapes.
    """
    with _newest(directory, step) as (_, manager, step), _as_damage(directory / str(step)):
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        _refuse_other_shapes(manager, step, {"rest": abstract})
        wanted = ocp.args.Composite(rest=ocp.args.StandardRestore(abstract))
        return manager.restore(step, args=wanted).rest


def open_params(directory: Path, declare: Callable[[dict], Any]) -> tuple[dict, Any]:
    """Opens the newest checkpoint's parameters without reading them.

    Args:
      directory: a stage's checkpoint directory.
      declare: given the saved configuration, a tree of what has the parameters' shapes.

    Returns:
      (configuration, tree of tensorstore.TensorStore: `leaf[2].read().result()` reads a part).

    Raises:
      BadInput: there is no finished checkpoint, it is damaged, it holds other parameters, or
        `declare` finds that it cannot be read so.
    """
    with _newest(directory) as (config, _, step):

        def open_one(path, weight):
            place = _place(directory, step, path) | {"fill_missing_data_reads": False}
            leaf = tensorstore.open(place, read=True).result()
            if leaf.shape != weight.shape:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ValueError(f"{name} has shape {leaf.shape}, not {weight.shape}")
            return leaf

        declared = _parse(declare, config, directory / str(step))
        with _as_damage(directory / str(step)):
            return config, jax.tree.map_with_path(open_one, declared)


@contextlib.contextmanager
def _newest(
    directory: Path, step: int | None = None
) -> Iterator[tuple[dict, ocp.CheckpointManager, int]]:
    """(configuration, manager, step) of a checkpoint: the newest unless a step is named."""
    quiet_orbax()
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
    if step is not None and step not in steps:
        raise BadInput(f"{directory}: no checkpoint of step {step}; there are {sorted(steps)}")
    if not steps:
        raise BadInput(f"{directory}: no finished checkpoint here; run the stage that writes it")
    with ocp.CheckpointManager(directory.resolve(), item_handlers=_handlers()) as manager:
        step = manager.latest_step() if step is None else step
        with _as_damage(directory / str(step)):
            wanted = ocp.args.Composite(config=ocp.args.JsonRestore())
            config = manager.restore(step, args=wanted).config
        yield config, manager, step


@contextlib.contextmanager
def _as_damage(place: Path) -> Iterator[None]:
    """Reports any error as a damaged checkpoint; only reads belong in its context."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        # Orbax has no exception class of its own for a piece that it cannot read.
        if not isinstance(error, KeyError | ValueError | OSError) and type(error) is not Exception:
            raise
        why = str(error.__cause__ or error).partition("\n")[0]
        raise BadInput(f"{place}: damaged ({why}); make it again: --fresh, or import") from error


def _parse(caller: Callable[[dict], Any], config: dict, place: Path) -> Any:
    """Calls `caller(config)`; a missing key means a damaged checkpoint, ValueError bad input."""
    with _as_damage(place):
        try:
            return caller(config)
        except ValueError as error:
            raise BadInput(str(error)) from error


def _place(directory: Path, step: int, path: tuple) -> dict:
    """Where Orbax keeps a parameter: a zarr array, in files or in one OCDBT store for all."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    base = (directory / str(step) / "params").resolve()  # tensorstore refuses '..'
    kvstore = {"driver": "file", "path": f"{base}/{name}/"}
    if (base / "manifest.ocdbt").exists():
        kvstore = {"driver": "ocdbt", "base": f"file://{base}/", "path": f"{name}/"}
    return {"driver": "zarr", "kvstore": kvstore}


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A float32 parameter that is made part by part.

    `parts` are (index, function that gives the values at this index): indices into the leading
    dims, all of one length, that together cover the parameter; () is the whole.
    """

    shape: tuple[int, ...]
    parts: Sequence[tuple[tuple[int, ...], Callable[[], np.ndarray]]]


def write(directory: Path, config: dict, params: Any) -> None:
    """Writes a checkpoint of parameters alone, never holding more than one part of one of them.

    `load` reads it onto any mesh like every other. Orbax saves only what is in memory: it is given
    empty arrays, which are then created on disk with their shapes, and filled. They are files
    here: an OCDBT store rewrites its index with each piece. Killed half-way this leaves a
    checkpoint that is not whole: the directory must be one that nobody reads yet.

    Args:
      directory: a stage's checkpoint directory, new.
      config: JSON-able.
      params: nested dict of Lazy.

    Raises:
      ValueError: parts do not cover their parameter, or have another shape.
    """
    quiet_orbax()
    handlers = {
        "params": ocp.StandardCheckpointHandler(use_ocdbt=False),
        "config": ocp.JsonCheckpointHandler(),
    }
    with ocp.CheckpointManager(directory.resolve(), item_handlers=handlers) as manager:
        empty = jax.tree.map(lambda _: np.zeros(1, np.float32), params)
        items = {"params": ocp.args.StandardSave(empty), "config": ocp.args.JsonSave(config)}
        manager.save(0, args=ocp.args.Composite(**items))
    for path, lazy in jax.tree.leaves_with_path(params):
        _fill(_place(directory, 0, path), lazy)


def _fill(place: dict, lazy: Lazy) -> None:
    name, num_dims = place["kvstore"]["path"], len(lazy.parts[0][0])
    indices = [index for index, _ in lazy.parts]
    if sorted(indices) != list(np.ndindex(lazy.shape[:num_dims])):
        raise ValueError(f"{name} of shape {lazy.shape} is not covered by parts at {indices}")
    chunk = _chunk(lazy.shape, num_dims)
    stored = {"dtype": "<f4", "compressor": {"id": "zstd", "level": 1}, "fill_value": None}
    stored |= {"shape": lazy.shape, "chunks": chunk}
    leaf = tensorstore.open(
        {**place, "metadata": stored}, create=True, delete_existing=True
    ).result()
    for index, make in lazy.parts:
        # Nothing here may hold a part while the next is made.
        _fill_part(leaf, name, index, make(), chunk[num_dims:])


def _fill_part(
    leaf: tensorstore.TensorStore, name: str, index: tuple, part: np.ndarray, chunk: list[int]
) -> None:
    """Writes the part that belongs at an index, one piece of the disk after the other."""
    if part.shape != leaf.shape[len(index) :]:
        raise ValueError(
            f"{name}: the part at {index} has shape {part.shape}, not {leaf.shape[len(index) :]}"
        )
    starts = (range(0, size, step) for size, step in zip(part.shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        box = tuple(slice(at, at + step) for at, step in zip(corner, chunk, strict=True))
        piece = np.ascontiguousarray(part[box], np.float32)
        inside = tuple(slice(at, at + size) for at, size in zip(corner, piece.shape, strict=True))
        leaf[index + inside].write(piece).result()


def _chunk(shape: tuple[int, ...], num_indexed: int) -> list[int]:
    """Shape of the pieces on disk: each in one part, of at most CHUNK_BYTES, rows together."""
    chunk = [1] * num_indexed + list(shape[num_indexed:])
    for dim in range(num_indexed, len(shape)):
        row_bytes = 4 * int(np.prod(chunk[:dim] + chunk[dim + 1 :], dtype=np.int64))
        chunk[dim] = max(1, min(chunk[dim], CHUNK_BYTES // row_bytes))
    return chunk


def params_hash(params: Any) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: equal hashes, equal bits."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree.leaves_with_path(params), key=lambda item: str(item[0])):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def quiet_orbax() -> None:
    """Orbax logs every save at warning level; errors still show."""
    logging.getLogger("absl").setLevel(logging.ERROR)


def _handlers() -> dict[str, Any]:
    trees = {item: ocp.StandardCheckpointHandler() for item in TREES}
    return trees | {item: ocp.JsonCheckpointHandler() for item in NOTES}


def _refuse_other_shapes(manager: ocp.CheckpointManager, step: int, wanted: dict) -> None:
    """Compares names and shapes before anything is read: Orbax fails half-way through reading."""
    for item, tree in wanted.items():
        saved = manager.item_metadata(step)[item]
        if saved is None:
            raise ValueError(f"{item} lacks its _METADATA")
        was, now = (
            {
                jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
                for path, leaf in jax.tree.leaves_with_path(x)
            }
            for x in (saved.tree, tree)
        )
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                raise BadInput(
                    f"{manager.directory / str(step)}: {item}.{name} has shape "
                    f"{was.get(name, 'absent')}, this code has {now.get(name, 'absent')}; use "
                    "another --run directory, or --fresh to start the stage over"
                )


def _refuse_other_inputs(directory: Any, saved: dict, wanted: dict) -> None:
    for key, was, now in _differences(saved, wanted, ""):
        raise BadInput(
            f"{directory}: the checkpoint was written with {key} = {was!r}, this run has {now!r}; "
            "use the same value, another --run directory, or --fresh to start the stage over"
        )


def _differences(a: Any, b: Any, path: str):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key, "absent"), b.get(key, "absent"), f"{path}.{key}")
    elif a != b:
        yield path.lstrip("."), a, b
