"""The verb bench answers with speeds, on every config that is made for it."""

import pytest

from launch.verbs import bench
from tests.launch.test_stages import ROOT, SMALL, SPEED, parse, seedbed

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", sorted(SPEED))
def test_bench_answers_with_speeds(name, monkeypatch):
    for constant, value in dict(NUM_ROUNDS=2, STEPS_PER_ROUND=2, NEW_TOKENS=4).items():
        monkeypatch.setattr(bench, constant, value)
    overrides = {key: value for key, value in SMALL.items() if not key.startswith("instruct")}
    code, out, err = seedbed("bench", f"--config={ROOT}/configs/{name}.py", "--json", **overrides)
    assert code == 0, err
    result = parse(out)
    assert result["tokens_per_sec"] > 0 and result["num_params"] > 600 * 16
    assert result["num_compilations"] == 1, "the second step must not compile again"
    assert set(result["decode_tokens_per_sec"]) == {"batch_1", "batch_16"}


def test_bench_measures_pretraining_of_a_config_that_does_not_train(monkeypatch):
    monkeypatch.setattr(bench, "run_bench", lambda parsed: {"mesh": parsed.mesh.axis_sizes()})
    code, out, err = seedbed("bench", f"--config={ROOT}/configs/web.py", "--json")
    assert code == 0, err
    assert parse(out)["mesh"]["data"] == 8
    flag = "--config.pretrain.optimizer.warmup_steps=999"
    code, _, err = seedbed("bench", f"--config={ROOT}/configs/web.py", flag)
    assert code == 2 and "warmup_steps is 999" in err


def test_divergence_is_one_line_and_exits_with_1(monkeypatch):
    """A scheduler that starts a run again must be able to tell it from a typing mistake."""

    def diverge(_):
        raise FloatingPointError("the loss is nan at step 7")

    monkeypatch.setattr(bench, "run_bench", diverge)
    code, out, err = seedbed("bench", f"--config={ROOT}/configs/bench_cpu.py", **{"mesh.data": 8})
    assert (code, out) == (1, "")
    assert err.startswith("seedbed: training diverged: the loss is nan at step 7; a lower peak_lr")
