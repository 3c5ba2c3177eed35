"""What the report says of data: figures that add up, texts that stay closed, nothing unescaped."""

import json
import re
from pathlib import Path

import pytest

from data import funnel, sources, tasks
from data.mixture import plan
from launch.report import funnel as rows_of
from launch.report.page import FUNNEL_KEYS, write_report

ATTACK = "<script>alert('seed')</script>\"'&"
REASONS = {"de": 6, "fr": 3, "ru": 2, "es": 2, "pt": 2, "it": 2, "zh": 1, "nl": 1}
# gate, reason, language, split, documents, bytes, bytes as read
DOCS = [
    *[("language", name, name, "", n, 150 * n, 150 * n) for name, n in REASONS.items()],
    ("length", "short", "", "", 10, 500, 500),
    ("toxic_words", "en", "en", "", 5, 600, 600),
    ("near_duplicate", "", "en", "", 16, 1550, 1550),
    ("", "", "en", "train", 40, 4000, 4100),
    ("", "", "fr", "heldout", 10, 300, 300),
]
CODE = [
    ("length", "short", "python", "", 1, 50, 50),
    ("generated", "header", "c", "", 4, 900, 900),
    ("", "", "python", "train", 33, 6650, 6650),
    ("", "", "c", "heldout", 2, 400, 400),
]
GATES = {"docs": ("length", "language", "toxic_words"), "code": ("length", "generated")}
SHARDS = {
    "groups": {
        "docs": dict(domain="docs", documents=40, bytes=4000, tokens=1000, records=5, shards=1),
        "code": dict(domain="code", documents=33, bytes=6650, tokens=3325, records=14, shards=2),
    },
    "fertility": [["code", "python", 33, 6650, 3325], ["docs", "en", 40, 4000, 1000]],
}


def write_curation(run_dir):
    """curate/funnel.json of a run, as curation writes it, with hostile samples; what it holds."""
    counted = make_funnel()
    (run_dir / "curate").mkdir(parents=True, exist_ok=True)
    (run_dir / "curate" / "funnel.json").write_text(json.dumps(counted))
    return counted


def make_funnel():
    survey = {
        domain: sources.SourceConfig(
            path="texts",
            kind="text",
            markup="plain",
            extract="main",
            text_field="",
            weight=1.0,
            gates=gates,
        )
        for domain, gates in GATES.items()
    }
    named = [{"file": "a.jsonl", "record": n, "why": f"no JSON at {n}: <b>"} for n in range(1, 6)]
    named.append({"file": "b.zip", "record": 0, "why": "of no kind that we read"})
    broken = {"broken": 9, "named": named}
    parts = [
        tasks.Part("docs", Path(), broken, 0),
        tasks.Part("code", Path(), {"broken": 0, "named": []}, 100),
    ]
    written = [{"counts": DOCS, "samples": _samples(DOCS)}, {"counts": CODE, "samples": {}}]
    return funnel.count(sources.Survey(survey, [], []), parts, written, 7)


def _samples(rows):
    return {
        gate: [[0.5, f"docs/{gate}:7{ATTACK}", f"why-{gate}", ATTACK, f"text of {gate} {ATTACK}"]]
        for gate in {row[0] or "kept" for row in rows}
    }


@pytest.fixture(scope="module")
def counted():
    return make_funnel()


@pytest.fixture(scope="module")
def found(counted):
    return rows_of.curation(counted, SHARDS)


@pytest.fixture
def run_dir(tmp_path):
    """A run that went no further than shards."""
    identity = {
        "config": {"cost": {"machine_watts": 3.6}},
        "code": {"commit": None, "dirty": None},
        "packages": {},
    }
    (tmp_path / "config.json").write_text(json.dumps({**identity, "python": "3.11"}))
    write_curation(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "shards.json").write_text(json.dumps(SHARDS))
    return tmp_path


def _page(run_dir):
    return write_report(run_dir).read_text()


