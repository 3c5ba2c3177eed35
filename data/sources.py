"""Sources: where text comes from: files, or the running Python's own library, as Arrow documents.

A record that cannot be read among good ones is noted and passed over; a source that gives nothing
stops the run. Everything is streamed in sorted order, so the same files give the same documents.
"""

import ast
import dataclasses
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data import gates
from data.errors import BadInput

PYTHON_DOCS = "python:docs"
PYTHON_CODE = "python:code"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
SEPARATOR = b"<|endoftext|>"
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "domain", "text")])

BATCH_DOCUMENTS = 256
TOPICS = "pydoc_data/topics.py"
# Tests are not prose or library code; the build configuration holds paths of one machine.
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
NOT_LIBRARY_PREFIXES = ("config-", "_sysconfigdata")
# What a cut-off or damaged file raises in the middle of reading it.
DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class SourceConfig:
    """One domain's source.

    Attributes:
        path: 'python:docs', 'python:code', or a file, folder (read recursively) or glob of
            .txt .txt.gz .jsonl .jsonl.gz .json.gz (JSON lines) .parquet.
        text_field: the JSON key or parquet column that holds the text; not used by other kinds.
        weight: the domain's share in training, any positive number, relative to the others'.
        gates: names of the gates that apply, from data.gates.NAMES; the order does not matter.
    """

    path: str
    text_field: str
    weight: float
    gates: tuple[str, ...]

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: '' is no path; give a file, folder, glob or python:docs")
        if not self.weight > 0:
            raise ValueError(f"weight: {self.weight} must be a number above 0")
        for name in self.gates:
            if name not in gates.NAMES:
                raise ValueError(f"gates: {name!r} is not one of {', '.join(gates.NAMES)}")


class Record(NamedTuple):
    """One record of a file: its number from 1, its text, and why it is broken ('' = it is not)."""

    number: int
    text: bytes
    why: str


