"""Parquet: columns of every type give their rows, and what is wrong with them is named."""

import datetime
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers import parquet
from data.readers.borders import to_the_damage
from data.readers.fields import Fields
from tests.data.test_tables import ROWS, TEXTS, USUAL, check_rows, write


def read_table(tmp_path, table, names=USUAL, **options):
    pq.write_table(table, tmp_path / "a.parquet", **options)
    return list(to_the_damage(parquet.read(str(tmp_path / "a.parquet"), names)))


def test_parquet_gives_the_rows(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    check_rows(read_table(tmp_path, table))
    check_rows(read_table(tmp_path, table, row_group_size=1, compression="zstd"))
    names = Fields("text", "url", "date", "lang")
    check_rows(read_table(tmp_path, table, names))
    pq.write_table(table, tmp_path / "a.parquet")
    check_rows(parquet.read((tmp_path / "a.parquet").as_uri(), USUAL))


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_parquet_text_of_every_type(tmp_path, kind):
    encoded = [text.encode() for text in TEXTS] if "binary" in str(kind) else TEXTS
    plain = pa.array([*encoded, None, *encoded])
    column = plain.dictionary_encode().cast(kind) if "dictionary" in str(kind) else plain.cast(kind)
    records = read_table(tmp_path, pa.table({"n": range(7), "text": column}))
    assert [record.text for record in records] == [*TEXTS, "", *TEXTS]
    assert [record.why for record in records if record.why] == [
        "field 'text' is NoneType, not a string"
    ]
    assert records[3].number == 4 and records[4].meta == {"n": 4}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_parquet_bytes_that_are_not_utf8_break_their_row_only(tmp_path, kind, as_dictionary):
    values = [b"one", b"tw\xff", "drei €".encode()]
    size = "large_" if kind == pa.large_string() else ""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int64 if size else np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    column = pa.Array.from_buffers(kind, 3, buffers)
    if as_dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), column)
    records = read_table(tmp_path, pa.table({"text": column, "title": column}))
    assert [record.text for record in records] == ["one", "", "drei €"]
    assert "not UTF-8" in records[1].why
    assert records[2].meta["title"] == "drei €"


def test_parquet_dates_and_other_types(tmp_path):
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    nanoseconds = int(moment.replace(tzinfo=datetime.UTC).timestamp()) * 10**9 + 1001
    table = pa.table(
        {
            "text": ["a", "b"],
            "timestamp": pa.array([nanoseconds, None], pa.timestamp("ns", "Asia/Tokyo")),
            "day": pa.array([moment.date(), None], pa.date32()),
            "long": ["x" * 1000, "y" * 1000],
            "list": [[1], [2]],
            "f": pa.array([0.5, float("nan")], pa.float32()),
            "b": [True, None],
            "far": pa.array([2**60, 1], pa.int64()).cast(pa.timestamp("ms")),
        }
    )
    first, second = read_table(tmp_path, table)
    assert first.date == "2020-01-02T03:04:05.000001Z" and second.date == ""
    assert first.meta["day"] == "2020-01-02" and first.meta["f"] == 0.5 and first.meta["b"] is True
    assert not {"long", "list"} & set(first.meta) and "f" not in second.meta


def test_parquet_without_a_text_is_one_broken_record(tmp_path):
    (record,) = read_table(tmp_path, pa.table({"words": ["a", "b"]}))
    assert record.why.endswith("its fields are ['words']") and record.number == 1
    (record,) = read_table(tmp_path, pa.table({"text": [1, 2]}))
    assert record.why == "field 'text' is int64, not a string"
    (record,) = read_table(tmp_path, pa.table({"a": ["x"]}), Fields("body", "", "", ""))
    assert record.why == "no field 'body'; its fields are ['a']"
    (record,) = read_table(tmp_path, pa.table({"text": [1], "body": ["b"]}))
    assert record.text == "b"
    assert read_table(tmp_path, pa.table({"text": pa.array([], pa.string())})) == []


def test_cells_and_row_groups_that_would_fill_the_memory_are_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_RECORD_BYTES", 1000)
    table = pa.table({"text": ["a" * 999, "b" * 1001, *"c" * 99]})
    one, two, three, *_ = read_table(tmp_path, table)
    assert (len(one.text), three.text) == (999, "c") and "more than 1000 bytes" in two.why
    table = pa.table({"text": ["a", "b" * 5000, "c"]})
    one, two, three = read_table(tmp_path, table, row_group_size=1)
    assert (one.text, three.text, three.number) == ("a", "c", 3) and "row group" in two.why
    monkeypatch.setattr(parquet, "FREE_BYTES", 0)
    monkeypatch.setattr(parquet, "MAX_RATIO", 10)
    table = pa.table({"text": ["a" * 900] * 99})
    (record,) = read_table(tmp_path, table, compression="zstd", use_dictionary=False)
    assert "more than 10 times its size" in record.why


def test_damaged_parquet_never_raises(tmp_path):
    table = pa.table({"text": [f"Text {number} " * 20 for number in range(300)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    whole = (tmp_path / "a.parquet").read_bytes()
    rng = random.Random(1)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = write(tmp_path / "b.parquet", bytes(data[: rng.choice([len(data), 500])]))
        list(to_the_damage(parquet.read(path, USUAL)))
    for data in (b"", b"PAR1", b"this is no parquet", whole[:-100]):
        (record,) = to_the_damage(parquet.read(write(tmp_path / "b.parquet", data), USUAL))
        assert "damaged or breaks off" in record.why
