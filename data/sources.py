"""Sources: files of any kind, recognised by their content, read as documents of one schema.

A file or record that cannot be read is counted, named with the reason, and skipped. Same files,
same documents.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data import storage
from data.document import EXTRACTORS, Record
from data.errors import BadInput, printable
from data.gates import chain
from data.kinds import recognise
from data.mixture.plan import MAX_WEIGHT
from data.quickstart import python_library
from data.readers import archives, code, tfds
from data.readers.borders import attempt, to_the_damage
from data.readers.fields import Fields

AUTO, TFDS = "auto", "tfds:"
HASHING_THREADS = 4


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        domain: that it makes when none is named.
        gates: that suit it.
        reader: MODULE:FUNCTION that reads a path's records, imported when a file is read; a task's
            key holds its code.
        takes: what it is given beside the path: name or root of the file, extract, fields, or what
            reads a file inside it.
        is_whole: whether a file is one document: its number in the file says nothing.
    """

    domain: str
    gates: tuple[str, ...]
    reader: str
    takes: tuple[str, ...] = ()
    is_whole: bool = False


FIELDS = ("fields",)
KINDS = {
    "warc": Kind("web", chain.FOR_WEB, "data.readers.web:read", ("extract",)),
    "html": Kind("web", chain.FOR_WEB, "data.readers.web:read_html", ("extract",), True),
    "json": Kind("text", chain.FOR_TEXT, "data.readers.tables:read_json", FIELDS),
    "parquet": Kind("text", chain.FOR_TEXT, "data.readers.parquet:read", FIELDS),
    "csv": Kind("text", chain.FOR_TEXT, "data.readers.tables:read_csv", FIELDS),
    "text": Kind("text", chain.FOR_TEXT, "data.readers.tables:read_text"),
    "tfds": Kind("text", chain.FOR_TEXT, "data.readers.tfds:read", FIELDS),
    "wikipedia": Kind("encyclopedia", chain.FOR_PROSE, "data.readers.wikitext:read"),
    "latex": Kind("papers", chain.FOR_LATEX, "data.readers.latex:read"),
    "stackexchange": Kind("forum", chain.FOR_PROSE, "data.readers.forums:read_stack_exchange"),
    "threads": Kind("forum", chain.FOR_PROSE, "data.readers.forums:read_threads"),
    "notebook": Kind("notebooks", chain.FOR_PROSE, "data.readers.notebooks:read", (), True),
    "archive": Kind("archives", chain.FOR_TEXT, "data.readers.archives:read", ("read_file",)),
    "code": Kind("code", chain.FOR_CODE, "data.readers.code:read", ("root",), True),
    "python:docs": Kind(
        "docs", chain.FOR_PROSE, "data.quickstart.python_library:read_docs", ("name",)
    ),
    "python:code": Kind(
        "code", chain.FOR_CODE, "data.quickstart.python_library:read_code", (), True
    ),
}
# What makes plain text of a markup.
CONVERTERS = {
    "html": "data.readers.web:extract",
    "latex": "data.readers.latex:to_text",
    "wikitext": "data.readers.wikitext:to_text",
    "book": "data.readers.books:clean",
}
MARKUPS = (AUTO, "plain", *CONVERTERS)


@dataclass(frozen=True)
class SourceConfig:
    """One domain's source.

    Attributes:
        path: a file, folder (read recursively) or glob, several separated by commas, local or on
            an object store; 'python:docs' or 'python:code', the running Python's own; or
            'tfds:NAME[/CONFIG][:VERSION]:SPLIT', a data set of TensorFlow Datasets that is prepared
            as array_record, in TFDS's own folder or in that of TFDS_DATA_DIR.
        kind: what the files are, one of KINDS; 'auto' looks into each.
        markup: what their texts are written in, one of MARKUPS; 'auto' goes by the kind.
        extract: text from HTML: main (content), page (whole) or trafilatura.
        text_field: the JSON key or column that holds the text; '' takes the first usual one.
        weight: the domain's share in training, any positive number, relative to the others'. It
            changes what training reads, not what curation makes.
        gates: those that apply, in any order: names of data.gates.chain.NAMES or, of a family, of
            data.gates.chain.FAMILIES; ('auto',) takes what suits the kind.
    """

    path: str
    kind: str = "auto"
    markup: str = "auto"
    extract: str = "main"
    text_field: str = ""
    weight: float = dataclasses.field(default=1.0, metadata={"identity": False})
    gates: tuple[str, ...] = ("auto",)

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: '' is no path; give a file, folder, glob or python:docs")
        if self.path.startswith("python:") and self.path not in python_library.KINDS:
            allowed = ", ".join(python_library.KINDS)
            raise ValueError(f"path: {self.path!r} is not one of {allowed}")
        for key, allowed in (
            ("kind", (AUTO, *KINDS)),
            ("markup", MARKUPS),
            ("extract", EXTRACTORS),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}"
                )
        if not 0 < self.weight < MAX_WEIGHT:
            raise ValueError(f"weight: {self.weight} must be above 0 and below {MAX_WEIGHT}")
        if self.gates != (AUTO,):
            chain.expand(self.gates)


