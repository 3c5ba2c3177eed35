"""Sources: files of any kind, recognised by their content, read as documents of one schema.

A file or record that cannot be read is counted, named with the reason, and skipped. Same files,
same documents.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data import files, gates, unpacking
from data.document import EXTRACTORS, Record
from data.errors import BadInput
from data.mixture import MAX_WEIGHT
from data.readers import code, python_library
from data.readers.examples import FEATURES_FILE
from data.recognition import recognise

AUTO = "auto"
MARKUPS = (AUTO, "plain", "html", "latex", "wikitext", "book")
# What a cut-off or damaged file raises in the middle of reading it.
DAMAGE = (*files.DAMAGE, pa.ArrowException)
HASHING_THREADS = 4


class Kind(NamedTuple):
    """A kind of file: the domain it makes when none is named, and the gates that suit it."""

    domain: str
    gates: tuple[str, ...]


KINDS = {
    "warc": Kind("web", gates.FOR_WEB),
    "html": Kind("web", gates.FOR_WEB),
    "json": Kind("text", gates.FOR_TEXT),
    "parquet": Kind("text", gates.FOR_TEXT),
    "csv": Kind("text", gates.FOR_TEXT),
    "text": Kind("text", gates.FOR_TEXT),
    "tfds": Kind("text", gates.FOR_TEXT),
    "wikipedia": Kind("encyclopedia", gates.FOR_PROSE),
    "latex": Kind("papers", gates.FOR_LATEX),
    "stackexchange": Kind("forum", gates.FOR_PROSE),
    "threads": Kind("forum", gates.FOR_PROSE),
    "mail": Kind("mail", gates.FOR_PROSE),
    "code": Kind("code", gates.FOR_CODE),
    "python:docs": Kind("docs", gates.FOR_PROSE),
    "python:code": Kind("code", gates.FOR_CODE),
}
# A file of these is one document: its number in the file says nothing.
WHOLE_FILES = ("html", "code", "python:code")


@dataclass(frozen=True)
class SourceConfig:
    """One domain's source.

    Attributes:
        path: a file, folder (read recursively) or glob, several separated by commas, local or on
            an object store; or 'python:docs' or 'python:code', the running Python's own.
        kind: what the files are, one of KINDS; 'auto' looks into each.
        markup: what their texts are written in, one of MARKUPS; 'auto' goes by the kind.
        extract: text from HTML: main (content), page (whole) or trafilatura.
        text_field: the JSON key or column that holds the text; '' takes the first usual one.
        weight: the domain's share in training, any positive number, relative to the others'. It
            changes what training reads, not what curation makes.
        gates: those that apply, in any order: names of data.gates.NAMES or, of a family, of
            data.gates.FAMILIES; ('auto',) takes what suits the kind.
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
            gates.expand(self.gates)


class Unit(NamedTuple):
    """One input file: its domain, what it is, and what its content hashes to."""

    domain: str
    kind: str
    file: files.File
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
                f"that we read; first trouble: {file.path}: {why}"
            )
        for file, kind in recognised:
            if kind not in KINDS:
                broken.append({"file": file.path, "record": 0, "why": kind})
                continue
            name = domain or KINDS[kind].domain
            wanted = KINDS[kind].gates if source.gates == (AUTO,) else source.gates
            # Of several kinds in one domain: all that suits one of them.
            known = found[name].gates if name in found else ()
            found[name] = dataclasses.replace(source, gates=gates.expand((*known, *wanted)))
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


def _recognise(key: str, source: SourceConfig) -> list[tuple[files.File, str]]:
    """Files and their kinds; what takes the place of a kind says why a file has none."""
    if source.path in python_library.KINDS:
        return [(file, source.path) for file in python_library.list_files(source.path)]
    found = files.find(key, source.path)
    if source.kind != AUTO:
        return [(file, _why_not(file) or source.kind) for file in found]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(zip(found, pool.map(kind_of, found), strict=True))


def kind_of(file: files.File) -> str:
    """One of KINDS, or a sentence that says why a file is none."""
    try:
        return _why_not(file) or recognise(file.name, files.head(file.path))
    except DAMAGE as error:
        is_there = not isinstance(error, OSError) or error.errno is None
        return f"the file is damaged: {error}" if is_there else f"cannot be read: {error}"


