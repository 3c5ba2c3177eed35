"""Where import and export read and write: paths that go up, links, what killed processes left."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from data.errors import BadInput
from data.tokens.tokenizer import load as load_tokenizer
from launch.load import load_model
from launch.store.rundir import RunDir, write_json
from model.interop import huggingface
from model.sharding import MeshConfig, make_mesh
from tests.launch.test_convert import assert_same, make_source, seedbed
from train import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_a_path_may_go_up(tmp_path, monkeypatch):
    params = make_source(tmp_path / "source")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert seedbed("import", "--hf=../source", "--out=../here/../run")[0] == 0
    code, _, err = seedbed("export", "--run=../run", "--hf=../back")
    assert code == 0, err
    assert_same(huggingface.load(tmp_path / "back")[1], params)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert_same(load_model(RunDir(Path("../run")), "import", mesh)[1], params)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 9000])
def test_a_snapshot_of_the_hubs_cache_is_imported(tmp_path, shard_bytes):
    """There every file is a link into another directory, under the name of its hash."""
    params = make_source(tmp_path / "plain", shard_bytes=shard_bytes)
    model = tmp_path / "models--ORG--NAME"
    snapshot, blobs = model / "snapshots" / "5d3f", model / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    code, _, err = seedbed("import", f"--hf={snapshot}", f"--out={tmp_path}/run")
    assert code == 0, err
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert_same(load_model(RunDir(tmp_path / "run"), "import", mesh)[1], params)
    assert not any(path.is_symlink() for path in (tmp_path / "run").rglob("*"))
    assert load_tokenizer(tmp_path / "run" / "tokenizer").vocab_size == 3


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    make_source(tmp_path / "source")
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    name = "n" * 300
    for *arguments, flag in (
        ("import", f"--hf={tmp_path}/source", "--out"),
        ("export", f"--run={tmp_path}/run", "--hf"),
    ):
        code, _, err = seedbed(*arguments, f"{flag}={tmp_path}/{name}")
        message = f"seedbed: {flag}={tmp_path}/{name}: cannot be made (File name too long)\n"
        assert code == 2 and err.endswith(message)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    make_source(tmp_path / "source")
    code = (
        "import signal, sys; from pathlib import Path; from launch.console import Progress;"
        "from launch.store.atomic import atomic_directory\n"
        "with atomic_directory(Path(sys.argv[1]), '--out', Progress()) as part:\n"
        "    (part / 'half').write_text('half'); print(part, flush=True); signal.pause()"
    )
    held = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{tmp_path}/run"], stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    left, living = (Path(process.stdout.readline().decode().strip()) for process in held)
    held[0].kill()
    held[0].wait()
    other = tmp_path / ".ru.00000000.part"
    other.mkdir()
    code, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    held[1].kill()
    for process in held:
        process.communicate()
    assert code == 0, err
    kept = [living, other, tmp_path / "run", tmp_path / "source"]
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert f"removed {left}, which a killed process has left" in err


@pytest.mark.parametrize("stray", ["special_tokens_map.json", "README.md"])
def test_a_link_to_a_file_of_ours_is_not_followed(tmp_path, stray):
    make_source(tmp_path / "source")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "source" / stray).symlink_to(tmp_path / "secret")
    code, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert code == 2 and f"{stray}: a link to {tmp_path}/secret, out of its directory" in err


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("embedding/0.0", Path.unlink),
        ("embedding/0.0", lambda path: path.write_bytes(b"{}")),
        ("embedding/.zarray", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path, name, damage):
    """A piece that is gone is not taken for zeros."""
    make_source(tmp_path / "source")
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    run = RunDir(tmp_path / "run")
    damage(run.checkpoints("import") / "0" / "params" / name)
    code, _, err = seedbed("export", f"--run={run.path}", f"--hf={tmp_path}/hf")
    assert code == 2 and "0/params/embedding" in err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "source"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("cannot read"), r"import/0: damaged \(embedding is gone\)"),
        (KeyError("embedding"), r"import/0: damaged \(embedding is gone\)"),
        (RuntimeError("out of memory"), None),
    ],
)
def test_what_orbax_cannot_read_is_damage(tmp_path, monkeypatch, error, words):
    """Where it cannot read a piece, it raises a plain Exception that carries the cause."""
    make_source(tmp_path / "source")
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")

    def restore(_):
        raise error from ValueError("embedding is gone\nat length")

    monkeypatch.setattr(checkpoint.ocp.args, "StandardRestore", restore)
    with pytest.raises(BadInput if words else RuntimeError, match=words):
        load_model(RunDir(tmp_path / "run"), "import", make_mesh(MeshConfig(), jax.devices()[:1]))


def test_names_that_a_checkpoint_lacks_are_damage(tmp_path):
    make_source(tmp_path / "source")
    seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    run = RunDir(tmp_path / "run")
    (run.checkpoints("import") / "0" / "params" / "_METADATA").unlink()
    with pytest.raises(BadInput, match=r"import/0: damaged \(params lacks its _METADATA\)"):
        load_model(run, "import", make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("given", "found", "noted"),
    [
        ({"pad_token_id": -1}, {"bos_token_id": 1, "eos_token_id": [0, 1]}, ""),
        ({"bos_token_id": 50256}, {"eos_token_id": [0, 1]}, "bos_token_id names [50256], and"),
        ({"eos_token_id": [1, 9999]}, {"bos_token_id": 1, "eos_token_id": [1]}, "names [9999]"),
    ],
)
def test_ids_that_the_vocabulary_lacks_are_left_out(tmp_path, given, found, noted):
    """So the first conversions of Llama say none, and classes of transformers have defaults."""
    make_source(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    write_json(path, json.loads(path.read_text()) | given)
    code, _, err = seedbed("import", f"--hf={tmp_path}/source", f"--out={tmp_path}/run")
    assert code == 0 and noted in err and ("left out" in err) == bool(noted)
    assert RunDir(tmp_path / "run").read_config()["token_ids"] == found
