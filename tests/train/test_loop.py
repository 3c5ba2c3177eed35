"""The loop: resumed is uninterrupted, SIGTERM saves, a bad loss stops, and every metric is kept."""

import dataclasses
import functools
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.mixture.loader import Loader
from model import sharding
from model.config import TransformerConfig
from model.transformer import declare
from tests.tiny import replace
from train import loop
from train.checkpoint import Checkpointer, params_hash
from train.lm import lm_loss
from train.loop import LoopConfig, PreemptedError, Watch
from train.optimizer import OptimizerConfig, make_optimizer
from train.step import Sums, init_state, make_step, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = TransformerConfig(
    vocab_size=32,
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=24,
    head="tied",
    qk_norm="head",
    scale_embedding=True,
    norm_eps=1e-6,
    dtype="float32",
)
OPTIMIZER = OptimizerConfig(
    schedule="cosine",
    peak_lr=0.01,
    warmup_steps=2,
    decay_fraction=0.2,
    final_lr_fraction=0.1,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    clip_norm=1.0,
)
WORK = loop.Work(32)
CONFIG = LoopConfig(
    num_steps=10,
    batch_size=4,
    num_microbatches=1,
    log_every=3,
    save_every=5,
    eval_every=4,
    keep_checkpoints=2,
)
ROWS = 40


def lay_out(rows):
    """Rows of 8 tokens in the keys of `data.mixture.loader.lm_batch`."""
    return {
        "tokens": rows["tokens"][:, :-1],
        "targets": rows["tokens"][:, 1:],
        "segments": np.ones((len(rows["tokens"]), 8), np.int32),
        "positions": np.tile(np.arange(8, dtype=np.int32), (len(rows["tokens"]), 1)),
        "weights": np.ones((len(rows["tokens"]), 8), np.float32),
    }


def start_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda weight: np.float32(0.2 * rng.normal(size=weight.shape)),
        declare(SHAPE),
    )


@pytest.fixture(scope="module")
def compiled():
    return compile_step()


@functools.cache
def compile_step():
    """The step and a fresh start on one device; a token 0 makes the loss infinite."""
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    optimizer, params = make_optimizer(OPTIMIZER, SHAPE, CONFIG.num_steps), start_params()
    shardings = state_shardings(optimizer, SHAPE, mesh)

    def loss_fn(params, batch):
        sums = lm_loss(replace(SHAPE, chunk_tokens=64), 1e-4)(params, batch)
        poison = jnp.where(jnp.any(batch["tokens"] == 0), jnp.inf, 1.0)
        return Sums(sums.objective * poison, sums.weight, {"tokens": sums.weight})

    with jax.set_mesh(mesh):
        step = make_step(loss_fn, optimizer, CONFIG.num_microbatches, shardings)
        return mesh, step, lambda: init_state(params, optimizer, shardings)


@pytest.fixture(autouse=True)
def in_mesh(compiled):
    """The loop runs inside the mesh of its caller."""
    with jax.set_mesh(compiled[0]):
        yield


class Trial:
    """What one process does on one directory: its own loader, checkpointer and metrics."""

    def __init__(self, compiled, directory, lines=()):
        self.mesh, self.step, self.start = compiled
        self.directory, self.lines, self.progress = directory, list(lines), []
        self.watch = Watch(self.lines.append, self.progress.append, self.truncate)

    def truncate(self, step):
        self.lines[:] = [line for line in self.lines if line["step"] <= step]

    def run(self, config=CONFIG, *, evaluators=None, step=None, work=WORK, rate=None):
        rows = np.random.default_rng(1).integers(1, 32, (ROWS, 9))
        records = [{"tokens": row.astype(np.int32)} for row in rows]
        loader = Loader({"a": (records[:30], 2.0), "b": (records[30:], 1.0)}, 4, 3, lay_out)
        checkpointer = Checkpointer(self.directory, {}, {"seed": 3}, config.keep_checkpoints)
        try:
            return loop.run(
                config,
                self.start(),
                step or self.step,
                loader,
                self.mesh,
                checkpointer,
                self.watch,
                work=work,
                learning_rate=rate,
                evaluators=evaluators or {},
            )
        finally:
            checkpointer.close()
            loader.close()

    def saved_steps(self):
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())


