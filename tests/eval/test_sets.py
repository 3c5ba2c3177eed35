"""The texts of evaluation sets: every string of every row, under the name of its set."""

import gzip
import json

import pytest

from data.errors import BadInput
from eval import sets


@pytest.fixture
def folder(tmp_path):
    for name, content in {
        "gsm/test.jsonl": b'{"question": "How many?", "steps": [{"text": "Two."}], "n": 2}\n\n',
        "quiz.json": json.dumps({"rows": ["One", {"q": "Two"}]}).encode(),
        "table.csv": b'\xef\xbb\xbfq,a\n"Why, then?",Because\n',
        "packed/test.tsv.gz": gzip.compress(b"q\ta\nWho\tI\n", mtime=0),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_every_string_and_the_whole_of_every_row_is_given_under_its_set(folder):
    notes = []
    assert sorted(sets.texts(str(folder), notes.append)) == [
        *(("gsm", text) for text in ("How many?", "How many?\nTwo.", "Two.")),
        *(("packed", text) for text in ("I", "Who", "Who\nI", "a", "q", "q\na")),
        ("quiz", "One"),
        ("quiz", "Two"),
        *(("table", text) for text in ("Because", "Why, then?", "Why, then?\nBecause")),
        *(("table", text) for text in ("a", "q", "q\na")),
    ]
    assert notes == []


def test_files_of_other_kinds_are_named(folder):
    (folder / "gsm" / "SOURCE.txt").write_text("x")
    notes = []
    list(sets.texts(str(folder), notes.append))
    assert notes == ["eval.sets: 1 files of other kinds are not read, as gsm/SOURCE.txt"]


def test_no_path_has_no_texts():
    assert list(sets.texts("", print)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", r"eval\.sets: .*: no file of \.jsonl, \.json, \.csv, \.tsv found"),
        ("a.jsonl", b"{", r"eval\.sets: .*a\.jsonl: cannot be read"),
        (
            "a.json.gz",
            gzip.compress(b"{}" * 99, mtime=0)[:20],
            r"eval\.sets: .*a\.json\.gz: cannot be read",
        ),
        ("a.csv", b'a,b\n"unclosed', r"eval\.sets: .*a\.csv: cannot be read"),
        ("a.jsonl", b"", r"eval\.sets: .*: not one text in 1 file"),
        ("a.csv", b"\xff", r"eval\.sets: .*a\.csv: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_bad_input(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        list(sets.texts(str(tmp_path), print))