def _why_not(file: files.File) -> str:
    return f"cannot be listed: {file.why}" if file.why else ""


def _identity(unit: Unit) -> str:
    """What changes when the content does: its hash, or on an object store its size and time."""
    file = unit.file
    beside = f" {code.find_licence(file.path, file.root)}" if unit.kind == "code" else ""
    if "://" in file.path:
        return f"{file.num_bytes}:{file.changed}{beside}"
    try:
        features = Path(file.path).with_name(FEATURES_FILE)
        if unit.kind == "tfds" and features.is_file():  # it says what is in the shard
            beside = f" {files.hash_content(str(features))}"
        return files.hash_content(file.path) + beside
    except OSError as error:
        raise BadInput(f"{file.path}: {error.strerror}") from error


def refuse_changed(units: list[Unit]) -> None:
    """Refuses files whose content is another than when they were found."""
    for unit in units:
        if _identity(unit) != unit.identity:
            raise BadInput(f"{unit.file.path}: has changed while it was read; run again")


def refuse_missing(sources: str | Mapping[str, SourceConfig]) -> None:
    """Refuses a local path at which nothing is; no store is asked."""
    given = {"": _from_path(sources)} if isinstance(sources, str) else sources
    for domain, source in given.items():
        if source.path not in python_library.KINDS and "://" not in source.path:
            files.find(f"data.sources.{domain}.path" if domain else "data.sources", source.path)


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
    last = 0
    unpacking.take_garbage(unit.file.path)  # That which was met before is not of this reading.

    def pass_over(number: int, why: str):
        broken.append({"file": unit.file.path, "record": number, "why": why})

    try:
        for record in _records(unit, source):
            last = record.number
            if record.why:
                pass_over(record.number, record.why)
                continue
            yield from _documents(unit, source, record, max_document_bytes, pass_over)
    except DAMAGE as error:
        pass_over(last + 1, f"the file is damaged or breaks off here: {error}")
    if why := unpacking.take_garbage(unit.file.path):
        pass_over(last + 1, why)


def _records(unit: Unit, source: SourceConfig) -> Iterator[Record]:
    # Late, for a command that only reads its configuration answers sooner without them.
    from data.readers import forums, latex, mail, tables, web, wikitext

    path, kind = unit.file.path, unit.kind
    fields = tables.Fields(source.text_field, "", "", "")
    if kind in python_library.KINDS:
        return python_library.read(kind, path, unit.file.name)
    readers = {
        "warc": lambda: web.read(path, source.extract),
        "html": lambda: web.read_html(path, source.extract),
        "json": lambda: tables.read_json(path, fields),
        "parquet": lambda: tables.read_parquet(path, fields),
        "csv": lambda: tables.read_csv(path, fields),
        "text": lambda: tables.read_text(path),
        "tfds": lambda: tables.read_tfds(path, fields),
        "wikipedia": lambda: wikitext.read(path),
        "latex": lambda: latex.read(path),
        "stackexchange": lambda: forums.read_stack_exchange(path),
        "threads": lambda: forums.read_threads(path),
        "mail": lambda: mail.read(path),
        "code": lambda: code.read(path, unit.file.root),
    }
    return readers[kind]()


def _documents(unit: Unit, source: SourceConfig, record: Record, max_bytes: int, pass_over):
    """The documents of a record: one, or several where its text is long."""
    is_whole = unit.kind in WHOLE_FILES or (
        unit.kind == "python:docs" and unit.file.name != python_library.TOPICS
    )
    name = unit.file.name if is_whole else f"{unit.file.name}:{record.number:08d}"
    markup = record.markup if source.markup == AUTO else source.markup
    try:
        pieces = cut(_plain(record.text, markup, source.extract).encode(), max_bytes)
    except UnicodeEncodeError as error:
        pass_over(record.number, f"not Unicode text: {error}")
        return
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


def _plain(text: str, markup: str, extract: str) -> str:
    from data.readers import books, latex, web, wikitext

    if markup == "html":
        return web.extract(text, extract)
    if markup == "latex":
        return latex.to_text(text)
    if markup == "wikitext":
        return wikitext.to_text(text)
    return books.clean(text) if markup == "book" else text


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
