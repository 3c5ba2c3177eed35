r"""LaTeX to readable text that keeps its mathematics: single sources and arXiv's archives.

Mathematics stays as it is written, within $...$, \[...\] and the like, less \label. The author's
own commands are expanded, those with arguments too (RedPajama, Weber et al. 2024,
https://arxiv.org/abs/2411.12372, expands those without). Comments, preamble, bibliography, drawings
and front matter but the title go. \cite[p. 3]{key} becomes [key, p. 3] and \ref{key} [key]: numbers
are not known here, and a sentence breaks without either. Footnotes stand in brackets; headings,
captions and names of theorems on lines of their own; a row of a table on a line, ' | ' between its
cells. \$ stays, to be told from mathematics. Of an unknown command with one argument the argument
stays; with none, or several, the command stays too. Line ends stay where they are.
"""

import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from data import storage
from data.document import Record
from data.readers.borders import attempt
from data.readers.latex_macros import Macro, define, expand
from data.readers.latex_scan import GROUP, OPTION, Scanner, environment
from data.readers.latex_words import THEOREMS
from data.unpacking import MAX_WHOLE_BYTES, open_tar, unpack, whole

MAX_TEX_BYTES = MAX_WHOLE_BYTES
MAX_INPUT_DEPTH = 20
DAMAGE = (*storage.DAMAGE, tarfile.TarError)
NO_LATEX = "no LaTeX in it"
TEX_SUFFIXES = ("", ".tex", ".ltx", ".latex", ".sty")

LITERAL = r"\{(?:verbatim\*?|[BL]?Verbatim|lstlisting|minted|alltt)\}"
COMMENTED = r"\{comment\}"
# A comment takes the line's end and the next one's indent with it, unless a paragraph ends there.
HOLD = re.compile(
    r"%(?:(?<!\\%)|(?<=[^\\]\\\\%))[^\n]*+(?:\n[ \t]*+(?=\S))?"
    rf"|\\(?:{environment(COMMENTED)}|(?P<literal>{environment(LITERAL)})"
    r"|iffalse\b(?:[^\\]++|\\(?!(?:iffalse|fi)\b)(?s:.))*+\\fi\b"
    r"|(?:verb|lstinline)\*?+(?P<mark>[^\sA-Za-z*])(?P<verb>[^\n]{0,300}?)(?P=mark)"
    r"|(?:url|path|nolinkurl)\s*+\{(?P<url>[^{}\n]*+)\})"
)
LITERAL_ENDS = re.compile(rf"\Abegin{LITERAL}(?:{OPTION}|{GROUP})*+[ \t]*\n?|\\end{LITERAL}\Z")
HELD = re.compile("\0([0-9]+)\0")
BEGIN_DOCUMENT = re.compile(r"\\begin\s*\{document\}")
END_DOCUMENT = re.compile(r"\\end\s*\{document\}")
TITLE = re.compile(rf"\\title\s*+(?:{OPTION}\s*+)?({GROUP})")
# With the blanks after it where some stand before it, with its line's end where nothing does.
LABEL = re.compile(
    r"\\label(?:(?:(?<=\n\\label)|(?<=\n[ \t]\\label)|(?<=\n[ \t]{2}\\label)"
    rf"|(?<=\n[ \t]{{4}}\\label))\s*+{GROUP}[ \t]*+\n"
    rf"|(?<=[ \t\n]\\label)\s*+{GROUP}[ \t]*+|\s*+{GROUP})"
)
NEW_THEOREM = re.compile(
    rf"\\newtheorem\*?\s*+\{{([^{{}}]*+)\}}\s*+(?:{OPTION}\s*+)?({GROUP})(?:[ \t]*+{OPTION})?"
)
CELL = re.compile(r"[ \t]*+\0\|[ \t]*+")
EMPTY_LINES = re.compile(r"\n\n\n+")

