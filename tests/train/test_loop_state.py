"""The loop's state: once in memory, and saved only if training can go on from it."""

import contextlib
import dataclasses
import gc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.mixture.loader import Loader
from launch.job import Job
from launch.settings import Settings
from model import flop, sharding
from model.transformer import declare
from tests.tiny import replace
from tests.train.test_loop import (
    CONFIG,
    OPTIMIZER,
    ROWS,
    SHAPE,
    Trial,
    compile_step,
    lay_out,
    start_params,
)
from train.checkpoint import Checkpointer
from train.lm import lm_loss
from train.loop import Watch

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def trial(tmp_path):
    return Trial(compile_step(), tmp_path / "checkpoints")


def spoil_at(step_fn, number, spoil):
    """The step, whose new state is changed by `spoil` after its `number`-th call."""
    calls = []

    def step(state, batch):
        calls.append(1)
        state, metrics = step_fn(state, batch)
        return (spoil(state) if len(calls) == number else state), metrics

    return step


def put(tree, value):
    """The tree with one number of it replaced."""
    leaves, structure = jax.tree.flatten(tree)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    leaves[largest] = leaves[largest].at[(0,) * leaves[largest].ndim].set(value)
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("field", "words"), [("trainable", "parameters are"), ("opt_state", "optimizer state is")]
)
def test_a_state_that_is_not_finite_is_not_saved(trial, field, words, value):
    """One number of it, from an update whose own metrics are finite."""

    def spoil(state):
        return state._replace(**{field: put(getattr(state, field), value)})

    with pytest.raises(FloatingPointError, match=f"the {words} not finite after .* step 10"):
        trial.run(step=spoil_at(trial.step, 10, spoil))
    assert trial.saved_steps() == [5]


def fit(directory, optimizer=OPTIMIZER, num_steps=10, save_every=10, watch_step=None, write=None):
    """`Job.train` on one device, of a job that has no run directory."""
    rows = np.random.default_rng(1).integers(1, 32, (ROWS, 9))
    loader = Loader({"a": ([{"tokens": row.astype(np.int32)} for row in rows], 1.0)}, 4, 3, lay_out)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    params = jax.device_put(start_params(), sharding.weight_shardings(declare(SHAPE), mesh))
    checkpointer = Checkpointer(directory, {}, {}, 1)
    watch = Watch(write or (lambda _: None), lambda _: None, lambda _: None)
    config = dataclasses.replace(CONFIG, num_steps=num_steps, save_every=save_every, eval_every=1)
    section = SimpleNamespace(loop=config, optimizer=optimizer)
    settings = Settings("", ("pretrain",), model=SHAPE, pretrain=section)
    job = Job(settings, None, None, None, "pretrain", {})
    job.mesh, job.keeping = mesh, lambda _: contextlib.nullcontext((checkpointer, watch))
    try:
        with jax.set_mesh(mesh):
            return job.train(
                lm_loss(replace(SHAPE, chunk_tokens=64), 1e-4),
                params,
                loader,
                step_tokens=32,
                seq_len=8,
                evaluators={"watch": watch_step} if watch_step else {},
            )
    finally:
        checkpointer.close()
        loader.close()


def test_a_state_that_an_update_blew_up_is_not_saved(tmp_path):
    """At this rate the weights are finite and grow a hundredfold a step, while the loss, log 32,
    and the gradient, 0, are finite too, until both are not."""
    with pytest.raises(FloatingPointError, match="the param_growth is .* in the update of step 1"):
        fit(tmp_path, dataclasses.replace(OPTIMIZER, peak_lr=1000.0), save_every=1)
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


@pytest.mark.parametrize("name", ["param_growth", "value_param_growth"])
def test_an_update_that_blew_up_between_saves_is_not_forgotten(trial, name):
    """Later steps may be finite and may grow little."""
    calls = []

    def step(state, batch):
        calls.append(1)
        state, metrics = trial.step(state, batch)
        return state, metrics | {name: jnp.float32(4e3 if len(calls) == 7 else 1.0)}

    with pytest.raises(FloatingPointError, match=f"the {name} is 4000 in the update of step 7"):
        trial.run(step=step)
    assert trial.saved_steps() == [5]


def test_training_holds_one_state_and_nothing_else(tmp_path):
    """What is alive while it trains, fresh and resumed: parameters and two moments each, counters,
    a batch and metrics; not the parameters it started from, nor the state it would have had."""
    gc.collect()
    others = sum(leaf.nbytes for leaf in jax.live_arrays())
    state_bytes = 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(start_params()))
    alive = []

    def watch_step(params):
        gc.collect()  # a checkpoint being written holds arrays; none is written before the end
        alive.append((sum(leaf.nbytes for leaf in jax.live_arrays()) - others) / state_bytes)
        return {}

    fit(tmp_path, num_steps=3, watch_step=watch_step)
    fit(tmp_path, num_steps=5, watch_step=watch_step)
    assert len(alive) == 5 and all(1 <= share < 1.1 for share in alive), alive


def test_mfu_is_model_flops_over_the_peak_of_all_devices(tmp_path, monkeypatch):
    """Every figure of a line is a plain number, as JSON takes it."""
    monkeypatch.setattr(flop, "peak_flops", lambda dtype, quantized: (1e9, "data sheet"))
    lines = []
    fit(tmp_path, save_every=100, write=lines.append)
    for line in lines[1:]:
        flops_per_sec = line["tokens_per_sec"] * flop.train_flops(SHAPE, 8)
        np.testing.assert_allclose(line["mfu"], flops_per_sec / 1e9)
    assert all(type(value) in (int, float) for line in lines for value in line.values())
