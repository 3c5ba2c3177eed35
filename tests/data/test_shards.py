"""Packing and shards: nothing lost, each target once, all or nothing."""

import hashlib
import itertools
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.mixture.loader import lm_batch
from data.tokens import shards
from data.tokens.shards import (
    Shards,
    pack_documents,
    pack_examples,
    publish,
    token_dtype,
    write_file,
)

ROOT = Path(__file__).parents[2]
PAD, BOS, EOS = 0, 1, 2
FIRST_ID, VOCAB_SIZE = 10, 5000


def documents(num_docs=50, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, num_docs)
    return [rng.integers(FIRST_ID, VOCAB_SIZE, size).tolist() for size in sizes]


def supervised(records):
    return [int(t) for r in records for t in r["tokens"][r["mask"] == 1]]


def example(rng, num_tokens):
    ids = rng.integers(0, 5, num_tokens).astype(np.int32)  # every special id stands in the text
    mask = rng.integers(0, 2, num_tokens).astype(np.uint8)
    mask[0] = 0
    return ids, mask


def examples(num_examples=200, longest=60, seed=0):
    rng = np.random.default_rng(seed)
    return [example(rng, size) for size in rng.integers(2, longest, num_examples)]


# (BOS, EOS): own ids; BOS the id 0; both one token, of id 0 and of another.
LAYOUTS = [(1, 2), (0, 1), (0, 0), (4999, 4999), (2, 0)]


@pytest.mark.parametrize(("bos", "eos"), LAYOUTS)
@pytest.mark.parametrize("seq_len", [1, 2, 7, 64, 5000])
@pytest.mark.parametrize("num_docs", [0, 1, 2, 3, 40])
def test_segments_and_targets_do_not_depend_on_ids(bos, eos, seq_len, num_docs):
    """Against a plain loop over documents, whose texts hold every special id.

    Nothing is lost, and each token but BOS is a target once.
    """
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 4, size).tolist() for size in rng.integers(0, 20, num_docs)]
    stream = [
        (token, number, place > 0)
        for number, doc in enumerate(docs)
        for place, token in enumerate((bos, *doc, eos))
    ]
    expected = []
    for start in range(0, len(stream) - 1, seq_len):
        row = stream[start : start + seq_len + 1]
        blank = [0] * (seq_len + 1 - len(row))
        first = row[0][1]
        expected.append(
            (
                [token for token, _, _ in row] + blank,
                [number - first + 1 for _, number, _ in row] + blank,
                [0] + [int(is_target) for _, _, is_target in row[1:]] + blank,
            )
        )
    records = pack_documents(docs, seq_len, bos, eos)
    names = ("tokens", "segments", "mask")
    assert [tuple(r[name].tolist() for name in names) for r in records] == expected


def test_documents_may_be_lists_or_arrays():
    docs = documents()
    arrays = [np.array(doc, np.uint16) for doc in docs]
    for one, other in zip(
        pack_documents(docs, 16, BOS, EOS), pack_documents(arrays, 16, BOS, EOS), strict=True
    ):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


def unpack(records):
    """Conversations found again by their segments, with their masks."""
    return [
        tuple(record[name][record["segments"] == segment].tolist() for name in ("tokens", "mask"))
        for record in records
        for segment in range(1, record["segments"].max() + 1)
    ]


def test_packed_conversations_equal_the_unpacked():
    given = examples()
    records, report = pack_examples(given, 64, PAD)
    expected = [(ids.tolist(), mask.tolist()) for ids, mask in given]
    assert sorted(unpack(records)) == sorted(expected)
    assert report == {
        "num_rows": len(records),
        "num_examples": len(given),
        "num_dropped": 0,
        "num_tokens": sum(int(mask.sum()) for _, mask in given),
    }
    fill = sum(len(ids) for ids, _ in given) / (len(records) * 65)
    assert fill > 0.9


