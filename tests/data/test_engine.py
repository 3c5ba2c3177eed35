"""Tasks: done once, found again, the same by any number of workers, and gone with their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import engine
from data.engine import Runner, Task, key_of
from data.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def silent(_line):
    pass


def square(out, number):
    (out / "square").write_text(str(number * number))
    return {"number": number}


def fail(out, number):
    (out / "half").write_text("half")
    raise ValueError(f"number {number} is no good")


def slow(out, number):
    (out / "pid").write_text(str(os.getpid()))
    time.sleep(60 if number else 0)
    return {}


def squares(count):
    return [Task(square, key_of(square, i), {"number": i}, f"number {i}") for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_leave_their_files_under_their_keys_in_order(tmp_path, workers):
    with engine.start(Runner(workers=workers)) as started:
        done = started.run(tmp_path, squares(7), silent)
    assert [(folder / "square").read_text() for folder, _ in done] == [str(i * i) for i in range(7)]
    assert [summary for _, summary in done] == [{"number": i} for i in range(7)]
    assert [folder.name for folder, _ in done] == [task.key for task in squares(7)]


def test_what_is_there_is_not_done_again(tmp_path):
    lines = []
    with engine.start(Runner(workers=1)) as started:
        (first, _), *_ = started.run(tmp_path, squares(3), silent)
        (first / "square").write_text("kept")
        done = started.run(tmp_path, squares(4), lines.append)
    assert (done[0][0] / "square").read_text() == "kept"
    assert lines == ["1/1 parts (3 cached), number 3"]


@pytest.mark.parametrize(
    "runner", [Runner(workers=1), Runner(workers=2), Runner("ray", 2)], ids=str
)
def test_a_task_that_fails_leaves_nothing_and_ends_the_work(tmp_path, runner, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where Ray finds `fail`
    tasks = [*squares(1), Task(fail, key_of(fail), {"number": 5}, "bad")]
    with (
        pytest.raises(ValueError, match="number 5 is no good"),
        engine.start(runner) as started,
    ):
        started.run(tmp_path, tasks, silent)
    assert not (tmp_path / tasks[1].key).exists()
    assert not list(tmp_path.glob("*.part*"))


def test_what_a_killed_process_left_half_done_is_done_again(tmp_path):
    task = squares(1)[0]
    half = tmp_path / f"{task.key}.part123"
    half.mkdir()
    (half / "square").write_text("wrong")
    (tmp_path / task.key).mkdir()  # a folder without its summary is not finished
    with engine.start(Runner(workers=1)) as started:
        ((folder, _),) = started.run(tmp_path, [task], silent)
    assert (folder / "square").read_text() == "0"
    assert not half.exists()


def test_keys_tell_bodies_and_parts_apart():
    parts = [("a", 1), ("a", 2), ("a", "1"), ("a1",), ("a", [1])]
    assert len({key_of(body, *part) for body in (square, fail) for part in parts}) == 10


def test_an_edit_changes_the_keys_of_what_imports_it_and_no_others(tmp_path, monkeypatch):
    """Through a chain of imports, one of them in a function; a reader that is named counts too."""
    sources = {
        "__init__": "",
        "task": "from pack import near\n",
        "near": "def body():\n    import pack.late\n",
        "late": "",
        "reader": "",
        "apart": "from pack import task\n",
    }
    (tmp_path / "pack").mkdir()
    for name, text in sources.items():
        (tmp_path / f"pack/{name}.py").write_text(text)
    monkeypatch.setattr(engine, "ROOT", tmp_path)
    monkeypatch.setattr(square, "__module__", "pack.task")

    def key():
        engine.hash_module.cache_clear()
        return key_of(square, modules=["pack.reader"])

    for name in ("task", "near", "late", "reader", "apart"):
        before = key()
        (tmp_path / f"pack/{name}.py").write_text(sources[name] + "# edited\n")
        assert (key() != before) == (name != "apart"), name


def test_code_is_python_and_the_templates_of_pages(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "page.html.jinja").write_text("{{ x }}")
    (tmp_path / "notes.txt").write_text("")
    hash_code = engine.hash_code.__wrapped__  # it keeps what it has hashed
    seen = {hash_code(tmp_path)}
    for name in ("a.py", "page.html.jinja", "notes.txt"):
        (tmp_path / name).write_text("edited")
        seen.add(hash_code(tmp_path))
    assert len(seen) == 3


KILLED = """
import sys
from pathlib import Path
from tests.data.test_engine import slow, silent
from data.engine import Runner, Task, key_of, start
with start(Runner(workers=2)) as engine:
    tasks = [Task(slow, key_of(slow, i), {"number": i}, "") for i in range(3)]
    engine.run(Path(sys.argv[1]), tasks, silent)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    try:
        _wait_for(lambda: list(tmp_path.glob("*/summary.json")), 1)
        pids = _wait_for(lambda: [p.read_text() for p in tmp_path.glob("*.part*/pid")], 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for pid in pids:
        _wait_for(lambda pid=pid: [0] if not _lives(int(pid)) else [], 1)
    assert [json.loads(p.read_text()) for p in tmp_path.glob("*/summary.json")] == [{}]


def _lives(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for(question, count):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answers = [answer for answer in question() if answer != ""]
        if len(answers) >= count:
            return answers
        time.sleep(0.05)
    raise AssertionError("it did not come about in 30 s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "spark"}, "--runner=spark: must be one of native, ray"),
        ({"workers": -1}, "--workers=-1: must be 0"),
        ({"address": "host:1"}, "--ray-address=host:1: needs --runner=ray"),
    ],
)
def test_runners_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        Runner(**arguments)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray there .*refused"),
        ("ray://127.0.0.1:9", "no Ray there .*refused"),
        ("127.0.0.1:99999", "no Ray there"),
        ("nowhere", "must be HOST:PORT, ray://HOST:PORT or auto"),
        ("auto", "Could not find any running Ray instance"),
    ],
)
def test_a_ray_cluster_that_is_not_there_is_refused(address, message):
    with (
        pytest.raises(BadInput, match=f"--ray-address={address}: {message}"),
        engine.start(Runner("ray", address=address)),
    ):
        pass


