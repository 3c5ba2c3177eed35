"""Import and export of what cannot be: one line, exit code 2, and no trace."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from launch.schema import to_dict
from launch.store.rundir import RunDir
from launch.verbs import convert
from model.interop import huggingface
from tests.launch.test_convert import (
    TINY,
    VOCAB_SIZE,
    make_params,
    make_source,
    seedbed,
    write_tokenizer,
)
from tests.test_token_layouts import BYTE_LEVEL, write_byte_level
from train.checkpoint import Checkpointer


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def rewrite(source, change):
    """Writes model.safetensors again with its tensors changed."""
    from safetensors.numpy import load_file, save_file

    path = source / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def link_to_nothing(source, name):
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("nowhere")


def make_folder(source, name):
    (source / name).unlink()
    (source / name).mkdir()


def index(source, **places):
    text = json.dumps({"weight_map": places})
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(text)


Q = "model.layers.1.self_attn.q_proj.weight"
FAULTS = {
    "no config": (lambda s: (s / "config.json").unlink(), "config.json: no such file"),
    "config cut": (lambda s: (s / "config.json").write_text('{"mod'), "config.json: not JSON"),
    "config a list": (lambda s: (s / "config.json").write_text("[]"), "must hold a JSON object"),
    "config a dead link": (
        lambda s: link_to_nothing(s, "config.json"),
        "config.json: a link to nowhere, which is not there",
    ),
    "config a folder": (
        lambda s: make_folder(s, "config.json"),
        "config.json: is a directory; it must be a file",
    ),
    "architecture": (
        lambda s: edit(s / "config.json", model_type="bert", architectures=["BertModel"]),
        "model_type is 'bert'; it must be one of llama",
    ),
    "no architecture": (lambda s: edit(s / "config.json", model_type="gone"), "model_type is None"),
    "head": (
        lambda s: edit(s / "config.json", architectures=["LlamaForSequenceClassification"]),
        "architectures is ['LlamaForSequenceClassification']",
    ),
    "a size": (lambda s: edit(s / "config.json", hidden_size="big"), "hidden_size is 'big'"),
    "no size": (lambda s: edit(s / "config.json", hidden_size="gone"), "lacks hidden_size"),
    "a huge size": (lambda s: edit(s / "config.json", hidden_size=2**18), "has another shape for"),
    **{
        f"{key} {size}": (
            lambda s, key=key, size=size: edit(s / "config.json", **{key: size}),
            f"config.json: {key} is {size}; it must be at most",
        )
        for size in (10**8, 2**63, 10**30)
        for key in ("hidden_size", "num_hidden_layers")
    },
    "many layers": (
        lambda s: edit(s / "config.json", num_hidden_layers=4),
        "lacks model.layers.3.",
    ),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "holds neither model.safetensors"),
    "weights cut": (lambda s: os.truncate(s / "model.safetensors", 5000), "damaged"),
    "weights a dead link": (
        lambda s: link_to_nothing(s, "model.safetensors"),
        "model.safetensors: a link to nowhere, which is not there",
    ),
    "weights a folder": (
        lambda s: make_folder(s, "model.safetensors"),
        "model.safetensors: is a directory; it must be a file",
    ),
    "missing": (lambda s: rewrite(s, lambda t: t.pop(Q)), f"lacks {Q}"),
    "extra": (
        lambda s: rewrite(s, lambda t: t.update({"model.extra": np.zeros(3, np.float32)})),
        "has no use for model.extra",
    ),
    "extra, as it is spelled": (
        lambda s: rewrite(s, lambda t: t.update({"foo.weight": np.zeros(3, np.float32)})),
        "has no use for foo.weight",
    ),
    **{
        f"weights {value}": (
            lambda s, value=value: rewrite(s, lambda t: t[Q].fill(value)),
            f"{Q}: holds NaN or infinity; weights must be finite",
        )
        for value in (np.nan, np.inf, -np.inf)
    },
    **{
        f"a number {number:.3e}": (
            lambda s, number=number: edit(s / "config.json", rms_norm_eps=number),
            "config.json: not JSON that can be used (the number ",
        )
        for number in (float("inf"), -float("inf"), float("nan"), 1e300)
    },
    "a whole number of 401 digits": (
        lambda s: edit(s / "config.json", rope_theta=10**400),
        "config.json: not JSON that can be used (the number 10000000000000000000 is none",
    ),
    "an infinite temperature": (
        lambda s: (s / "generation_config.json").write_text('{"temperature": Infinity}'),
        "generation_config.json: not JSON that can be used (the number Infinity is none",
    ),
    "misshapen": (
        lambda s: rewrite(s, lambda t: t.update({Q: t[Q].T.copy()})),
        f"has another shape for {Q} ((16, 32), expected (32, 16))",
    ),
    "type": (
        lambda s: rewrite(s, lambda t: t.update({Q: t[Q].astype(np.int64)})),
        f"tensor '{Q}' has type I64, not read",
    ),
    "absent shard": (
        lambda s: index(s, a="model-1.safetensors"),
        "model-1.safetensors: no such file",
    ),
    "path trick": (lambda s: index(s, a="../x.safetensors"), "must name a file of this directory"),
    "absolute": (lambda s: index(s, a=f"{s}/x"), "must name a file of this directory"),
    "no tokenizer": (
        lambda s: [path.unlink() for path in s.glob("tokenizer*")],
        "holds no tokenizer",
    ),
    "tokenizer cut": (lambda s: (s / "tokenizer.json").write_text("{"), "tokenizer.json: "),
    "tokenizer a dead link": (
        lambda s: link_to_nothing(s, "tokenizer.json"),
        "tokenizer.json: must be a file, or a link to one that is there",
    ),
    "tokenizer empty": (
        lambda s: (s / "tokenizer.json").write_text("{}"),
        "source/tokenizer.json: lacks 'model'",
    ),
    "large tokenizer": (
        lambda s: write_tokenizer(s, VOCAB_SIZE + 1),
        "source/tokenizer.json: has the id 300; must be below 300, the rows of the model",
    ),
    "generation": (lambda s: (s / "generation_config.json").write_text("x"), "not JSON"),
    "generation a dead link": (
        lambda s: link_to_nothing(s, "generation_config.json"),
        "generation_config.json: a link to nowhere",
    ),
    **{
        f"{key} {value!r}": (
            lambda s, key=key, value=value: edit(s / "config.json", **{key: value}),
            f"config.json: {key} is {value!r}; it must be an id, a list of them, or null",
        )
        for key, value in (
            ("eos_token_id", "x"),
            ("eos_token_id", [[1]]),
            ("eos_token_id", {}),
            ("bos_token_id", 1.5),
            ("bos_token_id", True),
        )
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_cannot_be_honoured_is_one_line(tmp_path, fault):
    damage, words = FAULTS[fault]
    make_source(tmp_path / "source")
    damage(tmp_path / "source")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert (code, out) == (2, ""), err
    assert err.startswith("seedbed: ") and err.count("\n") == 1 and words in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import"], "--out is missing; `seedbed import` needs a directory"),
        (["import", "--out=new"], "one of --hf=DIR and --gguf=FILE is needed"),
        (
            ["import", "--out=new", "--hf=a", "--gguf=b"],
            "give one of --hf=DIR and --gguf=FILE, not both",
        ),
        (["import", "--out=full/new", "--hf=full"], "full/new: inside of what is imported, full"),
        (["import", "--out=new", "--gguf=full"], "full: is a directory; it must be a file"),
        (["import", "--out=new", "--hf=nowhere"], "nowhere/config.json: no such file"),
        (["import", "--out=new", "--gguf=nowhere"], "nowhere: no such file"),
        (["import", "--out=new", "--gguf=file"], "file: does not begin with GGUF"),
        (["import", "--out=full", "--hf=nowhere"], "full: exists already; it must be a new or"),
        (["import", "--out=file", "--hf=nowhere"], "file: exists already"),
        (["import", "--out=link", "--hf=nowhere"], "link: exists already"),
        (["import", "--out=no/new", "--hf=nowhere"], "no is no directory"),
        (["import", "--out=new", "--hf=a", "--run=x"], "--run: `seedbed import` has no such flag"),
        (["export", "--run=full"], "--hf is missing"),
        (["export", "--hf=new"], "--run is missing"),
        (["export", "--run=nowhere", "--hf=new"], "nowhere/config.json: no such file"),
        (
            ["export", "--run=run", "--hf=new"],
            "run: no finished stage; it needs one of import, pretrain, sft, ",
        ),
        (
            ["chat", "--run=run"],
            "run: no finished stage; it needs one of import, pretrain, sft, dpo, ppo",
        ),
        (["export", "--run=run", "--hf=new", "--stage=reward"], "--stage=reward: must be one of"),
        (["export", "--run=run", "--hf=new", "--stage=sft"], "--stage=sft: no model of it is in"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine and more")
    (tmp_path / "link").symlink_to("nowhere")
    RunDir(tmp_path / "run").write_config({}, "1 x cpu")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = seedbed(*arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err, err
    assert sorted(tmp_path.rglob("*")) == before


def make_run(path, config):
    """A run with an imported tokenizer and a checkpoint of pretraining, and no more."""
    run = RunDir(path)
    chosen = {"path": "elsewhere", "control": [], "vocab_size": 400}
    described = {"model": to_dict(config), "start": "", "tokenizer": chosen}
    run.write_config(described | {"instruct": {"date": "2026-01-01"}}, "1 x cpu")
    run.begin("tokenizer", {}, {}, fresh=True)
    write_byte_level(run.stage("tokenizer"), *BYTE_LEVEL["gpt2"])
    saved = Checkpointer(run.checkpoints("pretrain"), {"model": to_dict(config)}, {}, 1)
    saved.save(1, make_params(config), {"step": np.int32(1)}, {})
    saved.close()
    return run


def test_a_model_that_no_family_has_is_not_exported(tmp_path):
    run = make_run(tmp_path / "run", dataclasses.replace(TINY, mlp="relu2"))
    code, _, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf", "--stage=pretrain")
    assert code == 2 and "no family of transformers has this model" in err and "relu2" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    make_source(tmp_path / "source")
    opened = huggingface.open_hf

    def open_then_cut(place):
        source = opened(place)
        os.truncate(place / "model.safetensors", 20_000)
        return source

    monkeypatch.setattr(convert.huggingface, "open_hf", open_then_cut)
    code, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert code == 2 and "model.safetensors: ends at byte 20000" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("verb", ["import", "export"])
def test_sigterm_half_way_leaves_nothing(tmp_path, monkeypatch, verb):
    source = tmp_path / "source"
    make_source(source) if verb == "import" else make_run(source, TINY)
    names = []

    def tell(progress, total):
        def stop(name):
            names.append(name)
            if len(names) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    monkeypatch.setattr(convert, "_progress_logger", tell)
    if verb == "import":
        code, _, err = seedbed("import", f"--hf={source}", f"--out={tmp_path}/run")
    else:
        code, _, err = seedbed(
            "export", f"--run={source}", f"--hf={tmp_path}/run", "--stage=pretrain"
        )
    assert code == 75 and "stopped by SIGTERM; nothing is left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interrupt_half_way_leaves_nothing(tmp_path, monkeypatch):
    make_source(tmp_path / "source")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.checkpoint, "write", interrupt)
    code, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert code == 130 and "interrupted" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bug_still_shows_its_trace(tmp_path, monkeypatch):
    make_source(tmp_path / "source")

    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(convert.checkpoint, "write", broken)
    with pytest.raises(ValueError, match="a bug"):
        seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
