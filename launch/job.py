"""One stage's job: its settings, its run directory, and what is derived from them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.engine import Runner
from data.errors import BadInput
from data.mixture.loader import Batch, Loader, lm_batch
from data.tokens.tokenizer import Tokenizer
from launch import load
from launch.console import Progress
from launch.identity import describe_files, reads_start
from launch.schema import to_dict
from launch.settings import Settings
from launch.stages.stage import STAGES
from launch.store.metrics import MetricsWriter
from launch.store.rundir import RunDir, flatten, remove
from model import flop, ring, sharding
from model.config import TransformerConfig
from model.transformer import Params
from train import loop
from train.checkpoint import Checkpointer
from train.heldout import heldout_loss
from train.optimizer import make_schedule
from train.step import LossFn, TrainState, make_training


@dataclasses.dataclass(eq=False)
class Job:
    """What the body of a stage receives."""

    settings: Settings  # the whole configuration
    run: RunDir
    progress: Progress  # where lines go
    runner: Runner  # where data is worked on
    stage: str  # its name
    inputs: Mapping[str, Any]  # what its result depends on

    @property
    def model(self) -> TransformerConfig:
        """Shape of the run's language model."""
        return self.settings.model

    @property
    def section(self) -> Any:
        """The section of the stage's own keys."""
        return getattr(self.settings, self.stage)

    @property
    def parent(self) -> str | None:
        """The stage of this run whose model this one starts from; None for that of `start`."""
        return STAGES[self.stage].parent(self.settings.stages)

    @functools.cached_property
    def start(self) -> load.Start:
        """The model that the configuration names to start from."""
        return load.find_start(self.settings.start)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The configured mesh over the devices at hand."""
        return sharding.make_mesh(self.settings.mesh)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load.load_tokenizer(self.run)

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """The run's device mesh, entered here and nowhere below, for stages that compute on it.

        A program reads its sharding constraints from the mesh in context when it is traced. Outside
        of it there are none, and on several TPU chips a Pallas kernel then does not compile.
        """
        row = STAGES[self.stage]
        needs_devices = row.trains or row.starts
        return jax.set_mesh(self.mesh) if needs_devices else contextlib.nullcontext()

    def refuse_changed_files(self) -> None:
        """Checks the stage's input files again; to be called once they are read, before any work.

        Raises:
          BadInput: one has changed since the stage began, so that its recorded hash is wrong.
        """
        now, was = flatten(describe_files(self.settings, self.stage)), flatten(self.inputs)
        changed = [key.removeprefix("content.") for key in now if now[key] != was.get(key)]
        if changed:
            remove(self.run.stage(self.stage) / "started.json")
            raise BadInput(
                f"{self.stage}: files that it reads changed meanwhile ({', '.join(changed)}); run "
                "again"
            )

    def params(self, stage: str) -> Params:
        """A finished stage's parameters, placed on the mesh."""
        return load.load_model(self.run, stage, self.mesh)[1]

    def start_params(self) -> Params:
        """Parameters of the model that the stage starts from."""
        if self.parent:
            return self.params(self.parent)
        params = load.load_start(self.start, self.model, self.mesh)
        self.refuse_changed_files()
        return params

    def loader(
        self,
        sources: Mapping[str, tuple[Sequence[Batch], float | Sequence[float]]],
        transform: Callable[[Batch], Batch] = dict,
        stage_rows: Sequence[int] = (),
    ) -> Loader:
        """This process's loader over the sources, seeded by the run; each row's ids are checked."""

        def checked(rows: Batch) -> Batch:
            refuse_unknown_ids(rows["tokens"], self.model.vocab_size, list(sources))
            return transform(rows)

        return Loader(
            sources,
            self.section.loop.batch_size,
            self.settings.seed,
            checked,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            stage_rows=stage_rows,
        )

    def heldout(
        self,
        loss: LossFn,
        rows: Mapping[str, Sequence[Batch]],
        transform: Callable[[Batch], Batch] = dict,
    ) -> dict:
        """Evaluators of the stage's own loss on held-out rows, by set; '' is the built-in set."""
        config = self.section.loop
        batch_size = config.batch_size // config.num_microbatches  # what a step has in memory
        return {
            f"heldout_{name}".rstrip("_"): heldout_loss(
                loss, found, batch_size, transform, self.mesh
            )
            for name, found in rows.items()
            if found
        }

    def train(
        self,
        loss: LossFn,
        params: Params,
        loader: Loader,
        *,
        step_tokens: int,
        seq_len: int,
        evaluators: Mapping[str, Callable],
        model: TransformerConfig | None = None,
    ) -> TrainState:
        """Trains one model on one loss, in the section's loop and optimizer.

        Args:
          loss: see `step.LossFn`.
          params: where to start; they are donated, so that no second copy stays alive.
          loader, evaluators: as in `loop.run`.
          step_tokens: read by a step.
          seq_len: tokens a row, for the FLOPs of attention.
          model: shape of the model, if it is not the run's language model.
        """
        model, config, optimizer = model or self.model, self.section.loop, self.section.optimizer
        is_first = reads_start(self.settings, self.stage)
        with self.keeping(model) as (checkpointer, watch):
            lengths = (config.num_steps, config.num_microbatches)
            begin, step = make_training(loss, optimizer, model, *lengths, self.mesh)
            state = begin(params)
            if self.settings.start_optimizer and is_first and checkpointer.is_empty():
                state = state._replace(opt_state=load.load_moments(self.start, state.opt_state))
            step_flops = step_tokens * flop.train_flops(model, seq_len)
            peak_flops, source = flop.peak_flops(model.dtype, model.quantized)
            work = loop.Work(step_tokens, step_flops, peak_flops, source == "measured")
            return loop.run(
                config,
                state,
                step,
                loader,
                self.mesh,
                checkpointer,
                watch,
                work=work,
                learning_rate=make_schedule(optimizer, config.num_steps),
                evaluators=evaluators,
            )

    @contextlib.contextmanager
    def keeping(self, model: TransformerConfig) -> Iterator[tuple[Checkpointer, loop.Watch]]:
        """The stage's checkpointer and metrics, closed when the context ends."""
        about = {"model": to_dict(model), load.TOKENIZER: load.tokenizer_hash(self.run)}
        checkpointer = Checkpointer(
            self.run.checkpoints(self.stage), about, self.inputs, self.section.loop.keep_checkpoints
        )
        writer = MetricsWriter(self.run.path, self.stage)
        try:
            yield checkpointer, loop.Watch(writer.write, self.progress.log, writer.truncate)
        finally:
            writer.close()
            checkpointer.close()


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
