"""`seedbed curate`: its JSON, the history of a document, models fitted, by the command line."""

import json
import os
import random
import re
import subprocess
import sys

import pytest

from launch import settings
from launch.store.rundir import LOCK, RunDir
from tests.launch.test_cli import ROOT, last_line, refusal, seedbed

WEB = f"--config={ROOT}/configs/web.py"
WORDS = [
    "harbour",
    "morning",
    "pilot",
    "stone",
    "river",
    "garden",
    "letter",
    "window",
    "mountain",
    "teacher",
    "winter",
]


def text(seed, num_words=120):
    source = random.Random(seed)
    words = [source.choice(WORDS) for _ in range(num_words)]
    lines = [
        " ".join(["The", *words[i : i + 10], "of", "it"]) + "." for i in range(0, num_words, 10)
    ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A folder of several kinds, and what curating it with --out and --json gave."""
    folder = tmp_path_factory.mktemp("curated")
    (folder / "in").mkdir()
    rows = [{"text": text(seed), "url": f"http://a.org/{seed}"} for seed in range(20)]
    rows += [{"text": text(3)}, {"text": "short"}, {"txt": "none"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "in" / "a.jsonl").write_text(lines)
    (folder / "in" / "b.py").write_text('"""A module."""\n\n' + "x = 1  # one\n" * 30)
    (folder / "in" / "c.bin").write_bytes(bytes(range(256)))
    code, out, err = seedbed(*command(folder))
    assert code == 0, err
    return folder, json.loads(out)


def command(folder, *more):
    where = (f"--config.data.sources={folder}/in", f"--out={folder}/out", "--workers=1", "--json")
    gates = ("--config.data.gates.gopher.max_top_ngram_chars=(1.0,1.0,1.0)",)
    return ("curate", WEB, *where, *gates, *more)


def test_json_counts_what_was_read_kept_dropped_and_broken(curated):
    folder, result = curated
    assert result["read"] == 23
    assert result["kept"] == 21
    assert result["dropped"]["length"] == {"short": 1}
    assert result["dropped"]["exact_duplicate"] == {"exact_duplicate": 1}
    assert result["num_broken"] == len(result["broken"]) == 2
    found = {(row["file"].rpartition("/")[2], row["record"]) for row in result["broken"]}
    assert found == {("a.jsonl", 23), ("c.bin", 0)}
    assert all(row["why"] for row in result["broken"])


def test_the_history_of_a_document_is_shown(curated):
    folder, _ = curated
    where = (WEB, f"--run={folder}/out", "--json")
    code, out, _ = seedbed("curate", *where, "--explain=text/a.jsonl:00000021")
    history = json.loads(out)
    assert code == 0
    assert (history["outcome"], history["why"]) == ("dropped", "exact_duplicate")
    assert history["stays"]["id"] == history["duplicate_of"] == "text/a.jsonl:00000004"
    code, out, _ = seedbed("curate", *where, "--explain=code/b.py")
    history = json.loads(out)
    assert (code, history["outcome"], history["language"]) == (0, "kept", "python")
    assert "NaN" not in out and history["quality"] is None
    line = refusal("curate", *where[:2], "--explain=text/a.jsonl:00000099")
    assert "text/a.jsonl:000000" in line and "DOMAIN/FILE:RECORD#PIECE" in line


@pytest.mark.parametrize("record", ["00000021", "00000022"])
def test_a_history_begins_with_the_outcome_and_ends_with_the_text(curated, record):
    folder, _ = curated
    key = f"text/a.jsonl:{record}"
    for json_too in ((), ("--json",)):
        code, out, _ = seedbed("curate", WEB, f"--run={folder}/out", f"--explain={key}", *json_too)
        found = [out.index(word) for word in ("outcome", "why", "reason", "detail", key)]
        assert code == 0 and found == sorted(found)
    history = json.loads(out)
    assert list(history)[-1] == "text" and list(history)[:3] == ["verb", "outcome", "why"]


def tables(folder):
    """{path: content} of what curation left."""
    found = (folder / "curate").rglob("*.parquet")
    return {path.relative_to(folder): path.read_bytes() for path in found}


@pytest.mark.parametrize("table", ["documents", "dropped"])
def test_a_damaged_table_is_made_again_as_it_was(curated, tmp_path, table):
    """Its other name, in the cache, is damaged with it."""
    folder, first = curated
    where = f"--out={tmp_path}/run"
    assert seedbed(*command(folder, where))[0] == 0
    before = tables(tmp_path / "run")
    path = tmp_path / "run" / "curate" / table / "part-00000.parquet"
    os.truncate(path, 0)
    line = refusal("curate", WEB, f"--run={tmp_path}/run", "--explain=text/a.jsonl:00000099")
    assert f"{path}: damaged; `seedbed curate --fresh` writes it" in line
    code, out, err = seedbed(*command(folder, where))
    assert code == 0 and f"curate: {path} is damaged; made again" in err
    assert json.loads(out)["stages"]["curate"]["status"] == "done"
    assert tables(tmp_path / "run") == before
    code, out, err = seedbed(*command(folder, where))
    assert code == 0 and "skipped: configuration and inputs unchanged" in err


def start(*arguments, before="true"):
    """A command in a process of its own, whose shell does something `before`."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    call = ["sh", "-c", f'{before}; exec "$0" "$@"', sys.executable, "-m", "launch.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, env=environment, **pipes)


