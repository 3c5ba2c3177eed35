"""Import and export: what goes in comes out, on any mesh; what cannot is one line, and no trace."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jinja2
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from data.tokens import chat
from data.tokens.tokenizer import CONTROL_PIECES, load_own
from data.tokens.tokenizer import load as load_tokenizer
from data.tokens.trainer import TokenizerConfig, train
from launch.cli import run_command
from launch.load import load_model
from launch.schema import to_dict
from launch.store.rundir import RunDir, write_json
from launch.verbs import convert, export_tokenizer
from model.config import RopeConfig, TransformerConfig
from model.interop import hf_config, huggingface
from model.interop.safetensors import write_safetensors
from model.sharding import MeshConfig, make_mesh
from model.transformer import declare, forward
from tests.test_token_layouts import BYTE_LEVEL, CONTROL, write_byte_level
from train.checkpoint import Checkpointer

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 300
TINY = TransformerConfig(
    vocab_size=VOCAB_SIZE,
    num_layers=3,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=24,
    head="untied",
    max_positions=64,
)
# Beside the largest tensor: pieces on their way to disk, their compression, what allocators keep.
CONSTANT_MB = 200
MODEL = "tokenizer.model"
TEXTS = [f"word{number} and more of  them,\n\tnumber {number}" for number in range(99)]


def seedbed(*arguments):
    """(exit code, standard output, standard error) of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def make_params(config, seed=0):
    """Random parameters, of which one may be added and taken away: Gemma stores scales less 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda weight: np.round(rng.standard_normal(weight.shape, np.float32) * 1024) / 1024,
        declare(config),
    )


def make_source(directory, config=TINY, name="llama", dtype="float32", shard_bytes=1 << 30):
    """A Hugging Face directory: random weights, a tokenizer of three words, how to generate."""
    params = make_params(config)
    if dtype == "bfloat16":
        params = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)

    def take(path, index):
        return functools.reduce(dict.__getitem__, path, params)[index]

    wanted = huggingface.outline(config, name)
    items = [
        (part.name, part.shape, functools.partial(huggingface.gather, part, take))
        for part in wanted
    ]
    directory.mkdir()
    write_safetensors(directory, items, shard_bytes, dtype)
    more = {"dtype": dtype, "bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": None}
    write_json(directory / "config.json", hf_config.to_hf(config, name) | more)
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 1], "top_k": 7}')
    write_tokenizer(directory, 3)
    return params


def write_tokenizer(directory, num_tokens):
    vocab = {f"w{number}": number for number in range(num_tokens)}
    tokenizer = FastTokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "w1"}')


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


# ------------------------------------------------------------ what goes in comes out

FAMILIES = {
    "llama": TINY,
    "gemma3_text": dataclasses.replace(
        TINY,
        head="tied",
        layers=("sliding", "sliding", "full"),
        window=8,
        norm_place="sandwich",
        mlp="geglu",
        qk_norm="head",
        attention_scale=0.25,
        scale_embedding=True,
        rope=RopeConfig(theta=1e6, local_theta=1e4),
    ),
    "mixtral": dataclasses.replace(
        TINY, moe=dataclasses.replace(TINY.moe, num_experts=4, top_k=2, d_ff=24)
    ),
    "gpt2": dataclasses.replace(
        TINY,
        head="tied",
        num_kv_heads=4,
        head_dim=4,
        positions="learned",
        norm="layer",
        mlp="gelu",
        bias=("qkv", "out", "mlp"),
    ),
}


@pytest.mark.parametrize("shard_bytes", [1 << 30, 9000])
@pytest.mark.parametrize(
    ("name", "dtype"), [(n, "float32") for n in FAMILIES] + [("llama", "bfloat16")]
)
def test_what_is_imported_is_exported(tmp_path, monkeypatch, name, dtype, shard_bytes):
    monkeypatch.setattr(convert, "MAX_SHARD_BYTES", shard_bytes)
    source, run, back = (tmp_path / folder for folder in ("source", "run", "back"))
    params = make_source(source, FAMILIES[name], name, dtype, shard_bytes)
    code, out, err = seedbed("import", f"--hf={source}", f"--out={run}", "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "verb": "import",
        "model_type": name,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "tokens": 3,
    }
    code, out, err = seedbed("export", f"--run={run}", f"--hf={back}", "--json")
    assert code == 0, err
    stated = {"verb": "export", "stage": "import", "model_type": name, "dtype": dtype}
    assert json.loads(out) == stated | {"tokenizer": "as it was imported"}
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in source.iterdir())
    assert (len(list(back.glob("*.safetensors"))) > 1) == (shard_bytes == 9000)
    for path in source.iterdir():
        if path.suffix == ".json" and "token" not in path.name:
            was, now = (json.loads((folder / path.name).read_text()) for folder in (source, back))
            assert now == {key: value for key, value in was.items() if key != "pad_token_id"}
        else:
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_run_is_loaded_onto_any_mesh(tmp_path, name):
    params = make_source(tmp_path / "source", FAMILIES[name], name)
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    run = RunDir(tmp_path / "run")
    for mesh in (MeshConfig(data=1), MeshConfig(fsdp=2, tensor=2, data=2)):
        devices = jax.devices()[: int(np.prod(list(mesh.axis_sizes().values())))]
        config, found = load_model(run, "import", make_mesh(mesh, devices))
        assert config == hf_config.from_hf(hf_config.to_hf(FAMILIES[name], name))
        assert_same(found, params)
    up = found["stack0"]["layer0"]["attention"]["q"]
    assert isinstance(up.sharding, NamedSharding) and len(up.sharding.device_set) == 8
    assert not up.sharding.is_fully_replicated


def test_a_run_says_where_it_came_from(tmp_path):
    make_source(tmp_path / "source")
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["packages"]["jax"] and described["config"]["model"]["d_model"] == 16
    assert described["config"]["source"] == str(tmp_path / "source")
    assert described["config"]["format"] == "hf"
    assert described["config"]["token_ids"] == {"bos_token_id": 1, "eos_token_id": [0, 1]}
    content = (tmp_path / "source" / "config.json").read_bytes()
    done = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True)
    assert described["config"]["config_sha256"] == done.stdout.split()[0].decode()
    run = RunDir(tmp_path / "run")
    assert run.is_whole(run.read_done("import"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copied = (run.stage("tokenizer") / name).read_bytes()
        assert copied == (tmp_path / "source" / name).read_bytes()


def test_long_work_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "LOG_SECS", 0.0)
    make_source(tmp_path / "source")
    _, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert "import: 1 of 30 tensors: " in err and "import: 30 of 30 tensors: " in err
    _, _, err = seedbed("export", f"--run={tmp_path}/run", f"--hf={tmp_path}/hf")
    assert "export: 1 of 30 tensors: " in err and "export: 30 of 30 tensors: " in err


def test_an_empty_directory_may_be_there(tmp_path):
    make_source(tmp_path / "source")
    (tmp_path / "run").mkdir()
    assert seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "source"]


# ------------------------------------------------------------ runs of our own


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run with a tokenizer, a finished base model and a finished aligned one."""
    run = RunDir(tmp_path_factory.mktemp("own") / "run")
    config = dataclasses.replace(TINY, vocab_size=VOCAB_SIZE, qk_norm="head")
    run.write_config({"model": to_dict(config)}, "1 x cpu")
    run.begin("tokenizer", {}, {}, fresh=True)
    train(
        TEXTS,
        TokenizerConfig(VOCAB_SIZE, 10**6, 16, 0.9995),
        run.stage("tokenizer") / MODEL,
    )
    for seed, stage in enumerate(("pretrain", "dpo")):
        run.begin(stage, {}, {}, fresh=True)
        saved = Checkpointer(run.checkpoints(stage), {"model": to_dict(config)}, {}, 1)
        saved.save(7, make_params(config, seed), {"step": np.int32(7)}, {})
        saved.close()
        write_json(run.stage(stage) / "done.json", {"inputs": "1f", "summary": {}, "products": []})
    return run, config


