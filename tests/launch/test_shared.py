"""Runs that share what stages make: made once, linked, whole, and each on its own."""

import multiprocessing
import os
import shutil

import pytest

from launch.store.rundir import RunDir, digest
from launch.store.shared import Store, put, take
from tests.launch.test_pipeline import ALL, Pipeline

SHARED = ("curate", "tokenizer")


class Writing(Pipeline):
    """Its bodies leave a file in a folder of their stage."""

    def body(self, name, inputs):
        done = super().body(name, inputs)
        self.text(name).parent.mkdir(exist_ok=True)
        self.text(name).write_text(done["params_sha256"])
        return done

    def text(self, name="curate"):
        return self.run.stage(name) / "text" / "a"


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same sources that share a store."""
    store, made = Store(tmp_path / "store"), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(Writing(tmp_path / name, store))
    made[1].config = made[0].config
    return made


def test_a_second_run_links_what_the_first_has_made(runs):
    first, second = runs
    assert tuple(first()) == ALL
    assert tuple(second({"pretrain.optimizer.peak_lr": 0.5})) == ALL[2:]
    for name in SHARED:
        assert second.outcome[name] == first.outcome[name] | {"status": "linked", "secs": 0.0}
        assert second.text(name).samefile(first.text(name))
        done = second.run.read_done(name)
        assert done["cpu_secs"] == 0 and second.run.is_whole(done)
    assert second({"pretrain.optimizer.peak_lr": 0.5}) == []


def test_other_keys_make_another_result(runs):
    first, second = runs
    first()
    assert second({"tokenizer.vocab_size": 999})[0] == "tokenizer"
    assert second.outcome["curate"]["status"] == "linked"


def test_either_may_be_removed_without_harm_to_the_other(runs):
    first, second = runs
    first(only="curate")
    shutil.rmtree(first.run.path)
    assert second(only="curate") == []
    shutil.rmtree(second.store.path)
    assert second.run.is_whole(second.run.read_done("curate")) and second.text().read_text()
    assert first(only="curate") == ["curate"]


def test_what_was_damaged_in_one_run_is_made_again_in_the_next(runs):
    first, second = runs
    first(only="curate")
    right = first.text().read_text()
    first.text().write_text("x" * len(right))  # of the same size, through the link
    assert second(only="curate") == ["curate"]
    assert second.text().read_text() == right
    shutil.rmtree(first.run.path)
    assert first(only="curate") == [] and first.text().read_text() == right


def test_fresh_takes_nothing_and_leaves_its_own(runs):
    first, second = runs
    first(only="curate")
    second.results["curate"] = "newer"
    assert second(only="curate", fresh=True) == ["curate"]
    assert first.text().read_text() != second.text().read_text()
    place = second.store.path / "curate" / digest(second.job.inputs)
    assert (place / "text" / "a").samefile(second.text())


def test_a_result_that_lacks_a_file_is_not_taken(runs):
    first, second = runs
    first(only="curate")
    place = next(first.store.path.glob("curate/*/done.json")).parent
    (place / "text" / "a").unlink()
    run = RunDir(second.run.path)
    run.begin("curate", {}, {}, fresh=False)
    assert take(place, run, "curate") is None and run.read_done("curate") is None
    put(place, first.run, "curate")
    run.begin("curate", {}, {}, fresh=True)
    assert take(place, run, "curate")["summary"]["made"] == "curate"


def _hold(path, ready, go_on):
    with Store(path).hold("curate", {}, print):
        ready.set()
        go_on.wait(60)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_second_process_waits_for_the_first_while_it_lives(tmp_path, is_killed):
    context = multiprocessing.get_context("spawn")
    ready, go_on, notes = context.Event(), context.Event(), []
    other = context.Process(target=_hold, args=(tmp_path, ready, go_on))
    other.start()
    assert ready.wait(60)

    def note(line):
        notes.append(line)
        os.kill(other.pid, 9) if is_killed else go_on.set()

    with Store(tmp_path).hold("curate", {}, note):
        other.join(60)
    assert notes == ["another run makes the same curate; waiting for it"]


def test_another_result_is_not_waited_for(tmp_path):
    with (
        Store(tmp_path).hold("curate", {"a": 1}, pytest.fail),
        Store(tmp_path).hold("curate", {"a": 2}, pytest.fail),
    ):
        pass