def test_curation_writes_every_key_that_the_report_needs(counted):
    assert set(counted) == set(FUNNEL_KEYS)


def test_steps_by_hand(found):
    steps = {step["gate"]: step for step in found["steps"]}
    taken = {gate: tuple(step["taken"].values()) for gate, step in steps.items()}
    assert taken == {
        "read": (0, 0),
        "length": (11, 550),
        "generated": (4, 900),
        "language": (19, 2850),
        "toxic_words": (5, 600),
        "near_duplicate": (16, 1550),
        "kept": (0, 100),  # what edits took
    }
    left = {gate: (step["documents"], step["bytes"]) for gate, step in steps.items()}
    assert left["read"] == (140, 17900) and left["length"] == (129, 17350)
    assert left["near_duplicate"] == (85, 11450) and left["kept"] == (85, 11350)
    assert steps["length"]["left"]["code"] == {"documents": 39, "bytes": 7950}


def test_gate_that_does_not_apply_to_a_domain_is_no_count(found):
    steps = {step["gate"]: step["taken_by_domain"] for step in found["steps"]}
    assert steps["language"].keys() == {"docs"} and steps["generated"].keys() == {"code"}
    assert steps["near_duplicate"]["code"] == {"documents": 0, "bytes": 0}


def test_gates_that_took_nothing_are_only_named(found):
    assert found["idle"] == ["empty", "url_duplicate", "exact_duplicate", "repeated_paragraphs"]


def test_order_of_gates_agrees_with_every_domain():
    orders = {"a": "ehz", "b": "eghz", "c": "egkz", "d": "ekhz"}
    stages = [
        {"gate": gate, "domain": domain, "documents": 1, "bytes": 1}
        for domain, gates in orders.items()
        for gate in gates
    ]
    counts = {domain: {"documents": 1, "bytes": 1} for domain in orders}
    empty = {**make_funnel(), "read": counts, "kept": counts, "heldout": counts}
    found = rows_of.curation({**empty, "stages": stages, "dropped": {}}, None)
    assert found["idle"] == list("egkhz"), "the only order in which g < k < h"


def test_tokens_left_go_by_the_bytes_a_token_of_each_domain(counted, found):
    assert found["steps"][0]["tokens"] == pytest.approx(9900 / 4 + 8000 / 2)
    only_code = {"groups": {}, "fertility": SHARDS["fertility"][:1]}
    steps = rows_of.curation(counted, only_code)["steps"]
    assert steps[0]["tokens"] == pytest.approx(17900 / 2), "no training text: the mean of all"


def test_reasons_are_ranked_and_the_rare_ones_added_up(found):
    drops = {row["gate"]: row for row in found["drops"]}
    assert [row["documents"] for row in found["drops"]] == [19, 16, 11, 5, 4]
    language = drops["language"]["reasons"]
    assert language == [("de", 6), ("fr", 3), ("es", 2), ("it", 2), ("pt", 2), ("ru", 2)]
    assert drops["language"]["others"] == (2, 2)
    assert drops["near_duplicate"]["reasons"] == [], "it names none"
    assert sum(row["bytes"] for row in found["drops"]) == 17900 - 11450


def test_offensive_and_withheld_texts_are_veiled_and_others_not(found):
    assert {row["gate"] for row in found["drops"] if row["veil"]} == {"toxic_words"}
    assert {"blocked", "opt_out", "toxic_words", "toxicity"} == set(rows_of.VEILED)


def test_languages_beyond_the_first_are_added_up():
    names = [f"l{number:02}" for number in range(20)]
    languages = {
        "docs": {n: {"documents": 1, "bytes": 100 - i} for i, n in enumerate(names)},
        "code": {"l19": {"documents": 2, "bytes": 3}, "": {"documents": 1, "bytes": 999}},
    }
    found = rows_of.curation({**make_funnel(), "languages": languages}, None)["languages"]
    assert found["count"] == 21
    assert [row["language"] for row in found["rows"]] == ["none", *names[:14], "6 others"]
    assert found["rows"][0]["cells"] == [None, {"documents": 1, "bytes": 999}]
    assert found["rows"][-1]["cells"] == [
        {"documents": 6, "bytes": sum(100 - i for i in range(14, 20))},
        {"documents": 2, "bytes": 3},
    ]
    assert found["totals"][1] == {"documents": 3, "bytes": 1002}


