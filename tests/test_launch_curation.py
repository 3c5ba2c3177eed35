"""`seedbed curate`: its JSON, the story of a document, models fitted, through the door."""

import json
import random

import pytest

from tests.test_launch_run import ROOT, door, refusal

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
    code, out, err = door(*command(folder))
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


def test_the_story_of_a_document_is_told(curated):
    folder, _ = curated
    where = (WEB, f"--run={folder}/out", "--json")
    code, out, _ = door("curate", *where, "--explain=text/a.jsonl:00000021")
    story = json.loads(out)
    assert code == 0
    assert (story["fate"], story["why"]) == ("dropped", "exact_duplicate")
    assert story["stays"]["id"] == story["duplicate_of"] == "text/a.jsonl:00000004"
    code, out, _ = door("curate", *where, "--explain=code/b.py")
    story = json.loads(out)
    assert (code, story["fate"], story["language"]) == (0, "kept", "python")
    assert "text/a.jsonl:000000" in refusal("curate", *where[:2], "--explain=text/a.jsonl:00000099")


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
    code, out, err = door("curate", WEB, "--fit-quality", "--json", *model, *examples)
    assert code == 0, err
    assert json.loads(out)["positive"] == json.loads(out)["negative"] == 30
    code, out, err = door(*command(folder, *model, f"--out={tmp_path}/run"))
    assert code == 0, err
    assert json.loads(out)["kept"] == 21


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--fit-quality",), "data.gates.quality.model: '' is no path"),
        (("--fit-toxicity",), "data.gates.toxicity.model: '' is no path"),
        (("--fit-quality", "--config.data.gates.quality.model=m"), "quality.good: '' is no path"),
        (("--score=nowhere",), "--score=nowhere: no such folder"),
        (("--score=.", "--explain=x"), "one of them at a time"),
        (("--runner=spark",), "--runner=spark: must be one of native, ray"),
        (("--ray-address=host:1",), "--ray-address=host:1: needs --runner=ray"),
        (("--config.data.sources=nowhere",), "sources: nowhere: no file found"),
        ((), "data.sources: '' is no path; give a file, folder or glob"),
        (("--config.data.sources=nowhere,.",), "sources: nowhere: no file found"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal("curate", WEB, *flags)
    assert not list(tmp_path.iterdir())