def test_a_second_command_on_a_run_is_refused_and_a_kill_frees_it(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(60):
        rows = [{"text": text(seed)} for seed in range(40 * number, 40 * number + 40)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "in" / f"{number}.jsonl").write_text(lines)
    run = tmp_path / "out"
    with start(*command(tmp_path, "--workers=2")) as process:
        try:
            for line in process.stderr:  # workers are there, and have something left to do
                if "reading: " in line or "writing: " in line:
                    break
            refused = last_line(*command(tmp_path))
            assert f"--out={run}: in use by process {process.pid}; wait for it" in refused
        finally:
            process.kill()
            process.wait()
    assert (run / LOCK).exists(), "killed in the middle"
    with RunDir(run).lock(pytest.fail):  # at once, whatever its workers still do
        pass


def test_a_file_that_must_not_grow_is_said_in_one_line(curated, tmp_path):
    """As a disk that is full: the error names no file, so the run is named."""
    folder, _ = curated
    process = start(*command(folder, f"--out={tmp_path}/run"), before="ulimit -f 16")
    _, err = process.communicate()
    assert process.returncode == 2 and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"seedbed: {tmp_path}/run: ") and last.endswith("File too large")


def test_a_run_that_is_not_curated_has_no_story(tmp_path):
    assert "curation is not finished" in refusal("curate", WEB, f"--run={tmp_path}", "--explain=x")


def test_a_quality_model_is_fitted_and_used(curated, tmp_path):
    folder, _ = curated
    for name, texts in (
        ("good", [text(seed) for seed in range(100, 130)]),
        ("bad", [f"buy cheap pills number {seed} now and here" for seed in range(30)]),
    ):
        lines = "".join(json.dumps({"text": one}) + "\n" for one in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    quality = "--config.data.gates.quality."
    model = (f"{quality}model={tmp_path}/model", f"{quality}min_score=0.5")
    examples = [f"{quality}{name}={tmp_path}/{name}.jsonl" for name in ("good", "bad")]
    code, out, err = seedbed("curate", WEB, "--fit-quality", "--json", *model, *examples)
    assert code == 0, err
    assert json.loads(out)["positive"] == json.loads(out)["negative"] == 30
    code, out, err = seedbed(*command(folder, *model, f"--out={tmp_path}/run"))
    assert code == 0, err
    assert json.loads(out)["kept"] == 21


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--fit-quality",), "data.gates.quality.model: '' is no path"),
        (("--fit-toxicity",), "data.gates.toxicity.model: '' is no path"),
        (("--fit-quality", "--config.data.gates.quality.model=m"), "quality.good: '' is no path"),
        (("--fit-quality", "--explain=x"), "one of them at a time"),
        (("--runner=spark",), "--runner=spark: must be one of native, ray"),
        (("--ray-address=host:1",), "--ray-address=host:1: needs --runner=ray"),
        (("--config.data.sources=nowhere",), "sources: nowhere: no file found"),
        ((), "data.sources: '' is no path; give a file, folder, glob or python:docs"),
        (("--config.data.sources=nowhere,.",), "sources: nowhere: no file found"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal("curate", WEB, *flags)
    assert not list(tmp_path.iterdir())


def test_the_configuration_of_the_docs_is_one():
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/curation.md").read_text(), re.DOTALL
    )
    names = {}
    exec(compile(block, "docs/curation.md", "exec"), names)  # what a reader copies
    parsed = settings.parse(names["get_config"]())
    assert set(parsed.data.sources) == {"pages", "notes"}
    assert parsed.data.gates.language.min_score_by_language == {"de": 0.7}
    assert parsed.data.gates.toxicity.examples["tweets"].toxic == ("0", "1")
    assert [stage.name for stage in parsed.mixture.stages] == ["main", "end"]


@pytest.mark.parametrize("out", ["in/out", "in/a/b"])
def test_a_run_within_its_sources_is_refused(tmp_path, out):
    """It would read its own tables, and never be finished."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(text(1))
    given = (WEB, f"--config.data.sources={tmp_path}/in", "--workers=1")
    message = refusal("curate", *given, f"--out={tmp_path}/{out}")
    assert f"data.sources: {tmp_path}/in holds {tmp_path}/{out}; a run must not lie in" in message
    assert not (tmp_path / out).exists()
    assert seedbed("curate", *given, f"--out={tmp_path}/in/.out")[0] == 0, "hidden, it is not read"
    assert seedbed("curate", *given, f"--out={tmp_path}/in/.out")[0] == 0
