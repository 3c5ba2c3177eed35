"""Killed at any moment and started again, pretraining ends with the very same bits.

Every command here is a process of its own, on one device, on a corpus prepared once.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from launch.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 40
# Checkpoints of some megabytes, written behind the steps: a kill can hit one.
SMALL = {
    "tokenizer.vocab_size": 1000,
    "model.num_layers": 2,
    "model.d_model": 128,
    "model.d_ff": 256,
    "pretrain.seq_len": 64,
    "pretrain.optimizer.warmup_steps": 4,
    "pretrain.loop.num_steps": NUM_STEPS,
    "pretrain.loop.batch_size": 8,
    "pretrain.loop.log_every": 1,
    "pretrain.loop.save_every": 3,
    "pretrain.loop.eval_every": 20,
    "eval.batch_size": 8,
    "eval.num_heldout": 1,
}
PATIENCE_SECS = 120.0
POLL_SECS = 0.002
MAX_DELAY_SECS = 0.02


def overrides(folder):
    chosen = dict(SMALL)
    for domain in ("docs", "code"):
        key = f"data.sources.{domain}"
        chosen |= {f"{key}.path": folder / "text" / domain, f"{key}.text_field": "text"}
        chosen |= {f"{key}.gates": "('length',)"}
    return [f"--config.{key}={value}" for key, value in chosen.items()]


class Prepared:
    """A corpus with its curated and tokenized run, and fresh copies of that run."""

    def __init__(self, folder):
        self.folder, self.config = folder, f"--config={ROOT}/configs/quickstart.py"
        texts = [text for text in topics.values() if len(text) > 400]
        for number, domain in enumerate(("docs", "code")):
            path = folder / "text" / domain / "a.jsonl"
            path.parent.mkdir(parents=True)
            lines = [json.dumps({"text": text}) for text in texts[number::2]]
            path.write_text("\n".join(lines))
        for verb in ("curate", "tokenizer"):
            run = f"--run={folder}/prepared"
            # The eight devices of this process: the mesh is no input of these stages.
            flags = [*overrides(folder), "--config.mesh.data=8"]
            assert run_command([verb, self.config, run, "--workers=1", "--json", *flags]) == 0

    def copy(self, name):
        return Path(shutil.copytree(self.folder / "prepared", self.folder / name))

    def start(self, run):
        """`seedbed pretrain` in a process of its own."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            # All processes run the same programs: only the first one need compile them.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "launch.cli", "pretrain", self.config, f"--run={run}"]
        return subprocess.Popen(
            [*command, "--json", *overrides(self.folder)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, run):
        """Starts the command and waits for its JSON object."""
        code, out, err = end(self.start(run))
        assert code == 0, err
        return json.loads(out)["stages"]["pretrain"]


def end(process):
    """(exit code, standard output, standard error) once it has ended."""
    out, err = process.communicate(timeout=PATIENCE_SECS)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def undisturbed(prepared):
    """Hash and losses of a run that nobody touched."""
    run = prepared.copy("undisturbed")
    return prepared.finish(run)["params_sha256"], losses(run)


def rows(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run):
    return [(row["step"], row["loss"]) for row in rows(run) if "loss" in row]


def newest_step(run):
    """The last step on the metrics' last whole line; 0 before the first."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def wait_for(process, condition):
    """Polls until the condition holds; fails if the process ends before."""
    deadline = time.monotonic() + PATIENCE_SECS
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended before its time: {process.stderr.read()[-2000:]}")
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(POLL_SECS)


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL


def half_written(run):
    return list((run / "checkpoints" / "pretrain").glob("*.orbax-checkpoint-tmp*"))


def kill_at_step(prepared, run, step, rng):
    """Kills once this step is logged, or a little later."""
    process = prepared.start(run)
    wait_for(process, lambda: newest_step(run) >= step)
    time.sleep(rng.uniform(0, MAX_DELAY_SECS))
    kill(process)


def kill_while_saving(prepared, run):
    """Kills while a checkpoint is on its way to disk, as its temporary directory shows."""
    for _ in range(10):
        process = prepared.start(run)
        before = set(half_written(run))
        wait_for(process, lambda before=before: set(half_written(run)) - before)
        kill(process)
        if half_written(run):
            return
    pytest.fail("no kill hit a checkpoint that was being written")


def check_same(prepared, run, undisturbed):
    """The rest runs to the same bits, and the metrics tell each step once, in order."""
    summary = prepared.finish(run)
    assert losses(run) == undisturbed[1]
    assert [step for step, _ in losses(run)] == list(range(1, NUM_STEPS + 1))
    heldout = [row["step"] for row in rows(run) if "heldout_bits_per_byte/docs" in row]
    assert heldout == [20, 40]
    assert summary["params_sha256"] == undisturbed[0]
    assert not half_written(run)


def test_a_kill_ends_in_the_same_bits(prepared, undisturbed):
    run, rng = prepared.copy("killed"), random.Random(2)
    kill_at_step(prepared, run, rng.randrange(4, 30), rng)
    assert newest_step(run) < NUM_STEPS, "the kill came while it trained"
    check_same(prepared, run, undisturbed)


def test_sigterm_saves_exits_75_and_goes_on_to_the_same_bits(prepared, undisturbed):
    run = prepared.copy("terminated")
    process = prepared.start(run)
    wait_for(process, lambda: newest_step(run) >= 7)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code == 75, err
    assert "stopped by SIGTERM after step" in json.loads(out)["preempted"]
    assert "Traceback" not in err
    saved = [int(path.name) for path in (run / "checkpoints" / "pretrain").iterdir()]
    assert saved == [newest_step(run)], "what was done last is what was saved"
    assert not (run / "pretrain" / "done.json").exists()
    check_same(prepared, run, undisturbed)


@pytest.mark.slow
def test_five_kills_and_one_while_saving_end_in_the_same_bits(prepared, undisturbed):
    run, rng = prepared.copy("killed_often"), random.Random(5)
    process = prepared.start(run)
    time.sleep(rng.uniform(0.1, 4.0))  # anywhere in start-up and compilation
    kill(process)
    kill_while_saving(prepared, run)
    for first in (5, 11, 17, 23):
        kill_at_step(prepared, run, rng.randrange(first, first + 6), rng)
    assert newest_step(run) < NUM_STEPS
    check_same(prepared, run, undisturbed)
    again = prepared.finish(run)
    assert again["status"] == "skipped" and again["params_sha256"] == undisturbed[0]
