"""Packed files give all that is whole, and what is not is told."""

import bz2
import gzip
import lzma
import random
import struct

import pytest
import zstandard

from data import storage, unpacking

PACK = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
TEXT = random.Random(0).randbytes(300_000)


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_gzip_is_unpacked_as_by_the_standard_library(tmp_path, monkeypatch, step):
    rng = random.Random(step)
    monkeypatch.setattr(unpacking, "PACKED_BYTES", rng.choice([1, 5, 1 << 14]))
    parts = [b"", b"a", bytes(300_000), rng.randbytes(70_000), b"word " * 9000]
    packed = b"".join(gzip.compress(part) + bytes(rng.randrange(3)) for part in parts)
    (tmp_path / "a").write_bytes(packed + bytes(5000))
    with storage.open_plain(str(tmp_path / "a")) as stream:
        found = b"".join(iter(lambda: stream.read1(step), b""))
    assert found == b"".join(parts) == gzip.decompress(packed)
    assert unpacking.take_garbage(str(tmp_path / "a")) == ""


@pytest.mark.parametrize("packing", PACK)
def test_what_breaks_off_is_not_taken_for_whole(tmp_path, packing):
    packed = PACK[packing](TEXT)
    for end in (1, len(packed) // 2):
        (tmp_path / "a").write_bytes(packed[:-end])
        with pytest.raises(storage.DAMAGE), storage.open_plain(str(tmp_path / "a")) as stream:
            stream.read()


def test_gzip_that_is_damaged_is_not_taken_for_whole(tmp_path):
    packed = gzip.compress(TEXT)
    wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for data in (wrong_sum, packed + b"\x1f\x8bjunk and more of it"):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(storage.DAMAGE), storage.open_plain(str(tmp_path / "a")) as stream:
            stream.read()


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("garbage", [b"x", b"\0\0GARBAGE", b"plain text\n" * 9999])
def test_what_follows_is_told_once_and_not_read(tmp_path, packing, garbage):
    path = str(tmp_path / "a")
    (tmp_path / "a").write_bytes(PACK[packing](b"all of it") + garbage)
    for _ in range(2):
        with storage.open_plain(path) as stream:
            assert (stream.read(), stream.read(), stream.read1(5)) == (b"all of it", b"", b"")
        assert f"what follows {packing} has not packed: b'" in unpacking.take_garbage(path)
        assert unpacking.take_garbage(path) == ""


def test_frames_of_zstd_that_hold_no_data_are_skipped(tmp_path):
    """As the table of a seekable file; a frame of many times its packed size comes in parts."""
    table = struct.pack("<II", 0x184D2A5E, 5) + b"table"
    parts = (TEXT, bytes(9_000_000), b"end")
    packed = b"".join(zstandard.compress(part) + table for part in parts)
    (tmp_path / "a").write_bytes(packed)
    with storage.open_plain(str(tmp_path / "a")) as stream:
        assert b"".join(iter(lambda: stream.read1(100_000), b"")) == b"".join(parts)
