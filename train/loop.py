"""The loop around a step: feed, log one step late, checkpoint, evaluate, stop when told to."""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from model import flop
from model.config import LAYOUT, TransformerConfig
from model.sharding import batch_sharding
from model.transformer import Params
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.step import LossFn, TrainState, init_state, make_step, state_shardings

if TYPE_CHECKING:  # Orbax is slow to import, and a mistake in a configuration is to be said soon
    from train.checkpoint import Checkpointer


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a training stage; steps are optimizer steps (PPO: iterations)."""

    num_steps: int
    batch_size: int
    num_microbatches: int
    log_every: int = dataclasses.field(metadata=LAYOUT)
    save_every: int = dataclasses.field(metadata=LAYOUT)
    eval_every: int = dataclasses.field(metadata=LAYOUT)
    keep_checkpoints: int = dataclasses.field(metadata=LAYOUT)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"{field.name} is {value}; it must be at least 1")
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"num_microbatches is {self.num_microbatches}; "
                f"it must divide batch_size = {self.batch_size}"
            )


class PreemptedError(Exception):
    """SIGTERM came; everything is saved; the same command goes on from here."""


@dataclasses.dataclass
class Watch:
    """What the loop reports to: one metrics line at a time, plain progress lines."""

    write: Callable[[dict], None]
    log: Callable[[str], None]
    truncate: Callable[[int], None]


def fit(
    config: LoopConfig,
    optimizer_config: OptimizerConfig,
    loss_fn: LossFn,
    model_config: TransformerConfig,
    params: Params,
    loader: Any,
    mesh: Mesh,
    checkpointer: "Checkpointer",
    watch: Watch,
    *,
    step_tokens: int,
    seq_len: int,
    evaluators: Mapping[str, Callable[[Any], dict]],
) -> TrainState:
    """Trains one model on one loss: optimizer, state and step, and then `run`.

    Args:
      optimizer_config: of `params`.
      loss_fn: see `step.LossFn`.
      model_config: shape of the model.
      params: where to start; they are left as they are.
      seq_len: tokens a row, for the FLOPs of attention.
      The others are as in `run`.
    """
    optimizer = make_optimizer(optimizer_config, model_config, config.num_steps)
    shardings = state_shardings(optimizer, model_config, params, mesh)
    state = init_state(params, optimizer, shardings)
    step = make_step(loss_fn, optimizer, config.num_microbatches, shardings)
    return run(
        config,
        state,
        step,
        loader,
        mesh,
        checkpointer,
        watch,
        step_tokens=step_tokens,
        step_flops=step_tokens * flop.train_flops(model_config, seq_len),
        learning_rate=make_schedule(optimizer_config, config.num_steps),
        evaluators=evaluators,
    )


def run(
    config: LoopConfig,
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict]],
    loader: Any,
    mesh: Mesh,
    checkpointer: "Checkpointer",
    watch: Watch,
    *,
    step_tokens: int,
    step_flops: float | None = None,
    learning_rate: Callable[[int], Any] | None = None,
    evaluators: Mapping[str, Callable[[Any], dict]],
) -> TrainState:
    """Trains from the newest checkpoint, or from `state`, to `config.num_steps`.

    The next step is dispatched before the metrics of the last one are read, so the device never
    waits for the host.

    Args:
      config: length and rhythm.
      state: where to start if there is no checkpoint.
      step_fn: from `step.make_step`.
      loader: iterable of dicts of numpy arrays, with get_state() and set_state().
      mesh: where batches go; the caller has set it (`jax.set_mesh`).
      checkpointer: of this stage.
      watch: metrics and progress.
      step_tokens: tokens a step reads, for tokens a second.
      step_flops: operations of a step, for mfu; None if it is more than one model's training.
      learning_rate: of the update that follows a number of steps, for the metrics.
      evaluators: {name: fn(params) -> dict}, called every `eval_every` steps and at the end.

    Returns the final state.

    Raises:
      PreemptedError: SIGTERM came; state and loader are saved.
      FloatingPointError: the loss or the gradient is not finite; no such state is ever saved.
    """
    state, first = _resume(state, loader, checkpointer)
    watch.truncate(first)
    meter = Meter(config, watch, step_tokens, step_flops, learning_rate)
    batches = iter(loader)
    with listen_for_sigterm() as told_to_stop:
        for step in range(first, config.num_steps):
            state, metrics = step_fn(state, place(next(batches), mesh))
            done = step + 1
            meter.record(done, metrics)
            if done == config.num_steps or done % config.eval_every == 0:
                for name, evaluate in evaluators.items():
                    watch.write({"step": done, **_prefix(name, evaluate(state.params))})
            stopping = told_to_stop()
            if done == config.num_steps or done % config.save_every == 0 or stopping:
                meter.flush()
                refuse_infinite(done, metrics)
                checkpointer.save(done, state.params, _rest(state), loader.get_state())
            if stopping:
                checkpointer.wait()
                raise PreemptedError(f"stopped by SIGTERM after step {done}, saved")
    checkpointer.wait()
    return state


class Meter:
    """Reads metrics one logging interval late and turns them into lines."""

    def __init__(
        self,
        config: LoopConfig,
        watch: Watch,
        step_tokens: int,
        step_flops: float | None,
        learning_rate: Callable[[int], Any] | None,
    ):
        self._config, self._watch, self._learning_rate = config, watch, learning_rate
        self._step_tokens, self._step_flops = step_tokens, step_flops
        self._peak_flops = flop.peak_flops()[0] if step_flops else None
        self._pending: tuple[int, dict] | None = None
        self._last: tuple[int, float] | None = None

    def record(self, step: int, metrics: dict) -> None:
        """Keeps this step's metrics if they are due, after reading the ones kept before."""
        if self._pending is not None:
            self.flush()
        if step == 1 or step % self._config.log_every == 0 or step == self._config.num_steps:
            self._pending = (step, metrics)

    def flush(self) -> None:
        """Reads and writes what is pending."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        line = {"step": step, **_numbers(metrics)}
        refuse_infinite(step, line)
        if self._learning_rate:
            line["lr"] = float(self._learning_rate(step - 1))
        now = time.perf_counter()
        if self._last is not None:
            steps, secs = step - self._last[0], now - self._last[1]
            line["tokens_per_sec"] = steps * self._step_tokens / secs
            if self._step_flops:
                line["mfu"] = steps * self._step_flops / secs / self._peak_flops
        self._last = (step, now)
        self._watch.write(line)
        self._watch.log(describe(line, self._config.num_steps))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers: an array (the load of each expert, say) by its extremes."""
    numbers = {}
    for name, value in metrics.items():
        array = np.asarray(value)
        if array.ndim:
            numbers[f"{name}_min"], numbers[f"{name}_max"] = float(array.min()), float(array.max())
        else:
            numbers[name] = float(array)
    return numbers


