"""Curation end to end: every document is accounted for, the same input gives the same bytes."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import dedup, gates, sources
from data.curate import CurateConfig, curate
from data.errors import BadInput
from data.sources import SourceConfig

GATES = gates.GateConfig(
    min_chars=100,
    max_chars=1_000_000,
    languages=("en",),
    min_language_score=0.3,
    min_words=20,
    max_words=100_000,
    min_mean_word_chars=3.0,
    max_mean_word_chars=10.0,
    max_symbol_to_word_ratio=0.1,
    max_bullet_lines=0.9,
    max_ellipsis_lines=0.3,
    min_alphabetic_words=0.8,
    min_stop_words=2,
    max_javascript_lines=0.1,
    max_policy_lines=0.1,
    max_duplicate_lines=0.3,
    max_duplicate_line_chars=0.2,
    max_top_ngram_chars=(0.20, 0.18, 0.16),
    max_duplicate_ngram_chars=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
)
DEDUP = dedup.DedupConfig(num_bands=14, band_rows=8, ngram_words=5, seed=1)
PROSE_GATES = ("length", "language", "word_count", "stop_words", "duplicate_ngrams")
VOCABULARY = """\
the of and to with that have be old new harbour morning pilot stone river garden letter window
mountain teacher winter summer market bridge village kitchen captain machine picture answer
question silver copper forest island journey shadow thunder whisper candle ladder mirror walked
carried opened measured counted remembered noticed gathered followed painted
"""
WORDS = VOCABULARY.split()
REAL = Path("../shared/data/pretrain")


def prose(seed, num_words=200):
    source = random.Random(seed)
    words = [source.choice(WORDS) for _ in range(num_words)]
    lines = [" ".join(words[i : i + 12]) + "." for i in range(0, num_words, 12)]
    return "\n".join(lines) + "\n"


def source_of(path, applies=PROSE_GATES):
    return SourceConfig(path=str(path), text_field="text", weight=1.0, gates=applies)


def config_of(by_domain, **changes):
    config = CurateConfig(
        sources=by_domain,
        gates=GATES,
        dedup=DEDUP,
        heldout_fraction=0.1,
        max_document_bytes=65536,
    )
    return dataclasses.replace(config, **changes)


def silent(_line):
    pass


def write_json_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def rows_of(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture
def corpus(tmp_path):
    """Two domains: 40 good documents, 3 exact and 1 near-duplicate, 2 that gates drop, 1 broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = [prose(seed) for seed in range(40)]
    near = good[5].replace("harbour", "haven", 1) + "The end.\n"
    german = "Der alte Lotse ging am Morgen langsam bis zum Ende der Mole und sah hinaus. " * 4
    web = good[:30] + good[:2] + [near, german, "too short"]
    write_json_lines(folder / "web.jsonl", web)
    with (folder / "web.jsonl").open("a") as stream:
        stream.write('{"text": \n')
    (folder / "notes.txt").write_text("<|endoftext|>\n".join([*good[30:], good[1]]))
    by_domain = {
        "web": source_of(folder / "web.jsonl"),
        "notes": source_of(folder / "notes.txt", ("length",)),
    }
    return config_of(by_domain)


def test_every_document_is_kept_or_dropped_with_its_reason(corpus, tmp_path):
    funnel = curate(corpus, tmp_path / "out", silent)
    documents = rows_of(tmp_path / "out/documents.parquet")
    dropped = rows_of(tmp_path / "out/dropped.parquet")
    assert list(documents[0]) == ["id", "domain", "source", "split", "text"]
    assert list(dropped[0]) == ["id", "domain", "source", "why", "duplicate_of", "text"]
    assert len(documents) == 40
    for rows in (documents, dropped):
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    whys = {row["id"]: (row["why"], row["duplicate_of"]) for row in dropped}
    # Of equal documents the smallest id stays: `notes` sorts before `web`.
    assert whys == {
        "web/web.jsonl:00000002": ("exact_duplicate", "notes/notes.txt:00000011"),
        "web/web.jsonl:00000031": ("exact_duplicate", "web/web.jsonl:00000001"),
        "web/web.jsonl:00000032": ("exact_duplicate", "notes/notes.txt:00000011"),
        "web/web.jsonl:00000006": ("near_duplicate", "web/web.jsonl:00000033"),
        "web/web.jsonl:00000034": ("language", ""),
        "web/web.jsonl:00000035": ("length", ""),
    }
    assert funnel["broken"][0]["record"] == 36
    assert funnel["largest_cluster"] == 2


