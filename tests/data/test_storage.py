"""Files are found, opened whatever they are packed in, and hashed by content."""

import bz2
import gzip
import lzma
import os
import random

import fsspec
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from data import storage
from data.errors import BadInput
from data.unpacking import zstd

PACKINGS = {
    "plain": bytes,
    "gz": gzip.compress,
    "gz of two members": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "zst": zstd.compress,
    "zst of two frames": lambda data: zstd.compress(data[:5]) + zstd.compress(data[5:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.fixture
def tree(tmp_path):
    for name in ("a.txt", "b.jsonl.gz", "deep/c.txt", "deep/er/d.txt", ".git/config", "deep/.e"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def names(pattern):
    return [file.name for file in storage.find("where", pattern)]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.txt", "b.jsonl.gz", "deep/c.txt", "deep/er/d.txt"]),
        ("/a.txt", ["a.txt"]),
        ("/deep", ["c.txt", "er/d.txt"]),
        ("/*.txt", ["a.txt"]),
        ("/**/*.txt", ["a.txt", "deep/c.txt", "deep/er/d.txt"]),
        ("/deep/?.txt", ["c.txt"]),
        ("/[ab]*", ["a.txt", "b.jsonl.gz"]),
        ("/d*", ["deep/c.txt", "deep/er/d.txt"]),
    ],
)
def test_files_folders_and_globs(tree, scheme, pattern, expected):
    assert names(f"{scheme}{tree}{pattern}") == expected


def test_several_patterns_give_each_file_once(tree):
    assert names(f"{tree}/*.txt, {tree}/a.txt,{tree}/deep") == ["a.txt", "c.txt", "er/d.txt"]


def test_relative_paths(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert names("*.txt") == names("./*.txt") == names("a.txt") == ["a.txt"]
    assert names("deep/*") == ["c.txt", "er/d.txt"]
    assert names(".") == ["a.txt", "b.jsonl.gz", "deep/c.txt", "deep/er/d.txt"]
    assert names("../" + tree.name + "/deep/er/*") == ["d.txt"]


def test_a_file_knows_its_size_and_place(tree):
    (file,) = storage.find("where", f"{tree}/deep/c.txt")
    assert (file.num_bytes, file.root) == (len("deep/c.txt"), f"{tree}/deep")
    with storage.open_raw(file.path) as stream:
        assert stream.read() == b"deep/c.txt"


@pytest.mark.parametrize("packing", PACKINGS)
def test_content_is_unpacked_by_what_it_is(tmp_path, packing):
    content = b"some text, again and again\n" * 5000
    (tmp_path / "named.txt").write_bytes(PACKINGS[packing](content))
    with storage.open_plain(str(tmp_path / "named.txt")) as stream:
        assert stream.read() == content
    assert storage.head(str(tmp_path / "named.txt")) == content[: storage.HEAD_BYTES]


@pytest.mark.parametrize("packing", ["gz", "zst", "bz2", "xz"])
def test_the_head_of_what_breaks_off_is_what_is_there(tmp_path, packing):
    content = random.Random(0).randbytes(2_000_000)
    packed = PACKINGS[packing](content)
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    assert content.startswith(storage.head(str(tmp_path / "cut")))
    assert len(storage.head(str(tmp_path / "cut"))) > 1000
    # Where nothing can be had, the damage is not taken for an empty file.
    (tmp_path / "cut").write_bytes(packed[:6] + b"damage" * 9)
    with pytest.raises(storage.DAMAGE):
        storage.head(str(tmp_path / "cut"))


def test_hashes_follow_the_content(tmp_path):
    for name, content in (("a", b"x" * 3_000_000), ("b", b"x" * 3_000_000), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    hashes = [storage.hash_content(str(tmp_path / name)) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftpx://host/file", "ftpx://host/file: cannot be listed"),
        ("s3", "where: s3: no file found"),
        ("", "where: '': no file found"),
        ("{tree}/*.txt,{tree}/*.md", r"where: .*/\*.md: no file found; a file, folder or glob"),
        ("{tree}/deep,", "where: '': no file found"),
        ("file://{tree}/nowhere", "where: file://.*/nowhere: no file found"),
    ],
)
def test_where_nothing_is_found_is_bad_input(tree, path, message):
    with pytest.raises(BadInput, match=message):
        storage.find("where", path.format(tree=tree))


def test_a_file_may_have_a_comma_in_its_name(tree):
    (tree / "one, two.txt").write_text("x")
    assert names(f"{tree}/one, two.txt") == ["one, two.txt"]


@pytest.mark.parametrize("name", ["br[1].txt", "what?.txt", "a*.txt", "x{1}, [2].txt"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_name_that_is_there_is_no_glob(tree, scheme, name):
    for other in ("br1.txt", "whats.txt"):
        (tree / other).write_text("other")
    (tree / name).write_text("x")
    assert names(f"{scheme}{tree}/{name}") == [name]
    assert names(f"{tree}/b*.gz,{tree}/a.txt") == ["a.txt", "b.jsonl.gz"]


def test_a_folder_that_is_there_is_no_glob(tree):
    for folder in ("set [a], 1", "set a"):
        (tree / folder).mkdir()
        (tree / folder / f"{folder}.txt").write_text("x")
    assert names(f"{tree}/set [a], 1") == ["set [a], 1.txt"]
    assert names(f"{tree}/set [a], 1/") == ["set [a], 1.txt"]
    assert names(f"{tree}/set [a]*") == ["set a/set a.txt"]


def test_a_list_may_be_longer_than_a_name(tree):
    assert names(",".join([f"{tree}/a.txt"] * 999)) == ["a.txt"]


def test_links_to_folders_are_told_and_not_followed(tree):
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "dangling").symlink_to("nowhere")
    found = storage.find("where", str(tree))
    assert found == storage.find("where", f"file://{tree}")
    expected = ["a.txt", "b.jsonl.gz", "deep/c.txt", "deep/er/d.txt", "deep/up"]
    assert [file.name for file in found] == expected
    assert [file.why for file in found[:4]] == [""] * 4
    assert found[4].why.startswith("a link to a folder, which is not followed")
    assert names(f"{tree}/deep/up/deep") == ["c.txt", "er/d.txt", "up"], "it was named itself"


def test_links_to_files_are_files_and_those_that_leave_the_folder_are_marked(tree):
    (tree / "deep" / "inner").symlink_to("c.txt")
    (tree / "deep" / "outer").symlink_to("../a.txt")
    found = {file.name: file for file in storage.find("where", f"{tree}/deep")}
    assert found["inner"].leads_to == found["c.txt"].leads_to == ""
    assert found["outer"].leads_to == f"{tree}/a.txt"
    assert found["outer"].num_bytes == len("a.txt")


def test_a_folder_that_cannot_be_listed_is_among_what_is_found(tree, monkeypatch):
    deny(monkeypatch, tree / "deep" / "er")
    found = storage.find("where", str(tree))
    assert [file.name for file in found] == ["a.txt", "b.jsonl.gz", "deep/c.txt", "deep/er"]
    assert [file.why for file in found[:3]] == ["", "", ""]
    assert "Permission denied" in found[3].why and str(found[3].path) == f"{tree}/deep/er"
    with pytest.raises(BadInput, match="er: cannot be listed: .*Permission denied"):
        storage.find("where", str(tree / "deep" / "er"))


def deny(monkeypatch, folder):
    """Lists no such folder, as for a user who may not: the tests' own may everything."""
    list_folder = storage._list

    def list_unless_denied(system, path):
        if path == str(folder):
            raise PermissionError(13, f"Cannot list directory '{folder}': Permission denied")
        return list_folder(system, path)

    monkeypatch.setattr(storage, "_list", list_unless_denied)


def test_names_that_are_not_utf8_are_told_and_cost_no_other(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    os.close(os.open(os.fsencode(tmp_path) + b"/b\xff.txt", os.O_CREAT))
    folder, file = storage.find("where", str(tmp_path))
    assert (folder.path, file.name, file.why) == (str(tmp_path), "a.txt", "")
    assert folder.why.startswith("a name in it is not UTF-8")


@pytest.fixture(params=["memory", "arrow"])
def bucket(request, tmp_path, monkeypatch):
    """(URI of a folder in a store, what puts a file there): fsspec's own, and one of Arrow's."""
    if request.param == "memory":
        system = fsspec.filesystem("memory")
        yield "memory://bucket", lambda name, content: system.pipe(f"/bucket/{name}", content)
        system.rm("/bucket", recursive=True)
        return
    (tmp_path / "bucket").mkdir()
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "_connect", lambda scheme, bucket: ArrowFSWrapper(store))
    yield "s3://bucket", lambda name, content: (tmp_path / "bucket" / name).write_bytes(content)


@pytest.mark.parametrize("packing", PACKINGS)
def test_stores_give_bytes_as_they_are(bucket, packing):
    """Arrow would unpack by the name, and what breaks off would be told otherwise than here."""
    uri, put = bucket
    packed = PACKINGS[packing](b"some text, again and again\n" * 5000)
    for name in ("a.gz", "a.zst", "a.txt"):
        put(name, packed)
    for pattern in (f"{uri}/*", uri, f"{uri}/a.gz,{uri}/*t"):
        found = storage.find("where", pattern)
        assert [file.name for file in found] == ["a.gz", "a.txt", "a.zst"]
        assert [file.path for file in found] == [f"{uri}/{file.name}" for file in found]
        assert {file.root for file in found} == {uri}
    for file in found:
        with storage.open_raw(file.path) as stream:
            assert stream.read() == packed
        with storage.open_plain(file.path) as stream:
            assert stream.read() == b"some text, again and again\n" * 5000


def test_what_a_store_says_of_a_file_changes_when_it_is_written_again(bucket):
    uri, put = bucket
    put("a", b"one")
    ((first,), (again,)) = storage.find("where", uri), storage.find("where", uri)
    put("a", b"other")
    (changed,) = storage.find("where", uri)
    assert first.changed == again.changed != changed.changed


def test_a_store_that_is_not_installed_is_one_message():
    with pytest.raises(BadInput, match="^abfs://c/x: cannot be listed: .*adlfs"):
        storage.find("where", "abfs://c/x")
