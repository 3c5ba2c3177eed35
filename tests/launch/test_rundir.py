"""The run directory: atomic files, lines that survive a kill, and nothing of anybody else's."""

import errno
import fcntl
import json
import math
import os
from pathlib import Path

import pytest

from data.errors import BadInput
from launch.store import rundir
from launch.store.metrics import MetricsWriter
from launch.store.rundir import RunDir
from tests.launch.test_page import DAMAGED_LINES


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def write_lines(run, *records, tail=""):
    run.path.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run.path / "metrics.jsonl").write_text(text + tail)


def read_lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_truncation_drops_a_stages_later_lines_and_no_others(run):
    kept = [{"stage": "sft", "step": 9}, {"stage": "pretrain", "step": 2}]
    write_lines(run, kept[0], kept[1], {"stage": "pretrain", "step": 3})
    run.truncate_metrics("pretrain", 2)
    assert read_lines(run) == kept


@pytest.mark.parametrize("tail", ['{"stage": "pretrain", "st', '{"stage": "pretrain", "step": 3}'])
def test_truncation_mends_the_last_line_of_a_killed_process(run, tail):
    write_lines(run, {"stage": "pretrain", "step": 1}, tail=tail)
    run.truncate_metrics("pretrain", 2)
    assert read_lines(run) == [{"stage": "pretrain", "step": 1}]
    assert (run.path / "metrics.jsonl").read_text().endswith("\n")


def test_truncation_drops_damaged_lines_and_keeps_the_rest(run):
    good = [{"stage": "sft", "step": 1, "loss": None}, {"stage": "pretrain", "step": 1}]
    run.path.mkdir()
    lines = [json.dumps(good[0]).encode(), *DAMAGED_LINES, json.dumps(good[1]).encode()]
    (run.path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run.truncate_metrics("dpo", 0)
    assert read_lines(run) == good


def test_truncation_without_metrics_does_nothing(run):
    run.truncate_metrics("pretrain", 0)
    assert not run.path.exists()


def read_events(directory):
    """{tag: [(step, value)]} of TensorBoard's event files, read by its own record format."""
    from tensorboardX.proto.event_pb2 import Event

    values = {}
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                values.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + length :]
    return values


def test_metrics_go_to_the_file_and_to_tensorboard(run):
    run.path.mkdir()
    writer = MetricsWriter(run.path, "pretrain")
    writer.truncate(0)
    writer.write({"step": 1, "loss": 2.5})
    writer.write({"step": 2, "loss": math.nan, "lr": 0.5})
    writer.close()
    rows = [{k: v for k, v in row.items() if k != "time"} for row in read_lines(run)]
    assert rows == [
        {"stage": "pretrain", "step": 1, "loss": 2.5},
        {"stage": "pretrain", "step": 2, "loss": None, "lr": 0.5},
    ]
    events = read_events(run.path / "tensorboard" / "pretrain")
    assert events == {"loss": [(1, 2.5)], "lr": [(2, 0.5)]}


def test_metrics_are_on_disk_before_the_writer_closes(run):
    run.path.mkdir()
    writer = MetricsWriter(run.path, "pretrain")
    writer.truncate(0)
    writer.write({"step": 1, "loss": 2.5})
    assert len(read_lines(run)) == 1
    writer.close()


def test_a_writer_that_never_wrote_closes(run):
    MetricsWriter(run.path, "pretrain").close()


def test_begin_keeps_what_an_interrupted_try_left(run):
    run.begin("reward", {"seed": 0}, {}, fresh=True)
    (run.stage("reward") / "pairs.jsonl").write_text("pairs")
    run.checkpoints("reward").mkdir(parents=True)
    run.begin("reward", {"seed": 0}, {}, fresh=False)
    assert (run.stage("reward") / "pairs.jsonl").exists() and run.checkpoints("reward").exists()
    assert run.read_started("reward")["inputs"] == {"seed": 0}


def test_begin_fresh_leaves_nothing_of_this_stage_and_all_of_the_others(run):
    for stage in ("sft", "reward"):
        run.begin(stage, {"seed": 0}, {}, fresh=False)
        rundir.write_json(
            run.stage(stage) / "done.json", {"inputs": "1f", "summary": {}, "products": []}
        )
        for folder in (run.checkpoints(stage), run.path / "tensorboard" / stage):
            folder.mkdir(parents=True)
            (folder / "file").write_text("old")
    write_lines(run, {"stage": "sft", "step": 1}, {"stage": "reward", "step": 1})
    with run.replacing("reward"):
        run.begin("reward", {"seed": 1}, {}, fresh=True)
    files = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert files == [
        "checkpoints/sft/file",
        "metrics.jsonl",
        "reward/started.json",
        "sft/done.json",
        "sft/started.json",
        "tensorboard/sft/file",
    ]
    assert read_lines(run) == [{"stage": "sft", "step": 1}]