MAIN = re.compile(r"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)
TEX_WORD = re.compile(rb"\\(?:begin|document(?:class|style)|input|section|title|def|end|bye)\b")
INPUT = re.compile(
    r"%(?<!\\%)[^\n]*+|\\(?:(?:input|include|subfile)\s*+\{(?P<braced>[^{}]*+)\}"
    rf"|input\s++(?P<bare>[^\s{{}}\\%]++)|usepackage\s*+(?:{OPTION}\s*+)?\{{(?P<style>[^{{}}]*+)\}})"
)
# A packed member that is a paper of its own, not a packed figure: m[1] is its other suffix.
PACKED = re.compile(r"(?:\A|/)[^/]*?(\.[A-Za-z]{1,4})?(?:\.tar)?\.t?gz\Z", re.IGNORECASE)
STEM = re.compile(r"([^/]*?)(?:\.(?:tar|tgz|gz|tex|pdf))*\Z", re.IGNORECASE)
MONTH = r"(?P<year>\d\d)(?P<month>0[1-9]|1[0-2])"
ARXIV_ID = re.compile(rf"(?P<id>{MONTH}\.\d{{4,5}})(?:v\d+)?")
# Until March 2007: the archive's name and seven digits, in file names without the slash.
OLD_ARXIV_ID = re.compile(
    r"(?P<archive>(?:acc|alg|ao|astro|atom|bayes|chao|chem|cmp|comp|cond|dg|funct|gr|hep|math|mtrl|nucl"
    r"|patt|plasm|q|quant|solv|supr|adap)-[a-z]+|math|cs|physics|nlin|stat)(?:\.[A-Z]{2})?/?"
    rf"(?P<number>{MONTH}\d{{3}})(?:v\d+)?"
)


def to_text(source: str) -> str:
    r"""Turns LaTeX into readable text.

    Args:
        source: a document, or a part of one without \begin{document}; nothing has to match.

    Returns:
        The text as the module's docstring says, with one newline last unless it is empty.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    held: list[str] = []
    source = HOLD.sub(lambda found: _hold(found, held), source)
    head, body = _split(source)
    titles = dict(THEOREMS)
    if "\\newtheorem" in source:
        for name, title in NEW_THEOREM.findall(source):
            titles[name.rstrip("*")] = Scanner(title, {}).run().strip() + "."
        body = NEW_THEOREM.sub("", body)
    macros: dict[str, Macro] = {}
    define(head, macros)
    if found := TITLE.findall(head):
        body = f"\\title{found[-1]}\n{body}"
    body = expand(body, macros)
    if "\\label" in body:
        body = LABEL.sub("", body)
    text = Scanner(body, titles).run()
    if "\0|" in text:
        text = CELL.sub(" | ", text)
    text = "\n".join([line.strip() for line in text.split("\n")])
    text = EMPTY_LINES.sub("\n\n", text).strip("\n")
    text = HELD.sub(lambda found: held[int(found[1])], text)
    return text + "\n" if text else ""


def _hold(found: re.Match, held: list[str]) -> str:
    """Nothing for a comment; a mark for what is literal, so that no later step reads it."""
    kind = found.lastgroup
    if kind is None:
        return ""
    text = found["literal"] or found["verb"] or found["url"] or ""
    if found["literal"]:
        text = LITERAL_ENDS.sub("", text).rstrip("\n")
    held.append(text)
    mark = f"\0{len(held) - 1}\0"
    return f"\n\n{mark}\n\n" if found["literal"] else mark


def _split(source: str) -> tuple[str, str]:
    begin = BEGIN_DOCUMENT.search(source)
    start = begin.end() if begin else 0
    end = END_DOCUMENT.search(source, start)
    return source[: begin.start() if begin else 0], source[start : end.start() if end else None]


def read(path: str) -> Iterator[Record]:
    r"""Reads LaTeX as arXiv serves it.

    Args:
        path: a source, packed or not; a tar of one paper; or a tar of many papers, each packed by
            itself, as in arXiv's bulk archives. Local or on an object store.

    Yields:
        A record a paper, as text; `meta` holds its title, the number of files it came in, and
        its arXiv identifier where the name is one; \input is followed inside the paper. A paper
        without LaTeX, that is damaged, or with more of it than MAX_TEX_BYTES, is a broken record.

    Raises:
        OSError, tarfile.TarError: the file cannot be opened, or is damaged or breaks off behind the
            last record.
    """
    with storage.open_plain(path) as stream:
        for number, record in enumerate(_papers(stream, path, _holds_paper), 1):
            yield record._replace(number=number)


def _papers(stream: io.BufferedReader, name: str, holds_paper) -> Iterator[Record]:
    """The papers in a stream: those in members that `holds_paper` names, and the rest as one."""
    block = stream.peek(tarfile.BLOCKSIZE)[: tarfile.BLOCKSIZE]
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        with whole(stream) as data:
            yield attempt(1, _single, data, name)
        return
    sources: dict[str, bytes] = {}
    num_files, num_papers, num_bytes = 0, 0, 0
    with open_tar(stream) as archive:
        for member in archive:
            num_files += member.isfile()
            if member.isfile() and holds_paper(member.name):
                num_papers += 1
                yield attempt(1, _inner_paper, archive.extractfile(member), member.name)
            elif member.isfile() and _suffix(member.name) in TEX_SUFFIXES:
                num_bytes += member.size
                if num_bytes <= MAX_TEX_BYTES:
                    sources[posixpath.normpath(member.name)] = archive.extractfile(member).read()
        if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("no header where one should be")
    if num_bytes > MAX_TEX_BYTES:
        yield _broken(name, f"{num_bytes} bytes of LaTeX; at most {MAX_TEX_BYTES} are read")
    elif sources or not num_papers:
        yield attempt(1, _paper, sources, num_files, name)


def _holds_paper(name: str) -> bool:
    if _identify(name):
        return name.lower().endswith((".gz", ".tgz", ".pdf"))
    packed = PACKED.search(name)
    return bool(packed) and (packed[1] or "").lower() in (".tar", *TEX_SUFFIXES)


def _inner_paper(content: BinaryIO, name: str) -> Record:
    if name.lower().endswith(".pdf"):
        return _broken(name, "a PDF without its LaTeX")
    try:
        with unpack(content) as stream:
            return next(_papers(stream, name, lambda _: False))
    except DAMAGE as error:
        return _broken(name, f"damaged: {error}")


def _single(data: bytes, name: str) -> Record:
    if data.startswith(b"%PDF"):
        return _broken(name, "a PDF without its LaTeX")
    if not TEX_WORD.search(data) and _suffix(name) not in TEX_SUFFIXES[1:]:
        return _broken(name, NO_LATEX)
    return _paper({posixpath.basename(name): data}, 1, name)


def _paper(members: dict[str, bytes], num_files: int, name: str) -> Record:
    sources = {member: _decode(data) for member, data in members.items() if b"\0" not in data}
    # Without a suffix, a LICENSE or README of any archive may stand there too.
    texts = [
        member
        for member in sorted(sources)
        if not member.endswith(".sty")
        if _suffix(member) or TEX_WORD.search(members[member])
    ]
    if not texts:
        return _broken(name, NO_LATEX)
    mains = [text for text in texts if MAIN.search(sources[text])] or texts
    # The longest body: a file that others are put into is longer than they are.
    papers = [_flatten(main, sources, set(), 0) for main in mains]
    source = max(papers, key=lambda paper: len(_split(paper)[1]))
    text = to_text(source)
    if not text:
        return _broken(name, "no text in it")
    titles = TITLE.findall(source)
    title = " ".join(to_text(titles[-1]).split()) if titles else ""
    meta = {"title": title, "files": num_files}
    if not (identity := _identify(name)):
        return Record(0, text, meta=meta)
    key, date = identity
    url = f"https://arxiv.org/abs/{key}"
    return Record(0, text, url=url, date=date, meta=meta | {"arxiv_id": key})


def _broken(name: str, why: str) -> Record:
    identity = _identify(name)
    meta = {"arxiv_id": identity[0]} if identity else {"name": name} if name else {}
    return Record(0, "", why, meta=meta)


def _inputs(found: re.Match, current: str, sources: Mapping[str, str]) -> list[str]:
    r"""The files of a paper that an \input or \usepackage puts in; none for a comment."""
    if found["style"]:
        wanted = [name.strip() + ".sty" for name in found["style"].split(",")]
    else:
        wanted = [(found["braced"] or found["bare"] or "").strip(' "')]
    # TeX looks in the main file's folder; that is the current one or one above it.
    folder, keys = posixpath.dirname(current), []
    folders = [folder] + [
        folder[:at] for at in range(len(folder), 0, -1) if folder[at - 1 : at] == "/"
    ]
    for name in filter(None, wanted):
        paths = (posixpath.normpath(posixpath.join(f, name)).lstrip("./") for f in (*folders, ""))
        found_keys = (key for path in paths for key in (path, path + ".tex") if key in sources)
        keys += [key for key in [next(found_keys, None)] if key]
    return keys


def _flatten(main: str, sources: Mapping[str, str], seen: set[str], depth: int) -> str:
    """A source with those that it puts in, each once."""

    def put_in(found: re.Match) -> str:
        parts = [
            _flatten(key, sources, seen, depth + 1)
            for key in _inputs(found, main, sources)
            if key not in seen and depth < MAX_INPUT_DEPTH
        ]
        return "\n".join(parts) if parts else found[0]

    seen.add(main)
    source = _split(sources[main])[1] if depth else sources[main]
    return INPUT.sub(put_in, source)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _identify(name: str) -> tuple[str, str] | None:
    """The arXiv identifier that a file is named by, and its month."""
    stem = STEM.search(name)[1]
    found = ARXIV_ID.fullmatch(stem)
    if found:
        return found["id"], f"20{found['year']}-{found['month']}"
    folder = posixpath.basename(posixpath.dirname(name))
    found = OLD_ARXIV_ID.fullmatch(stem) or OLD_ARXIV_ID.fullmatch(f"{folder}/{stem}")
    if not found:
        return None
    century = "19" if found["year"] > "90" else "20"
    key = f"{found['archive']}/{found['number']}"
    return key, f"{century}{found['year']}-{found['month']}"
