"""Data sets of TFDS, prepared by TFDS itself, are read without TensorFlow."""

import dataclasses
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data import sources
from data.errors import BadInput
from tests.data.test_sources import SOURCE, read

tfds = pytest.importorskip("tensorflow_datasets")
TEXTS = [f"Text {number}: \u00bd words of it.\n" for number in range(50)]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data set of two shards, with a conversation beside its text."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    kinds, folder = tfds.features, tmp_path / "little" / "some" / "1.0.0"
    folder.mkdir(parents=True)
    turn = {"role": kinds.Text(), "content": kinds.Text()}
    features = {"text": kinds.Text(), "score": np.float32, "tokens": kinds.Sequence(np.int32)}
    features = kinds.FeaturesDict({**features, "messages": kinds.Sequence(turn)})
    for shard, texts in enumerate((TEXTS[:20], TEXTS[20:])):
        name = f"little-train.array_record-{shard:05d}-of-00002"
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for number, text in enumerate(texts):
            turns = [{"role": "user", "content": "Why?"}, {"role": "bot", "content": text}]
            row = {"text": text, "score": number / 2, "tokens": [1], "messages": turns}
            writer.write(features.serialize_example(row))
        writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="little", filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[tfds.core.SplitInfo("train", [20, 30], 0, template)],
        filename_template=template,
        check_data=False,
    )
    assert "tensorflow" not in sys.modules
    return "tfds:little/some:train"


def test_a_prepared_data_set_is_read_a_unit_a_shard(prepared):
    found = sources.survey(prepared)
    assert [unit.file.name for unit in found.units] == [
        "little-some-train-00000",
        "little-some-train-00001",
    ]
    rows, broken = read({"mine": dataclasses.replace(SOURCE, path=prepared)})
    assert sorted(row["text"] for row in rows) == sorted(TEXTS) and broken == []
    assert len({row["id"] for row in rows}) == 50
    assert all(row["meta"].startswith('{"score": ') for row in rows)
    assert sources.fingerprint(prepared) == sources.fingerprint(prepared)


def test_a_feature_of_turns_is_a_conversation(prepared):
    source = dataclasses.replace(SOURCE, path=prepared, text_field="messages")
    rows, broken = read({"mine": source})
    expected = sorted(f"user: Why?\n\nbot: {text.strip()}" for text in TEXTS)
    assert sorted(row["text"] for row in rows) == expected and broken == []


@pytest.mark.parametrize(
    "path", ["tfds:absent:train", "tfds:little/some:dev", "tfds:little", "tfds:"]
)
def test_what_is_not_there_is_refused_by_its_key(prepared, path):
    with pytest.raises(BadInput, match=r"^data\.sources: .*tfds:"):
        sources.survey(path)
