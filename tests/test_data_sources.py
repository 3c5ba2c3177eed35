"""Sources: every format gives the documents that were written; every kind of trouble is named."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import sources
from data.errors import BadInput
from data.sources import SourceConfig

MAX_BYTES = 4096
TEXTS = ["First text.\n\nTwo paragraphs.\n", "Zweiter, länger: ½ €\n", "третий\n"]


def config_of(path, field="text"):
    return SourceConfig(path=str(path), text_field=field, weight=1.0, gates=())


def read(path, field="text", max_bytes=MAX_BYTES):
    broken = []
    batches = list(sources.read("web", config_of(path, field), max_bytes, broken))
    assert all(batch.schema == sources.SCHEMA for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()], broken


def write_json_lines(path, values):
    lines = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    path.write_bytes(gzip.compress(lines) if path.name.endswith(".gz") else lines)


def write(path, texts):
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts, "extra": list(range(len(texts)))}), path)
    elif ".json" in path.name:
        write_json_lines(path, [{"extra": 1, "text": text} for text in texts])
    else:
        joined = "<|endoftext|>\n".join(texts).encode()
        path.write_bytes(gzip.compress(joined) if path.name.endswith(".gz") else joined)


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_every_format_gives_the_texts_in_order(tmp_path, suffix):
    path = tmp_path / f"part{suffix}"
    write(path, TEXTS)
    rows, broken = read(path)
    assert [row["text"] for row in rows] == TEXTS
    assert broken == []
    assert {row["domain"] for row in rows} == {"web"}
    assert rows[1]["source"] == f"part{suffix}:00000002"
    assert rows[1]["id"] == f"web/part{suffix}:00000002"


def test_text_file_without_separator_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo <|endoftext|> inside a line\n")
    rows, _ = read(tmp_path / "a.txt")
    assert [row["text"] for row in rows] == ["one\n\ntwo <|endoftext|> inside a line\n"]


def test_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "z.txt", ["in b"])
    write(tmp_path / "a.jsonl", ["in a"])
    write(tmp_path / "c.parquet", ["in c"])
    (tmp_path / "README.md").write_text("not a kind we read")
    rows, _ = read(tmp_path)
    assert [row["text"] for row in rows] == ["in a", "in b", "in c"]
    assert rows[1]["source"] == "b/z.txt:00000001"


def test_glob_reads_what_matches_only(tmp_path):
    for name in ("x1.txt", "x2.txt", "y.txt"):
        write(tmp_path / name, [name])
    rows, _ = read(tmp_path / "x*.txt")
    assert [row["text"] for row in rows] == ["x1.txt", "x2.txt"]
    assert rows[0]["source"] == "x1.txt:00000001"


def test_long_text_is_cut_into_parts_that_are_the_text(tmp_path):
    text = "\n\n".join(f"Paragraph {i} " + "ä word " * (i % 40) for i in range(300))
    (tmp_path / "book.txt").write_text(text)
    rows, broken = read(tmp_path)
    parts = [row["text"] for row in rows]
    assert "".join(parts) == text
    assert broken == []
    assert max(len(part.encode()) for part in parts) <= MAX_BYTES
    assert all(part.endswith("\n\n") for part in parts[:-1])
    assert [row["id"] for row in rows] == [
        f"web/book.txt:00000001#{part:05d}" for part in range(len(parts))
    ]
    assert {row["source"] for row in rows} == {"book.txt:00000001"}


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("max_bytes", [4, 5, 6, 7, 64])
def test_cut_never_splits_a_character(letter, max_bytes):
    text = letter * 50
    pieces = sources.cut(text.encode(), max_bytes)
    assert "".join(piece.decode() for piece in pieces) == text
    assert all(0 < len(piece) <= max_bytes for piece in pieces)


def test_cut_prefers_paragraph_then_line_and_leaves_no_small_piece():
    assert sources.cut(b"aaaaa\n\nb\ncccccc", 10) == [b"aaaaa\n\n", b"b\ncccccc"]
    assert sources.cut(b"a\n\nbbbbb\ncccccccc", 10) == [b"a\n\nbbbbb\n", b"cccccccc"]
    assert sources.cut(b"a\n\n" + b"b" * 12, 10) == [b"a\n\n" + b"b" * 7, b"b" * 5]


def test_broken_json_lines_are_counted_and_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good one"}\n'
        b'{"text": "cut of\n'
        b'{"body": "no text"}\n'
        b'{"text": null}\n'
        b"[1, 2]\n"
        b'{"text": "bad byte \xff"}\n'
        b'{"text": "half a pair \\ud800"}\n'
        b"\n"
        b'{"text": "good two"}\n'
    )
    rows, broken = read(path)
    assert [row["text"] for row in rows] == ["good one", "good two"]
    assert rows[1]["source"] == "a.jsonl:00000009"
    assert [(entry["file"], entry["record"]) for entry in broken] == [
        (str(path), number) for number in (2, 3, 4, 5, 6, 7)
    ]
    whys = [entry["why"] for entry in broken]
    expected = ["malformed JSON", "no field 'text'", "NoneType", "a JSON list", "UTF-8", "Unicode"]
    assert all(part in why for part, why in zip(expected, whys, strict=True)), whys
    assert "['body']" in whys[1]


def test_text_that_is_not_utf8_loses_only_its_own_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n<|endoftext|>\ntwo \xff\xfe\n<|endoftext|>\nthree\n")
    rows, broken = read(path)
    assert [row["text"] for row in rows] == ["one\n", "three\n"]
    assert broken[0]["record"] == 2
    assert "UTF-8" in broken[0]["why"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".txt.gz"])
def test_truncated_gzip_keeps_the_records_before_the_break(tmp_path, suffix):
    texts = [f"Text {i}: " + str(i**30) + "\n" for i in range(2000)]
    path = tmp_path / f"a{suffix}"
    write(path, texts)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    rows, broken = read(path)
    assert 0 < len(rows) < len(texts)
    assert [row["text"] for row in rows] == texts[: len(rows)]
    assert len(broken) == 1
    assert broken[0]["record"] == len(rows) + 1
    assert "breaks off" in broken[0]["why"]


def test_damaged_file_among_good_ones_is_counted(tmp_path):
    write(tmp_path / "good.txt", ["good"])
    (tmp_path / "no.jsonl.gz").write_bytes(b"this is not gzip")
    (tmp_path / "no.parquet").write_bytes(b"this is not parquet")
    rows, broken = read(tmp_path)
    assert [row["text"] for row in rows] == ["good"]
    assert [entry["file"].rsplit("/", 1)[1] for entry in broken] == ["no.jsonl.gz", "no.parquet"]


def test_parquet_nulls_and_missing_columns_are_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "c.parquet")
    rows, broken = read(tmp_path)
    assert [row["text"] for row in rows] == ["a", "c"]
    assert [entry["record"] for entry in broken] == [2, 1, 1]
    whys = [entry["why"] for entry in broken]
    expected = ["null", "no column 'text'", "int64, not a string"]
    assert all(part in why for part, why in zip(expected, whys, strict=True)), whys


@pytest.mark.parametrize("name", ["absent.txt", "absent/*.txt", "absent"])
def test_missing_path_is_bad_input(tmp_path, name):
    with pytest.raises(BadInput, match=r"sources\.web\.path: .*absent.*no file found; allowed: "):
        read(tmp_path / name)


def test_folder_without_a_readable_file_is_bad_input(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(BadInput, match=r"no file found; allowed: .*\.parquet"):
        read(tmp_path)


def test_unknown_kind_of_file_is_bad_input(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(BadInput, match=r"a\.docx: cannot be read; allowed: .*\.jsonl\.gz"):
        read(tmp_path / "a.docx")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_text_field_that_no_record_has_is_bad_input(tmp_path, name):
    write(tmp_path / name, TEXTS)
    with pytest.raises(BadInput, match=r"text_field 'body'.*no (field|column) 'body'.*'text'"):
        read(tmp_path / name, field="body")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_empty_file_is_bad_input(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match="not one document in 1 file"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, "path: ''"),
        ({"weight": 0.0}, "weight: 0.0 must be"),
        ({"weight": float("nan")}, "weight: nan must be"),
        ({"gates": ("length", "lenght")}, "gates: 'lenght' is not one of length, language"),
    ],
)
def test_config_refuses(change, message):
    values = {"path": "x.txt", "text_field": "text", "weight": 1.0, "gates": ()} | change
    with pytest.raises(ValueError, match=message):
        SourceConfig(**values)


def test_fingerprint_follows_content_names_and_settings(tmp_path):
    write(tmp_path / "a.txt", ["one"])
    write(tmp_path / "b.txt", ["two"])

    def fingerprint(field="text"):
        return sources.fingerprint({"web": config_of(tmp_path, field)})

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint("body") != first
    (tmp_path / "b.txt").write_text("tw0")
    assert fingerprint() != first
    (tmp_path / "b.txt").write_text("two")
    assert fingerprint() == first
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert fingerprint() != first
    with pytest.raises(BadInput, match="absent"):
        sources.fingerprint({"web": config_of(tmp_path / "absent")})


def test_python_docs_read_like_documentation():
    rows, broken = read(sources.PYTHON_DOCS, max_bytes=2**20)
    assert broken == []
    texts = {row["source"]: row["text"] for row in rows}
    assert len(texts) > 300
    assert texts["textwrap.py"].startswith("module textwrap\n\nText wrapping and filling.\n")
    assert "\n\nfill(text, width=70, **kwargs)\n\nFill a single paragraph" in texts["textwrap.py"]
    assert "\n\nclass TextWrapper\n\n" in texts["textwrap.py"]
    assert "\n\nTextWrapper.wrap(self, text)\n\nwrap(text : string)" in texts["textwrap.py"]
    manual = [text for name, text in texts.items() if name.startswith(sources.TOPICS)]
    assert any(text.startswith('The "assert" statement') for text in manual)


def test_python_code_is_the_library_without_tests():
    rows, broken = read(sources.PYTHON_CODE, max_bytes=2**24)
    assert broken == []
    texts = {row["source"]: row["text"] for row in rows}
    assert "def dedent(text):" in texts["textwrap.py"]
    assert "encodings/cp1252.py" in texts
    folders = {part for name in texts for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "__pycache__"})
    assert sources.TOPICS not in texts
    assert not any("sysconfigdata" in name for name in texts)
