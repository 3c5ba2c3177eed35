"""The eval stage at its edges: nothing held out, more text than is read."""

import json
from pydoc_data.topics import topics

import pytest

from launch.stages import eval as evaluation
from tests.launch.test_stages import ROOT, SMALL, door, parse, sources

pytestmark = pytest.mark.usefixtures("quick_compilation")
STAGES = {"stages": "('curate', 'tokenizer', 'pretrain', 'eval', 'report')"}


def run(tmp_path, **overrides):
    """(eval's summary, eval/results.json, standard error) of a shrunk quickstart."""
    config = f"--config={ROOT}/configs/quickstart.py"
    chosen = SMALL | STAGES | sources(tmp_path / "text") | overrides
    code, out, err = door("run", config, f"--run={tmp_path}/run", "--json", **chosen)
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    return parse(out)["stages"]["eval"], results, err


@pytest.mark.slow
def test_a_run_without_held_out_text_is_trained_and_says_so(tmp_path):
    """One document a domain: it is trained on, and nothing is left to hold out."""
    texts = [text for text in topics.values() if len(text) > 600]
    overrides = {}
    for number, domain in enumerate(("docs", "code")):
        path = tmp_path / f"{domain}.txt"
        path.write_text("".join(texts[number::2])[:60_000])
        source = {"path": path, "text_field": "", "gates": "()"}
        overrides |= {f"data.sources.{domain}.{key}": value for key, value in source.items()}
    summary, results, err = run(tmp_path, **overrides)
    assert "bits_per_byte" not in summary and "text" not in results
    assert err.count("no document is held out") == 2, "by pretraining and by evaluation"
    assert "Held-out text" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow  # tests/data/test_curated.py covers the bound
def test_text_that_evaluation_reads_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_NGRAM_BYTES", 6000)
    monkeypatch.setattr(evaluation, "MAX_HELDOUT_BYTES", 4000)
    text = run(tmp_path)[1]["text"]
    assert set(text) == {"docs", "code", "all"}
    for domain in ("docs", "code"):
        assert 0 < text[domain]["ngram_bytes"] <= 3000 and text[domain]["bytes"] <= 2000
    assert text["all"]["ngram_bytes"] == text["docs"]["ngram_bytes"] + text["code"]["ngram_bytes"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"<td>{text['all']['ngram_bytes'] / 1000:#.4g} kB</td>" in page