def fingerprint(sources: Mapping[str, SourceConfig]) -> str:
    """Hashes the sources' settings and the content of every input file.

    Args:
        sources: source by domain name.

    Returns:
        32 hexadecimal digits; equal exactly when settings and files are.

    Raises:
        BadInput: a path that is missing or has no file of a kind we read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for domain, config in sorted(sources.items()):
        digest.update(repr((domain, dataclasses.astuple(config))).encode())
        for name, path in list_files(domain, config):
            content = path.read_bytes()
            digest.update(f"\0{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def read(
    domain: str, config: SourceConfig, max_document_bytes: int, broken: list[dict]
) -> Iterator[pa.RecordBatch]:
    """Reads one source as batches of documents.

    Args:
        domain: name of the domain.
        config: its source.
        max_document_bytes: a longer text is cut into several documents, at paragraph or line ends.
        broken: {file, record, why} is appended here for each record passed over.

    Yields:
        Batches of SCHEMA. `source` is the file inside the given folder, with the record's number
        where a file has several; `id` adds the domain, and the part's number where a text was cut.

    Raises:
        BadInput: missing path, no file of a kind we read, or not one document in the source.
    """
    rows, num_documents, num_broken = [], 0, len(broken)
    files = list_files(domain, config)
    for name, path in files:
        for row in _read_file(domain, config, name, path, max_document_bytes, broken):
            rows.append(row)
            num_documents += 1
            if len(rows) == BATCH_DOCUMENTS:
                yield pa.RecordBatch.from_pylist(rows, SCHEMA)
                rows = []
    if not num_documents:
        raise BadInput(_nothing_read(domain, config, len(files), broken[num_broken:]))
    if rows:
        yield pa.RecordBatch.from_pylist(rows, SCHEMA)


def _nothing_read(domain: str, config: SourceConfig, num_files: int, broken: list[dict]) -> str:
    message = (
        f"sources.{domain}.path: {config.path}: not one document in {num_files} file(s) with "
        f"text_field {config.text_field!r}; a text or a text field with a string is needed"
    )
    if broken:
        first = broken[0]
        message += f"; first trouble: {first['file']} record {first['record']}: {first['why']}"
    return message


def _read_file(
    domain: str, config: SourceConfig, name: str, path: Path, max_bytes: int, broken: list[dict]
) -> Iterator[dict]:
    def pass_over(number: int, why: str):
        broken.append({"file": str(path), "record": number, "why": why})

    last = 0
    try:
        for record in _records(config, name, path):
            last = record.number
            if record.why:
                pass_over(record.number, record.why)
                continue
            source = name if _is_whole_file(config, name) else f"{name}:{record.number:08d}"
            pieces = cut(record.text, max_bytes)
            for part, piece in enumerate(pieces):
                try:
                    text = piece.decode()
                except UnicodeDecodeError as error:
                    pass_over(record.number, f"not UTF-8: {error}")
                    continue
                key = f"{domain}/{source}" + (f"#{part:05d}" if len(pieces) > 1 else "")
                yield {"id": key, "source": source, "domain": domain, "text": text}
    except DAMAGE as error:
        pass_over(last + 1, f"the file is damaged or breaks off here: {error}")


def _is_whole_file(config: SourceConfig, name: str) -> bool:
    return config.path in (PYTHON_DOCS, PYTHON_CODE) and name != TOPICS


def _records(config: SourceConfig, name: str, path: Path) -> Iterator[Record]:
    if config.path == PYTHON_CODE:
        return iter([Record(1, path.read_bytes(), "")])
    if config.path == PYTHON_DOCS:
        return _topics(path) if name == TOPICS else _module_docs(name, path)
    if name.endswith((".txt", ".txt.gz")):
        return _texts(path)
    if name.endswith(".parquet"):
        return _parquet_rows(path, config.text_field)
    return _json_lines(path, config.text_field)


def list_files(domain: str, config: SourceConfig) -> list[tuple[str, Path]]:
    """Lists a source's input files as sorted (name inside the source, path) pairs.

    Args:
        domain: name of the domain, for messages.
        config: its source.

    Returns:
        At least one pair.

    Raises:
        BadInput: the path is missing, or holds no file of a kind we read.
    """
    if config.path in (PYTHON_DOCS, PYTHON_CODE):
        return _list_library(domain, config.path)
    path = Path(config.path)
    if path.is_file():
        root, found = path.parent, [path]
    elif path.is_dir():
        root = path
        found = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES)]
    else:
        root, found = _expand(path)
    files = sorted((file.relative_to(root).as_posix(), file) for file in found if file.is_file())
    if not files:
        raise BadInput(f"sources.{domain}.path: {config.path}: no file found; {_allowed()}")
    for name, file in files:
        if not name.endswith(SUFFIXES):
            raise BadInput(f"sources.{domain}.path: {file}: cannot be read; {_allowed()}")
    return files


def _allowed() -> str:
    kinds = " ".join(SUFFIXES)
    return f"allowed: a file, folder or glob of {kinds}, or {PYTHON_DOCS}, or {PYTHON_CODE}"


def _expand(pattern: Path) -> tuple[Path, Iterator[Path]]:
    """Splits a glob at its first wildcard into the folder before it and the files it matches."""
    wild = [any(letter in part for letter in "*?[") for part in pattern.parts]
    if not any(wild):
        return pattern.parent, iter(())
    root = Path(*pattern.parts[: wild.index(True)])
    return root, root.glob(str(Path(*pattern.parts[wild.index(True) :])))


def _list_library(domain: str, kind: str) -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        # Pruned here: site-packages inside the library can be many times its size.
        folders[:] = filter(_is_library, folders)
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        files += [(path.relative_to(root).as_posix(), path) for path in paths]
    files = sorted(file for file in files if _is_library(file[0]))
    if kind == PYTHON_CODE:
        # Its one literal is the reference manual, which is python:docs: not twice.
        files = [(name, path) for name, path in files if name != TOPICS]
    if not files:
        raise BadInput(f"sources.{domain}.path: {kind}: no library sources are kept in {root}")
    return files


def _is_library(name: str) -> bool:
    return name not in NOT_LIBRARY and not name.startswith(NOT_LIBRARY_PREFIXES)


def _topics(path: Path) -> Iterator[Record]:
    """Yields the reference manual's sections, the literal dictionary that pydoc ships."""
    tree = ast.parse(path.read_bytes())
    literal = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    for number, text in enumerate(ast.literal_eval(literal).values(), 1):
        yield _from_string(number, text)


