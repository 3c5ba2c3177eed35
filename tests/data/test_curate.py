"""Curation end to end: every document is accounted for, the same input gives the same bytes."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest

from configs import web
from data import dedup, tasks
from data.curate import CurateConfig, curate
from data.engine import Runner, start
from data.errors import BadInput
from data.quickstart import python_library
from data.sources import SourceConfig
from launch import schema

BASE = schema.to_dataclass(CurateConfig, web.get_config().data, "data")
FEWER_WORDS = dataclasses.replace(BASE.gates.gopher, min_words=20)
GATES = dataclasses.replace(BASE.gates, min_chars=100, gopher=FEWER_WORDS)
GOPHER = ("gopher_word_count", "gopher_stop_words", "gopher_duplicate_ngrams")
PROSE_GATES = ("length", "language", *GOPHER)
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
    return SourceConfig(
        path=str(path),
        kind="auto",
        markup="auto",
        extract="main",
        text_field="",
        weight=1.0,
        gates=applies,
    )


def config_of(by_domain, **changes):
    config = CurateConfig(
        sources=by_domain,
        gates=GATES,
        dedup=dataclasses.replace(BASE.dedup, paragraph_chars=0),
        heldout_fraction=0.1,
        max_document_bytes=65536,
    )
    return dataclasses.replace(config, **changes)


def silent(_line):
    pass


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("docs", "a-b"), "domain 'a-b' must be letters, digits and underscores, no digit first"),
        (("Docs", "docs"), "must differ from the others in more than capital letters"),
    ],
)
def test_names_of_domains_that_cannot_be_used_are_refused(names, words):
    """Shards are named by them in small letters."""
    with pytest.raises(ValueError, match=words):
        config_of(dict.fromkeys(names, source_of("a", ())))


def test_a_file_that_changes_while_it_is_read_leaves_no_piece(tmp_path, monkeypatch):
    """Pieces are known by what the files held when they were found."""
    path, read = tmp_path / "in.jsonl", tasks.sources.read

    def spy(unit, *arguments):
        yield from read(unit, *arguments)
        write_json_lines(path, [prose(9)])

    write_json_lines(path, [prose(1), prose(2)])
    monkeypatch.setattr(tasks.sources, "read", spy)
    config = config_of({"docs": source_of(path, ())})
    with pytest.raises(BadInput, match=r"in\.jsonl: has changed while it was read; run again"):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    assert run(config, tmp_path / "run")["read"]["docs"]["documents"] == 1


def write_json_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def rows_of(folder):
    return [row for path in sorted(folder.iterdir()) for row in pq.read_table(path).to_pylist()]


def run(config, folder, evaluation=(), workers=1, log=silent, kind="native"):
    """The funnel of a curation into a folder."""
    with start(Runner(kind, workers)) as engine:
        return curate(config, folder / "out", folder / "cache", engine, evaluation, log)


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
    funnel = run(corpus, tmp_path)
    documents = rows_of(tmp_path / "out/documents")
    dropped = rows_of(tmp_path / "out/dropped")
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
    funnel = run(corpus, tmp_path)
    assert funnel == json.loads((tmp_path / "out/funnel.json").read_text())
    documents = rows_of(tmp_path / "out/documents")
    dropped = rows_of(tmp_path / "out/dropped")
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
        heldout = [row for row in mine if row["split"] == "heldout"]
        assert funnel["heldout"][domain]["documents"] == len(heldout) >= 1
    gates_of_notes = [row["gate"] for row in funnel["stages"] if row["domain"] == "notes"]
    assert gates_of_notes == ["empty", "length", *dedup.WAYS, dedup.PARAGRAPHS]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_runs_workers_and_order_of_domains_give_the_same_bytes(corpus, tmp_path):
    backwards = dict(reversed(corpus.sources.items()))
    run(corpus, tmp_path / "one")
    run(dataclasses.replace(corpus, sources=backwards), tmp_path / "two", workers=2)
    expected = digests(tmp_path / "one" / "out")
    assert len(expected) == 5
    assert digests(tmp_path / "two" / "out") == expected


@pytest.mark.slow
def test_ray_gives_the_same_bytes_beside_a_running_jax(corpus, tmp_path):
    jax.devices()  # whose threads do not survive a fork of this process
    run(corpus, tmp_path / "here")
    run(corpus, tmp_path / "ray", workers=2, kind="ray")
    assert digests(tmp_path / "ray" / "out") == digests(tmp_path / "here" / "out")


def test_parts_of_one_record_and_equal_sources_stay_on_one_side(tmp_path):
    """A module's code holds its docstrings: both go to the same side. So do a book's parts."""
    for domain in ("docs", "code"):
        (tmp_path / domain).mkdir()
        for i in range(30):
            text = "\n".join(prose(f"{domain} {i} {part}") for part in range(3))
            (tmp_path / domain / f"m{i}.txt").write_text(text)
    by_domain = {domain: source_of(tmp_path / domain, ()) for domain in ("docs", "code")}
    config = config_of(by_domain, max_document_bytes=1024, heldout_fraction=0.3)
    run(config, tmp_path)
    rows = rows_of(tmp_path / "out/documents")
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
    funnel = run(config, tmp_path)
    assert 1 <= funnel["heldout"]["books"]["documents"] < funnel["kept"]["books"]["documents"]


def test_no_text_grows(tmp_path):
    """Repair ends a text with a line feed; as read it counts with one too."""
    texts = [prose(seed).rstrip() for seed in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    funnel = run(config_of({"web": source_of(tmp_path / "a.jsonl", ())}), tmp_path)
    size = sum(len(text) + 1 for text in texts)
    assert funnel["read"] == funnel["kept"] == {"web": {"documents": 9, "bytes": size}}


def test_a_document_keeps_its_side_when_others_come(tmp_path):
    sides = []
    for count in (40, 60):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:03d}.txt").write_text(prose(i))
        run(config_of({"web": source_of(folder)}), tmp_path / f"run{count}")
        rows = rows_of(tmp_path / f"run{count}/out/documents")
        sides.append({row["id"]: row["split"] for row in rows})
    assert sides[0].items() <= sides[1].items()
    assert "heldout" in sides[0].values()


def test_evaluation_sets_are_kept_out_and_named(tmp_path):
    question = " ".join(prose(1000).split()[:20])
    texts = [prose(seed) for seed in range(6)]
    texts[3] += f"Before. {question.upper()}? After."
    write_json_lines(tmp_path / "a.jsonl", texts)
    config = config_of({"web": source_of(tmp_path / "a.jsonl", ("contamination",))})
    funnel = run(config, tmp_path, [("quiz", question), ("other", prose(2000))])
    (row,) = rows_of(tmp_path / "out/dropped")
    assert (row["id"], row["why"], row["reason"]) == (
        "web/a.jsonl:00000004",
        "contamination",
        "quiz",
    )
    found = row["detail"].lower().replace(".", "").split()
    assert found == question.replace(".", "").split()
    assert funnel["dropped"]["contamination"]["reasons"] == {"quiz": 1}


def test_repeated_paragraphs_go_and_what_is_left_of_too_little_goes_too(tmp_path):
    notice = prose(500, 40)
    texts = [f"{prose(seed)}\n{notice}\n{prose(seed + 100)}" for seed in range(4)]
    texts.append(f"{notice}\n{prose(7, 12)}")
    write_json_lines(tmp_path / "a.jsonl", texts)
    config = config_of({"web": source_of(tmp_path / "a.jsonl", ())})
    paragraphs = dataclasses.replace(config.dedup, paragraph_chars=100)
    funnel = run(dataclasses.replace(config, dedup=paragraphs), tmp_path)
    kept = {row["id"]: row["text"] for row in rows_of(tmp_path / "out/documents")}
    assert [notice.strip() in text for text in kept.values()] == [True, False, False, False]
    assert kept["web/a.jsonl:00000002"] == f"{prose(1)}\n{prose(101)}"
    assert funnel["dropped"]["repeated_paragraphs"]["documents"] == 1


def test_of_one_url_the_newest_stays(tmp_path):
    rows = [
        {"text": prose(seed), "url": url, "date": date}
        for seed, (url, date) in enumerate(
            [
                ("http://www.a.org/x/?utm_source=mail", "2020-01-01"),
                ("https://a.org/x#top", "2024-05-05T10:00:00Z"),
                ("https://a.org/x?page=2", "2019-01-01"),
                ("https://A.org/x/", ""),
            ]
        )
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(config_of({"web": source_of(tmp_path / "a.jsonl", ())}), tmp_path)
    kept = [row["id"][-1] for row in rows_of(tmp_path / "out/documents")]
    assert kept == ["2", "3"]
    stays = {row["duplicate_of"] for row in rows_of(tmp_path / "out/dropped")}
    assert stays == {"web/a.jsonl:00000002"}


def test_only_what_changed_is_read_again(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_json_lines(folder / f"{name}.jsonl", [prose(f"{name}{i}") for i in range(5)])
    config = config_of({name: source_of(folder / f"{name}.jsonl") for name in ("a", "b", "c")})
    run(config, tmp_path)
    before = digests(tmp_path / "out")
    filtered = {path.name for path in (tmp_path / "cache/filtered").iterdir()}
    content = (folder / "b.jsonl").read_bytes()
    # The same size and time, other content.
    stat = (folder / "b.jsonl").stat()
    (folder / "b.jsonl").write_bytes(content.replace(b"harbour", b"HARBOUR", 1))
    os.utime(folder / "b.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    lines = []
    run(config, tmp_path, log=lines.append)
    assert [line for line in lines if line.startswith("reading")] == [
        "reading: 1/1 parts (2 cached), b: b.jsonl"
    ]
    assert len({path.name for path in (tmp_path / "cache/filtered").iterdir()} - filtered) == 1
    after = digests(tmp_path / "out")
    changed = {name for name in after if after[name] != before[name]}
    assert "documents/part-00001.parquet" in changed
    assert not {"documents/part-00000.parquet", "documents/part-00002.parquet"} & changed


@pytest.mark.parametrize("num_documents", [1, 2, 3])
def test_few_documents_leave_one_for_training_and_one_held_out(tmp_path, num_documents):
    write_json_lines(tmp_path / "a.jsonl", [prose(seed) for seed in range(num_documents)])
    config = config_of({"web": source_of(tmp_path / "a.jsonl")}, heldout_fraction=0.5)
    funnel = run(config, tmp_path)
    num_heldout = funnel["heldout"]["web"]["documents"]
    assert num_heldout == 0 if num_documents == 1 else 1 <= num_heldout < num_documents


def test_domain_that_loses_everything_is_bad_input_and_says_why(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ["short", "brief", prose(1) * 4])
    config = config_of({"web": source_of(tmp_path / "a.jsonl")})
    with pytest.raises(BadInput, match=r"sources\.web: none of its 3 .*'length' took most .*\(2\)"):
        run(config, tmp_path)
    dropped = pq.read_table(tmp_path / "out" / "dropped").column("why").to_pylist()
    assert sorted(dropped) == ["gopher_duplicate_ngrams", "length", "length"]


def test_domain_found_by_its_kind_may_lose_everything(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_json_lines(folder / "a.jsonl", [prose(seed) for seed in range(9)])
    (folder / "p.html").write_text("<html><body>Hello.</body></html>")
    lines = []
    funnel = run(dataclasses.replace(BASE, sources=str(folder)), tmp_path, log=lines.append)
    assert funnel["kept"]["web"]["documents"] == 0 and funnel["kept"]["text"]["documents"] > 0
    assert any("web: none of its 1 documents is left" in line for line in lines)
    (folder / "a.jsonl").unlink()
    with pytest.raises(BadInput, match=r"data\.sources: web: none of its 1 documents is left"):
        run(dataclasses.replace(BASE, sources=str(folder)), tmp_path)


def test_domain_that_is_a_copy_of_another_is_bad_input(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [prose(1), prose(2)])
    by_domain = {name: source_of(tmp_path / "a.jsonl") for name in ("first", "second")}
    with pytest.raises(BadInput, match=r"sources\.second: none of its 2 .*exact_duplicate"):
        run(config_of(by_domain), tmp_path)


def test_missing_path_is_said_before_anything_is_read(corpus, tmp_path):
    by_domain = {**corpus.sources, "zz": source_of(tmp_path / "absent")}
    lines = []
    with pytest.raises(BadInput, match=r"sources\.zz\.path: .*absent"):
        run(dataclasses.replace(corpus, sources=by_domain), tmp_path, log=lines.append)
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
    code = "import sys, data.curate; print([m for m in ('ray', 'jax') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_standard_library_is_curated(tmp_path):
    applies = tuple(set(PROSE_GATES) - {"duplicate_ngrams"})
    by_domain = {
        "docs": source_of(python_library.DOCS, applies),
        "code": source_of(python_library.CODE, ("length",)),
    }
    funnel = run(config_of(by_domain, heldout_fraction=0.05), tmp_path)
    assert funnel["broken"] == []
    assert funnel["kept"]["docs"]["bytes"] > 1_500_000
    assert funnel["kept"]["code"]["bytes"] > 5_000_000
    assert all(count["documents"] >= 10 for count in funnel["heldout"].values())
    tables = [
        row
        for row in rows_of(tmp_path / "out/dropped")
        if row["source"].startswith("encodings/") and row["why"] == dedup.NEAR
    ]
    assert len(tables) >= 20


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real data sets are not beside the checkout")
def test_real_domains_are_curated(tmp_path):
    prose_gates = ("length", "language", "gopher_word_count", "gopher_stop_words")
    by_domain = {
        "books": source_of(REAL / "books/books.jsonl.gz", prose_gates),
        "wikitext2": source_of(REAL / "wikitext2/valid.txt.gz", prose_gates),
        "stacks_project": source_of(REAL / "math_latex/stacks_project.jsonl.gz", ("length",)),
        "tinystories": source_of(REAL / "tinystories/*.txt.gz", prose_gates),
    }
    funnel = run(config_of(by_domain), tmp_path)
    assert funnel["broken"] == []
    for domain, read in funnel["read"].items():
        assert funnel["kept"][domain]["bytes"] > 0.95 * read["bytes"]
        assert funnel["heldout"][domain]["documents"] > 0
    texts = [row["text"] for row in rows_of(tmp_path / "out/documents")]
    assert not any("\r" in text for text in texts)
