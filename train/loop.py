"""The loop around a step: feed, log one step late, checkpoint, evaluate, stop on SIGTERM."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from model.config import LAYOUT, require
from model.sharding import batch_sharding
from train.step import TrainState

if TYPE_CHECKING:  # Orbax is slow to import, and config errors should surface before that
    from train.checkpoint import Checkpointer

# Of the norm of all parameters in one update: beyond it, the update is larger than what it updates.
MAX_GROWTH = 2.0


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and intervals of a training stage; steps are optimizer steps (PPO: iterations)."""

    num_steps: int = 1000  # optimizer steps (PPO: iterations)
    batch_size: int = 32  # rows a step over all devices (pairs, prompts)
    num_microbatches: int = 1  # parts of a batch, one after another, gradients summed
    log_every: int = dataclasses.field(default=10, metadata=LAYOUT)  # steps
    save_every: int = dataclasses.field(default=100, metadata=LAYOUT)  # steps
    eval_every: int = dataclasses.field(default=100, metadata=LAYOUT)  # steps
    keep_checkpoints: int = dataclasses.field(default=1, metadata=LAYOUT)  # newest ones kept

    def __post_init__(self):
        for key, value in vars(self).items():  # an optimizer counts in int32
            require(self, **{key: (1 <= value < 2**31, "at least 1, below 2^31")})
        divides = self.batch_size % self.num_microbatches == 0
        allowed = f"a divisor of batch_size = {self.batch_size}"
        require(self, num_microbatches=(divides, allowed))


class PreemptedError(Exception):
    """SIGTERM came; everything is saved; the same command resumes from here."""


class Work(NamedTuple):
    """What one step does, for the metrics."""

    tokens: int  # read by it: rows times their length, padding included
    flops: float | None = None  # of the model; None if no one model is trained
    peak_flops: float = math.inf  # of all devices together, a second
    is_peak_measured: bool = False  # then a step that is faster raises it


@dataclasses.dataclass
class Watch:
    """What the loop reports to: one metrics line at a time, plain progress lines."""

    write: Callable[[dict], None]
    log: Callable[[str], None]
    truncate: Callable[[int], None]


def run(
    config: LoopConfig,
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict]],
    loader: Any,
    mesh: Mesh,
    checkpointer: "Checkpointer",
    watch: Watch,
    *,
    work: Work,
    learning_rate: Callable[[int], Any] | None = None,
    evaluators: Mapping[str, Callable[[Any], dict]],
) -> TrainState:
    """Trains from the newest checkpoint, or from `state`, to `config.num_steps`.

    The next step is dispatched before the last one's metrics are read: the device waits only after
    the first step and where the host evaluates or saves. What is infinite or blown up is not saved.

    Args:
      config, step_fn: length and intervals; what `step.make_step` gives.
      state: where to start if there is no checkpoint; donated, or deleted if there is one.
      loader: iterable of dicts of numpy arrays, with get_state() and set_state().
      mesh: where batches go; the caller has set it (`jax.set_mesh`).
      checkpointer, watch: where states go; where metrics and progress go.
      work: what a step does, for the metrics.
      learning_rate: of the update that follows a number of steps, for the metrics.
      evaluators: {name: fn(params) -> {name: number}}, called every `eval_every` steps and last.

    Returns the final state. Raises:
      PreemptedError: SIGTERM came; state and loader are saved.
      FloatingPointError: see `refuse_infinite`, of what is logged, and `refuse_blown_up`.
    """
    state, first = _resume(state, loader, checkpointer)
    watch.truncate(first)
    meter = Meter(config, watch, work, learning_rate)
    batches, growths = iter(loader), []  # growths since the last save
    with listen_for_sigterm() as should_stop:
        for step in range(first, config.num_steps):
            meter.before_step()
            state, metrics = step_fn(state, place(next(batches), mesh))
            done, is_last = step + 1, step + 1 == config.num_steps
            meter.record(done, metrics)
            growths.append((done, {k: v for k, v in metrics.items() if k.endswith("param_growth")}))
            if evaluators and (is_last or done % config.eval_every == 0):
                with meter.paused():
                    for name, evaluate in evaluators.items():
                        watch.write({"step": done, **_prefix(name, evaluate(state.params))})
            stopping = should_stop()
            if is_last or done % config.save_every == 0 or stopping:
                with meter.paused():
                    refuse_blown_up(done, metrics, growths, state)
                    checkpointer.save(done, state.params, _rest(state), loader.get_state())
                growths.clear()
            if stopping:
                checkpointer.wait()
                raise PreemptedError(f"stopped by SIGTERM after step {done}, saved")
    checkpointer.wait()
    return state


