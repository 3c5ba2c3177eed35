"""TFDS shards: their examples are read without TensorFlow, and what is damaged is named."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import sources
from data.document import Record
from data.readers import tables
from data.readers.fields import Fields
from tests.data.test_tables import TEXTS, USUAL


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets")


def write_examples(tfds, folder, examples, features, name="own-train.array_record-00000-of-00001"):
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(features)
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    serialised = [features.serialize_example(example) for example in examples]
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"data": pa.array(serialised, pa.binary())}), folder / name)
    else:
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for example in serialised:
            writer.write(example)
        writer.close()
    return str(folder / name)


def test_tfds_shards_give_their_examples(tfds, tmp_path):
    kinds = tfds.features
    features = {
        "text": kinds.Text(),
        "url": kinds.Text(),
        "label": kinds.ClassLabel(names=["bad", "good"]),
        "n": np.int64,
        "score": np.float32,
        "tokens": kinds.Sequence(np.int32),
        "image": kinds.Tensor(shape=(2, 2), dtype=np.uint8),
    }
    examples = [
        {"text": text, "url": "u", "label": "good", "n": number, "score": 0.5, "tokens": [1]}
        | {"image": np.zeros((2, 2), np.uint8)}
        for number, text in enumerate(TEXTS * 100)
    ]
    path = write_examples(tfds, tmp_path, examples, features)
    records = list(tables.read_tfds(path, USUAL))
    assert [record.text for record in records] == TEXTS * 100
    assert [record.number for record in records] == list(range(1, 301))
    assert records[2] == Record(3, TEXTS[2], url="u", meta={"label": 1, "n": 2, "score": 0.5})
    shard = write_examples(tfds, tmp_path, examples, features, "own-train-00000-of-00001.parquet")
    assert list(tables.read_parquet(shard, USUAL)) == records
    (record,) = tables.read_tfds(path, Fields("body", "", "", ""))
    assert record.why == "no field 'body'; its fields are ['label', 'n', 'score', 'text', 'url']"


def test_tfds_conversations(tfds, tmp_path):
    turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
    turns = [{"role": "user", "content": "Hé?"}, {"role": "bot", "content": "Yes."}]
    features = {"messages": tfds.features.Sequence(turn)}
    path = write_examples(tfds, tmp_path, [{"messages": turns}], features)
    assert [record.text for record in tables.read_tfds(path, USUAL)] == ["user: Hé?\n\nbot: Yes."]


def test_tfds_lists_of_lists_do_not_hinder(tfds, tmp_path):
    """Only TensorFlow can write them, so that their entries are appended here by hand."""

    def part(field, *contents):
        content = b"".join(contents)
        return bytes([field << 3 | 2, len(content)]) + content

    kinds = tfds.features
    example = kinds.FeaturesDict({"text": kinds.Text()}).serialize_example({"text": "words"})
    for name, value in (
        (b"lists/ragged_flat_values", part(1, part(1, b"x"))),
        (b"lists/ragged_row_lengths_0", part(3, part(1, b"\1"))),
    ):
        example += part(1, part(1, part(1, name), part(2, value)))
    features = {"text": kinds.Text(), "lists": kinds.Sequence(kinds.Sequence(kinds.Text()))}
    write_examples(tfds, tmp_path, [], features)
    table = pa.table({"data": pa.array([example], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = tables.read_parquet(str(tmp_path / "a.parquet"), USUAL)
    assert (record.text, record.why) == ("words", "")


def test_what_says_what_is_in_a_shard_is_part_of_its_content(tfds, tmp_path):
    """A shard named by itself; its features lie beside it and are read with it."""
    features = {"text": tfds.features.Text()}
    path = write_examples(tfds, tmp_path, [{"text": "a text"}], features)
    before = sources.fingerprint(path)
    assert sources.fingerprint(path) == before
    (tmp_path / "features.json").write_text("{}")
    after = sources.fingerprint(path)
    (tmp_path / "features.json").unlink()
    assert len({before, after, sources.fingerprint(path)}) == 3


def test_tfds_trouble_is_named(tfds, tmp_path):
    features = {"text": tfds.features.Text()}
    examples = [{"text": f"Text {number} " * 20} for number in range(1000)]
    path = Path(write_examples(tfds, tmp_path, examples, features))
    whole = path.read_bytes()
    data = bytearray(whole)
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    records = list(tables.read_tfds(str(path), USUAL))
    assert [record.number for record in records] == list(range(1, 1001))
    assert [record.why for record in records if record.why] == ["the shard is damaged here"]
    path.write_bytes(whole[: len(whole) // 2])
    (record,) = tables.read_tfds(str(path), USUAL)
    assert "no index" in record.why
    path.write_bytes(whole)
    (tmp_path / "features.json").write_text("{}")
    (record,) = tables.read_tfds(str(path), USUAL)
    assert record.why.startswith("features.json beside it cannot be read")
    (tmp_path / "features.json").unlink()
    (record,) = tables.read_tfds(str(path), USUAL)
    assert record.why.startswith("features.json beside it cannot be read")
    path.rename(tmp_path / "own-train.tfrecord-00000-of-00001")
    (record,) = tables.read_tfds(str(tmp_path / "own-train.tfrecord-00000-of-00001"), USUAL)
    assert "TensorFlow" in record.why
