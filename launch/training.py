"""Glue between a run directory and the training rooms: checkpoints, loaders, metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from data.loader import Batch, Loader
from data.tokenizer import Tokenizer
from launch import settings
from launch.pipeline import Context
from launch.rundir import MetricsWriter, RunDir
from launch.settings import to_dict
from model import sharding
from model.transformer import Params, TransformerConfig, declare
from train import checkpoint, loop
from train.checkpoint import Checkpointer
from train.step import LossFn, TrainState


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
    saved = {
        "model": to_dict(model_config),
        name: to_dict(section),
        "upstream": context.inputs[name],
    }
    directory = context.run.checkpoints(name)
    checkpointer = Checkpointer(directory, saved, section.loop.keep_checkpoints)
    writer = MetricsWriter(context.run, name)
    try:
        return train(checkpointer, loop.Watch(writer.write, context.progress.log, writer.truncate))
    finally:
        writer.close()
        checkpointer.close()


def make_loader(
    context: Context,
    sources: Mapping[str, tuple[Sequence[Batch], float]],
    batch_size: int,
    transform: Callable[[Batch], Batch],
) -> Loader:
    """This process's loader over the sources, seeded by the run."""
    return Loader(
        sources,
        batch_size,
        context.settings.seed,
        transform,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def device_mesh(context: Context) -> Mesh:
    """The configured mesh over the devices at hand."""
    return sharding.make_mesh(context.settings.mesh)


def load_tokenizer(run: RunDir) -> Tokenizer:
    """The run's tokenizer."""
    return Tokenizer(run.stage("tokenizer") / "tokenizer.model")


def load_params(context: Context, stage: str) -> Params:
    """A finished stage's parameters, placed on the mesh."""
    return load_model(context.run, stage, device_mesh(context))[1]


def load_model(run: RunDir, stage: str, mesh: Mesh) -> tuple[TransformerConfig, Params]:
    """Shape and parameters from a stage's newest checkpoint."""

    def abstract(saved: dict) -> Any:
        declared = declare(TransformerConfig(**saved["model"]))
        return jax.tree.map(
            lambda where, weight: jax.ShapeDtypeStruct(weight[1], "float32", sharding=where),
            sharding.weight_shardings(declared, mesh),
            declared,
        )

    saved, params = checkpoint.load(run.checkpoints(stage), abstract)
    return TransformerConfig(**saved["model"]), params


def language_model(context: Context) -> TransformerConfig:
    """Shape of the run's language model."""
    return settings.model_config(context.settings)