@pytest.fixture
def trial(compiled, tmp_path):
    return Trial(compiled, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def undisturbed(compiled, tmp_path_factory):
    trial = Trial(compiled, tmp_path_factory.mktemp("undisturbed"))
    return trial.run(), trial


def without_speed(lines):
    speeds = ("train_secs", "tokens_per_sec")
    return [{k: v for k, v in line.items() if k not in speeds} for line in lines]


class Killed(Exception):
    """Stands for kill -9: nothing after it is run, but what closes files."""


def die_at(step_fn, fatal_step):
    """The step, which dies when it is called for the `fatal_step`-th time."""
    calls = []

    def step(state, batch):
        calls.append(1)
        if len(calls) == fatal_step:
            raise Killed
        return step_fn(state, batch)

    return step


@pytest.mark.parametrize("fatal_steps", [(6,), (8,), (10, 2)])
def test_resumed_is_uninterrupted_bit_for_bit(trial, compiled, undisturbed, fatal_steps):
    """Killed after, or some steps after, the checkpoint of step 5, and once more after that."""
    for fatal_step in fatal_steps:
        with pytest.raises(Killed):
            trial.run(step=die_at(trial.step, fatal_step))
        assert trial.saved_steps() == [5]
        trial = Trial(compiled, trial.directory, trial.lines)
    state, (expected, whole) = trial.run(), undisturbed
    assert params_hash(state) == params_hash(expected)
    assert without_speed(trial.lines) == without_speed(whole.lines)
    assert trial.saved_steps() == [5, 10]


def test_a_finished_stage_trains_no_further(trial, undisturbed):
    state = trial.run()
    again = trial.run(step=die_at(trial.step, 1))
    assert params_hash(again) == params_hash(state) == params_hash(undisturbed[0])


def test_metrics_are_written_one_step_late_and_all_of_them(trial, undisturbed):
    """Every third step and the last, when the loop has gone on to the next; step 1 at once."""
    written_by, calls = {}, []

    def step(state, batch):
        calls.append(1)
        for line in trial.lines:
            written_by.setdefault(line["step"], len(calls) - 1)
        return trial.step(state, batch)

    trial.run(dataclasses.replace(CONFIG, save_every=10), step=step)
    assert [line["step"] for line in trial.lines] == [1, 3, 6, 9, 10]
    assert written_by == {1: 1, 3: 4, 6: 7}
    assert without_speed(trial.lines) == without_speed(undisturbed[1].lines)
    assert {"loss", "grad_norm", "tokens", "step"} <= trial.lines[0].keys()
    assert all(line["tokens_per_sec"] > 0 for line in trial.lines[1:])
    assert trial.lines[-1]["loss"] < trial.lines[0]["loss"]
    assert len(trial.progress) == 6
    assert trial.progress[0] == "compiling, then the first step"
    assert re.match("step 1/10 .*loss 3.5", trial.progress[1])


def test_learning_rate_is_that_of_the_update_of_the_step(trial):
    trial.run(rate=lambda num_steps: 0.5 * num_steps)
    assert all(line["lr"] == 0.5 * (line["step"] - 1) for line in trial.lines)


def test_evaluators_see_the_parameters_of_their_step(trial, undisturbed):
    hashes = []

    def evaluate(params):
        hashes.append(params_hash(params))
        return {"size": len(hashes)}

    state = trial.run(evaluators={"held": evaluate})
    lines = [line for line in trial.lines if "held/size" in line]
    assert lines == [{"step": step, "held/size": i + 1} for i, step in enumerate((4, 8, 10))]
    assert len(set(hashes)) == 3 and hashes[-1] == params_hash(state.params)
    assert params_hash(state) == params_hash(undisturbed[0])


def send_sigterm_at(step):
    def evaluate(params):
        evaluate.calls += 1
        if evaluate.calls == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    evaluate.calls = 0
    return {"stop": evaluate}


def test_sigterm_saves_and_the_next_run_goes_on(trial, compiled, undisturbed):
    handler = signal.getsignal(signal.SIGTERM)
    config = dataclasses.replace(CONFIG, eval_every=1)
    with pytest.raises(PreemptedError, match="SIGTERM after step 7"):
        trial.run(config, evaluators=send_sigterm_at(7))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert trial.saved_steps() == [5, 7]
    after = Trial(compiled, trial.directory)
    assert params_hash(after.run()) == params_hash(undisturbed[0])


def test_sigterm_in_the_last_step_is_not_forgotten(trial):
    """The stage is done and saved, but what comes after it must not begin."""
    with pytest.raises(PreemptedError, match="SIGTERM after step 10"):
        trial.run(dataclasses.replace(CONFIG, eval_every=1), evaluators=send_sigterm_at(10))
    assert trial.saved_steps() == [5, 10]


def poison_step(step_fn, number):
    """The step, given a batch that makes its loss infinite at its `number`-th call."""
    calls = []

    def step(state, batch):
        calls.append(1)
        if len(calls) == number:
            batch = {**batch, "tokens": batch["tokens"] * 0}
        return step_fn(state, batch)

    return step


@pytest.mark.parametrize(
    ("bad_step", "told_step", "saved"),
    [(3, 3, []), (9, 9, [5]), (10, 10, [5]), (5, 5, []), (4, 5, []), (7, 9, [5])],
)
def test_a_loss_that_is_not_finite_stops_and_saves_nothing_more(trial, bad_step, told_step, saved):
    """On a logged step, on a saved one, and on one that is neither: its parameters are lost."""
    with pytest.raises(FloatingPointError, match=f"the loss is (inf|nan) at step {told_step}"):
        trial.run(step=poison_step(trial.step, bad_step))
    assert trial.saved_steps() == saved


def test_a_gradient_that_is_not_finite_stops_too(trial):
    """Its loss was measured before the update, and says nothing yet."""

    def step(state, batch):
        state, metrics = trial.step(state, batch)
        return state, {**metrics, "grad_norm": metrics["grad_norm"] * jnp.inf}

    with pytest.raises(FloatingPointError, match="the grad_norm is inf at step 1"):
        trial.run(step=step)


@pytest.mark.parametrize("name", ["value_loss", "value_grad_norm", "z_loss"])
def test_every_loss_and_gradient_norm_must_be_finite(trial, name):
    def step(state, batch):
        state, metrics = trial.step(state, batch)
        return state, {**metrics, name: metrics["loss"] * jnp.nan}

    with pytest.raises(FloatingPointError, match=f"the {name} is nan at step 1"):
        trial.run(step=step)


def test_batches_lie_on_the_mesh():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    rows = np.arange(64).reshape(8, 8)
    placed = loop.place({"tokens": rows}, mesh)["tokens"]
    assert placed.addressable_shards[0].data.shape == (2, 8)
    np.testing.assert_array_equal(placed, rows)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(LoopConfig)])
@pytest.mark.parametrize("value", [0, 2**31, 2**63])
def test_bad_loop_config_is_named(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}; it must be at least 1, below 2"):
        dataclasses.replace(CONFIG, **{key: value})


def test_microbatches_must_divide_the_batch():
    with pytest.raises(ValueError, match="num_microbatches is 3; .* a divisor of batch_size = 4"):
        dataclasses.replace(CONFIG, num_microbatches=3)
