"""The Python library: what it holds, without tests; docstrings under names, as Python has them."""

import importlib
import inspect
import sysconfig
from pathlib import Path

import pytest

from data.errors import BadInput
from data.quickstart import python_library


def read(kind, name):
    [file] = [file for file in python_library.list_files(kind) if file.name == name]
    if kind == python_library.CODE:
        return list(python_library.read_code(file.path))
    return list(python_library.read_docs(file.path, file.name))


def read_source(tmp_path, source):
    path = tmp_path / "pkg" / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(source)
    return list(python_library.read_docs(str(path), "pkg/__init__.py"))


@pytest.mark.parametrize("kind", python_library.KINDS)
def test_files_are_the_librarys_own_in_order(kind):
    files = python_library.list_files(kind)
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"textwrap.py", "encodings/cp1252.py", "json/__init__.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "__pycache__"})
    assert not any("sysconfigdata" in name for name in names)
    assert (python_library.TOPICS in names) == (kind == python_library.DOCS)
    root = sysconfig.get_path("stdlib")
    for file in files[::100]:
        assert file.path == f"{file.root}/{file.name}" and file.root == root
        assert file.num_bytes == Path(file.path).stat().st_size


def test_code_is_the_file_itself():
    [record] = read(python_library.CODE, "textwrap.py")
    expected = inspect.getsource(importlib.import_module("textwrap"))
    assert (record.number, record.text) == (1, expected)
    assert (record.language, record.markup, record.why) == ("python", "code", "")


def test_docs_read_like_documentation():
    [record] = read(python_library.DOCS, "textwrap.py")
    text = record.text
    assert text.startswith("module textwrap\n\nText wrapping and filling.\n")
    assert "\n\nfill(text, width=70, **kwargs)\n\nFill a single paragraph" in text
    assert "\n\nclass TextWrapper\n\n" in text
    assert "\n\nTextWrapper.wrap(self, text)\n\nwrap(text : string)" in text
    assert "dedent" in text and "import re" not in text


def test_reference_manual_is_a_record_a_section():
    records = read(python_library.DOCS, python_library.TOPICS)
    topics = importlib.import_module("pydoc_data.topics").topics
    assert [record.text for record in records] == list(topics.values())
    assert [record.number for record in records] == list(range(1, len(topics) + 1))
    assert any(record.text.startswith('The "assert" statement') for record in records)


def test_every_docstring_stands_under_its_name_and_signature(tmp_path):
    source = b'''"""The package."""
class A(Base, metaclass=M):
    """Of A."""
    async def run(self, x: int = 3, *rest):
        """Of run."""
        def inner():
            """Inner functions are nobody's business."""
    class B:
        if True:
            def deep(self): "Of deep."
def bare(): pass
try:
    def caught(): "Of caught."
except ImportError:
    def caught(): "Of the other."
'''
    [record] = read_source(tmp_path, source)
    assert record.text == (
        "module pkg\n\nThe package.\n\nclass A(Base)\n\nOf A.\n\n"
        "A.run(self, x: int=3, *rest)\n\nOf run.\n\nA.B.deep(self)\n\nOf deep.\n\n"
        "caught()\n\nOf caught.\n\ncaught()\n\nOf the other.\n"
    )


def test_module_without_docstrings_gives_nothing(tmp_path):
    assert read_source(tmp_path, b"x = 1\n") == []


@pytest.mark.parametrize("source", [b"def f(:\n", b'"\xff"\n', b"x = '\0'\n"])
def test_what_is_not_python_is_broken(tmp_path, source):
    [record] = read_source(tmp_path, source)
    assert record.text == "" and record.why.startswith("not Python in UTF-8: ")


def test_code_that_is_not_utf8_is_broken(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    [record] = python_library.read_code(str(path))
    assert record.text == "" and "UTF-8" in record.why


def test_python_without_sources_is_bad_input(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BadInput, match="python:code: no library sources are kept in"):
        python_library.list_files("python:code")
