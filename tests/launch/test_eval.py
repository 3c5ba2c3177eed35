"""The eval stage at its edges: nothing held out, more text than is read."""

import json
import re
from pydoc_data.topics import topics
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data.tokens import chat
from launch.report.page import write_report
from launch.stages import eval as evaluation
from model import transformer
from tests.eval.test_batching import alone
from tests.eval.test_dialog import CONFIG, Letters, ask
from tests.launch.test_settings import change, nested, refusal
from tests.launch.test_stages import ROOT, SMALL, parse, seedbed, sources

pytestmark = pytest.mark.usefixtures("quick_compilation")
STAGES = {"stages": "('curate', 'tokenizer', 'pretrain', 'eval', 'report')"}


def run(tmp_path, **overrides):
    """(eval's summary, eval/results.json, standard error) of a shrunk quickstart."""
    config = f"--config={ROOT}/configs/quickstart.py"
    chosen = SMALL | STAGES | sources(tmp_path / "text") | overrides
    flags = (f"--run={tmp_path}/run", "--workers=1", "--json")
    code, out, err = seedbed("run", config, *flags, **chosen)
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


@pytest.mark.slow  # tests/data/test_documents.py covers the bound
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("mmlu", "gsm8k"), "data": "folder"}, ""),
        ({"tasks": ("mmlu", "mmul"), "data": "folder"}, "eval.tasks has 'mmul'; allowed: gsm8k, "),
        ({"tasks": ("mmlu",)}, "eval.data is ''; it must be the folder that holds mmlu/"),
        ({"tasks": ("mmlu", "mmlu"), "data": "x"}, "eval.tasks is .*; each must be named once"),
        ({"num_shots": -2}, "eval.num_shots is -2; it must be between -1 and 1000"),
        ({"limit": -1}, "eval.limit is -1; it must be 0 or more"),
    ],
)
def test_benchmarks_are_known_and_have_their_files(changes, words):
    config = nested()
    for key, value in changes.items():
        config = change(config, f"eval.{key}", value)
    why = refusal(config)
    assert re.match(words, why) and bool(why) == bool(words)


def test_the_page_says_how_benchmarks_were_asked(tmp_path):
    asked = {"stderr": 0.005, "count": 14042, "metric": "acc", "shots": 5, "version": 1}
    by_model = {name: {"mean": mean, **asked} for name, mean in (("sft", 0.5), ("pretrain", 0.25))}
    describe = {"config": {"cost": {}}, "code": {"commit": None, "dirty": None}, "packages": {}}
    (tmp_path / "config.json").write_text(json.dumps(describe | {"python": "3.11"}))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text(json.dumps({"tasks": {"mmlu": by_model}}))
    page = write_report(tmp_path).read_text()
    table = page[page.index('id="tasks"') :]
    assert re.findall(r"<th>(.*?)</th>", table)[:3] == ["Task", "Base", "SFT"]
    cells = re.findall(r"<td>(.*?)</td>", table[: table.index("</table>")])
    assert cells == ["mmlu", "25.0% ± 1.0", "50.0% ± 1.0", "acc", "5", "14,042", "1"]
    (tmp_path / "eval" / "results.json").write_text("{}")
    assert "tasks" not in write_report(tmp_path).read_text()


def test_a_mix_without_a_kind_has_no_figure_for_it():
    scored = {"verifiable": {"mean": 0.25, "stderr": 0.1, "count": 8}}
    found = evaluation.headline({"dialog": {"sft": scored, "grpo": scored}})
    assert found == {"verifiable": {"sft": 0.25, "grpo": 0.25}}


def test_the_kl_is_what_the_answers_tokens_differ_by():
    tokenizer, fresh = Letters(), transformer.init(CONFIG, jax.random.key(0))
    params, reference = (jax.tree.map(lambda x, by=by: by * x, fresh) for by in (4, 2))
    asked = [ask("one"), ask("and two")]
    answers = [(20, 21, 22, tokenizer.end_id), (30, 31)]  # the second one was cut off
    found = evaluation._kl_spent(
        SimpleNamespace(
            model=CONFIG,
            tokenizer=tokenizer,
            settings=SimpleNamespace(eval=SimpleNamespace(batch_size=2)),
            progress=SimpleNamespace(log=lambda line: None),
        ),
        params,
        reference,
        [SimpleNamespace(messages=messages) for messages in asked],
        [SimpleNamespace(tokens=ids) for ids in answers],
    )
    prompts = [chat.render_prompt(tokenizer, messages) for messages in asked]
    wanted = [
        alone(params, prompt, ids) - alone(reference, prompt, ids)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    assert found == pytest.approx(np.mean(wanted), abs=1e-4) and abs(found) > 0.1
