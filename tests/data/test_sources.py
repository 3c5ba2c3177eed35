"""Sources: any file is recognised by its content and read as documents, or named as broken."""

import bz2
import dataclasses
import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import sources, storage
from data.document import SCHEMA, Record
from data.errors import BadInput
from data.gates import chain
from data.readers import tables

SOURCE = sources.SourceConfig(
    path="x",
    kind="auto",
    markup="auto",
    extract="main",
    text_field="",
    weight=1.0,
    gates=("auto",),
)
PROSE = "A sentence of some words that stands for a text. " * 6
WIKIPEDIA = f"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">
<siteinfo><dbname>enwiki</dbname><base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>
<page><title>Seed</title><ns>0</ns><id>7</id><revision><id>8</id>
<timestamp>2024-01-02T03:04:05Z</timestamp><text>A '''seed''' is {PROSE}</text></revision></page>
</mediawiki>"""
POSTS = (
    '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'
    '  <row Id="1" PostTypeId="1" CreationDate="2020-01-01T00:00:00.000" Score="3" '
    f'Title="How?" Body="&lt;p&gt;{PROSE}&lt;/p&gt;" />\n</posts>\n'
)
WARC = (
    "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.org/\r\n"
    "WARC-Date: 2020-01-01T00:00:00Z\r\nContent-Type: text/plain\r\n"
    f"WARC-Record-ID: <urn:uuid:1>\r\nContent-Length: {len(PROSE)}\r\n\r\n{PROSE}\r\n\r\n"
)
LATEX = f"\\documentclass{{article}}\n\\begin{{document}}\n{PROSE} $x^2$\n\\end{{document}}\n"


def parquet():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [PROSE]}), buffer)
    return buffer.getvalue()


def tar(name, content, pack=bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        content = content if isinstance(content, bytes) else content.encode()
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return pack(buffer.getvalue())


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


NOTEBOOK = json.dumps({"cells": [{"cell_type": "markdown", "source": [PROSE]}]})

# Name without meaning: content; and the kind, domain and a phrase of what is read.
FILES = {
    "page": (f"<!DOCTYPE html><html><body><p>{PROSE}</p></body></html>", "html", "web"),
    "crawl": (WARC, "warc", "web"),
    "lines": (json.dumps({"text": PROSE}) + "\n", "json", "text"),
    "list.json": (json.dumps([{"text": PROSE}]), "json", "text"),
    "table": (parquet(), "parquet", "text"),
    "sheet.csv": (f'text,n\n"{PROSE}",1\n', "csv", "text"),
    "plain": (PROSE, "text", "text"),
    "dump": (WIKIPEDIA, "wikipedia", "encyclopedia"),
    "posts": (POSTS, "stackexchange", "forum"),
    "threads": (
        json.dumps({"id": "1", "parent_id": None, "body": PROSE}) + "\n",
        "threads",
        "forum",
    ),
    "paper": (LATEX, "latex", "papers"),
    "papers": (tar("paper/main.tex", LATEX), "latex", "papers"),
    "bundle": (tar("notes/a.jsonl", json.dumps({"text": PROSE})), "archive", "archives"),
    "bundle.zip": (zipped("a/b.html", f"<html><p>{PROSE}</p></html>"), "archive", "archives"),
    "a.ipynb": (NOTEBOOK, "notebook", "notebooks"),
    "module.py": (f'"""{PROSE}"""\nimport os\n', "code", "code"),
}

# Parquet files are not packed as a whole, nor tars or web archives by bzip2.
UNPACKED = [
    ("table", gzip.compress),
    ("table", bz2.compress),
    ("papers", bz2.compress),
    ("bundle.zip", gzip.compress),
    ("bundle.zip", bz2.compress),
    ("crawl", bz2.compress),
]


def write(path, content, pack=bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(content.encode() if isinstance(content, str) else content))
    return path


def read(source, max_bytes=1 << 16):
    """Documents and broken records of a path, of every domain."""
    found = sources.survey(source if isinstance(source, dict) else str(source))
    broken = list(found.broken)
    rows = [
        row
        for unit in found.units
        for row in sources.read(unit, found.sources[unit.domain], max_bytes, broken)
    ]
    return rows, broken


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_is_known_by_its_content_and_read(tmp_path, name, pack):
    content, kind, domain = FILES[name]
    path = write(tmp_path / name, content, pack)
    if (name, pack) in UNPACKED:
        return
    found = sources.survey(str(path))
    assert [(unit.kind, unit.domain) for unit in found.units] == [(kind, domain)]
    assert found.sources[domain].gates == chain.expand(sources.KINDS[kind].gates)
    (row,), broken = read(path)
    assert "sentence of some words" in row["text"]
    assert set(row) == {*SCHEMA.names, "markup"}
    assert row["id"].startswith(f"{domain}/{name}")
    assert broken == []


def test_a_number_of_replies_leaves_texts_as_they_are(tmp_path):
    rows = [{"id": 1, "text": PROSE, "replies": 3}]
    path = write(tmp_path / "a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    (row,), broken = read(path)
    assert (row["text"], row["domain"], broken) == (PROSE, "text", [])


def test_packed_files_that_are_damaged_at_once_say_how(tmp_path):
    packed = gzip.compress(PROSE.encode())
    write(tmp_path / "a.txt", PROSE)
    damage = {
        "start.gz": packed[:12] + bytes(40),
        "short.gz": packed[:6],
        "middle.gz": packed[:20] + b"\xff" * 20 + packed[40:],
    }
    for name, data in damage.items():
        write(tmp_path / name, data)
    write(tmp_path / "empty.gz", gzip.compress(b""))
    rows, broken = read(tmp_path)
    assert [row["source"] for row in rows] == ["a.txt:00000001"]
    whys = {row["file"].rpartition("/")[2]: row["why"] for row in broken}
    assert whys.pop("empty.gz") == "it is empty"
    assert whys.keys() == damage.keys()
    assert all("damaged" in why for why in whys.values()), whys


@pytest.mark.parametrize("name", ["plain", "lines", "page", "paper", "module.py", "dump", "posts"])
def test_what_follows_a_packed_file_is_named_and_the_file_kept(tmp_path, name):
    content = FILES[name][0]
    for garbage in (b"", b"\0" * 600, b"GARBAGE", b"\0\0GARBAGE" * 9999):
        path = write(tmp_path / f"{name}.gz", gzip.compress(content.encode()) + garbage)
        (row,), broken = read(path)
        assert "sentence of some words" in row["text"]
        assert len(broken) == bool(garbage.strip(b"\0"))
        assert all("what follows is not packed" in entry["why"] for entry in broken)


@pytest.mark.parametrize("kind", ["auto", "text"])
def test_a_folder_that_cannot_be_listed_is_passed_over(tmp_path, monkeypatch, kind):
    write(tmp_path / "a.txt", PROSE)
    write(tmp_path / "closed" / "b.txt", PROSE)
    list_folder = storage._list

    def list_unless_closed(system, path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return list_folder(system, path)

    monkeypatch.setattr(storage, "_list", list_unless_closed)
    source = dataclasses.replace(SOURCE, path=str(tmp_path), kind=kind)
    (row,), (broken,) = read({"text": source})
    assert row["source"] == "a.txt:00000001"
    assert broken["file"] == str(tmp_path / "closed")
    assert "cannot be listed" in broken["why"] and "Permission denied" in broken["why"]


def test_a_folder_of_everything_falls_into_its_domains(tmp_path):
    for name, (content, *_) in FILES.items():
        write(tmp_path / name, content)
    write(tmp_path / "picture.png", bytes(range(256)) * 9)
    write(tmp_path / "nothing", b"")
    write(tmp_path / "broken.gz", gzip.compress(PROSE.encode() * 99)[:40])
    found = sources.survey(str(tmp_path))
    domains = {domain for _, _, domain in FILES.values()}
    assert set(found.sources) == domains
    assert sorted(unit.file.name for unit in found.units if unit.file.name in FILES) == sorted(
        FILES
    )
    whys = {row["file"].rpartition("/")[2]: row["why"] for row in found.broken}
    assert whys["picture.png"] == "neither text nor a format that we read"
    assert whys["nothing"] == "it is empty"
    order = [(unit.domain, unit.file.name) for unit in found.units]
    assert order == sorted(order)


def test_gates_of_several_kinds_in_one_domain_are_those_of_all(tmp_path):
    for name in ("page", "module.py"):
        write(tmp_path / name, FILES[name][0])
    source = dataclasses.replace(SOURCE, path=str(tmp_path))
    found = sources.survey({"mixed": source})
    assert set(found.sources["mixed"].gates) == {*chain.FOR_WEB, *chain.FOR_CODE}


def test_named_domains_keep_their_gates_and_kind(tmp_path):
    path = write(tmp_path / "page", FILES["page"][0])
    source = dataclasses.replace(SOURCE, path=str(path), kind="text", gates=("length", "gopher"))
    found = sources.survey({"raw": source})
    assert found.units[0].kind == "text"
    assert found.sources["raw"].gates == chain.expand(("length", "gopher"))
    (row,), _ = read({"raw": source})
    assert row["text"].startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("markup", "text", "expected"),
    [
        ("html", "<html><body><p>One &amp; two</p></body></html>", "One & two"),
        ("latex", "\\section{A} One % two\n three", "three"),
        ("wikitext", "'''One''' [[two|three]]", "One three"),
        ("plain", "'''One''' &amp;", "'''One''' &amp;"),
    ],
)
def test_texts_in_tables_are_taken_out_of_their_markup(tmp_path, markup, text, expected):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}))
    source = dataclasses.replace(SOURCE, path=str(path), markup=markup)
    (row,), _ = read({"web": source})
    assert expected in row["text"]
    assert "%" not in row["text"] and "[[" not in row["text"]


def test_records_are_numbered_and_broken_ones_passed_over(tmp_path):
    lines = [{"text": "one"}, None, {"text": "three", "url": "http://a.org"}, {"body": 3}]
    path = write(tmp_path / "a.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines) + "{\n")
    rows, broken = read(path)
    assert [(row["id"], row["url"]) for row in rows] == [
        ("text/a.jsonl:00000001", ""),
        ("text/a.jsonl:00000003", "http://a.org"),
    ]
    assert [entry["record"] for entry in broken] == [2, 4, 5]
    assert {entry["file"] for entry in broken} == {str(path)}


def test_truncated_gzip_keeps_the_records_before_the_break(tmp_path):
    lines = "".join(json.dumps({"text": f"{i} {PROSE}"}) + "\n" for i in range(3000))
    packed = gzip.compress(lines.encode())
    write(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2])
    rows, broken = read(tmp_path / "a.jsonl.gz")
    assert 100 < len(rows) < 3000
    assert [row["text"] for row in rows] == [f"{i} {PROSE}" for i in range(len(rows))]
    assert len(broken) == 1 and "damaged" in broken[0]["why"]


def test_long_text_is_cut_into_parts_that_are_the_text(tmp_path):
    text = "\n\n".join(f"Paragraph {i} " + "word " * 30 for i in range(60)) + "\n"
    path = write(tmp_path / "a.txt", text)
    rows, _ = read(path, max_bytes=1024)
    assert "".join(row["text"] for row in rows) == text
    assert [row["id"][-6:] for row in rows] == [f"#{i:05d}" for i in range(len(rows))]
    assert len({row["source"] for row in rows}) == 1
    assert all(512 <= len(row["text"]) <= 1024 for row in rows[:-1])


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("max_bytes", [4, 5, 6, 7, 64])
def test_cut_never_splits_a_character(letter, max_bytes):
    pieces = sources.cut((letter * 50).encode(), max_bytes)
    assert "".join(piece.decode() for piece in pieces) == letter * 50
    assert all(0 < len(piece) <= max_bytes for piece in pieces)


def test_cut_prefers_paragraph_then_line_and_leaves_no_small_piece():
    assert sources.cut(b"aaaaa\n\nb\ncccccc", 10) == [b"aaaaa\n\n", b"b\ncccccc"]
    assert sources.cut(b"a\n\nbbbbb\ncccccccc", 10) == [b"a\n\nbbbbb\n", b"cccccccc"]
    assert sources.cut(b"a\n\n" + b"b" * 12, 10) == [b"a\n\n" + b"b" * 7, b"b" * 5]
    assert sources.cut(b"aa bbb ccc dddd", 10) == [b"aa bbb ", b"ccc dddd"]


@pytest.mark.parametrize("name", ["absent.txt", "absent/*.txt", "absent"])
def test_missing_path_is_bad_input(tmp_path, name):
    source = dataclasses.replace(SOURCE, path=str(tmp_path / name))
    with pytest.raises(BadInput, match=r"sources\.web\.path: .*absent.*: no file found"):
        sources.survey({"web": source})
    with pytest.raises(BadInput, match=r"sources: .*absent.*: no file found"):
        sources.survey(str(tmp_path / name))


def test_a_folder_without_a_file_that_we_read_is_bad_input(tmp_path):
    write(tmp_path / "a.png", bytes(range(256)))
    with pytest.raises(BadInput, match=r"not one document in 1 file.*a\.png: neither text nor"):
        sources.survey(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, "path: '' is no path"),
        ({"kind": "word"}, "kind: 'word' is not one of auto, warc"),
        ({"markup": "rtf"}, "markup: 'rtf' is not one of auto"),
        ({"extract": "all"}, "extract: 'all' is not one of main"),
        ({"weight": 0.0}, "weight: 0.0 must be above 0 and below"),
        ({"gates": ("length", "lenght")}, "gates: 'lenght' is not one of"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SOURCE, **change)


def test_fingerprint_follows_content_names_and_settings(tmp_path):
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, f"{name} {PROSE}")
    source = dataclasses.replace(SOURCE, path=str(tmp_path))

    def now(**changes):
        return sources.fingerprint({"web": dataclasses.replace(source, **changes)})

    before = now()
    assert now() == before == now(path=f"{tmp_path}/*.txt", gates=sources.KINDS["text"].gates)
    assert now(weight=2.0) == before, "what is left is the same; see launch/identity.py"
    assert len({before, now(kind="json"), now(gates=())}) == 3
    write(tmp_path / "a.txt", f"A.txt {PROSE}")
    assert now() != before
    write(tmp_path / "a.txt", f"a.txt {PROSE}")
    assert now() == before
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert now() != before


def test_fingerprint_follows_the_licence_of_code(tmp_path):
    write(tmp_path / "src" / "a.py", "import os\n")
    licence = tmp_path / "LICENSE"
    write(
        licence,
        "Permission is hereby granted, free of charge, to any person obtaining a copy",
    )

    def now():
        survey = sources.survey({"code": dataclasses.replace(SOURCE, path=str(tmp_path))})
        return next(unit.identity for unit in survey.units if unit.kind == "code")

    before = now()
    assert "MIT" in before
    write(licence, "Apache License, Version 2.0\n")
    assert "Apache-2.0" in now()


def test_an_archive_gives_what_its_files_are_and_what_is_wrong_with_them(tmp_path):
    """One in another too, to a depth; names cannot lead out of the folder that they are put in."""
    inner = tar("in.jsonl", json.dumps({"text": f"inner {PROSE}"}), gzip.compress)
    for _ in range(3):
        inner = tar("deep.tar", inner)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../out.txt", PROSE)
        archive.writestr("a.py", f'"""{PROSE}"""\n')
        archive.writestr("b.jsonl", json.dumps({"text": PROSE}) + "\n{\n")
        archive.writestr("c.png", bytes(range(256)))
        archive.writestr(".hidden.txt", PROSE)
        archive.writestr("near.tar.gz", tar("x/y.txt", PROSE, gzip.compress))
        archive.writestr("far.tar", inner)
    data = buffer.getvalue()
    write(tmp_path / "a.zip", data)
    rows, broken = read(tmp_path / "a.zip")
    assert [json.loads(row["meta"])["member"] for row in rows] == [
        "../../out.txt",
        "a.py",
        "b.jsonl",
        "near.tar.gz",
    ]
    assert [row["markup"] for row in rows] == ["plain", "code", "plain", "plain"]
    whys = [(entry["record"], entry["why"][:25]) for entry in broken]
    assert whys == [
        (4, "malformed JSON: Expecting"),
        (5, "neither text nor a format"),
        (7, "an archive inside of 3 ot"),
    ]
    assert not (tmp_path.parent / "out.txt").exists()
    damaged = data.replace(b"a.py", b"a.px", 1)
    rows, broken = read(write(tmp_path / "b.zip", damaged))
    assert len(rows) == 3 and len(broken) == 4


def test_a_notebook_gives_its_cells_in_order(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "source": "x = 1\nx", "outputs": [{"text": "1"}]},
        {"cell_type": "code", "source": []},
        {"cell_type": "raw", "source": "Last."},
    ]
    notebook = {"metadata": {"kernelspec": {"language": "R"}}, "cells": cells}
    (row,), broken = read(write(tmp_path / "a.ipynb", json.dumps(notebook)))
    assert row["text"] == "# Title\nWords.\n\n```r\nx = 1\nx\n```\n\nLast." and broken == []
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["y"]}]}]}
    (row,), _ = read(write(tmp_path / "b.ipynb", json.dumps(old)))
    assert row["text"] == "```python\ny\n```"
    for text in ("[1]", "{", '{"cells": [3]}', '{"cells": [{"source": 3}]}'):
        write(tmp_path / "good.txt", PROSE)
        write(tmp_path / "c.ipynb", text)
        rows, (entry,) = read(f"{tmp_path}/c.ipynb,{tmp_path}/good.txt")
        assert len(rows) == 1 and "no notebook" in entry["why"]


@pytest.mark.parametrize(
    "error", [ValueError("a\x1b]0;b"), RecursionError(), MemoryError(), KeyError(1)]
)
def test_whatever_a_reader_raises_is_a_broken_record_and_no_more(tmp_path, monkeypatch, error):
    """And names reach no message with the characters that a terminal obeys."""

    def fail(path, fields):
        yield Record(1, PROSE)
        raise error

    write(tmp_path / "a\x1b]0;pwn\x07.jsonl", "{}")
    write(tmp_path / "b.txt", PROSE)
    monkeypatch.setattr(tables, "read_json", fail)
    rows, (broken,) = read(tmp_path)
    assert len(rows) == 2 and broken["record"] == 2
    assert type(error).__name__ in broken["why"]
    assert broken["file"].endswith("a\\x1b]0;pwn\\x07.jsonl") and broken["why"].isprintable()