def test_funnel_adds_up(corpus, tmp_path):
    funnel = curate(corpus, tmp_path / "out", silent)
    assert funnel == json.loads((tmp_path / "out/funnel.json").read_text())
    documents = rows_of(tmp_path / "out/documents.parquet")
    dropped = rows_of(tmp_path / "out/dropped.parquet")
    for domain in ("notes", "web"):
        rows = [row for row in funnel["stages"] if row["domain"] == domain]
        counts = [funnel["read"][domain]["documents"], *(row["documents"] for row in rows)]
        assert counts == sorted(counts, reverse=True)
        for row, before, after in zip(rows, counts, counts[1:], strict=False):
            gone = [d for d in dropped if (d["domain"], d["why"]) == (domain, row["gate"])]
            assert before - after == len(gone), row
        mine = [row for row in documents if row["domain"] == domain]
        num_bytes = sum(len(row["text"].encode()) for row in mine)
        assert funnel["kept"][domain] == {"documents": len(mine), "bytes": num_bytes}
        assert rows[-1]["bytes"] == num_bytes
        heldout = [row for row in mine if row["split"] == "heldout"]
        assert funnel["heldout"][domain]["documents"] == len(heldout) >= 1
    gates_of_notes = [row["gate"] for row in funnel["stages"] if row["domain"] == "notes"]
    expected = ["normalise", "empty", "length", "exact_duplicate", "near_duplicate"]
    assert gates_of_notes == expected


def test_two_runs_give_the_same_bytes(corpus, tmp_path):
    curate(corpus, tmp_path / "one", silent)
    backwards = dict(reversed(corpus.sources.items()))
    curate(dataclasses.replace(corpus, sources=backwards), tmp_path / "two", silent)
    for name in ("documents.parquet", "dropped.parquet", "funnel.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 3


def test_parts_of_one_record_and_equal_sources_stay_on_one_side(tmp_path):
    """A module's code holds its docstrings: both go to the same side. So do a book's parts."""
    for domain in ("docs", "code"):
        (tmp_path / domain).mkdir()
        for i in range(30):
            text = "\n".join(prose(f"{domain} {i} {part}") for part in range(3))
            (tmp_path / domain / f"m{i}.txt").write_text(text)
    by_domain = {domain: source_of(tmp_path / domain, ()) for domain in ("docs", "code")}
    config = config_of(by_domain, max_document_bytes=1024, heldout_fraction=0.3)
    curate(config, tmp_path / "out", silent)
    rows = rows_of(tmp_path / "out/documents.parquet")
    sides = {}
    for row in rows:
        sides.setdefault(row["source"], set()).add(row["split"])
    assert len(rows) > len(sides) == 30
    assert all(len(side) == 1 for side in sides.values())
    num_heldout = sum("heldout" in side for side in sides.values())
    assert 3 <= num_heldout <= 15


def test_parts_of_the_only_record_are_parted_one_by_one(tmp_path):
    (tmp_path / "book.txt").write_text("\n".join(prose(seed) for seed in range(20)))
    config = config_of({"books": source_of(tmp_path / "book.txt", ())}, max_document_bytes=2048)
    funnel = curate(config, tmp_path / "out", silent)
    assert 1 <= funnel["heldout"]["books"]["documents"] < funnel["kept"]["books"]["documents"]


def test_a_document_keeps_its_side_when_others_come(tmp_path):
    sides = []
    for count in (40, 60):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:03d}.txt").write_text(prose(i))
        curate(config_of({"web": source_of(folder)}), tmp_path / f"out{count}", silent)
        rows = rows_of(tmp_path / f"out{count}/documents.parquet")
        sides.append({row["id"]: row["split"] for row in rows})
    assert sides[0].items() <= sides[1].items()
    assert "heldout" in sides[0].values()