def refuse_infinite(step: int, metrics: Mapping[str, Any]) -> None:
    """Raises FloatingPointError if this step's loss or gradient is not finite."""
    for name in ("loss", "grad_norm"):
        value = float(np.asarray(metrics[name]))
        if not np.isfinite(value):
            raise FloatingPointError(f"the {name} is {value} at step {step}")


def describe(line: dict, num_steps: int) -> str:
    """One progress line of a metrics line."""
    numbers = (f"{name} {value:.4g}" for name, value in line.items() if name != "step")
    return f"step {line['step']}/{num_steps} " + " ".join(numbers)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices, rows split over the mesh's batch axes."""
    where = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, rows) for name, rows in batch.items()
    }


@contextmanager
def listen_for_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the context SIGTERM only raises a flag; yields the function that reads it."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _resume(state: TrainState, loader: Any, checkpointer: "Checkpointer") -> tuple[TrainState, int]:
    found = checkpointer.restore(state.params, _rest(state))
    if found is None:
        return state, 0
    step, params, rest, loader_state = found
    loader.set_state(loader_state)
    return TrainState(rest["step"], params, rest["opt_state"]), step


def _rest(state: TrainState) -> dict:
    return {"step": state.step, "opt_state": state.opt_state}


def _prefix(name: str, values: dict) -> dict:
    return {f"{name}/{key}": value for key, value in values.items()}
