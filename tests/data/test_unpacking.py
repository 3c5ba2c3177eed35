"""Packed files give all that is whole, what is not is told, and nothing is without a bound."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile

import pytest

from data import storage, unpacking
from data.unpacking import zstd

PACK = {"gzip": gzip.compress, "zstd": zstd.compress, "bzip2": bz2.compress, "xz": lzma.compress}
TEXT = random.Random(0).randbytes(300_000)


def read(path, data, step=1 << 20):
    """What is read before an error, and the error."""
    path.write_bytes(data)
    parts = []
    try:
        with storage.open_plain(str(path)) as stream:
            while part := stream.read1(step):
                parts.append(part)
            unpacking.check_end(stream)
            stream.peek(1)
    except storage.DAMAGE as error:
        return b"".join(parts), error
    return b"".join(parts), None


@pytest.mark.parametrize("step", [7, 1000, 1 << 20])
@pytest.mark.parametrize("packing", PACK)
def test_all_members_and_frames_are_read(tmp_path, packing, step):
    parts = [b"", b"a", bytes(300_000), TEXT[:70_000], b"word " * 9000]
    packed = b"".join(map(PACK[packing], parts))
    assert read(tmp_path / "a", packed, step) == (b"".join(parts), None)


def test_zeros_that_pad_gzip_and_frames_of_zstd_without_data_are_skipped(tmp_path):
    """The frames are as the table of a seekable file."""
    assert read(tmp_path / "a", gzip.compress(TEXT) + bytes(5000)) == (TEXT, None)
    table = struct.pack("<II", 0x184D2A5E, 5) + b"table"
    packed = b"".join(zstd.compress(part) + table for part in (TEXT, b"end"))
    assert read(tmp_path / "a", packed) == (TEXT + b"end", None)


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zstd_of_the_longest_windows_is_read(tmp_path, log):
    options = {zstd.CompressionParameter.window_log: log}
    options[zstd.CompressionParameter.enable_long_distance_matching] = 1
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(TEXT) + packer.flush()
    assert read(tmp_path / "a", packed) == (TEXT, None)


@pytest.mark.parametrize("packing", PACK)
def test_what_breaks_off_gives_what_is_there_and_is_not_taken_for_whole(tmp_path, packing):
    packed = PACK[packing](TEXT)
    for end in (1, len(packed) // 2):
        found, error = read(tmp_path / "a", packed[:-end])
        assert error and TEXT.startswith(found)
        assert packing == "bzip2" or len(found) > len(packed) - end - 140_000


def test_gzip_that_is_damaged_is_not_taken_for_whole(tmp_path):
    packed = gzip.compress(TEXT)
    wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for data in (wrong_sum, packed + b"\x1f\x8bjunk and more of it"):
        assert read(tmp_path / "a", data)[1]


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("garbage", [b"x" * 9, b"\0\0GARBAGE", b"plain text\n" * 9999])
def test_what_follows_is_told_behind_the_whole_file(tmp_path, packing, garbage):
    found, error = read(tmp_path / "a", PACK[packing](b"all of it") + garbage)
    assert found == b"all of it" and isinstance(error, unpacking.Trailing)
    with (
        pytest.raises(unpacking.Trailing),
        storage.open_plain(str(tmp_path / "a")) as stream,
        unpacking.whole(stream) as data,
    ):
        assert data == b"all of it"


@pytest.mark.parametrize("packing", PACK)
def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(unpacking, "FREE_BYTES", 1 << 16)
    monkeypatch.setattr(unpacking, "MAX_RATIO", 10)
    found, error = read(tmp_path / "a", PACK[packing](bytes(1 << 24)))
    assert "more than 10 times its size" in str(error) and len(found) < 1 << 20
    assert read(tmp_path / "a", PACK[packing](TEXT)) == (TEXT, None)


def test_long_lines_are_passed_over_and_long_files_refused(monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_RECORD_BYTES", 4)
    monkeypatch.setattr(unpacking, "MAX_WHOLE_BYTES", 20)
    data = io.BytesIO(b"abc\nabcd\nabcde" + b"f" * 99 + b"\n\nab")
    found = list(unpacking.lines(io.BufferedReader(data)))
    assert [line for line, why in found if not why] == [b"abc\n", b"\n", b"ab"]
    assert [number for number, (_, why) in enumerate(found) if why] == [1, 2]
    for size in (20, 21):
        stream = io.BufferedReader(io.BytesIO(bytes(size)))
        try:
            with unpacking.whole(stream) as data:
                assert len(data) == size == 20
        except OSError as error:
            assert "more than 20 bytes" in str(error) and size == 21


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_a_tar_are_bounded(kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 8 << 30
    with (
        pytest.raises(tarfile.ReadError, match="a header of 8589934592 bytes"),
        unpacking.open_tar(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(9999))) as archive,
    ):
        archive.next()