class Unit(NamedTuple):
    """One input file: its domain, what it is, and what its content hashes to."""

    domain: str
    kind: str
    file: storage.File
    identity: str


class Survey(NamedTuple):
    """What the sources hold: domains with their gates; files; and those that are unknown."""

    sources: Mapping[str, SourceConfig]
    units: list[Unit]
    broken: list[dict]


def survey(sources: str | Mapping[str, SourceConfig]) -> Survey:
    """Finds every file of the sources, recognises and hashes it.

    Args:
        sources: source by domain; or one path, glob or list of them, whose domains follow from
            what the files are.

    Returns:
        Domains in order of their names, files in order of domain and name.

    Raises:
        BadInput: a path at which nothing is that we read.
    """
    given = {"": _from_path(sources)} if isinstance(sources, str) else sources
    code.forget_licences()
    found, units, broken = {}, [], []
    for domain, source in sorted(given.items()):
        key = f"data.sources.{domain}.path" if domain else "data.sources"
        recognised = _recognise(key, source)
        if not any(kind in KINDS for _, kind in recognised):
            file, why = recognised[0]
            raise BadInput(
                f"{key}: {source.path}: not one document in {len(recognised)} file(s) of kinds "
                f"that we read; first trouble: {printable(file.path)}: {why}"
            )
        for file, kind in recognised:
            if kind not in KINDS:
                broken.append({"file": printable(file.path), "record": 0, "why": kind})
                continue
            name = domain or KINDS[kind].domain
            wanted = KINDS[kind].gates if source.gates == (AUTO,) else source.gates
            # Of several kinds in one domain: all that suits one of them.
            known = found[name].gates if name in found else ()
            found[name] = dataclasses.replace(source, gates=chain.expand((*known, *wanted)))
            units.append(Unit(name, kind, file, ""))
    units.sort(key=lambda unit: (unit.domain, unit.file.name, unit.file.path))
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        identities = list(pool.map(_identity, units))
    units = [unit._replace(identity=key) for unit, key in zip(units, identities, strict=True)]
    return Survey(dict(sorted(found.items())), units, broken)


def _from_path(path: str) -> SourceConfig:
    try:
        return SourceConfig(path, AUTO, AUTO, "main", "", 1.0, (AUTO,))
    except ValueError as error:
        raise BadInput(f"data.sources: {str(error).removeprefix('path: ')}") from error


def _recognise(key: str, source: SourceConfig) -> list[tuple[storage.File, str]]:
    """Files and their kinds; what takes the place of a kind says why a file has none."""
    if source.path in python_library.KINDS:
        return [(file, source.path) for file in python_library.list_files(source.path)]
    if source.path.startswith(TFDS):
        return [(file, "tfds") for file in tfds.list_files(key, source.path)]
    found = storage.find(key, source.path)
    if source.kind != AUTO:
        return [(file, _why_not(file) or source.kind) for file in found]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(zip(found, pool.map(kind_of, found), strict=True))


def kind_of(file: storage.File) -> str:
    """One of KINDS, or a sentence that says why a file is none."""
    try:
        return _why_not(file) or recognise(file.name, storage.head(file.path))
    except storage.DAMAGE as error:
        is_there = not isinstance(error, OSError) or error.errno is None
        return f"the file is damaged: {error}" if is_there else f"cannot be read: {error}"


def _why_not(file: storage.File) -> str:
    return f"cannot be listed: {file.why}" if file.why else ""


def _identity(unit: Unit) -> str:
    """What changes when the content does: its hash, or on an object store its size and time."""
    file = unit.file
    beside = f" {code.find_licence(file.path, file.root)}" if unit.kind == "code" else ""
    if "://" in file.path:
        return f"{file.num_bytes}:{file.changed}{beside}"
    if unit.kind == "tfds":
        return tfds.hash_files(file.path)
    try:
        return storage.hash_content(file.path) + beside
    except OSError as error:
        raise BadInput(f"{printable(file.path)}: {error.strerror}") from error


def refuse_changed(units: list[Unit]) -> None:
    """Refuses files whose content is another than when they were found."""
    for unit in units:
        if _identity(unit) != unit.identity:
            raise BadInput(f"{printable(unit.file.path)}: has changed while it was read; run again")


def refuse_missing(sources: str | Mapping[str, SourceConfig]) -> None:
    """Refuses a local path at which nothing is; no store is asked."""
    given = {"": _from_path(sources)} if isinstance(sources, str) else sources
    for domain, source in given.items():
        is_elsewhere = source.path in python_library.KINDS or source.path.startswith(TFDS)
        if not is_elsewhere and "://" not in source.path:
            storage.find(f"data.sources.{domain}.path" if domain else "data.sources", source.path)


