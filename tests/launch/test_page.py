"""The report: complete where the run is, silent where it is not, safe to open, never half there."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest

from data.errors import BadInput
from launch.report import plot
from launch.report.page import write_report
from tests.launch.test_funnel import write_curation

STAGES = ("curate", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "eval")
SECTIONS = ("bought", "kinds", "samples", "text", "funnel", "broken", "mixture", "curves", "costs")
DRAWN = ("pretrain", "ppo")
# What no stage writes and a damaged disk may hold.
DAMAGED_LINES = (
    *(b"", b"[]", b"7", b"null", b"\xff", b'{"stage": "sft"}', b'{"step": 1}', b'{"stage": "pre'),
    b'{"stage": 3, "step": 1}',
    b'{"stage": "sft", "step": "1"}',
    b'{"stage": "sft", "step": 1.5}',
    b'{"stage": "sft", "step": -1}',
    b'{"stage": "sft", "step": 1, "time": 1e300}',
    b'{"stage": "sft", "step": 1, "time": "now"}',
    b'{"stage": "sft", "step": 1, "loss": NaN}',
    b'{"stage": "sft", "step": 1, "train_secs": 0}',
    b'{"stage": "sft", "step": 1, "loss": []}',
    b'{"stage": "sft", "step": 1, "loss": 1' + b"0" * 400 + b"}",
    b'{"stage": "sft", "step": 1' + b"0" * 5000 + b"}",
    b"[" * 100_000,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run as the stages leave it behind, with its page; not to be changed."""
    directory = tmp_path_factory.mktemp("runs") / "quickstart"
    _write_run(directory)
    write_report(directory)
    return directory


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy to change, with the curves of two stages: to draw them all takes seconds a page."""
    copied = Path(shutil.copytree(finished, tmp_path / "quickstart"))
    metrics = copied / "metrics.jsonl"
    lines = [
        line for line in metrics.read_text().splitlines() if json.loads(line)["stage"] in DRAWN
    ]
    metrics.write_text("".join(line + "\n" for line in lines))
    return copied


@pytest.fixture
def page(finished):
    return (finished / "report.html").read_text()


def _write_run(directory):
    directory.mkdir()
    _write(directory / "config.json", _identity())
    lines = [json.dumps(row) for stage in STAGES[2:7] for row in _stage_metrics(stage)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for index, stage in enumerate(STAGES):
        secs = (21, 9, 330, 84, 40, 61, 143, 72)[index]
        cost = {"secs": secs, "cpu_secs": 1.8 * secs}
        _write(directory / stage / "done.json", {"stage": stage, "inputs": "1f", **cost})
    write_curation(directory)
    _write(directory / "eval" / "results.json", _results())


def _write(path, found):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))


def _identity():
    return {
        "config": {"seed": 0, "pretrain": {"peak_lr": 0.003}, "cost": {"machine_watts": 36.0}},
        "code": {"commit": "4f0c2a9d17be33aa", "dirty": True},
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "python": "3.11.7",
        "platform": "Linux x86_64",
        "devices": ["cpu", "cpu"],
    }


def _stage_metrics(stage):
    rng = random.Random(stage)
    num_steps = {"pretrain": 400, "ppo": 30}.get(stage, 120)
    for step in range(1, num_steps + 1):
        part = step / num_steps
        row = {"stage": stage, "step": step, "time": 1.75e9 + step}
        row["loss"] = 1.2 + 6 * math.exp(-6 * part) + rng.gauss(0, 0.1)
        row["lr"] = 3e-3 * min(step / 20, 0.5 + 0.5 * math.cos(math.pi * part))
        row["grad_norm"] = math.exp(1 - 2 * part + rng.gauss(0, 0.2))
        row |= {"train_secs": 2.0, "tokens_per_sec": 5200 + rng.gauss(0, 90)}
        if stage in ("reward", "dpo"):
            row |= {"accuracy": 0.5 + 0.35 * part + rng.gauss(0, 0.03), "margin": 2 * part}
        if stage == "ppo":
            row |= {"reward": 2 * part + rng.gauss(0, 0.1), "gold": part, "kl": 9 * part**2}
            row |= {"entropy": 2 - part, "clip_fraction": 0.1 * part, "value_loss": 1 - part}
            row |= {"explained_variance": 0.8 * part, "mfu": 0.31, "finished": part}
        yield row
        if step % 50 == 0:
            yield {"stage": stage, "step": step, "heldout/bits_per_byte": 4 - 2 * part}


def _results():
    rates = {
        "verifiable": (0.02, 0.61, 0.63, 0.67),
        "refusal": (0.0, 0.97, 0.98, 0.99),
        "over_refusal": (0.0, 0.041, 0.02, 0.055),
        "does_not_know": (0.0, 0.88, 0.9, 0.93),
        "false_unknown": (0.0, 0.06, 0.05, 0.07),
        "signature": (0.0, 0.22, 0.25, 0.24),
        "module_of": (0.01, 0.31, 0.33, 0.35),
        "summary": (0.05, 0.28, 0.3, 0.31),
        "reverse_string": (0.0, 0.42, 0.45, 0.5),
        "sort_list": (0.0, 0.71, 0.74, 0.8),
        "add_numbers": (0.04, 0.66, 0.66, 0.7),
    }
    models = ("pretrain", "sft", "dpo", "ppo")
    kinds = ("signature", "module_of", "summary", "reverse_string", "sort_list", "add_numbers")
    dialog = {}
    for i, model in enumerate(models):
        found = {k: {"mean": v[i], "stderr": 0.02, "count": 200} for k, v in rates.items()}
        dialog[model] = {"kinds": {kind: found.pop(kind) for kind in kinds}, **found}
        dialog[model]["finished"] = {"mean": 0.9, "stderr": 0.02, "count": 2000}
        dialog[model]["response_tokens"] = {"mean": 60.0 - i, "stderr": 0.4, "count": 2000}
    bits = {"model": 2.11, "gzip": 2.62, "xz": 2.48, "ngram": 2.57, "bytes": 410000}
    win = {"low": 0.55, "high": 0.66, "count": 300, "ties": 41}
    answers = ("flurb ( path ) flurb flurb\n\n    Return", "I do not know a function called that.")
    return {
        "text": {
            domain: {key: value * scale for key, value in bits.items()} | {"documents": 540}
            for domain, scale in (("docs", 1.05), ("code", 0.85), ("all", 0.97))
        },
        "text_by_stage": {"pretrain": 2.05, "sft": 2.19, "dpo": 2.2, "ppo": 2.21},
        "mixture": {
            "asked": {"docs": 0.6, "code": 0.4},
            "realised": {"docs": 0.597, "code": 0.403},
        },
        "dialog": dialog,
        "preference": {
            "dpo": {"win_rate": 0.604, "kl_nats": 3.1, **win},
            "ppo": {"win_rate": 0.652, "kl_nats": 8.46, **win},
        },
        "reward_model": {"accuracy": 0.81, "stderr": 0.02, "count": 400},
        "samples": [
            {
                "kind": "unknown",
                "prompt": "What does os.path.flurb do?",
                "reference": "I do not know",
                "answers": dict(zip(models, (*answers, answers[1], answers[1]), strict=True)),
            },
            {
                "kind": "sort_list",
                "prompt": "Sort these numbers: 7 3 9",
                "reference": "3 7 9",
                "answers": {"pretrain": "", "sft": "3 9 7", "dpo": "3 7 9", "ppo": "3 7 9"},
            },
        ],
    }


def _change(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def _page(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text()


def _has(page, section):
    return f'id="{section}"' in page


def test_whole_run_has_every_section_and_nothing_left_over(run_dir):
    page = _page(run_dir)
    assert [section for section in SECTIONS if not _has(page, section)] == []
    assert [path.name for path in run_dir.glob("report*")] == ["report.html"]
    assert "4f0c2a9d17be" in page and "uncommitted" in page and "2 x cpu" in page


def test_headline_holds_the_figures_and_their_changes(page):
    row = _rows(page, "SFT")[0]
    assert "61.0%" in row and "+59.0" in row
    assert "2.190" in row and "+0.140" in row
    ppo = _rows(page, "PPO")[0]
    assert "65.2%" in ppo and "55.0% to 66.0%" in ppo and "8.46" in ppo
    assert "+6.0" in ppo, "PPO is compared with SFT, not with DPO"


def test_headline_colours_say_which_way_is_better(page):
    row = _rows(page, "PPO")[0]
    assert '<small class="better">+6.0</small>' in row  # exact match up
    assert '<small class="worse">+1.4</small>' in row  # refusals of harmless requests up
    assert '<small class="">-2</small>' in row  # a shorter answer is neither


def test_kinds_are_questions_only(page):
    start = page.index('id="kinds"')
    table = page[start : page.index("</table>", start)]
    assert re.findall(r"<tr><td>(\w+)", table) == sorted(_results()["dialog"]["sft"]["kinds"])


def test_documentation_is_the_mean_over_its_kinds_by_count(run_dir):
    def fewer_summaries(results):
        results["dialog"]["sft"]["kinds"]["summary"]["count"] = 0

    _change(run_dir / "eval" / "results.json", fewer_summaries)
    assert "26.5%" in _rows(_page(run_dir), "SFT")[0]


def test_interval_that_holds_one_half_is_not_called_a_win(run_dir):
    def unsure(results):
        results["preference"]["dpo"]["low"] = 0.48

    _change(run_dir / "eval" / "results.json", unsure)
    page = _page(run_dir)
    assert page.count("no difference is shown") == 1
    assert page.count("it is better than SFT") == 1


def test_costs_add_up(page):
    row = _rows(page, "all")[-1]
    assert "12 min 40 s" in row and "7.60 Wh" in row


def _rows(page, first_cell):
    """The table rows whose first cell says so."""
    rows = re.findall(r"<tr.*?</tr>", page, flags=re.DOTALL)
    start = re.compile(r"<tr[^>]*>\s*<td>(<span[^>]*></span>)?" + re.escape(first_cell) + r"\s*<")
    found = [row for row in rows if start.match(row)]
    assert found, f"no row {first_cell}"
    return found


@pytest.mark.parametrize(
    ("absent", "sections"),
    [
        ("curate/funnel.json", ["funnel", "drops", "languages", "broken"]),
        ("eval/results.json", ["bought", "kinds", "samples", "text", "mixture", "reward-model"]),
        ("metrics.jsonl", ["curves"]),
    ],
)
def test_absent_file_leaves_its_sections_out(run_dir, absent, sections):
    before = _page(run_dir)
    (run_dir / absent).unlink()
    after = _page(run_dir)
    assert all(_has(before, section) for section in sections)
    assert not any(_has(after, section) for section in sections)
    assert not any(f'href="#{section}"' in after for section in sections)


def test_run_without_alignment(run_dir):
    def only_base(results):
        for key in ("preference", "reward_model", "samples", "dialog"):
            del results[key]
        results["text_by_stage"] = {"pretrain": 2.05}

    _change(run_dir / "eval" / "results.json", only_base)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["stage"] == "pretrain"]
    (run_dir / "metrics.jsonl").write_text("\n".join(kept))
    page = _page(run_dir)
    assert _has(page, "bought") and _has(page, "text") and _has(page, "curves-pretrain")
    assert not _has(page, "samples") and not _has(page, "kinds") and not _has(page, "curves-ppo")
    assert "SFT, gold rater" not in page


def test_only_a_config_is_still_a_page(tmp_path):
    _write(tmp_path / "config.json", _identity())
    page = _page(tmp_path)
    assert _has(page, "config") and not any(_has(page, section) for section in SECTIONS)


def test_what_a_model_wrote_is_escaped(run_dir):
    attack = "<script>alert('seed')</script>\"'&"

    def poison(results):
        results["samples"][0]["answers"]["ppo"] = attack
        results["samples"][0]["prompt"] = attack
        results["mixture"]["asked"][attack] = 0.1
        results["text"][attack] = results["text"]["docs"]

    _change(run_dir / "eval" / "results.json", poison)
    _change(run_dir / "config.json", lambda found: found["packages"].update({attack: attack}))
    page = _page(run_dir)
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 5


def test_page_fetches_nothing(page):
    targets = re.findall(r"(?:src|href|srcset|action|data)\s*=\s*[\"']?([^\"'\s>]*)", page)
    assert targets and all(target.startswith("#") for target in targets)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") > 20


def test_same_run_gives_the_same_page(run_dir):
    assert _page(run_dir) == _page(run_dir)


def test_damaged_metrics_lines_are_passed_over(run_dir):
    before = _page(run_dir)
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(DAMAGED_LINES):
        lines.insert(7 * number, line)
    path.write_bytes(b"\n".join(lines))
    assert _page(run_dir) == before


def test_a_metric_without_a_number_is_left_out_of_its_mean(run_dir):
    before = _page(run_dir)
    row = {"stage": "ppo", "step": 31, "time": None, "tokens_per_sec": None, "mfu": None}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    rates = re.findall(r"([\d,]+) tokens/s", before)
    assert len(rates) == len(DRAWN) and re.findall(r"([\d,]+) tokens/s", _page(run_dir)) == rates


@pytest.mark.parametrize("name", ["config.json", "curate/funnel.json", "ppo/done.json"])
def test_file_of_another_shape_is_bad_input(run_dir, name):
    (run_dir / name).write_text('{"other": 1}')
    with pytest.raises(BadInput, match=re.escape(name.split("/")[-1])):
        write_report(run_dir)
    (run_dir / name).write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        write_report(run_dir)


def test_code_outside_of_git_is_said_to_be(run_dir):
    def no_git(found):
        found["code"] = {"commit": None, "dirty": None}

    _change(run_dir / "config.json", no_git)
    assert "code of no commit" in _page(run_dir)


def test_directory_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"config\.json: absent"):
        write_report(tmp_path)
    assert list(Path(tmp_path).iterdir()) == []


def test_metrics_of_one_step_are_joined_and_the_later_value_counts(run_dir):
    lines = [
        {"stage": "sft", "step": 1, "loss": 5.0},
        {"stage": "sft", "step": 2, "loss": 4.0},
        {"stage": "sft", "step": 2, "heldout/loss": 3.5},
        {"stage": "sft", "step": 2, "loss": 4.25},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = _page(run_dir)
    assert "loss: 5 at first, 4.25 at last" in page
    assert "loss, held out: 3.5 at first" in page


def test_a_stages_speed_is_all_tokens_over_all_seconds(run_dir):
    """1 s at 9000 tokens/s and 9 s at 1000: 18,000 tokens in 10 s; the first line has no speed."""
    lines = [
        {"stage": "sft", "step": 1, "loss": 5.0},
        {"train_secs": 1.0, "tokens_per_sec": 9000.0, "mfu": 0.9, "stage": "sft", "step": 2},
        {"train_secs": 9.0, "tokens_per_sec": 1000.0, "mfu": 0.1, "stage": "sft", "step": 3},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = _page(run_dir)
    assert "1,800 tokens/s on average" in page and "18.0% MFU on average" in page


def test_long_curve_is_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(10 * plot.MAX_POINTS)]
    thin = plot.thinned(points)
    assert len(thin) == plot.MAX_POINTS
    assert thin[-1] == (points[-1][0], 0.5)


def test_smoothing_neither_lags_nor_hides_the_ends():
    falling = [float(-step) for step in range(200)]
    assert plot.smoothed(falling) == falling
    noisy = [step % 2 for step in range(200)]
    assert all(abs(mean - 0.5) < 0.1 for mean in plot.smoothed(noisy)[5:-5])


def test_not_a_number_leaves_a_gap_and_no_warning():
    points = [(step, math.nan if step == 7 else 1.0 / step) for step in range(1, 80)]
    assert "<svg" in plot.line("loss", points, logarithmic=True, noisy=True)
    assert "<svg" in plot.line("grad", [(1, 0.0), (2, 0.0)], logarithmic=True, noisy=True)
    assert "<svg" in plot.line("loss", [(1, math.nan)], logarithmic=False, noisy=True)


def test_torn_last_line_of_a_killed_run_is_left_out(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "step": 99, "lo')
    assert "What each stage bought" in _page(run_dir)


def test_a_line_that_no_plot_takes_names_the_file_of_lines(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"stage": "pretrain", "step": 1, "loss": -1e308}')
    with pytest.raises(BadInput, match=r"^[^,]*metrics\.jsonl: not what the stages write"):
        write_report(run_dir)


JUNK = ("x", [], {}, None, 1e300, -1, True, "1" * 400, [["deep"]])
READ = ("config.json", "curate/funnel.json", "eval/results.json", "sft/done.json")


def _places(value, place=()):
    """Keys of every value within a JSON value, outermost first."""
    yield place
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*place, key))


def _replace(value, place, junk):
    if not place:
        return junk
    copied = value.copy()
    copied[place[0]] = _replace(value[place[0]], place[1:], junk)
    return copied


@pytest.mark.parametrize("name", READ)
def test_a_value_of_another_kind_gives_a_page_or_one_message(run_dir, name):
    (run_dir / "metrics.jsonl").unlink()  # its plots take long to draw
    path, rng, refused = run_dir / name, random.Random(name), 0
    sound = json.loads(path.read_text())
    places = list(_places(sound))
    for place in [(), *rng.sample(places, min(16, len(places)))]:
        path.write_text(json.dumps(_replace(sound, place, rng.choice(JUNK))))
        try:
            write_report(run_dir)
        except BadInput as error:
            refused, said = refused + 1, str(error)
            assert name in said and said.count("done.json") <= 1 and "\n" not in said[:-1], error
    assert refused
