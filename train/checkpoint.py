"""Checkpoints: parameters, the rest of the state, the loader's place and the configuration."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from data.errors import BadInput

ITEMS = ("params", "rest", "loader", "config")


class Checkpointer:
    """Saves and restores one training stage through Orbax, atomically and in the background.

    A checkpoint is seen only when whole: a process killed while writing leaves a directory that
    the next start removes.
    """

    def __init__(self, directory: Path, config: dict, max_to_keep: int):
        """`config` must be JSON-able; a checkpoint of another config is refused."""
        quiet_orbax()
        self._config = config
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_names=ITEMS,
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
          BadInput: the checkpoint was written under another configuration.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        _refuse_other_config(self._manager.directory, saved.config, self._config)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, rest))
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract[0]),
                rest=ocp.args.StandardRestore(abstract[1]),
                loader=ocp.args.JsonRestore(),
            ),
        )
        return step, found.params, found.rest, found.loader

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and lets go of the directory."""
        self._manager.close()


def load(directory: Path, abstract: Callable[[dict], Any]) -> tuple[dict, Any]:
    """Reads the newest checkpoint's configuration and parameters.

    Args:
      directory: a stage's checkpoint directory.
      abstract: given the saved configuration, the tree of jax.ShapeDtypeStruct with shardings
        that the parameters are read into.

    Returns:
      (configuration, parameters).

    Raises:
      BadInput: there is no finished checkpoint.
    """
    quiet_orbax()
    steps = [path for path in directory.glob("*") if path.name.isdigit()]
    if not steps:
        raise BadInput(f"{directory}: no finished checkpoint here; run the stage that writes it")
    with ocp.CheckpointManager(directory.absolute(), item_names=ITEMS) as manager:
        step = manager.latest_step()

        def read(**item):
            return manager.restore(step, args=ocp.args.Composite(**item))

        try:
            config = read(config=ocp.args.JsonRestore()).config
            return config, read(params=ocp.args.StandardRestore(abstract(config))).params
        except (KeyError, ValueError, OSError) as error:
            raise BadInput(
                f"{directory / str(step)}: damaged ({str(error).splitlines()[0]}); run its stage "
                "again with --fresh"
            ) from error


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


def _refuse_other_config(directory: Any, saved: dict, wanted: dict) -> None:
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
