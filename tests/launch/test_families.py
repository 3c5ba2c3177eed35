"""Pulse: every family of configs/families.py, shrunk, through curation, tokenizer and two steps.

Depth, widths and the number of embedding rows are shrunk; the mesh, batch size, dtype and
recomputation are the family's own. The model has more rows than the tokenizer has ids.
"""

import pytest

from configs import families
from launch.load import load_tokenizer
from launch.store.rundir import RunDir
from tests.launch.test_stages import ROOT, metrics, own_layout, seedbed, sources
from tests.tiny import whole_config

pytestmark = pytest.mark.usefixtures("quick_compilation")
# What each family is shrunk to, so far as it has it.
TINY_PARTS = {
    "vocab_size": 1024,
    "window": 16,
    "max_positions": 64,
    "mla.kv_rank": 8,
    "mla.query_rank": 8,
    "mla.rope_dim": 2,
    "mla.value_dim": 4,
    "moe.num_experts": 8,
    "moe.top_k": 2,
    "moe.d_ff": 8,
    "moe.shared_d_ff": 8,
    "moe.num_groups": 2,
    "moe.top_groups": 1,
}
BY_DEFAULT = ("qwen3-8b",)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow)
        for name in families.FAMILIES
    ],
)
def test_family_trains_two_steps(family, tmp_path):
    model = whole_config(families.get_config(family))["model"]
    tiny = {key: value for key, value in TINY_PARTS.items() if find(model, key)}
    kv_heads = 1 if model["num_kv_heads"] == 1 else 2
    kv_heads = 4 if model["num_kv_heads"] == model["num_heads"] else kv_heads
    heads = {"num_kv_heads": kv_heads, "num_layers": 4}  # DeepSeek-V3: three are dense
    chosen = {f"model.{key}": value for key, value in (tiny | heads).items()}
    chosen |= {"stages": "('curate', 'tokenizer', 'pretrain')", "mesh.max_replicated": 0.2}
    config = f"--config={ROOT}/configs/families.py:{family}"
    overrides = own_layout() | chosen | sources(tmp_path / "text")
    code, _, err = seedbed("run", config, f"--run={tmp_path}/run", "--workers=1", **overrides)
    assert code == 0, err
    lines = [line for line in metrics(tmp_path / "run")["pretrain"] if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert ("moe_load_max" in lines[0]) == bool(model["moe"]["num_experts"])
    run = RunDir(tmp_path / "run")
    assert run.read_config()["mesh"]["fsdp"] == 8
    assert load_tokenizer(run).vocab_size == 600 < run.read_config()["model"]["vocab_size"]
    code, out, err = seedbed("chat", f"--run={run.path}", "--prompt=The", "--tokens=4")
    assert code == 0, err


def find(config, path):
    for key in path.split("."):
        config = config[key]
    return config
