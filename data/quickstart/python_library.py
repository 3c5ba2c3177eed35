"""The running Python's own library: its code, and its documentation out of docstrings and pydoc."""

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data.document import Record
from data.errors import BadInput
from data.storage import File

DOCS, CODE = KINDS = ("python:docs", "python:code")
TOPICS = "pydoc_data/topics.py"
# Tests are not prose or library code; the build configuration holds paths of one machine.
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
NOT_LIBRARY_PREFIXES = ("config-", "_sysconfigdata")


def list_files(kind: str) -> list[File]:
    """Lists the library's source files, sorted by name; TOPICS (the manual) only for docs.

    Args:
        kind: one of KINDS.

    Returns:
        At least one file.

    Raises:
        BadInput: this Python keeps no sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, names in os.walk(root):
        # Pruned here: site-packages inside the library can be many times its size.
        folders[:] = filter(_is_library, folders)
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    files = []
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
        # Its one literal is the reference manual, which is documentation: not twice.
        if _is_library(name) and not (kind == CODE and name == TOPICS):
            files.append(File(name, str(path), str(root), path.stat().st_size))
    if not files:
        raise BadInput(f"{kind}: no library sources are kept in {root}")
    return files


def _is_library(name: str) -> bool:
    return name not in NOT_LIBRARY and not name.startswith(NOT_LIBRARY_PREFIXES)


def read_code(path: str) -> Iterator[Record]:
    """Reads one file of the library as it is.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        yield Record(1, Path(path).read_bytes().decode(), language="python", markup="code")
    except UnicodeDecodeError as error:
        yield Record(1, "", why=f"not Python in UTF-8: {error}")


def read_docs(path: str, name: str) -> Iterator[Record]:
    """Reads the documentation in one file of the library.

    Args:
        path: the file.
        name: its name in list_files.

    Yields:
        One record with the module's docstrings in order, each under its name and signature, none
        where it has none; of TOPICS a record a section.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError) as error:
        yield Record(1, "", why=f"not Python in UTF-8: {error}")
        return
    if name == TOPICS:
        # One literal: the dictionary that pydoc ships.
        literal = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        for number, text in enumerate(ast.literal_eval(literal).values(), 1):
            yield Record(number, text)
        return
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    sections = [text for text in (ast.get_docstring(tree), *_docstrings(tree, "")) if text]
    if sections:
        yield Record(1, "\n\n".join([f"module {module}", *sections]) + "\n")


def _docstrings(node: ast.AST, prefix: str) -> Iterator[str]:
    """Yields a section for each documented class, method and function inside a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(child)
            if docstring:
                yield f"{_signature(child, prefix + child.name)}\n\n{docstring}"
            if isinstance(child, ast.ClassDef):
                yield from _docstrings(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child, prefix)


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"