@pytest.mark.parametrize(("stage", "expected"), [("", "dpo"), ("pretrain", "pretrain")])
def test_a_run_of_our_own_is_exported(own, tmp_path, stage, expected):
    run, config = own
    code, out, err = seedbed(
        "export", f"--run={run.path}", f"--hf={tmp_path}/hf", f"--stage={stage}"
    )
    assert code == 0, err
    found, params = huggingface.load(tmp_path / "hf")
    assert found == hf_config.from_hf(hf_config.to_hf(config, "qwen3"))
    assert_same(params, make_params(config, ("pretrain", "dpo").index(expected)))
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (fields["model_type"], fields["dtype"], fields["bos_token_id"]) == (
        "qwen3",
        "float32",
        1,
    )
    assert fields["eos_token_id"] == (2 if expected == "pretrain" else [7, 2])
    assert "same ids for 8 of 8 samples" in out


@pytest.mark.parametrize(
    ("family", "stage", "bos", "stop", "pad"),
    [
        ("deepseek_v3", "pretrain", 0, 1, 1),
        ("gpt2", "pretrain", 280, 280, 280),
        ("gpt2", "dpo", 280, [284, 280], 280),
    ],
)
def test_a_run_with_a_tokenizer_of_others_names_its_ids(tmp_path, family, stage, bos, stop, pad):
    config, run = (
        dataclasses.replace(TINY, vocab_size=400, qk_norm="head"),
        RunDir(tmp_path / "run"),
    )
    chosen = {"path": "elsewhere", "control": list(CONTROL), "vocab_size": 400}
    described = {"model": to_dict(config), "start": "", "tokenizer": chosen}
    run.write_config(described | {"instruct": {"date": "2026-01-01"}}, "1 x cpu")
    run.begin("tokenizer", {}, {}, fresh=True)
    write_byte_level(run.stage("tokenizer"), *BYTE_LEVEL[family])
    saved = Checkpointer(run.checkpoints(stage), {"model": to_dict(config)}, {}, 1)
    saved.save(1, make_params(config), {"step": np.int32(1)}, {})
    saved.close()
    code, out, err = seedbed(
        "export", f"--run={run.path}", f"--hf={tmp_path}/hf", f"--stage={stage}"
    )
    assert code == 0, err
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((tmp_path / "hf" / name).read_text())
        found = tuple(fields[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id"))
        assert found == (bos, stop, pad)
    assert "as it was imported" in out
    source = (run.stage("tokenizer") / "tokenizer.json").read_bytes()
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == source


def test_a_scale_that_no_family_has_goes_into_the_embedding(tmp_path):
    """Tied and scaled, as runs of our own are: written as an untied model that is not scaled."""
    config = dataclasses.replace(TINY, qk_norm="head", head="tied", scale_embedding=True)
    run, params = RunDir(tmp_path / "run"), make_params(config)
    run.write_config({}, "1 x cpu")
    run.begin("tokenizer", {}, {}, fresh=True)
    train(TEXTS, TokenizerConfig(VOCAB_SIZE, 10**6, 16, 0.9995), run.stage("tokenizer") / MODEL)
    saved = Checkpointer(run.checkpoints("pretrain"), {"model": to_dict(config)}, {}, 1)
    saved.save(1, params, {"step": np.int32(1)}, {})
    saved.close()
    code, _, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf", "--stage=pretrain")
    assert code == 0, err
    found, exported = huggingface.load(tmp_path / "hf")
    assert (found.head, found.scale_embedding, found.qk_norm) == ("untied", False, "head")
    assert_same(exported["embedding"], params["embedding"] * np.float32(TINY.d_model**0.5))
    assert_same(exported.pop("head"), params["embedding"].T)
    assert_same(exported | {"embedding": params["embedding"]}, params)
    tokens_BL = np.arange(12).reshape(2, 6)
    logits_BLV = forward(config, params, tokens_BL)
    exported["head"] = params["embedding"].T
    np.testing.assert_allclose(
        forward(found, exported, tokens_BL), logits_BLV, rtol=1e-4, atol=1e-4
    )


def test_its_tokenizer_gives_the_same_ids_to_others(own, tmp_path):
    run, _ = own
    seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf")
    ours = load_own(run.stage("tokenizer"))
    theirs = FastTokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    for text in (*TEXTS, *export_tokenizer.SAMPLES):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.encode(text).ids == [ours.bos_id, *ids], "a model sees BOS first"
        assert theirs.decode(ids) == text
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert [config[f"{role}_token"] for role in ("pad", "bos", "eos", "unk")] == list(
        CONTROL_PIECES[:4]
    )
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\tthere"},
        {"role": "assistant", "content": "word1"},
        {"role": "user", "content": "word2"},
    ]
    render = jinja2.Environment().from_string(config["chat_template"]).render
    shown = render(messages=messages, add_generation_prompt=True)
    expected = chat.render_prompt(ours, messages).tolist()
    assert theirs.encode(shown, add_special_tokens=False).ids == expected
    assert load_tokenizer(tmp_path / "hf").encode(TEXTS[0]) == ours.encode(TEXTS[0])


def test_what_was_exported_can_be_imported(own, tmp_path):
    run, config = own
    seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf")
    code, _, err = seedbed("import", f"--hf={tmp_path}/hf", f"--out={tmp_path}/run")
    assert code == 0, err
    _, params = load_model(
        RunDir(tmp_path / "run"), "import", make_mesh(MeshConfig(), jax.devices()[:1])
    )
    assert_same(params, make_params(config, 1))


# ------------------------------------------------------------ memory

MEASURE = """
import sys
from pathlib import Path
from launch.verbs import convert
from launch.console import Progress

def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

convert.run_import(sys.argv[1], "", Path(sys.argv[3]) / "small", Progress())
base = peak_mb()
convert.run_import(sys.argv[2], "", Path(sys.argv[3]) / "large", Progress())
print(base, peak_mb())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_below_the_largest_tensor_and_a_constant(tmp_path):
    """A model of 1.2 GB in float32; a small one goes first, so that libraries are in memory."""
    large = dataclasses.replace(
        TINY,
        vocab_size=16_000,
        num_layers=12,
        d_model=1024,
        num_heads=16,
        head_dim=64,
        num_kv_heads=4,
        d_ff=6144,
    )
    make_source(tmp_path / "small")
    (tmp_path / "large").mkdir()
    wanted = huggingface.outline(large, "llama")
    row = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    items = [(p.name, p.shape, functools.partial(np.resize, row, p.shape)) for p in wanted]
    convert.write_safetensors(tmp_path / "large", items, 200 << 20, "bfloat16")
    fields = hf_config.to_hf(large, "llama") | {"dtype": "bfloat16"}
    (tmp_path / "large" / "config.json").write_text(json.dumps(fields))
    write_tokenizer(tmp_path / "large", 3)
    sizes_mb = [4 * np.prod(part.shape) / 2**20 for part in wanted]
    assert sum(sizes_mb) > 4 * (max(sizes_mb) + CONSTANT_MB), "or nothing is shown"
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    base_mb, peak_mb = map(float, done.stdout.split())
    assert peak_mb - base_mb < max(sizes_mb) + CONSTANT_MB