class Meter:
    """Reads the metrics of a step after the next one is dispatched, and turns them into lines.

    A line's `tokens` and `flops` are those of all steps so far.
    A line's speed is over its `train_secs`: from the end of the step of the line before to the end
    of its own, on the device, without what was spent in `paused`. The intervals touch and do not
    overlap. The first line of a process has none, since its time is that of compiling.

    Its mfu is of the devices' peak. If that was measured, a faster step raises it: other programs
    ran meanwhile.
    """

    def __init__(
        self,
        config: LoopConfig,
        watch: Watch,
        work: Work,
        learning_rate: Callable[[int], Any] | None,
    ):
        self._config, self._watch, self._learning_rate = config, watch, learning_rate
        self._work, self._peak_flops = work, work.peak_flops
        self._paused_secs = 0.0
        self._newest: dict = {}
        self._pending: tuple[int, dict] | None = None
        self._ended_secs: float | None = None  # of the pending step, if its end was seen
        self._last: tuple[int, float] | None = None

    def before_step(self) -> None:
        """Takes the pending step's time if it has ended: the next one is not to be timed with it.

        Where dispatching a step runs it, on some CPUs, afterwards would be a step too late. The
        first step of a process is announced, since compiling it may take minutes.
        """
        if not self._newest:
            self._watch.log("compiling, then the first step")
        if self._pending and all(leaf.is_ready() for leaf in jax.tree.leaves(self._pending[1])):
            self._ended_secs = self._clock_secs()

    def record(self, step: int, metrics: dict) -> None:
        """Keeps the metrics of a step that is logged, after reading the ones kept before."""
        self._flush()
        self._newest = metrics
        if step == 1 or step % self._config.log_every == 0 or step == self._config.num_steps:
            self._pending = (step, metrics)
        if step == 1:  # one waits for this line, to see that it begins well
            self._flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the newest step and writes its line; time within is no training time."""
        jax.block_until_ready(self._newest)
        start_secs = time.perf_counter()
        try:
            self._flush(start_secs - self._paused_secs)
            yield
        finally:
            self._paused_secs += time.perf_counter() - start_secs

    def _clock_secs(self) -> float:
        return time.perf_counter() - self._paused_secs

    def _flush(self, ended_secs: float | None = None) -> None:
        """Reads and writes what is pending."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        jax.block_until_ready(metrics)
        if self._ended_secs is not None:
            ended_secs, self._ended_secs = self._ended_secs, None
        elif ended_secs is None:
            ended_secs = self._clock_secs()
        line = {"step": step, **_numbers(metrics), "tokens": step * self._work.tokens}
        if self._work.flops:
            line["flops"] = step * self._work.flops
        refuse_infinite(step, line)
        if self._learning_rate:
            line["lr"] = float(self._learning_rate(step - 1))
        if self._last is not None:
            steps, secs = step - self._last[0], ended_secs - self._last[1]
            line |= {"train_secs": secs, "tokens_per_sec": steps * self._work.tokens / secs}
            if self._work.flops:
                flops_per_sec = steps * self._work.flops / secs
                if self._work.is_peak_measured:
                    self._peak_flops = max(self._peak_flops, flops_per_sec)
                line["mfu"] = flops_per_sec / self._peak_flops
        self._last = (step, ended_secs)
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
    """Raises FloatingPointError if any loss or gradient norm of this step is not finite."""
    for name in sorted(metrics, key=len):  # the plain loss before its parts
        if name.endswith(("loss", "grad_norm")) and not np.isfinite(value := float(metrics[name])):
            raise FloatingPointError(f"the {name} is {value} at step {step}")


def refuse_blown_up(
    step: int,
    metrics: Mapping[str, Any],
    growths: Sequence[tuple[int, Mapping[str, Any]]],
    state: TrainState,
) -> None:
    """Raises FloatingPointError if training should not go on from this state, and be saved so.

    A loss or gradient norm of its step is not finite, nor is a number of the state; or one of the
    updates since the last save, of which `growths` has (step, {name: growth}), has grown the norm
    of the parameters more than MAX_GROWTH times. Losses and gradients are those before the update.
    Blown-up parameters can be finite, and so, for some steps, are the metrics of a model whose
    activations overflow to a gradient of 0.
    """
    refuse_infinite(step, metrics)
    for updated, grown in jax.device_get(growths):
        for name, value in grown.items():
            if not float(value) <= MAX_GROWTH:
                raise FloatingPointError(
                    f"the {name} is {float(value):.4g} in the update of step {updated}"
                )
    parts = {"parameters are": state.params, "optimizer state is": state.opt_state}
    for name, is_finite in _are_finite(parts).items():
        if not is_finite:
            raise FloatingPointError(f"the {name} not finite after the update of step {step}")


@jax.jit
def _are_finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    return {
        name: jax.tree.reduce(lambda so_far, leaf: so_far & jnp.all(jnp.isfinite(leaf)), tree, True)
        for name, tree in parts.items()
    }


def describe(line: dict, num_steps: int) -> str:
    """One progress line of a metrics line."""
    numbers = (
        f"{name} {value:.4g}" for name, value in line.items() if name not in ("step", "tokens")
    )
    return f"step {line['step']}/{num_steps} " + " ".join(numbers)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices.

    Args:
      batch: arrays of this process's rows; its other dims are whole.
      mesh: its batch axes split the rows of all processes together, and must divide them.
    """
    where = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, rows) for name, rows in batch.items()
    }


@contextmanager
def listen_for_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the context SIGTERM only raises a flag; yields the function that reads it."""
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _resume(state: TrainState, loader: Any, checkpointer: "Checkpointer") -> tuple[TrainState, int]:
    if checkpointer.is_empty():
        return state, 0
    # From here on it gives shapes and places alone, so that two states are never in memory.
    jax.tree.map(lambda leaf: leaf.delete(), state)
    step, params, rest, loader_state = checkpointer.restore(state.params, _rest(state))
    loader.set_state(loader_state)
    return state._replace(**rest).with_params(params), step


def _rest(state: TrainState) -> dict:
    return {"step": state.step, "opt_state": state.opt_state}


def _prefix(name: str, values: dict) -> dict:
    return {f"{name}/{key}": value for key, value in values.items()}