def test_targets_of_packed_conversations_are_those_of_the_unpacked():
    """Through lm_batch: the same (input, target, position) triples are supervised."""

    def triples(records):
        batch = lm_batch({key: np.stack([r[key] for r in records]) for key in records[0]})
        keep = batch["weights"] == 1
        columns = [batch[key][keep].tolist() for key in ("tokens", "targets", "positions")]
        return sorted(zip(*columns, strict=True))

    given = examples()
    packed, _ = pack_examples(given, 64, PAD)
    alone = [pack_examples([one], 64, PAD)[0][0] for one in given if one[1].any()]
    assert len(alone) > len(packed)
    assert triples(packed) == triples(alone)


def test_example_of_exactly_a_row_fits_and_a_longer_one_is_dropped():
    rng = np.random.default_rng(0)
    fits, long = example(rng, 9), example(rng, 10)
    records, report = pack_examples([long, fits, long], 8, PAD)
    assert report["num_examples"] == 1
    assert report["num_dropped"] == 2
    assert records[0]["tokens"].tolist() == fits[0].tolist()


def test_first_fit_goes_back_to_a_row_with_room():
    rng = np.random.default_rng(0)
    records, _ = pack_examples([example(rng, size) for size in (6, 8, 3)], 8, PAD)
    assert [int(np.sum(r["segments"] > 0)) for r in records] == [9, 8]


def test_what_is_not_supervised_counts_no_token():
    ids = np.array([BOS, 10, 11], np.int32)
    assert pack_examples([(ids, np.zeros(3, np.uint8))], 8, PAD)[1]["num_tokens"] == 0
    long = example(np.random.default_rng(0), 4)
    for given in ([long], []):
        none = {"num_rows": 0, "num_examples": 0, "num_dropped": len(given), "num_tokens": 0}
        assert pack_examples(given, 2, PAD) == ([], none)


def test_supervised_first_token_is_refused():
    with pytest.raises(ValueError, match="0 on its first token"):
        pack_examples([(np.array([BOS, 10]), np.array([1, 1]))], 8, PAD)