def test_tokens_by_domain_and_language():
    halves = {"de": {**SHARDS["groups"]["docs"], "tokens": 600}, **SHARDS["groups"]}
    found = rows_of.tokens({**SHARDS, "groups": halves})
    code, docs = found["rows"]
    assert (docs["tokens"], docs["records"], docs["bytes"]) == (1600, 10, 8000)
    assert docs["fertility"] == 5.0 and code["fertility"] == 2.0
    assert found["totals"]["tokens"] == 4925 and found["totals"]["shards"] == 4
    english = next(row for row in found["languages"]["rows"] if row["language"] == "en")
    assert dict(zip(found["languages"]["domains"], english["cells"], strict=True))["code"] is None
    assert english["fertility"] == 4.0


def test_broken_records_are_grouped_by_why(found):
    first, second = found["troubles"]["rows"]
    assert first["count"] == 5 and [row["record"] for row in first["places"]] == [1, 2, 3]
    assert second["why"] == "of no kind that we read" and second["count"] == 1
    assert found["num_broken"] == 9 and found["troubles"]["named"] == 6


def test_rare_kinds_of_broken_records_are_only_counted():
    letters = "abcdefghijklmnopqrstuvwxyz"
    broken = [{"file": "f", "record": 1, "why": f"of kind {letter}"} for letter in letters]
    found = rows_of.curation({**make_funnel(), "broken": broken}, None)["troubles"]
    assert len(found["rows"]) == rows_of.TOP_TROUBLES
    assert found["others"] == 26 - rows_of.TOP_TROUBLES


def _tabulate(stages, realised=()):
    """Rows as of data.mixture.plan: what is (asked, planned) of each group, in tokens, by stage."""
    sizes = {("docs", "en"): 300, ("docs", "fr"): 100, ("code", ""): 200}
    planned = [
        plan.PlannedStage(
            name, dict(zip(sizes, asked, strict=True)), dict(zip(sizes, tokens, strict=True))
        )
        for name, (asked, tokens) in stages.items()
    ]
    return plan.tabulate(planned, sizes, realised)


ONE_STAGE = {"all": ((375, 125, 500), (500, 100, 400))}


def test_mixture_is_added_up_by_domain():
    found = rows_of.mixture(_tabulate(ONE_STAGE))
    assert found["shares"] == ["asked", "planned"] and found["domains"] == ["code", "docs"]
    assert [stage["title"] for stage in found["stages"]] == ["the whole run"]
    code, docs = found["stages"][0]["rows"]
    assert code == pytest.approx({"asked": 0.5, "planned": 0.4, "epochs": 2.0})
    assert docs == pytest.approx({"asked": 0.5, "planned": 0.6, "epochs": 1.5})
    assert [row["language"] for row in found["groups"]] == ["", "en", "fr"]


def test_mixture_beside_what_was_read():
    rows = _tabulate(ONE_STAGE, [{("docs", "en"): 2, ("docs", "fr"): 1, ("code", ""): 1}])
    found = rows_of.mixture(rows)
    assert found["shares"] == ["asked", "planned", "realised"]
    assert [row["realised"] for row in found["stages"][0]["rows"]] == pytest.approx([0.25, 0.75])


def test_mixture_of_stages_has_each_and_the_whole():
    stages = {"broad": ((300, 75, 375),) * 2, "end": ((200, 50, 0),) * 2}
    found = rows_of.mixture(_tabulate(stages))
    assert [stage["title"] for stage in found["stages"]] == ["broad", "end", "the whole run"]
    assert [stage["tokens"] for stage in found["stages"]] == pytest.approx([750, 250, 1000])
    assert found["stages"][1]["rows"][0] is None, "code is not asked for at the end"
    assert found["stages"][1]["rows"][1]["asked"] == pytest.approx(1.0)


