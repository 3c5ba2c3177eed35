"""The report: complete where the run is, silent where it is not, safe to open, never half done."""

import base64
import hashlib
import html.parser
import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest

from data.errors import BadInput
from launch.report.page import write_report
from model import flop
from model.config import TransformerConfig
from tests.launch.finished_run import identity, results, write, write_run

SECTIONS = ("summary", "results", "kinds", "tasks", "samples", "text", "funnel", "broken")
SECTIONS += ("curves", "costs")
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
    write_run(directory)
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
    assert '<small class="">+1.4</small>' in row  # more refusals of harmless requests, within noise
    start = _rows(page, "SFT")[0]
    assert '<small class="worse">+6.0</small>' in start  # denies knowing real names
    assert '<small class="">-2</small>' in row  # a shorter answer is neither


def test_kinds_are_questions_only(page):
    start = page.index('id="kinds"')
    table = page[start : page.index("</table>", start)]
    assert re.findall(r"<tr><td>(\w+)", table) == sorted(results()["dialog"]["sft"]["kinds"])


def test_documentation_is_the_mean_over_its_kinds_by_count(run_dir):
    def fewer_summaries(results):
        results["dialog"]["sft"]["kinds"]["summary"]["count"] = 0

    _change(run_dir / "eval" / "results.json", fewer_summaries)
    assert "26.5%" in _rows(_page(run_dir), "SFT")[0]


def test_figures_of_the_model_and_its_training_are_at_the_top(run_dir):
    config = json.loads((run_dir / "config.json").read_text())["config"]
    size = flop.num_params(TransformerConfig(**config["model"]))
    measured = {"heldout/z_loss": 40.0, "heldout_bits_per_byte/docs": 2.5}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "pretrain", "step": 400, **measured}) + "\n")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    final = [row for row in map(json.loads, lines) if row["stage"] == "pretrain" and "loss" in row]
    page = _page(run_dir)
    top = page[page.index('id="summary"') : page.index("</section>")]
    tiles = dict(re.findall(r'<div class="tile"><b>([^<]*)</b>([^<]*)</div>', top))
    assert tiles == {
        f"{size / 1e6:.3f} M": "parameters",
        # 400 steps of pretraining, 30 of PPO.
        f"{4096 * 430 / 1e6:.3f} M": "tokens trained on, over all stages",
        "2.050": "bits per byte of held-out text, Base",
        "81.0% ± 3.9": "reward model: accuracy on 400 held-out pairs",
        "55.0% ± 0.8": "mmlu, PPO",
    }
    (row,) = _rows(top, "pretrain")
    assert f"<td>400</td><td>1,638,400</td><td>{final[-1]['loss']:.4g} nats a token</td>" in row
    assert "loss <b>2</b>" in row and f"perplexity <b>{math.exp(2):.4g}</b>" in row
    assert "bits per byte" not in row and "z-loss" not in row, "the evaluation has them"
    (run_dir / "eval" / "results.json").unlink()
    assert "bits per byte (docs) <b>2.5</b>" in _rows(_page(run_dir), "pretrain")[0]
    (row,) = _rows(top, "ppo")
    assert "perplexity" not in row and "nats" not in row, "its loss is no cross-entropy"


def test_interval_that_includes_one_half_is_not_called_a_win(run_dir):
    def unsure(results):
        results["preference"]["dpo"]["low"] = 0.48

    _change(run_dir / "eval" / "results.json", unsure)
    page = _page(run_dir)
    assert page.count("no difference is shown") == 1
    assert page.count("the gold rater prefers PPO to SFT") == 1


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
        ("eval/results.json", ["results", "kinds", "samples", "text", "tasks"]),
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