@pytest.mark.parametrize("num_documents", [1, 2, 3])
def test_few_documents_leave_one_for_training_and_one_held_out(tmp_path, num_documents):
    write_json_lines(tmp_path / "a.jsonl", [prose(seed) for seed in range(num_documents)])
    config = config_of({"web": source_of(tmp_path / "a.jsonl")}, heldout_fraction=0.5)
    funnel = curate(config, tmp_path / "out", silent)
    num_heldout = funnel["heldout"]["web"]["documents"]
    assert num_heldout == 0 if num_documents == 1 else 1 <= num_heldout < num_documents


def test_domain_that_loses_everything_is_bad_input_and_leaves_no_file(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ["short", "brief", prose(1) * 4])
    config = config_of({"web": source_of(tmp_path / "a.jsonl")})
    with pytest.raises(BadInput, match=r"sources\.web: none of its 3 .*'length' took most .*\(2\)"):
        curate(config, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_domain_that_is_a_copy_of_another_is_bad_input(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [prose(1), prose(2)])
    by_domain = {name: source_of(tmp_path / "a.jsonl") for name in ("first", "second")}
    with pytest.raises(BadInput, match=r"sources\.second: none of its 2 .*exact_duplicate"):
        curate(config_of(by_domain), tmp_path / "out", silent)


def test_missing_path_is_said_before_anything_is_read(corpus, tmp_path):
    by_domain = {**corpus.sources, "zz": source_of(tmp_path / "absent")}
    lines = []
    with pytest.raises(BadInput, match=r"sources\.zz\.path: .*absent"):
        curate(dataclasses.replace(corpus, sources=by_domain), tmp_path / "out", lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "sources: empty"),
        ({"sources": {"a/b": source_of("x.txt")}}, "sources: domain 'a/b' must be"),
        ({"heldout_fraction": 0.0}, "heldout_fraction: 0.0 must be above 0"),
        ({"heldout_fraction": 0.6}, "heldout_fraction: 0.6 must be"),
        ({"max_document_bytes": 10}, "max_document_bytes: 10 must be at least 1024"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        config_of({"web": source_of("x.txt")}, **change)


def test_importing_the_configuration_stays_cheap():
    code = (
        "import sys, data.curate; print([m for m in ('daft', 'scipy', 'jax') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_standard_library_is_curated(tmp_path):
    applies = tuple(set(PROSE_GATES) - {"duplicate_ngrams"})
    by_domain = {
        "docs": source_of(sources.PYTHON_DOCS, applies),
        "code": source_of(sources.PYTHON_CODE, ("length",)),
    }
    funnel = curate(config_of(by_domain, heldout_fraction=0.05), tmp_path / "out", silent)
    assert funnel["broken"] == []
    assert funnel["kept"]["docs"]["bytes"] > 1_500_000
    assert funnel["kept"]["code"]["bytes"] > 5_000_000
    assert all(count["documents"] >= 10 for count in funnel["heldout"].values())
    tables = [
        row
        for row in rows_of(tmp_path / "out/dropped.parquet")
        if row["source"].startswith("encodings/") and row["why"] == dedup.NEAR
    ]
    assert len(tables) >= 20


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real data sets are not beside the checkout")
def test_real_domains_are_curated(tmp_path):
    prose_gates = ("length", "language", "word_count", "mean_word_length", "stop_words")
    by_domain = {
        "books": source_of(REAL / "books/books.jsonl.gz", prose_gates),
        "wikitext2": source_of(REAL / "wikitext2/valid.txt.gz", prose_gates),
        "stacks_project": source_of(REAL / "math_latex/stacks_project.jsonl.gz", ("length",)),
        "tinystories": source_of(REAL / "tinystories/*.txt.gz", prose_gates),
    }
    funnel = curate(config_of(by_domain), tmp_path / "out", silent)
    assert funnel["broken"] == []
    for domain, read in funnel["read"].items():
        assert funnel["kept"][domain]["bytes"] > 0.95 * read["bytes"]
        assert funnel["heldout"][domain]["documents"] > 0
    texts = [row["text"] for row in rows_of(tmp_path / "out/documents.parquet")]
    assert not any("\r" in text for text in texts)