def test_run_without_a_model_is_a_page(run_dir):
    page = _page(run_dir)
    for section in ("funnel", "drops", "languages", "tokens", "broken", "kept"):
        assert f'id="{section}"' in page, f"no section {section}"
    for section in ("summary", "results", "samples", "text", "curves", "plan"):
        assert f'id="{section}"' not in page, f"section {section} of what the run has not done"
        assert f'href="#{section}"' not in page
    assert "85" in page and "60.7% of 140" in page
    assert "--explain=ID" in page


def test_steps_stand_on_the_page(run_dir):
    rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", _page(run_dir), flags=re.DOTALL)
    cells = [(gate, re.findall(r"<td[^>]*>([^<]*)</td>", rest)) for gate, rest in rows]
    assert ("length", ["129", "11", "17.35 kB", "550 bytes", "6,325"]) in cells
    assert ("kept", ["85", "", "11.35 kB", "100 bytes", "4,600"]) in cells
    assert ("language", ["19", ""]) in cells, "no count for code, to which it does not apply"
    assert ("near_duplicate", ["16", "&middot;"]) in cells


def test_curation_alone_is_a_page(run_dir):
    before = _page(run_dir)
    (run_dir / "tokenizer" / "shards.json").unlink()
    after = _page(run_dir)
    assert "tokens left" in before and "tokens left" not in after
    assert 'id="tokens"' not in after and 'id="drops"' in after


def test_mixture_is_the_plan_until_pretraining_has_read(run_dir):
    shards = {**SHARDS, "mixture": _tabulate(ONE_STAGE)}
    (run_dir / "tokenizer" / "shards.json").write_text(json.dumps(shards))
    before = _page(run_dir)
    assert "Mixture: plan" in before and ">1,000 tokens<" in before
    read = {"all": ((150, 50, 200), (200, 40, 160))}
    rows = _tabulate(read, [{("docs", "en"): 2, ("docs", "fr"): 1, ("code", ""): 1}])
    cost = {"secs": 1.0, "cpu_secs": 1.0}
    (run_dir / "pretrain").mkdir()
    done = {"stage": "pretrain", "summary": {"mixture": rows}, **cost}
    (run_dir / "pretrain" / "done.json").write_text(json.dumps(done))
    after = _page(run_dir)
    assert ">400 tokens<" in after and ">1,000 tokens<" not in after
    assert "realised what was read" in after and ": plan" not in after
    assert "<td>75.0%</td><td>0.60</td>" in after, "docs: three of four rows, 240 of 400 tokens"


def test_texts_and_names_are_escaped(run_dir):
    def poison(text):
        return text.replace('"docs"', '"' + "<script>docs" + '"').replace("short", "<script>")

    path = run_dir / "curate" / "funnel.json"
    path.write_text(poison(path.read_text()))
    path = run_dir / "tokenizer" / "shards.json"
    path.write_text(poison(path.read_text()))
    page = _page(run_dir)
    assert "<script" not in page.lower() and "no JSON at 1: &lt;b&gt;" in page
    assert page.count("&lt;script&gt;") > 20


def test_a_veiled_text_is_shown_only_when_opened(run_dir):
    page = _page(run_dir)
    start = '<details><summary class="drop">'
    gates = page[page.index(start) : page.index('id="kept"')].split(start)[1:]
    assert len(gates) == 5, "one for each gate that took something, closed"
    (toxic,) = [gate for gate in gates if "text of toxic_words" in gate]
    before, _, after = toxic.partition("<details><summary>show the text</summary>")
    assert "dropped as offensive" in before and "text of" not in before
    assert "text of toxic_words" in after
    (language,) = [gate for gate in gates if "text of language" in gate]
    assert "show the text" not in language and "why-language" in language