def refuse_around(sources: str | Mapping[str, SourceConfig], folder: Path) -> None:
    """Refuses a local source folder that holds the run, whose own files would be read as texts."""
    given = {"": _from_path(sources)} if isinstance(sources, str) else sources
    for domain, source in given.items():
        key = f"data.sources.{domain}.path" if domain else "data.sources"
        for path in map(Path, map(str.strip, source.path.split(","))):
            if not path.is_dir() or not folder.resolve().is_relative_to(path.resolve()):
                continue
            names = folder.resolve().relative_to(path.resolve()).parts
            if not any(name.startswith(".") for name in names):  # hidden folders are not read
                raise BadInput(f"{key}: {path} holds {folder}; a run must not lie in its sources")


def fingerprint(sources: str | Mapping[str, SourceConfig]) -> str:
    """Hashes the sources' settings and the content of every input file, not where they are.

    Weights are left out: curation does not read them.

    Returns:
        32 hexadecimal digits; equal exactly when settings and files are.

    Raises:
        BadInput: a path that is missing or has no file of a kind we read.
    """
    found = survey(sources)
    left_out = {"path": "", "weight": 1.0}
    plain = {name: dataclasses.asdict(one) | left_out for name, one in found.sources.items()}
    units = [(unit.domain, unit.kind, unit.file.name, unit.identity) for unit in found.units]
    text = json.dumps([plain, units, [row["file"] for row in found.broken]])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read(
    unit: Unit, source: SourceConfig, max_document_bytes: int, broken: list[dict]
) -> Iterator[dict]:
    """Reads one file as documents.

    Args:
        unit: the file.
        source: its domain's source.
        max_document_bytes: a longer text is cut into several documents, as `cut` does.
        broken: {file, record, why} is appended here for each record skipped.

    Yields:
        Rows of data.document.SCHEMA, and the `markup` that the text was in.
    """

    def pass_over(number: int, why: str):
        broken.append({"file": printable(unit.file.path), "record": number, "why": why})

    for record in to_the_damage(_records(unit, source)):
        if record.why:
            pass_over(record.number, record.why)
        else:
            yield from _documents(unit, source, record, max_document_bytes, pass_over)


def _records(unit: Unit, source: SourceConfig, depth: int = 0) -> Iterator[Record]:
    def read_file(path: str, name: str) -> Iterator[Record]:
        file = storage.File(name, path, str(Path(path).parent), 0)
        kind = kind_of(file)
        if kind == "archive" and depth == archives.MAX_DEPTH:
            kind = f"an archive inside of {archives.MAX_DEPTH} others"
        if kind in KINDS:
            yield from _records(unit._replace(kind=kind, file=file), source, depth + 1)
        else:
            yield Record(1, "", kind)

    kind = KINDS[unit.kind]
    given = {"name": unit.file.name, "root": unit.file.root, "extract": source.extract}
    given |= {"fields": Fields(source.text_field), "read_file": read_file}
    return _find(kind.reader)(unit.file.path, *(given[name] for name in kind.takes))


def _find(function: str) -> Callable:
    """MODULE:FUNCTION, imported now."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def modules(kind: str, source: SourceConfig) -> list[str]:
    """The modules that files of a kind are read with, which are imported as late as that."""
    readers = [one.reader for one in KINDS.values()] if kind == "archive" else [KINDS[kind].reader]
    functions = (*readers, CONVERTERS.get(source.markup, ""))
    return [function.partition(":")[0] for function in functions if function]


def _documents(unit: Unit, source: SourceConfig, record: Record, max_bytes: int, pass_over):
    """The documents of a record: one, or several where its text is long."""
    is_whole = KINDS[unit.kind].is_whole or (
        unit.kind == "python:docs" and unit.file.name != python_library.TOPICS
    )
    name = unit.file.name if is_whole else f"{unit.file.name}:{record.number:08d}"
    markup = record.markup if source.markup == AUTO else source.markup
    made = attempt(record.number, _plain, record, markup, source.extract)
    if made.why:
        pass_over(record.number, made.why)
        return
    pieces = cut(made.text.encode(), max_bytes)
    meta = json.dumps(dict(record.meta), ensure_ascii=False, sort_keys=True) if record.meta else ""
    for part, piece in enumerate(pieces):
        yield {
            "id": f"{unit.domain}/{name}" + (f"#{part:05d}" if len(pieces) > 1 else ""),
            "source": name,
            "domain": unit.domain,
            "language": record.language,
            "url": record.url,
            "date": record.date,
            "text": piece.decode(),
            "meta": meta,
            "markup": markup,
        }


def _plain(record: Record, markup: str, extract: str) -> Record:
    """The record as plain text; a broken one where it is not Unicode."""
    text = record.text
    if markup in CONVERTERS:
        convert = _find(CONVERTERS[markup])
        text = convert(text, extract) if markup == "html" else convert(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Record(record.number, "", f"not Unicode text: {error}")
    return record._replace(text=text)


def cut(text: bytes, max_bytes: int) -> list[bytes]:
    """Cuts a text at the last paragraph end that leaves no small piece, else line end, else blank.

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
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + len(mark)
    for end in range(high, high - 3, -1):
        if text[end] & 0xC0 != 0x80:
            return end
    return high - 3