def die_at(out, numbers, deadly):
    """Kills its process if one of the numbers is deadly."""
    if deadly in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "sum").write_text(str(sum(numbers)))
    return {"numbers": numbers}


def stand_in(out):
    return {"numbers": []}


def deadly_task(numbers, deadly):
    def halve():
        if len(numbers) == 1:
            return [Task(stand_in, key_of(stand_in, numbers), {}, "left out")]
        middle = len(numbers) // 2
        return [deadly_task(part, deadly) for part in (numbers[:middle], numbers[middle:])]

    given = {"numbers": numbers, "deadly": deadly}
    return Task(die_at, key_of(die_at, numbers), given, str(numbers), halve)


SLOW_RAY = pytest.param(Runner("ray", 2), marks=pytest.mark.slow)


@pytest.mark.parametrize("runner", [Runner(workers=2), SLOW_RAY], ids=str)
def test_what_kills_its_process_is_narrowed_down_and_left_out(tmp_path, runner, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tasks = [deadly_task(list(range(i, i + 4)), 9) for i in (0, 4, 8, 12)]
    with engine.start(runner) as started:
        done = started.run(tmp_path, tasks, silent)
    found = [summary["numbers"] for _, summary in done]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [], [10, 11], [12, 13, 14, 15]]
    lines = []
    with engine.start(runner) as started:
        assert started.run(tmp_path, tasks, lines.append) == done
    assert not lines, "nothing is done again"


def test_a_task_that_cannot_be_halved_ends_the_work(tmp_path):
    task = deadly_task([9], 9)._replace(halve=None)
    with (
        pytest.raises(engine.WorkerDied, match=r"\[9\]: the process that worked on it died"),
        engine.start(Runner(workers=2)) as started,
    ):
        started.run(tmp_path, [task, *squares(2)], silent)
