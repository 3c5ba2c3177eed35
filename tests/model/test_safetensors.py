"""Safetensors: what is written is what is read; strangers' files do no harm."""

import functools
import json
import os
import random
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors as library
import safetensors.numpy as library_numpy

from model.interop import safetensors
from model.interop.safetensors import open_safetensors, plain_file, read_json, write_safetensors

# Beside the tensor: blocks, their conversions and Python's own objects.
CONSTANT_BYTES = 8 << 20
SHAPES = {"embed.weight": (50, 8), "layer.0.w": (3, 4, 5), "layer.0.b": (7,), "scale": ()}
# A header that is refused must be refused at once, whatever sizes it claims.
REFUSAL_SECS = 2.0


def make_arrays(dtype="float32"):
    """Values that the type holds exactly, so that float32 gives them back."""
    rng = np.random.default_rng(0)
    kind = safetensors.TYPES[safetensors.WRITTEN[dtype]]
    made = {name: rng.normal(size=shape).astype(kind) for name, shape in SHAPES.items()}
    return {name: np.asarray(array, np.float32) for name, array in made.items()}


def items(arrays):
    return [(name, a.shape, functools.partial(lambda x: x, a)) for name, a in arrays.items()]


def read_all(directory):
    opened = open_safetensors(directory)
    return {name: opened.read(name) for name in opened.names()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", safetensors.WRITTEN)
@pytest.mark.parametrize("block_bytes", [1 << 20, 13])
def test_what_was_written_comes_back(tmp_path, monkeypatch, dtype, block_bytes):
    monkeypatch.setattr(safetensors, "BLOCK_BYTES", block_bytes)
    arrays = make_arrays(dtype)
    write_safetensors(tmp_path, items(arrays), 1 << 30, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(read_all(tmp_path), arrays)
    opened = open_safetensors(tmp_path)
    assert {name: opened.shape(name) for name in opened.names()} == SHAPES


def test_the_library_reads_what_was_written(tmp_path):
    arrays = make_arrays()
    transposed = {name: a.T for name, a in arrays.items()}
    write_safetensors(tmp_path, items(transposed), 1 << 30, "float32")
    found = library_numpy.load_file(tmp_path / "model.safetensors")
    assert_same({name: found[name] for name in transposed}, transposed)
    with library.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it
    size = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert size % 8 == 0, "values are aligned"


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (np.float32, np.float32),
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (ml_dtypes.float8_e4m3fn, np.float32),
        (np.uint8, np.uint8),
    ],
)
def test_what_the_library_wrote_is_read(tmp_path, kind, result):
    array = np.arange(-12, 12).reshape(4, 6).astype(np.int8).astype(kind)
    library_numpy.save_file({"x": array}, tmp_path / "model.safetensors")
    found = open_safetensors(tmp_path).read("x")
    assert found.dtype == result
    np.testing.assert_array_equal(found, array.astype(result))


def test_types_that_are_not_read_are_named_when_asked_for(tmp_path):
    library_numpy.save_file({"ids": np.arange(4)}, tmp_path / "model.safetensors")
    opened = open_safetensors(tmp_path)
    assert opened.shape("ids") == (4,)
    with pytest.raises(ValueError, match="tensor 'ids' has type I64, not read"):
        opened.read("ids")


def test_shards_are_those_of_hugging_face(tmp_path):
    arrays = make_arrays()
    write_safetensors(tmp_path, items(arrays), 300, "float32")
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [*files, "model.safetensors.index.json"]
    assert index["metadata"]["total_size"] == 4 * (400 + 60 + 7 + 1)
    assert index["weight_map"] == dict(zip(SHAPES, [files[0], *[files[1]] * 3], strict=True))
    assert_same(read_all(tmp_path), arrays)