@pytest.fixture
def finished(run):
    """A run whose reward model and SFT are finished, with a file of each kind."""
    for stage in ("reward", "sft"):
        run.begin(stage, {"seed": 0}, {}, fresh=False)
        (run.stage(stage) / "pairs.jsonl").write_text("pairs")
        for folder in (run.checkpoints(stage) / "10", run.path / "tensorboard" / stage):
            folder.mkdir(parents=True)
            (folder / "file").write_text("old")
        done = {"inputs": "1f", "summary": {}, "products": [], "stage": stage}
        rundir.write_json(run.stage(stage) / "done.json", done)
    write_lines(run, {"stage": "sft", "step": 1}, {"stage": "reward", "step": 1})
    return run


def contents(run):
    return {p.relative_to(run.path): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def test_bad_input_that_leaves_nothing_new_brings_the_old_back(finished):
    before = contents(finished)
    with pytest.raises(BadInput, match="wrong"), finished.replacing("reward"):
        finished.begin("reward", {"seed": 1}, {}, fresh=True)
        assert finished.read_done("reward") is None and not finished.checkpoints("reward").exists()
        finished.begin("reward", {"seed": 1}, {}, fresh=True)  # what was linked was damaged
        finished.checkpoints("reward").mkdir(parents=True)  # its first save has not come
        raise BadInput("wrong")
    assert contents(finished) == before
    assert {row["stage"] for row in read_lines(finished)} == {"sft", "reward"}


def test_bad_input_behind_a_new_checkpoint_leaves_that(finished):
    with pytest.raises(BadInput, match="wrong"), finished.replacing("reward"):
        finished.begin("reward", {"seed": 1}, {}, fresh=True)
        (finished.checkpoints("reward") / "5").mkdir(parents=True)
        raise BadInput("wrong")
    assert [path.name for path in finished.checkpoints("reward").iterdir()] == ["5"]
    with finished.replacing("reward"):
        finished.begin("reward", {"seed": 1}, {}, fresh=False)
    assert not list(finished.path.glob(".*.before"))


@pytest.mark.parametrize("moved", range(1, 5))
def test_a_kill_while_setting_aside_leaves_nothing_that_counts_as_finished(
    finished, monkeypatch, moved
):
    replace, count = Path.replace, iter(range(moved))

    def killed(self, target):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt), finished.replacing("reward"):
            finished.begin("reward", {"seed": 1}, {}, fresh=True)
    assert moved == 1 or finished.read_done("reward") is None
    with finished.replacing("reward"):
        finished.begin("reward", {"seed": 1}, {}, fresh=True)
    assert not finished.checkpoints("reward").exists(), "what the kill left is gone"
    assert not list(finished.path.glob(".*.before"))


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "done.json"
    rundir.write_text(path, "old")
    part = Path.write_text

    def killed(self, text):
        part(self, text[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            rundir.write_text(path, "newer text")
    assert path.read_text() == "old"
    rundir.write_text(path, "newer text")
    assert path.read_text() == "newer text" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"inputs": "1f", "summ', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "lacks ['inputs', 'summary', 'products']"),
        (b'{"inputs": "1f"}', "lacks ['summary', 'products']"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_damaged_done_json_is_refused_by_its_path(run, content, words):
    run.stage("sft").mkdir(parents=True)
    (run.stage("sft") / "done.json").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        run.read_done("sft")
    assert str(run.stage("sft") / "done.json") in str(refused.value)
    assert words in str(refused.value)


def test_a_stage_never_begun_has_neither_start_nor_end(run):
    assert run.read_done("sft") is None and run.read_started("sft") is None


def test_config_says_what_made_the_run(run):
    run.write_config({"seed": 3}, "8 x cpu")
    described = rundir.read_json(run.path / "config.json")
    assert run.read_config() == {"seed": 3}
    assert described["devices"] == "8 x cpu"
    assert set(described["packages"]) == set(rundir.PACKAGES)
    assert set(described["code"]) == {"commit", "dirty"}


def test_config_that_is_absent_or_empty_is_refused(run):
    with pytest.raises(BadInput, match="config.json: no such file"):
        run.read_config()
    run.path.mkdir()
    rundir.write_json(run.path / "config.json", {})
    with pytest.raises(BadInput, match="config.json: lacks"):
        run.read_config()


def test_a_configuration_that_lacks_a_key_is_refused_by_its_name(run):
    run.write_config({"model": {"num_layers": 1}}, "8 x cpu")
    described = run.read_config()
    assert described["model"]["num_layers"] == 1 and described.get("eval", {}) == {}
    for missing in (lambda: described["eval"], lambda: described["model"]["d_model"]):
        with pytest.raises(BadInput, match="config.json: config has no '(eval|d_model)'"):
            missing()


def test_a_value_of_another_type_is_refused_by_its_path(run):
    run.write_config({"sft": {"seq_len": None}, "tokenizer": 5}, "8 x cpu")
    described = run.read_config()
    for path, words in (("sft.seq_len", "sft.seq_len is 'None'"), ("tokenizer.path", "is 'None'")):
        with pytest.raises(BadInput, match=f"config.json: config.*{words}; it must be of type"):
            described.value(path, int)


def test_code_version_outside_of_a_checkout_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert rundir.code_version() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")
    assert rundir.code_version() == {"commit": None, "dirty": None}


def test_digest_depends_on_content_and_not_on_order():
    assert rundir.digest({"a": 1, "b": 2}) == rundir.digest({"b": 2, "a": 1})
    assert rundir.digest({"a": 1}) != rundir.digest({"a": 2})


def test_hash_of_a_file_is_of_its_content(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert rundir.hash_file(tmp_path / "a") == rundir.hash_file(tmp_path / "b")
    with pytest.raises(BadInput, match="missing: no such file"):
        rundir.hash_file(tmp_path / "missing")


def test_a_directory_of_somebody_elses_is_refused(run):
    run.path.mkdir()
    (run.path / "eval").mkdir()
    with pytest.raises(BadInput, match="holds 'eval' and no config.json"):
        run.check()


def test_a_run_an_empty_a_new_and_a_barely_begun_directory_pass(run):
    run.check()
    run.path.mkdir()
    run.check()
    (run.path / "config.json.part").write_text("{")  # killed while writing the first file
    run.check()
    run.write_config({}, "1 x cpu")
    run.stage("sft").mkdir()
    run.check()


def test_a_file_in_the_way_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--run=.*file: cannot be made"):
        RunDir(tmp_path / "file").write_config({}, "1 x cpu")


def test_a_stage_is_whole_while_its_files_are_there_in_their_size(run):
    for name in ("sft/rows.jsonl", "checkpoints/sft/4/params/data", "checkpoints/dpo/4/data"):
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    products = run.products("sft")
    assert products == {"checkpoints/sft/4/params/data": 1, "sft/rows.jsonl": 1}
    done = {"products": products}
    assert run.is_whole(done) and run.find_damage(done) is None
    (run.path / "sft/rows.jsonl").write_text("")
    assert not run.is_whole(done) and run.find_damage(done) == "sft/rows.jsonl"
    (run.path / "sft/rows.jsonl").write_text("y")
    (run.path / "checkpoints/sft/4/params/data").unlink()
    assert not run.is_whole(done) and run.find_damage(done) is None


def test_done_json_without_sizes_is_refused_by_its_path(run):
    with pytest.raises(BadInput, match="sft/done.json: products has no sizes; remove it"):
        run.is_whole({"stage": "sft", "products": ["sft/rows.jsonl"]})


def refuse_notes(line):
    raise AssertionError(line)


def test_a_run_is_written_by_one_at_a_time(run):
    with run.lock(refuse_notes):
        other = RunDir(run.path, "--out").lock(refuse_notes)
        with pytest.raises(BadInput) as refused, other:
            raise AssertionError
        assert f"--out={run.path}: in use by process {os.getpid()}; wait" in str(refused.value)
        run.check()  # a lock alone is no stranger
    assert not list(run.path.iterdir()), "nothing is left"
    (run.path / rundir.LOCK).write_text("1 elsewhere, of a killed process")
    with run.lock(refuse_notes):
        assert (run.path / rundir.LOCK).read_text().startswith(f"{os.getpid()} ")


def test_a_lock_taken_away_while_it_is_waited_for_is_not_held(run, monkeypatch):
    """Its holder ends between our opening the file and our locking it."""
    flock, calls = fcntl.flock, []

    def late(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            (run.path / rundir.LOCK).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with run.lock(refuse_notes):
        assert (run.path / rundir.LOCK).exists()
    assert len(calls) == 2


def test_without_locks_it_goes_on_and_says_so(run, monkeypatch):
    def lockless(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lockless)
    notes = []
    with run.lock(notes.append):
        assert run.path.is_dir()
    assert len(notes) == 1 and "no locks there" in notes[0]


def test_a_lock_in_a_place_that_cannot_be_made_names_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    lock = RunDir(tmp_path / "file", "--out").lock(refuse_notes)
    with pytest.raises(BadInput, match="--out=.*file: cannot be made"), lock:
        raise AssertionError