def test_a_page_names_no_stage_that_its_run_has_not_done(run_dir):
    def only_base(results):
        for key in ("preference", "reward_model", "samples", "dialog", "tasks"):
            del results[key]
        results["text_by_stage"] = {"pretrain": 2.05}
        for row in results["text"].values():
            del row["ngram"]

    _change(run_dir / "eval" / "results.json", only_base)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["stage"] == "pretrain"]
    (run_dir / "metrics.jsonl").write_text("\n".join(kept))
    for stage in ("sft", "reward", "dpo", "ppo"):
        shutil.rmtree(run_dir / stage)
    page = _page(run_dir)
    assert _has(page, "results") and _has(page, "text") and _has(page, "curves-pretrain")
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    for word in ("SFT", "sft", "reward", "Reward", "DPO", "PPO", "ppo", "gold", "KL", "n-gram"):
        assert not re.search(rf"\b{word}\b", text), word
    for words in ("started from", "question", "each stage", "Benchmarks", "pairs"):
        assert words not in text, words


def test_only_a_config_is_still_a_page(tmp_path):
    write(tmp_path / "config.json", identity())
    page = _page(tmp_path)
    assert _has(page, "config") and not any(_has(page, section) for section in SECTIONS)


def test_what_a_model_wrote_is_escaped(run_dir):
    attack = "<script>alert('seed')</script>\"'&"

    def poison(results):
        results["samples"][0]["answers"]["ppo"] = attack
        results["samples"][0]["prompt"] = attack
        results["tasks"][attack] = results["tasks"]["mmlu"]
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


class _Markup(html.parser.HTMLParser):
    """What a page would load or run: its tags with attributes, and its style sheets."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.styles, self._is_style = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._is_style = tag == "style"

    def handle_data(self, data):
        if self._is_style:
            self.styles.append(data)

    def handle_endtag(self, tag):
        self._is_style = False


def test_page_forbids_what_it_does_not_need_and_obeys(page):
    found = _Markup(page)
    metas = [attrs for tag, attrs in found.tags if tag == "meta" and "http-equiv" in attrs]
    assert [attrs["http-equiv"] for attrs in metas] == ["Content-Security-Policy"]
    policy = dict(part.strip().split(" ", 1) for part in metas[0]["content"].split(";"))
    (style,) = found.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src-elem": f"'sha256-{digest}'",
        "style-src-attr": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.index("Content-Security-Policy") < page.index("<style")
    loading = {"script", "img", "image", "link", "iframe", "object", "embed", "base", "form"}
    assert not loading & {tag for tag, _ in found.tags}
    names = {name for _, attrs in found.tags for name in attrs}
    assert not [name for name in names if name.startswith("on")]


def test_same_run_gives_the_same_page(run_dir):
    assert _page(run_dir) == _page(run_dir)


def test_damaged_metrics_lines_are_skipped(run_dir):
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


def test_code_outside_of_git_is_noted(run_dir):
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
    assert "<b>3.5</b>loss, held out</div>" in page, "one point is a figure, no plot"
    assert "loss, held out: 3.5 at first" not in page


def test_a_stages_speed_is_all_tokens_over_all_seconds(run_dir):
    """1 s at 9000 tokens/s and 9 s at 1000: 18,000 tokens in 10 s; the first line has no speed."""
    lines = [
        {"stage": "sft", "step": 1, "loss": 5.0},
        {"train_secs": 1.0, "tokens_per_sec": 9000.0, "mfu": 0.9, "stage": "sft", "step": 2},
        {"train_secs": 9.0, "tokens_per_sec": 1000.0, "mfu": 0.1, "stage": "sft", "step": 3},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = _page(run_dir)
    assert "1,800 tokens/s on average" in page
    assert "18.0% MFU (share of peak FLOP/s) on average" in page


def test_torn_last_line_of_a_killed_run_is_left_out(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "step": 99, "lo')
    assert "Evaluation of each stage" in _page(run_dir)


def test_a_line_that_no_plot_takes_names_the_file_of_lines(run_dir):
    lines = [{"stage": "pretrain", "step": step, "loss": -1e308} for step in (1, 2)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
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
            refused, words = refused + 1, str(error)
            assert name in words and words.count("done.json") <= 1 and "\n" not in words[:-1], error
    assert refused