def write_shards(records, directory, seq_len, dtype, records_per_shard=1 << 16):
    """Writes records to files of so many, and makes a folder of shards out of them."""
    records, files = iter(records), []
    with tempfile.TemporaryDirectory() as folder:
        while part := list(itertools.islice(records, records_per_shard)):
            path = Path(folder) / str(len(files))
            files.append((path, write_file(part, path, seq_len, dtype)["num_records"]))
        publish(files, directory, seq_len, dtype)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_token_dtype(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_written_records_read_back(tmp_path, dtype):
    records = list(pack_documents(documents(200), 16, BOS, EOS))
    write_shards(records, tmp_path / "s", 16, dtype, records_per_shard=70)
    assert len(list((tmp_path / "s").glob("*array_record*"))) == -(-len(records) // 70) > 2
    counts = {"num_records": len(records), "num_tokens": len(supervised(records))}
    assert write_file(records, tmp_path / "file", 16, dtype) == counts
    opened = Shards(tmp_path / "s")
    assert (len(opened), opened.seq_len, opened.dtype) == (len(records), 16, np.dtype(dtype))
    for index in random.Random(0).sample(range(len(records)), len(records)):
        assert opened[index]["tokens"].dtype == dtype
        np.testing.assert_array_equal(opened[index]["tokens"], records[index]["tokens"])
        for name in records[index]:
            np.testing.assert_array_equal(opened[index][name], records[index][name])
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again[-1]["tokens"], records[-1]["tokens"])
    with pytest.raises(IndexError):
        opened[len(records)]


def test_large_ids_survive_in_uint32(tmp_path):
    record = {"tokens": np.array([1, 70_000, 2**31 - 1]), "segments": np.ones(3)}
    record["mask"] = np.array([0, 1, 1])
    write_shards([record], tmp_path / "s", 2, np.uint32)
    assert Shards(tmp_path / "s")[0]["tokens"].tolist() == [1, 70_000, 2**31 - 1]
    with pytest.raises(ValueError, match="do not fit uint16"):
        write_shards([record], tmp_path / "t", 2, np.uint16)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


WRITE_SCRIPT = """
import sys
import numpy as np
from tests.data.test_shards import BOS, EOS, documents, write_shards
from data.tokens.shards import pack_documents
write_shards(pack_documents(documents(), 16, BOS, EOS), sys.argv[1], 16, np.uint16, 20)
"""


def digest(directory):
    files = sorted(directory.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_shards_have_the_same_bytes_in_every_process(tmp_path):
    for name in ("one", "two", "three"):
        subprocess.run(
            [sys.executable, "-c", WRITE_SCRIPT, str(tmp_path / name)], cwd=ROOT, check=True
        )
    digests = [digest(tmp_path / name) for name in ("one", "two", "three")]
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) > 4


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    directory = tmp_path / "s"
    records = list(pack_documents(documents(), 16, BOS, EOS))
    write_shards(records, directory, 16, np.uint16)

    def stop(*arguments, **options):
        raise RuntimeError("killed")

    monkeypatch.setattr(shards.json, "dumps", stop)
    for place in (directory, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="killed"):
            write_shards(records[:9], place, 16, np.uint16)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert len(Shards(directory)) == len(records)


def test_rewriting_replaces_and_clears_what_a_killed_writer_left(tmp_path):
    directory = tmp_path / "s"
    (tmp_path / ".s.tmp").mkdir()
    (tmp_path / ".s.tmp" / "part-00007").write_text("half")
    records = list(pack_documents(documents(), 16, BOS, EOS))
    write_shards(records, directory, 16, np.uint16, records_per_shard=10)
    write_shards(records[:5], directory, 16, np.uint16)
    assert len(Shards(directory)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert sum("array_record" in path.name for path in directory.iterdir()) == 1


def test_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    records = list(pack_documents(documents(), 16, BOS, EOS))
    with pytest.raises(BadInput, match="exists and holds no shards"):
        write_shards(records, tmp_path / "s", 16, np.uint16)
    assert (tmp_path / "s" / "thesis.txt").read_text() == "mine"


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(BadInput, match="nothing to write"):
        write_shards([], tmp_path / "s", 16, np.uint16)
    with pytest.raises(
        BadInput, match="must be a folder of finished shards, with rows.json; .* packed again"
    ):
        Shards(tmp_path / "s")
    record = dict.fromkeys(("tokens", "segments", "mask"), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"must be \(17,\)"):
        write_shards([record], tmp_path / "s", 16, np.uint16)
    assert list(tmp_path.iterdir()) == []


def test_more_segments_than_16_bits_count_survive(tmp_path):
    seq_len = 70_000
    documents = pack_documents([[]] * 36_000 + [[5] * 70_000], seq_len, BOS, EOS)
    record = dict(next(documents), segments=np.arange(1, seq_len + 2))
    write_shards([record], tmp_path / "s", seq_len, np.uint16)
    assert Shards(tmp_path / "s")[0]["segments"][-1] == 70_001


def test_missing_shard_is_bad_input(tmp_path):
    records = list(pack_documents(documents(), 16, BOS, EOS))
    write_shards(records, tmp_path / "s", 16, np.uint16, records_per_shard=20)
    sorted((tmp_path / "s").glob("*array_record*"))[1].unlink()
    with pytest.raises(BadInput, match="00001-of-.*named by rows.json but missing"):
        Shards(tmp_path / "s")
    write_shards(records, tmp_path / "s", 16, np.uint16)
    index = tmp_path / "s" / "rows.json"
    index.write_text(index.read_text().replace(f": {len(records)}", ": 1"))
    with pytest.raises(BadInput, match=f"{len(records)} records, must be 1 by rows.json"):
        Shards(tmp_path / "s")
