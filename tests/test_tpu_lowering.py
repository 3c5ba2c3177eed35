"""Every program that a stage runs is lowered for several TPU chips, on a machine that has none.

The slow tests compile it, too. On several chips a program traced outside of the device mesh is not
lowered: a Pallas kernel cannot be split from outside. On a CPU nothing of that is seen, as no
Pallas kernel runs there.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_programs import KINDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "train", "alignment", "eval", "launch")
TOPOLOGY = "v5e:2x2"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # the devices; libtpu is here a compiler alone
    "TPU_SKIP_MDS_QUERY": "1",  # no look at the machine's own description
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several test runs at once
}

# (stage that runs it first, function that holds its `jax.jit`): whether attention in it is the
# splash kernel, where it is not ring attention. Generation attends to its cache by XLA; rows of
# _sum_logprobs are of any multiple of 32, and those of by_model one longer than what the policy
# reads; the others have no attention.
EXPECTED = {
    ("pretrain", "model.transformer.init"): False,
    ("pretrain", "train.step.init_state"): False,
    ("pretrain", "train.step.make_step"): True,
    ("pretrain", "train.loop._are_finite"): False,
    ("pretrain", "train.heldout.heldout_loss"): True,
    ("pretrain", "eval.text._row_nats"): True,
    ("sft", "train.step.init_state"): False,
    ("sft", "train.step.make_step"): True,
    ("sft", "train.heldout.heldout_loss"): True,
    ("reward", "alignment.reward.start_from"): False,
    ("reward", "model.decode.generate"): False,
    ("reward", "train.step.init_state"): False,
    ("reward", "train.step.make_step"): True,
    ("reward", "train.loop._are_finite"): False,
    ("reward", "train.heldout.heldout_loss"): True,
    ("reward", "alignment.reward._score_batch"): True,
    ("dpo", "alignment.dpo._answer_logprob"): True,
    ("dpo", "train.step.init_state"): False,
    ("dpo", "train.step.make_step"): True,
    ("dpo", "train.heldout.heldout_loss"): True,
    ("ppo", "alignment.ppo.make_iteration"): True,
    ("ppo", "alignment.score.by_model"): False,
    ("ppo", "train.step.init_state"): False,
    ("ppo", "train.step.make_step"): True,
    ("ppo", "alignment.policy.mean_metrics"): False,
    ("ppo", "train.loop._are_finite"): False,
    ("ppo", "alignment.policy.heldout_reward"): True,
    ("grpo", "alignment.grpo.make_iteration"): True,
    ("grpo", "alignment.grpo._repeat"): False,
    ("grpo", "train.step.init_state"): False,
    ("grpo", "train.step.make_step"): True,
    ("grpo", "alignment.policy.heldout_reward"): True,
    ("eval", "model.decode.generate"): False,
    ("eval", "eval.batching._sum_logprobs"): False,
}
# Jitted functions that no stage calls on several chips, and why they are left out:
# {function that holds it: why}.
NOT_LOWERED = {
    "model.flop._measured_peak": "measures one CPU, where the device is in no data sheet",
    "model.interop.placement.fill": "for users of huggingface.load; export needs no device",
    "model.interop.placement._writer": "as fill",
    "model.interop.placement._reader": "as fill",
    "model.transformer.forward": "the stages call it inside other programs alone",
}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; it comes with the extra `test` on Linux x86-64 only",
)


def try_stages(folder: Path, kind: str, mode: str) -> list[dict]:
    """What tests/tpu_programs.py says of each program, and the function that holds its jit."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu_programs", folder, TOPOLOGY, kind, mode],
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    programs = json.loads(done.stdout.splitlines()[-1])
    for row in programs:
        (row["holder"],) = (
            name
            for name, (module, lines, _) in jitted_places().items()
            if module == row["module"] and row["line"] in lines
        )
    return programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return try_stages(tmp_path_factory.mktemp("tpu"), "dense", "lower")


def complaints(programs: list[dict], kind: str) -> list[str]:
    """What is wrong with the programs, one line each."""
    found, kernels = [], {key: [] for key in EXPECTED}
    for row in programs:
        key = (row["stage"], row["holder"])
        kernels.setdefault(key, []).append(row["kernels"])
        if row["error"] or row["platform"] != "tpu":
            found.append(f"{key}: lowered for {row['platform'] or 'nothing'}: {row['error']}")
    for key, has_splash in EXPECTED.items():
        if not kernels[key]:
            found.append(f"{key}: not called")
        elif has_splash and kind != "ring" and not all(kernels[key]):
            found.append(f"{key}: holds no splash attention")
    return found


@needs_libtpu
def test_every_program_of_the_stages_is_lowered_for_four_chips(programs):
    found = complaints(programs, "dense")
    assert not found, "\n" + "\n".join(found)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_program_compiles_on_several_meshes_and_for_several_models(tmp_path, kind):
    found = complaints(try_stages(tmp_path, kind, "compile"), kind)
    assert not found, "\n" + "\n".join(found)


def jitted_places() -> dict[str, tuple[str, range, int]]:
    """{"module.function": (module, its lines, number of uses)} of what uses `jax.jit`.

    The function, or the assigned name, is the outermost that holds the use.
    """
    places = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.parse(path.read_text()).body:
            count = sum(map(is_jit, ast.walk(node)))
            if count:
                targets = [ast.unparse(target) for target in getattr(node, "targets", [])]
                name = getattr(node, "name", None) or "=".join(targets) or f"line {node.lineno}"
                starts = [node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))]
                places[f"{module}.{name}"] = (
                    module,
                    range(min(starts), node.end_lineno + 1),
                    count,
                )
    return places


def is_jit(node: ast.AST) -> bool:
    """`jax.jit`, `nnx.jit`, `jax.pmap`; or one of them imported by its bare name."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    return bool({"jit", "pjit", "pmap"} & set(names))


@needs_libtpu
def test_every_jitted_function_is_among_them(programs):
    places = jitted_places()
    assert NOT_LOWERED.keys() <= places.keys()
    for name, (_, _, count) in places.items():
        lowered = {row["line"] for row in programs if row["holder"] == name}
        if name not in NOT_LOWERED:
            assert len(lowered) == count, f"{name} holds a jitted function that was not lowered"


@needs_libtpu
def test_commands_leave_libtpu_alone_where_there_is_no_chip(tmp_path):
    """Started by jax on such a machine it writes several lines of errors."""
    config = f"--config={ROOT}/configs/quickstart.py"
    set_here = ("JAX_PLATFORMS", "TPU_LIBRARY_PATH")  # by conftest.py; by the import of jax
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "tokenizer", config, f"--run={tmp_path}"],
        env={key: value for key, value in os.environ.items() if key not in set_here},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    # It ends where the devices are known: the stage before has not run.
    assert done.returncode == 2 and done.stderr.startswith("seedbed: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
