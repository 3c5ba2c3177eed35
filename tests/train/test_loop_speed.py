"""The loop's speeds: of the device alone, whenever the host comes to read them."""

import dataclasses

import numpy as np
import pytest

from tests.train.test_loop import CONFIG, WORK, Trial, compile_step
from train import loop
from train.checkpoint import Checkpointer
from train.loop import Watch


@pytest.fixture
def trial(tmp_path):
    return Trial(compile_step(), tmp_path / "checkpoints")


class Device:
    """A clock, and a device that takes a second a step: when asked (as a CPU may) or later."""

    def __init__(self, monkeypatch, is_synchronous):
        self.now_secs, self.free_secs, self.is_synchronous = 100.0, 100.0, is_synchronous
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now_secs)

    def wait_until(self, secs):
        self.now_secs = max(self.now_secs, secs)

    def step(self, state, metrics):
        self.now_secs += 0.001  # of the host
        self.free_secs = max(self.now_secs, self.free_secs) + 1.0
        if self.is_synchronous:
            self.wait_until(self.free_secs)
        return state, {name: Later(value, self, self.free_secs) for name, value in metrics.items()}


class Later:
    """A number that is there when the device has come so far."""

    def __init__(self, value, device, ready_secs):
        self.value, self.device, self.ready_secs = value, device, ready_secs

    def is_ready(self):
        return self.device.now_secs >= self.ready_secs

    def block_until_ready(self):
        self.device.wait_until(self.ready_secs)
        return self

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.asarray(self.value, dtype)

    def __float__(self):
        return float(np.asarray(self))


@pytest.mark.parametrize("is_synchronous", [False, True])
@pytest.mark.parametrize("log_every", [1, 3])
def test_speed_is_that_of_the_device_without_evaluating_and_saving(
    trial, monkeypatch, is_synchronous, log_every
):
    """Steps take a second, the host's second millisecond is hidden behind them or it is not."""
    device = Device(monkeypatch, is_synchronous)
    save = Checkpointer.save

    def slow_save(self, *saved):
        device.now_secs += 1000.0
        save(self, *saved)

    def slow_evaluate(params):
        device.now_secs += 100.0
        return {"a": 1.0}

    monkeypatch.setattr(Checkpointer, "save", slow_save)
    trial.run(
        dataclasses.replace(CONFIG, log_every=log_every),
        step=lambda *given: device.step(*trial.step(*given)),
        evaluators={"held": slow_evaluate},
        work=WORK._replace(flops=0.25, peak_flops=1.0),
    )
    lines = [line for line in trial.lines if "loss" in line]
    assert {"train_secs", "tokens_per_sec", "mfu"}.isdisjoint(lines[0])
    for before, line in zip(lines[:-1], lines[1:], strict=True):
        num_steps = line["step"] - before["step"]
        np.testing.assert_allclose(line["train_secs"], num_steps, rtol=2e-3)
        np.testing.assert_allclose(line["tokens_per_sec"], 32, rtol=2e-3)
        np.testing.assert_allclose(line["mfu"], 0.25, rtol=2e-3)
    elapsed_secs = device.now_secs - 100.0
    np.testing.assert_allclose(elapsed_secs, 10 + 3 * 100 + 2 * 1000, rtol=1e-4)


@pytest.mark.parametrize("is_synchronous", [False, True])
def test_waiting_for_data_is_training_time_and_no_step_is_faster_than_the_device(
    monkeypatch, is_synchronous
):
    """Before every fourth step the loader takes five seconds."""
    device, lines = Device(monkeypatch, is_synchronous), []
    watch = Watch(lines.append, lambda _: None, lambda _: None)
    config = dataclasses.replace(CONFIG, log_every=1, num_steps=40)
    meter = loop.Meter(config, watch, loop.Work(32, 1.0, 1.0), None)
    for step in range(1, 41):
        device.now_secs += 5.0 * (step % 4 == 0)
        meter.before_step()
        meter.record(step, device.step(None, {"loss": 1.0, "grad_norm": 1.0})[1])
        assert len(lines) == max(1, step - 1), "a step is read after the next is dispatched"
    with meter.paused():
        pass
    secs = [line["train_secs"] for line in lines[1:]]
    # The first step's end is the only time not counted.
    np.testing.assert_allclose(sum(secs), device.now_secs - 101.001, atol=2e-3)
    assert max(line["mfu"] for line in lines[1:]) < 1 + 2e-3


@pytest.mark.parametrize(("is_measured", "mfu"), [(True, 1.0), (False, 4.0)])
def test_a_faster_step_raises_a_measured_peak_and_shows_against_a_data_sheet(
    monkeypatch, is_measured, mfu
):
    """Other programs may have run while the peak was measured; a data sheet is only miscounted."""
    device, lines = Device(monkeypatch, True), []
    watch = Watch(lines.append, lambda _: None, lambda _: None)
    work = loop.Work(32, 4.0, 1.0, is_measured)
    meter = loop.Meter(dataclasses.replace(CONFIG, log_every=1), watch, work, None)
    for step in range(1, 9):
        meter.before_step()
        meter.record(step, device.step(None, {"loss": 1.0, "grad_norm": 1.0})[1])
    np.testing.assert_allclose([line["mfu"] for line in lines[1:]], mfu, rtol=2e-3)
    assert not is_measured or max(line["mfu"] for line in lines[1:]) <= 1
