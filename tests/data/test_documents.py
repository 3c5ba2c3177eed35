"""Reading curated tables: a bounded part of them, without the rest."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import documents
from data.errors import BadInput

NUM_GROUPS, GROUP_ROWS = 12, 5


@pytest.fixture
def folder(tmp_path):
    """Three files of four row groups; every third document of `a` and all of `c` are held out."""
    number = 0
    for part in range(3):
        schema = pa.schema([(name, pa.string()) for name in ("domain", "split", "text")])
        with pq.ParquetWriter(tmp_path / f"part-{part}.parquet", schema) as writer:
            for group in range(NUM_GROUPS // 3):
                rows = []
                for _ in range(GROUP_ROWS):
                    domain = "c" if (part, group) == (2, 3) else "ab"[number % 2]
                    split = "heldout" if domain == "c" or number % 6 == 0 else "train"
                    rows.append({"domain": domain, "split": split, "text": f"{number:04d}"})
                    number += 1
                writer.write_table(pa.Table.from_pylist(rows, schema))
    return tmp_path


def by_domain(folder, split):
    """Every text of a split, read plainly."""
    texts = {}
    for row in documents.read(folder, ["domain", "split", "text"]):
        if row["split"] == split:
            texts.setdefault(row["domain"], []).append(row["text"])
    return texts


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_bound_above_the_corpus_gives_all_of_it_in_order(folder, split, scattered):
    found = documents.collect(folder, split, 10**9, len, scattered=scattered)
    assert found == by_domain(folder, split)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("most", [4, 17, 40])
@pytest.mark.parametrize("scattered", [False, True])
def test_each_domain_is_bounded(folder, most, scattered):
    found = documents.collect(folder, "train", most, len, scattered=scattered)
    everything = by_domain(folder, "train")
    assert set(found) == set(everything)
    for domain, texts in found.items():
        assert len(texts) == most // 4
        assert texts == [text for text in everything[domain] if text in texts], "in order"
        assert scattered or texts == everything[domain][: most // 4]


def test_a_sample_is_of_the_whole_table(folder):
    texts = documents.collect(folder, "train", 40, len, scattered=True)["b"]
    groups = {int(text) // GROUP_ROWS for text in texts}
    assert max(groups) - min(groups) > NUM_GROUPS // 2, "not the beginning alone"


def test_a_domain_has_its_first_text_whatever_its_size(folder):
    found = documents.collect(folder, "heldout", 1, len, scattered=False)
    assert {domain: len(texts) for domain, texts in found.items()} == {"a": 1, "c": 1}


def test_texts_are_read_of_the_row_groups_alone_that_hold_something_wanted(folder, monkeypatch):
    read, groups = pq.ParquetFile.read_row_group, []

    def recorded(file, group, columns):
        if "text" in columns:
            groups.append(group)
        return read(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    documents.collect(folder, "heldout", 1, lambda _: 1, scattered=False)
    assert groups == [0, 3], "one of `a` in the first, one of `c` in the last"


def test_a_footer_is_read_once_whatever_the_number_of_row_groups(folder, monkeypatch):
    """It has an entry for each row group: read for each of them, time would be quadratic."""
    opened, read = [], pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda path: opened.append(path) or read(path))
    plain = pq.ParquetFile

    def open_with_footer(path, *, metadata):
        return plain(path, metadata=metadata)

    monkeypatch.setattr(pq, "ParquetFile", open_with_footer)
    documents.collect(folder, "train", 10**9, len, scattered=True)
    assert len(opened) == 3


def test_a_damaged_table_is_named(folder):
    path = folder / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="part-1.parquet: damaged"):
        documents.collect(folder, "train", 10**9, len, scattered=False)


def sample_of(folder, num_bytes):
    return list(documents.sample(folder, num_bytes))


@pytest.fixture
def corpus(tmp_path):
    """Two files of `a`, 40 row groups of 10 texts of 100 letters each, and a small one of `b`."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "domain", "split", "text")])
    for part, (domain, num_groups) in enumerate((("a", 20), ("a", 20), ("b", 2))):
        with pq.ParquetWriter(tmp_path / f"part-{part}.parquet", schema) as writer:
            for group in range(num_groups):
                names = [f"{part}/{group}/{row}" for row in range(10)]
                rows = [
                    {"id": name, "domain": domain, "split": "train", "text": f"{name:<100}"}
                    for name in names
                ]
                rows[0]["split"] = "heldout"
                writer.write_table(pa.Table.from_pylist(rows, schema))
    return tmp_path


def test_a_sample_has_each_domains_equal_share_of_its_training_texts(corpus):
    texts = sample_of(corpus, 4000)
    by_part = [sum(text.startswith(str(part)) for text in texts) for part in range(3)]
    # 18 of `b`, which is all that it has to train on; about 22 of `a`, from both files.
    assert by_part[2] == 18 and 12 <= by_part[0] + by_part[1] <= 32 and min(by_part) > 0
    assert not any(text.split("/")[2].startswith("0") for text in texts), "held out"
    assert texts == sorted(texts, key=lambda text: [int(n) for n in text.split("/")])
    assert sample_of(corpus, 4000) == texts
    assert len(sample_of(corpus, 10**6)) == 42 * 9, "all there is"


def test_a_sample_is_read_from_a_bounded_part_of_the_corpus(corpus, monkeypatch):
    read, groups = pq.ParquetFile.read_row_group, set()

    def recorded(file, group, columns):
        groups.add((file.metadata.num_row_groups, group))
        return read(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    assert sample_of(corpus, 500)
    assert len(groups) <= documents.MAX_SAMPLED * 500 / 1000 + 2