def test_a_value_of_another_shape_is_not_written(tmp_path):
    wrong = [("w", (2, 3), lambda: np.zeros((3, 2), np.float32))]
    with pytest.raises(ValueError, match=r"'w' has shape \(3, 2\), not \(2, 3\)"):
        write_safetensors(tmp_path, wrong, 1 << 30, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_holds_one_tensor(tmp_path, dtype):
    """numpy reports to tracemalloc, so that this is exact: nothing earlier stays."""
    shape = (1 << 11, 1 << 11)
    big = 4 * shape[0] * shape[1]
    many = [(f"w{n}", shape, lambda: np.ones(shape, np.float32)) for n in range(4)]
    tracemalloc.start()
    try:
        write_safetensors(tmp_path, many, 2 * big, dtype)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        opened = open_safetensors(tmp_path)
        for name in opened.names():
            opened.read(name)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert big < read < big + CONSTANT_BYTES
    assert big < written < big + CONSTANT_BYTES


# ------------------------------------------------------------ strangers' files


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_raw(directory, header, num_data_bytes=0, num_bytes=None, name="model.safetensors"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = (len(text) if num_bytes is None else num_bytes).to_bytes(8, "little")
    (directory / name).write_bytes(size + text + bytes(num_data_bytes))


GOOD = entry([2], 0, 8)
TWICE = json.dumps({"a": GOOD})[:-1].encode() + b"," + json.dumps({"a": GOOD})[1:].encode()


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "num_bytes", "words"),
    [
        ({"a": GOOD}, 8, 10**6, "damaged .*invalid header length"),
        ({"a": GOOD}, 8, 2**63, "a header of 9223372036854775808 bytes; at most"),
        ({"a": GOOD}, 8, 0, "damaged"),
        ({"a": GOOD}, 7, None, "damaged .*not fully covered"),
        ({"a": GOOD}, 9, None, "damaged .*not fully covered"),
        ({"a": GOOD, "b": GOOD}, 8, None, "damaged .*invalid offset"),
        ({"a": GOOD, "b": entry([2], 4, 12)}, 12, None, "damaged .*invalid offset"),
        ({"a": GOOD, "b": entry([2], 12, 20)}, 20, None, "damaged .*invalid offset"),
        ({"a": entry([2], 8, 0)}, 8, None, "damaged .*invalid offset"),
        ({"a": entry([2**32, 2**32, 2**32], 0, 8)}, 8, None, "damaged .*overflow"),
        ({"a": entry([3], 0, 8)}, 8, None, "damaged"),
        ({"a": entry([-2], 0, 8)}, 8, None, "damaged"),
        ({"a": entry([2], 0, 8, "F99")}, 8, None, "damaged .*F99"),
        ({"a": entry([1] * 9 + [2], 0, 8)}, 8, None, "tensor 'a' has 10 dims"),
        (TWICE, 8, None, "key 'a' occurs twice"),
        (b"[" * 10**5, 0, None, "damaged"),
        (b'{"a\xff": 1}', 0, None, "damaged .*UTF-8"),
        (b"no json", 0, None, "damaged"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, num_data_bytes, num_bytes, words):
    write_raw(tmp_path, header, num_data_bytes, num_bytes)
    with pytest.raises(ValueError, match=f"model.safetensors: .*{words}"):
        open_safetensors(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    write_safetensors(tmp_path, items(make_arrays()), 1 << 30, "bfloat16")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            open_safetensors(tmp_path)


def test_a_file_that_shrinks_while_open_is_refused(tmp_path):
    write_safetensors(tmp_path, items(make_arrays()), 1 << 30, "float32")
    opened = open_safetensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 600)
    with pytest.raises(ValueError, match="ends at byte 600"):
        opened.read("embed.weight")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless(tmp_path, seed):
    """Bytes changed, cut out or put in; never anything but a ValueError, and never for long."""
    write_safetensors(tmp_path, items(make_arrays()), 1 << 30, "float32")
    path, rng = tmp_path / "model.safetensors", random.Random(seed)
    whole = path.read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    start, num_refused = time.process_time(), 0
    for _ in range(150):
        at, damaged = rng.randrange(header_bytes), bytearray(whole)
        damaged[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(9))
        path.write_bytes(damaged)
        try:
            read_all(tmp_path)
        except ValueError:
            num_refused += 1
    assert num_refused > 100
    assert time.process_time() - start < 150 * REFUSAL_SECS / 10


@pytest.fixture
def sharded(tmp_path):
    """Two shards of one tensor each, and a function that writes another index over theirs."""
    directory = tmp_path / "model"
    directory.mkdir()
    arrays = {name: np.ones((2, 2), np.float32) for name in ("a", "b")}
    write_safetensors(directory, items(arrays), 16, "float32")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    def reindex(places):
        text = places if isinstance(places, str) else json.dumps({"weight_map": places})
        (directory / "model.safetensors.index.json").write_text(text)
        return directory

    return reindex, first, second


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (lambda a, b: {"a": a, "b": "absent.safetensors"}, "absent.safetensors: no such file"),
        (lambda a, b: {"a": a, "b": a}, "lacks 'b', which model.safetensors.index.json places"),
        (lambda a, b: {"a": a}, None),
        (lambda a, b: {"a": a, "b": b, "c": b}, "lacks 'c'"),
        (lambda a, b: {"b": b, "c": a}, "lacks 'c'"),
        (lambda a, b: {"a": a, "b": f"../model/{b}"}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": f"/{b}"}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": f"..\\{b}"}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": ".."}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": ""}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": b + "\0"}, "must name a file of this directory"),
        (lambda a, b: {"a": a, "b": 3}, "weight_map must give the file of each tensor"),
        (lambda a, b: ["a"], "weight_map must give"),
        (lambda a, b: "{}", "weight_map must give"),
        (lambda a, b: "[]", "must hold a JSON object, holds list"),
        (lambda a, b: '{"weight_map": {"a": "x", "a": "y"}}', "key 'a' occurs twice"),
        (lambda a, b: "[" * 10**5, "not JSON that can be used"),
        (lambda a, b: '{"weight', "not JSON that can be used"),
    ],
)
def test_an_index_that_lies_is_refused(sharded, places, words):
    reindex, first, second = sharded
    directory = reindex(places(first, second))
    if words is None:
        assert open_safetensors(directory).names() == ["a"]
        return
    with pytest.raises(ValueError) as refused:
        open_safetensors(directory)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "places",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: {"a": b, "b": a},
    ],
)
def test_tensors_are_taken_from_the_shard_that_holds_them(sharded, places):
    """transformers reads all that the shards hold, whatever the index says of a tensor."""
    reindex, first, second = sharded
    found = open_safetensors(reindex(places(first, second)))
    assert sorted(found.names()) == ["a", "b"]
    arrays = {
        name: np.full((2, 2), value, np.float32)
        for name, value in zip("abc", (1, 2, 3), strict=True)
    }
    directory = reindex({"a": first, "b": second})
    for shard, names in ((first, "ac"), (second, "b")):
        library_numpy.save_file({name: arrays[name] for name in names}, directory / shard)
    found = open_safetensors(directory)
    assert sorted(found.names()) == ["a", "b", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.read(name), array)
    library_numpy.save_file({name: arrays[name] for name in "abc"}, directory / second)
    with pytest.raises(ValueError, match=f"{second}: holds '[ac]', as {first} does"):
        open_safetensors(directory)


