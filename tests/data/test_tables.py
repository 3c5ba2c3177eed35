"""Tables and lists of texts: every format gives its rows, and every kind of trouble is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from pathlib import Path

import pytest

from data import unpacking
from data.document import Record
from data.readers import parquet, tables
from data.readers.borders import to_the_damage
from data.readers.fields import Fields
from data.unpacking import zstd

SHARED = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the checkout")
USUAL = Fields("", "", "", "")
TEXTS = ["First text.\n\nTwo paragraphs.\n", "Zweiter, länger: ½ €\n", 'третий "x", \\ 😀\n']
ROWS = [
    {"text": text, "url": f"http://a.example/{number}", "date": "2020-01-02", "lang": "deu"}
    | {"score": number / 2, "id": number, "good": True, "none": None, "title": "T"}
    for number, text in enumerate(TEXTS)
]


def json_lines(rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path, data):
    path.write_bytes(data)
    return str(path)


def read_json(tmp_path, data, names=USUAL):
    return list(to_the_damage(tables.read_json(write(tmp_path / "a.json", data), names)))


def read_csv(tmp_path, data, names=USUAL):
    return list(to_the_damage(tables.read_csv(write(tmp_path / "a.csv", data), names)))


def check_rows(records):
    assert [record.text for record in records] == TEXTS
    for number, record in enumerate(records):
        assert record == Record(
            number + 1,
            TEXTS[number],
            url=f"http://a.example/{number}",
            date="2020-01-02",
            language="de",
            meta={"score": number / 2, "id": number, "good": True, "title": "T"},
        )


JSON_FORMS = {
    "lines": json_lines,
    "array": lambda rows: json.dumps(rows).encode(),
    "pretty array": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "pretty objects": lambda rows: b"\n".join(json.dumps(row, indent=4).encode() for row in rows),
    "spaced array": lambda rows: (
        b"\n [\n" + b",\n\n".join(json_lines(rows).split(b"\n")[:-1]) + b"]"
    ),
    "byte order mark": lambda rows: b"\xef\xbb\xbf" + json_lines(rows),
    "several byte order marks": lambda rows: b"".join(
        b"\xef\xbb\xbf" + json_lines([row]) for row in rows
    ),
    "CR LF": lambda rows: json_lines(rows).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress, bz2.compress, lzma.compress])
def test_json_of_every_form_and_packing(tmp_path, form, pack):
    check_rows(read_json(tmp_path, pack(JSON_FORMS[form](ROWS))))


def random_value(rng, depth=0):
    kind = rng.randrange(7 if depth < 4 else 4)
    if kind < 2:
        return "".join(rng.choice('ab"\\{}[],:\n é€😀') for _ in range(rng.randrange(12)))
    if kind < 4:
        return rng.choice([0, -1.5, True, None, 10**12])
    if kind == 4:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{key}": random_value(rng, depth + 1) for key in range(rng.randrange(4))}


@pytest.mark.parametrize("form", ["array", "pretty array", "pretty objects", "spaced array"])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64])
def test_values_over_lines_are_those_of_the_standard_parser(monkeypatch, form, chunk_bytes):
    """Wherever the pieces of the file end: in strings, behind a backslash, between brackets."""
    monkeypatch.setattr(tables, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(tables, "MAX_CHUNK_BYTES", chunk_bytes)
    rng = random.Random(chunk_bytes)
    for _ in range(30):
        rows = [{"text": "x"} | {f"k{k}": random_value(rng) for k in range(3)} for _ in range(4)]
        stream = io.BufferedReader(io.BytesIO(JSON_FORMS[form](rows).lstrip()))
        found = [json.loads(value) for value in tables._json_values(stream.readline(), stream)]
        assert found == rows


def test_json_lines_that_cannot_be_used_are_named(tmp_path):
    records = read_json(
        tmp_path,
        b'{"text": "good one"}\n'
        b'{"text": "cut of\n'
        b'{"words": "no text", "more": 1}\n'
        b'{"text": null}\n'
        b"[1, 2]\n"
        b'{"text": "bad byte \xff"}\n'
        b'{"text": "half a pair \\ud800"}\n'
        b"\n"
        b'{"text": NaN}\n'
        b"\x00\x00\n" + b"[" * 9999 + b"\n"
        b'{"text": "good two", "score": NaN, "\\ud800": 1, "b": "\\udfff"}\n',
    )
    assert [record.number for record in records] == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert [record.text for record in records if not record.why] == ["good one", "good two"]
    assert records[-1].meta == {}
    expected = [
        "malformed JSON",
        "no field for a text (text, content, body, raw_content, markdown, document, "
        "selftext, or a chat); its fields are ['more', 'words']",
        "field 'text' is NoneType, not a string",
        "a JSON list, not an object",
        "not UTF-8",
        "half a surrogate pair",
        "field 'text' is float, not a string",
        "malformed JSON",
        "malformed JSON",
    ]
    whys = [record.why for record in records if record.why]
    assert all(part in why for part, why in zip(expected, whys, strict=True)), whys
    assert not any(record.text for record in records if record.why)


def test_array_values_that_cannot_be_used_are_named(tmp_path):
    records = read_json(tmp_path, b'[{"text": "a"}, 3, "b, [", {"text" "c"}, {"text": "d"}] [7]')
    assert [(record.number, record.text) for record in records] == [
        (1, "a"),
        (2, ""),
        (3, ""),
        (4, ""),
        (5, "d"),
        (6, ""),
    ]
    whys = [record.why for record in records]
    assert whys[1:3] == ["a JSON int, not an object", "a JSON str, not an object"]
    assert whys[3].startswith("malformed JSON") and "JSON list" in whys[5]


def test_an_array_that_does_not_end_says_so(tmp_path):
    whole = json.dumps([{"text": text} for text in TEXTS]).encode()
    for length in range(1, len(whole)):
        records = read_json(tmp_path, whole[:length])
        texts = [record.text for record in records if not record.why]
        assert texts == TEXTS[: len(texts)]
        assert "breaks off" in records[-1].why, f"{length} bytes: {records}"
    assert read_json(tmp_path, b"[]") == []


def test_a_broken_first_line_does_not_make_the_file_one_value(tmp_path):
    for broken in (b'{"text": "cut,\n', b'{"text": [\n', b"{\n"):
        records = read_json(tmp_path, broken + json_lines(ROWS))
        assert [bool(record.why) for record in records] == [True, False, False, False]


def test_long_lines_and_values_are_broken_not_held(tmp_path, monkeypatch):
    for module in (tables, unpacking):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(tables, "CHUNK_BYTES", 500)
    long = json.dumps({"text": "x" * 5000}).encode()
    records = read_json(tmp_path, long + b"\n" + json_lines(ROWS[:1]) + long)
    assert [(record.number, bool(record.why)) for record in records] == [
        (1, True),
        (2, False),
        (3, True),
    ]
    assert records[0].why == "it has more than 1000 bytes"
    (record,) = read_json(tmp_path, b"[" + long + b"," + long + b"]")
    assert "a value has more than 1000 bytes" in record.why


@pytest.mark.parametrize("form", ["lines", "array", "pretty array"])
def test_truncated_gzip_keeps_the_rows_before_the_break(tmp_path, form):
    rows = [{"text": f"Text {number}: {number**30}"} for number in range(2000)]
    packed = gzip.compress(JSON_FORMS[form](rows))
    for length in (len(packed) // 2, len(packed) - 5):
        *good, last = read_json(tmp_path, packed[:length])
        texts = [record.text for record in good if not record.why]
        assert texts == [row["text"] for row in rows[: len(texts)]]
        assert len(texts) > len(rows) * length / len(packed) * 0.8
        assert "breaks off" in last.why
        assert last.number == good[-1].number + 1


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_gives_the_rows(tmp_path, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "text", "url", "date"])
    writer.writerows([number, body, f"u{number}", "2020"] for number, body in enumerate(TEXTS))
    for data in (text.getvalue().encode(), text.getvalue().encode("utf-8-sig")):
        for pack in (bytes, gzip.compress):
            records = read_csv(tmp_path, pack(data))
            assert [record.text for record in records] == TEXTS
            assert [record.url for record in records] == ["u0", "u1", "u2"]
            assert records[2].meta == {"id": "2"} and records[2].date == "2020"


def test_csv_rows_that_cannot_be_used_are_named(tmp_path):
    records = read_csv(
        tmp_path,
        b"text,n\ngood,1\nshort\n\nlong,1,2\nbad \xff,1\n" + "é,1\n".encode() + b'"a"b,1\nlast,1\n',
    )
    assert [(record.number, record.text) for record in records] == [
        (1, "good"),
        (2, ""),
        (3, ""),
        (4, ""),
        (5, "é"),
        (6, ""),
        (7, "last"),
    ]
    whys = [record.why for record in records]
    assert whys[1] == "it has 1 fields, and the header has 2"
    assert whys[2] == "it has 3 fields, and the header has 2"
    assert "not UTF-8" in whys[3] and whys[5].startswith("not CSV")
    (record,) = read_csv(tmp_path, b"a,b\n1,2\n3,4\n")
    assert record.why.endswith("its fields are ['a', 'b']")
    assert read_csv(tmp_path, b"") == [] == read_csv(tmp_path, b"text\n")


@pytest.mark.parametrize("last", ["", 'x,"a "" b\nc"\n'])
def test_a_quote_that_is_not_closed_breaks_its_row_only(tmp_path, last):
    """Nor do many of them take the square of the time: what is read in vain is bounded."""
    rows = [f"{n},{chr(34) * (n % 100 == 10)}row {n}" for n in range(1000)]
    records = read_csv(tmp_path, ("id,text\n" + "\n".join(rows) + "\n" + last).encode())
    assert [r.number for r in records if r.why] == [n + 1 for n in range(1000) if n % 100 == 10]
    good = [r.text for r in records if not r.why]
    assert good == [f"row {n}" for n in range(1000) if n % 100 != 10] + ['a " b\nc'] * bool(last)


def test_a_long_csv_field_is_no_trouble(tmp_path):
    (record,) = read_csv(tmp_path, b"text\n" + b"x" * 300_000 + b"\n")
    assert len(record.text) == 300_000


def read_text(tmp_path, data):
    return list(to_the_damage(tables.read_text(write(tmp_path / "a.txt", data))))


def test_text_is_divided_at_separator_lines(tmp_path):
    joined = "<|endoftext|>\n".join(TEXTS).encode()
    for data in (joined, gzip.compress(joined), b"\xef\xbb\xbf" + joined):
        assert read_text(tmp_path, data) == [Record(n, text) for n, text in enumerate(TEXTS, 1)]
    one = b"one\n\ntwo <|endoftext|> inside a line\r\n"
    assert read_text(tmp_path, one) == [Record(1, one.decode())]
    assert read_text(tmp_path, b"a\n <|endoftext|> \n\n") == [Record(1, "a\n")]
    assert read_text(tmp_path, b"") == [] == read_text(tmp_path, b" \n")


def test_text_that_is_not_utf8_loses_only_itself(tmp_path):
    records = read_text(tmp_path, b"one\n<|endoftext|>\n\2 \xff\n<|endoftext|>\nthree\n")
    assert [record.text for record in records] == ["one\n", "", "three\n"]
    assert "not UTF-8" in records[1].why
    packed = gzip.compress(
        b"one\n<|endoftext|>\n" + random.Random(0).randbytes(50_000).hex().encode()
    )
    one, broken = read_text(tmp_path, packed[:-200])
    assert one.text == "one\n" and "breaks off" in broken.why and broken.number == 2


@pytest.mark.parametrize("reader", [tables.read_json, tables.read_csv, parquet.read])
def test_a_file_that_is_gone_is_an_os_error(tmp_path, reader):
    with pytest.raises(OSError, match="absent"):
        list(reader(str(tmp_path / "absent"), USUAL))


@pytest.mark.parametrize("reader", [tables.read_json, tables.read_csv])
def test_random_damage_never_raises(tmp_path, reader):
    rng = random.Random(5)
    rows = io.StringIO()
    csv.writer(rows).writerows([["text", "n"], *([text, 1] for text in TEXTS * 3)])
    forms = [rows.getvalue().encode(), *(form(ROWS) for form in JSON_FORMS.values())]
    for number in range(400):
        data = bytearray(forms[number % len(forms)])
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.choice(b'\x00\xff"\\{}[],\n\r;\t1')
        packed = bytes(data) if number % 3 else gzip.compress(data)[: rng.randrange(1, 400)]
        for record in to_the_damage(reader(write(tmp_path / "a", packed), USUAL)):
            assert not (record.why and record.text)
            record.text.encode()


def test_a_text_of_any_length_comes_in_records_of_a_bounded_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_RECORD_BYTES", 1000)
    for text in ("word \u20ac\n" * 999, "\u20ac" * 5000):
        records = read_text(tmp_path, text.encode())
        assert "".join(record.text for record in records) == text
        assert [record.number for record in records] == list(range(1, len(records) + 1))
        assert all(len(record.text.encode()) <= 1003 and not record.meta for record in records)


@real
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("web/c4_en/c4_train.jsonl.gz", 1000),
        ("pretrain/speeches/us_speeches.jsonl.gz", 124),
        ("pretrain/math_latex/stacks_project.jsonl.gz", 36),
        ("multilingual/udhr2/udhr2.jsonl.gz", 388),
    ],
)
def test_real_json_gives_every_row(name, num_rows):
    with gzip.open(SHARED / name) as stream:
        rows = [json.loads(line) for line in stream]
    records = list(tables.read_json(str(SHARED / name), USUAL))
    assert len(records) == len(rows) == num_rows
    assert [record.text for record in records] == [row["text"] for row in rows]
    assert not any(record.why for record in records)
    if "timestamp" in rows[0]:
        assert [record.date for record in records] == [row["timestamp"] for row in rows]


@real
@pytest.mark.real
def test_real_conversations_and_tables():
    path = SHARED / "preferences/dpo_en_demo/dpo_en_demo.jsonl.gz"
    talks = list(tables.read_json(str(path), USUAL))
    assert len(talks) == 300 and not any(record.why for record in talks)
    assert talks[0].text.startswith("human: Hi! I'd like to create a new language game")
    path = SHARED / "sft/open_assistant_seed/realistic_seed_data.json"
    records = list(tables.read_json(str(path), USUAL))
    assert [record.text for record in records] == [
        row["text"] for row in json.loads(path.read_text())
    ]
    path = str(SHARED / "filters/hatecheck/hatecheck_a.csv")
    (record,) = tables.read_csv(path, USUAL)
    assert record.why.startswith("no field for a text")
    cases = list(tables.read_csv(path, Fields("test_case", "", "", "")))
    assert len(cases) == 1656 and not any(record.why for record in cases)
    (record,) = tables.read_text(str(SHARED / "pretrain/wikitext2/valid.txt.gz"))
    assert len(record.text.split()) == 213886