def _module_docs(name: str, path: Path) -> Iterator[Record]:
    """Yields one text: the module's docstrings in order, each under its name and signature."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        yield Record(1, b"", f"not Python: {error}")
        return
    docstrings = [ast.get_docstring(tree), *_docstrings(tree, "")]
    sections = [text for text in docstrings if text]
    if sections:
        yield _from_string(1, "\n\n".join([f"module {module}", *sections]) + "\n")


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


def _from_string(number: int, text: str) -> Record:
    try:
        return Record(number, text.encode(), "")
    except UnicodeEncodeError as error:
        return Record(number, b"", f"not Unicode text: {error}")


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        yield from stream


def _texts(path: Path) -> Iterator[Record]:
    """Yields the texts between separator lines; a file without such a line is one text."""
    number, lines = 1, []
    for line in _lines(path):
        if line.strip() == SEPARATOR:
            yield Record(number, b"".join(lines), "")
            number, lines = number + 1, []
        else:
            lines.append(line)
    rest = b"".join(lines)
    if rest.strip():
        yield Record(number, rest, "")


def _json_lines(path: Path, field: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield _json_record(number, line, field)


def _json_record(number: int, line: bytes, field: str) -> Record:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Record(number, b"", f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return Record(number, b"", f"malformed JSON: {error}")
    if not isinstance(value, dict):
        return Record(number, b"", f"a JSON {type(value).__name__}, not an object")
    if field not in value:
        return Record(number, b"", f"no field {field!r}; its fields are {sorted(value)}")
    text = value[field]
    if not isinstance(text, str):
        return Record(number, b"", f"field {field!r} is {type(text).__name__}, not a string")
    return _from_string(number, text)


def _parquet_rows(path: Path, field: str) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            names = sorted(file.schema_arrow.names)
            yield Record(1, b"", f"no column {field!r}; its columns are {names}")
            return
        number = 0
        for batch in file.iter_batches(BATCH_DOCUMENTS, columns=[field]):
            for value in batch.column(0):
                number += 1
                yield _parquet_record(number, value, field)


def _parquet_record(number: int, value: pa.Scalar, field: str) -> Record:
    if not (pa.types.is_string(value.type) or pa.types.is_large_string(value.type)):
        return Record(number, b"", f"column {field!r} is {value.type}, not a string")
    if not value.is_valid:
        return Record(number, b"", f"column {field!r} is null")
    return Record(number, value.as_buffer().to_pybytes(), "")


def cut(text: bytes, max_bytes: int) -> list[bytes]:
    """Cuts a text into pieces, at the last paragraph end that leaves no small piece, else line end.

    Args:
        text: UTF-8.
        max_bytes: longest piece; at least 4, the longest UTF-8 character.

    Returns:
        The pieces, which together are the text; none splits a character.
    """
    pieces, start = [], 0
    while len(text) - start > max_bytes:
        end = _cut_end(text, start + max_bytes // 2, start + max_bytes)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _cut_end(text: bytes, low: int, high: int) -> int:
    for mark in (b"\n\n", b"\n\r\n", b"\n"):
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + len(mark)
    for end in range(high, high - 3, -1):
        if text[end] & 0xC0 != 0x80:
            return end
    return high - 3