def test_links_of_the_directory_are_followed(sharded, tmp_path):
    """As the Hub's cache has them; what an index names is a plain name all the same."""
    reindex, first, second = sharded
    directory = reindex({"a": first, "b": second})
    for name in (second, "model.safetensors.index.json"):
        (directory / name).rename(tmp_path / f"blob of {name}")
        (directory / name).symlink_to(f"../blob of {name}")
    found = open_safetensors(directory)
    assert found.names() == ["a", "b"] and found.read("b").shape == found.shape("b")
    (tmp_path / f"blob of {second}").unlink()
    with pytest.raises(ValueError, match=f"{second}: a link to ../blob of .* which is not there"):
        open_safetensors(directory)
    (tmp_path / f"blob of {second}").mkdir()
    with pytest.raises(ValueError, match=f"{second}: is a directory"):
        open_safetensors(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is a directory; it must be a file"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: path.symlink_to("nowhere"), "a link to nowhere, which is not there"),
        (lambda path: path.symlink_to(path.name), "a link to model.safetensors"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, make, words, name):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: {words}"):
        open_safetensors(tmp_path)


def test_a_directory_without_tensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        open_safetensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="holds neither"):
        open_safetensors(tmp_path)


def test_a_json_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(safetensors.MAX_HEADER_BYTES + 1)
    with pytest.raises(ValueError, match="big.json: 33554433 bytes; at most"):
        read_json(plain_file(tmp_path, "big.json"))
