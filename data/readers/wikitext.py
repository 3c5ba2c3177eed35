"""Wikitext to plain text, and the articles of Wikipedia's dumps.

Kept: text, headings on lines of their own, list items, what links and external links show,
mathematics as $...$, code, and the text that a few templates carry (`wikitext_templates`).
Dropped: other templates, tables, media with their captions, categories, references, comments,
sections with nothing in them, and sections of links and references (`wikitext_words`). Digits set
high are written ^2.

Every step is linear in its input: patterns cannot run over their own opening mark, and what nests
is matched on a stack MAX_DEPTH high. What has no counterpart stays as text without its mark.
"""

import html
import re
from collections.abc import Iterator
from urllib.parse import quote
from xml.parsers import expat

from data import storage
from data.document import Record
from data.readers.borders import attempt
from data.readers.wikitext_templates import SEPARATOR, show
from data.readers.wikitext_words import DROPPED_SECTIONS, HIDDEN_NAMESPACES, LANGUAGES, REDIRECTS
from data.unpacking import check_end

MAX_DEPTH = 60
MAX_NESTED_NOTES = 3
MAX_PAGE_CHARS = 32 << 20

# What is literal; what holds text that is none of the page's.
LITERAL_TAGS = ("nowiki", "pre", "syntaxhighlight", "source", "math", "chem", "ce")
INLINE_TAGS = ("nowiki", "math", "chem", "ce")
DROPPED_TAGS = (
    "ref|gallery|timeline|score|imagemap|graph|mapframe|maplink|hiero|references|templatedata"
    "|inputbox|categorytree|indicator|templatestyles|style|script|section"
)
HOLD = re.compile(
    r"<(?:!--(?:[^-<]++|-(?!->)|<(?!!--))*+-->"
    rf"|(?P<tag>{'|'.join(LITERAL_TAGS)}|{DROPPED_TAGS})\b(?P<attributes>(?:[^<>/]++|/(?!>))*+)"
    r"(?:/>|>(?P<inside>(?:[^<]++|<(?!/?(?P=tag)\b))*+)</(?P=tag)\s*+>))",
    re.IGNORECASE,
)
HELD = re.compile("\0([0-9]+)\0")
SIMPLE_LINK = re.compile(r"\[\[(?:[^\[\]{}|\n:<>]*+\|([^\[\]{}|\n]++)|([^\[\]{}|\n:<>]++))\]\]")
EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]<>\"]*+[ \t]*+([^\[\]\n]*+)\]")
TOKEN = re.compile(r"(\{\{|\}\}|\[\[|\]\]|\||\n[ \t:*#]*+\{\||\n[ \t]*+\|\}(?!\}))")
CLOSERS = {"}}": "{{", "]]": "[[", "|}": "{|"}
INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]{2,})*+|simple):")
VARIANTS = re.compile(r"-\{(?!\{)([^{}]*+)\}-")
TAG_BREAK = re.compile(r"<(?:br|hr|/?p|/?div|/?blockquote|/?li|/?poem)\b[^<>]*+>", re.IGNORECASE)
RAISED_NUMBER = re.compile(r"<sup>\s*+([+−–-]?\d[\d.,]*+)\s*+</sup>", re.IGNORECASE)
TAG = re.compile(r"</?[A-Za-z][^<>]*+>")
MAGIC_WORD = re.compile(r"__(?:[A-ZÄÖÜÉÈÇ_]{3,40}?|[^\x00-\x7f]{2,20}?)__")
LEFT_MARK = re.compile(r"\{\{\{?|\}\}\}?|\[\[|\]\]")
# What is left of (pronunciation; ...) and the like where templates went.
EMPTY_BRACKETS = re.compile(r"\([ ,;:/–-]*+\)|（[ ，；、：,;:]*+）|\[ *+\]")
AFTER_BRACKET = re.compile(r"([(（])[ ,;，；、]++")
LOOSE_MARKS = " ,;，；、"
LOOSE_BRACKET = re.compile(rf"([)）])(?<=[{LOOSE_MARKS}].)")
BEFORE_STOP = re.compile(r" ([.,])(?=\s|\Z)")
QUOTES = re.compile("'{2,}")
ELISION = re.compile(r"(?<![^\W\d_])([^\W\d_])'''(?!')")
HEADING = re.compile(r"(={1,6})(.+?)(={1,6})\Z")
ITEM = re.compile(r"#[^*#:;\n]*\w")
LIST_MARK = re.compile(r"[*#:;]++[ \t]*+")
WORD = re.compile(r"[^\W_]|\0")
EMPTY_LINES = re.compile(r"\n{3,}")
RULE = re.compile(r"-{4,}")
FIELDS = """siteinfo/dbname siteinfo/base namespaces/namespace page/title page/ns page/id
    revision/id revision/timestamp revision/model revision/text"""
HOST = re.compile(r"(?:https?:)?//([\w-]+)\.")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*+")
# What Wikipedia's own addresses leave as it is.
URL_SAFE = "/:,;@$!*()~'"
REDIRECT = re.compile(rf"\s*+[#＃]\s*+(?:{'|'.join(REDIRECTS.split())})\b", re.IGNORECASE)


def to_text(source: str, hidden: frozenset[str] = HIDDEN_NAMESPACES) -> str:
    """Turns wikitext into plain text.

    Args:
        source: a page, or a part of one; nothing has to match.
        hidden: names of the namespaces of media and categories, in lower case.

    Returns:
        The text as the module's docstring says, with one newline last unless it is empty.
    """
    held: list[str] = []
    text = source.replace("\r\n", "\n").replace("\0", "").replace(SEPARATOR, "")
    for _ in range(MAX_NESTED_NOTES):
        text = HOLD.sub(lambda found: _hold(found, held), text)
        if "</ref" not in text:
            break
    text = SIMPLE_LINK.sub(r"\1\2", text)
    text = EXTERNAL_LINK.sub(r"\1", text)
    text = _resolve("\n" + text, hidden)
    if "-{" in text:
        text = VARIANTS.sub(_variant, text)
    text = RAISED_NUMBER.sub(r"^\1", TAG_BREAK.sub("\n", text))
    text = MAGIC_WORD.sub("", LEFT_MARK.sub("", TAG.sub("", text)))
    if "&" in text:
        text = html.unescape(text)
    text = "\n".join(_lines(_close_gaps(text)))
    text = EMPTY_LINES.sub("\n\n", text).strip("\n")
    text = HELD.sub(lambda found: held[int(found[1])], text)
    return text + "\n" if text else ""


def _hold(found: re.Match, held: list[str]) -> str:
    """Nothing for what is dropped; a mark for what is literal, so that no later step reads it."""
    tag = (found["tag"] or "").lower()
    inside = found["inside"] or ""
    if tag not in LITERAL_TAGS or not inside.strip():
        return ""
    if tag == "math":
        mark = "$$" if "block" in found["attributes"] else "$"
        inside = f"{mark}{html.unescape(inside.strip())}{mark}"
    elif tag in ("chem", "ce"):
        inside = f"$\\ce{{{inside.strip()}}}$"
    elif tag in ("nowiki", "pre"):
        inside = html.unescape(inside)
    held.append(inside.strip("\n"))
    mark = f"\0{len(held) - 1}\0"
    is_inline = tag in INLINE_TAGS or "inline" in found["attributes"]
    return mark if is_inline else f"\n{mark}\n"


def _resolve(text: str, hidden: frozenset[str]) -> str:
    """Puts what is shown in place of templates, links and tables, the inner ones first."""
    pieces = TOKEN.split(text)
    out, frames, num_deeper = pieces[:1], [], 0
    for token, plain in zip(pieces[1::2], pieces[2::2], strict=True):
        mark = token if token == "|" else token[-2:]
        if mark == "|":
            out.append(SEPARATOR if frames and frames[-1][0] != "{|" else "|")
        elif mark not in CLOSERS:
            if len(frames) == MAX_DEPTH:
                num_deeper += 1
            else:
                frames.append((mark, len(out)))
                out.append(token)
        elif num_deeper:
            num_deeper -= 1
        else:
            _close(CLOSERS[mark], out, frames, hidden)
        if plain:
            out.append(plain)
    return "".join(out).replace(SEPARATOR, "|")


def _close(mark: str, out: list[str], frames: list[tuple[str, int]], hidden: frozenset[str]):
    for index in range(len(frames) - 1, -1, -1):
        if frames[index][0] == mark:
            break
        if frames[index][0] == "{|":
            return
    else:
        return
    start = frames[index][1]
    inside = out[start + 1 :]
    del frames[index:], out[start:]
    if mark == "{|":
        out.append("\n")
    else:
        out.append(show(inside) if mark == "{{" else _link("".join(inside), hidden))


def _link(inside: str, hidden: frozenset[str]) -> str:
    target, *label = inside.split(SEPARATOR)
    target = target.strip()
    name, colon, rest = target.partition(":")
    if colon and name.strip().replace("_", " ").lower() in hidden:
        return ""
    if INTERLANGUAGE.match(target) and "\n" not in target:
        return ""
    if "\n\n" in inside:
        return inside
    shown = SEPARATOR.join(label).strip() if label else target.removeprefix(":")
    # [[Rock (music)|]] shows Rock.
    return shown or (rest or name).partition("(")[0].strip()


def _variant(found: re.Match) -> str:
    """Chinese text in several scripts: the first, nothing for a rule that shows nothing."""
    flags, bar, text = found[1].rpartition("|")
    if bar and not set(flags.upper().replace(";", "")) & set("ARD") and len(flags) < 4:
        return ""
    first = text.partition(";")[0]
    name, colon, value = first.partition(":")
    return value.strip() if colon and name.strip().lower().startswith("zh") else first


def _close_gaps(text: str) -> str:
    """Double blanks, brackets with nothing in them, marks next to brackets: what was there went."""
    text = text.replace("\t", " ").replace("\xa0", " ")
    text = AFTER_BRACKET.sub(r"\1", EMPTY_BRACKETS.sub("", text))
    pieces = LOOSE_BRACKET.split(text)
    pieces[:-1:2] = [piece.rstrip(LOOSE_MARKS) for piece in pieces[:-1:2]]
    text = "".join(pieces)
    while "  " in text:
        text = text.replace("  ", " ")
    return BEFORE_STOP.sub(r"\1", text)


def _lines(text: str) -> Iterator[str]:
    """The lines, with list marks made plain; headings only where text is below them."""
    pending: list[tuple[int, str]] = []
    skipped, number = 0, 0
    for line in map(str.strip, text.split("\n")):
        if line[:1] == "=" and (heading := HEADING.match(line)):
            level = min(len(heading[1]), len(heading[3]))
            if skipped and level > skipped:
                continue
            title = QUOTES.sub("", heading[2].strip("= "))
            skipped = level if title.lower().rstrip(":") in DROPPED_SECTIONS else 0
            pending = [above for above in pending if above[0] < level]
            pending += [] if skipped else [(level, title)]
        elif not skipped:
            is_item = ITEM.match(line)
            number = number + 1 if is_item else number if line[:1] == "#" else 0
            line = _plain_line(line, number)
            if line:
                for _, title in pending:
                    yield from ("", title, "")
                pending = []
            yield line


def _plain_line(line: str, number: int) -> str:
    if not WORD.search(line) or line[0] == "|" or RULE.match(line):
        return ""
    if "''" in line:
        line = _without_quotes(line)
    mark = LIST_MARK.match(line)
    if not mark:
        return line
    kind, text = mark[0].rstrip(), line[mark.end() :]
    if kind == "#":
        return f"{number}. {text}"
    return f"- {text}" if kind[-1] in "*#" else text


def _without_quotes(line: str) -> str:
    """Italics and bold off; an apostrophe before them stays, as in l'''Iliade''."""
    runs = [len(run) for run in QUOTES.findall(line)]
    num_bold = sum(run in (3, 5) or run == 4 for run in runs)
    num_italic = sum(run in (2, 5) for run in runs)
    if num_bold % 2 and num_italic % 2:
        line = ELISION.sub(r"\1'", line, count=1)
    return QUOTES.sub(
        lambda found: "'" * {4: 1}.get(len(found[0]), max(0, len(found[0]) - 5)), line
    )


def read(path: str) -> Iterator[Record]:
    """Reads the articles of a Wikipedia dump (pages-articles.xml), compressed or not.

    Args:
        path: local or on an object store.

    Yields:
        A record a page of the main namespace that is no redirect, as text under its title; of
        several revisions the last in the file. `meta` holds title, page_id and revision_id. A page
        without text is a broken record.

    Raises:
        OSError, expat.ExpatError: the file cannot be opened, or is damaged or breaks off behind the
            last record; or a document type, whose entities could be anything.
    """
    number = 0
    pages = _Pages()
    with storage.open_plain(path) as stream:
        while chunk := stream.read1(storage.CHUNK_BYTES):
            try:
                pages.parser.Parse(chunk)
            finally:
                for page in pages.take():
                    if (record := attempt(0, pages.article, page)) is not None:
                        number += 1
                        yield record._replace(number=number)
        pages.parser.Parse(b"", True)
        check_end(stream)


class _Pages:
    """A dump's pages, collected while a parser is fed."""

    fields = frozenset(FIELDS.split())

    def __init__(self):
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._add
        self.parser.StartDoctypeDeclHandler = _refuse
        self.path: list[str] = []
        self.text: list[str] | None = None
        self.num_chars = 0
        self.page: dict[str, str] = {}
        self.site: dict[str, str] = {}
        self.hidden = HIDDEN_NAMESPACES
        self.namespace = ""
        self.done: list[dict[str, str]] = []

    def take(self) -> list[dict[str, str]]:
        """The pages read since the last call."""
        done, self.done = self.done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]):
        self.path.append(name)
        if name == "mediawiki":
            self.site["language"] = attributes.get("xml:lang", "")
        elif name == "page":
            self.page = {}
        elif name == "redirect":
            self.page["redirect"] = "yes"
        elif name == "namespace":
            self.namespace = attributes.get("key", "")
        if "/".join(self.path[-2:]) in self.fields:
            self.text, self.num_chars = [], 0

    def _add(self, text: str):
        if self.text is not None and self.num_chars <= MAX_PAGE_CHARS:
            self.text.append(text)
            self.num_chars += len(text)

    def _end(self, name: str):
        field = "/".join(self.path[-2:])
        self.path.pop()
        if self.text is not None and field in self.fields:
            value = "".join(self.text)
            if field.startswith("siteinfo/"):
                self.site[name] = value
            elif field != "namespaces/namespace":
                self.page[field] = value
            elif self.namespace in ("6", "14"):
                self.hidden = self.hidden | {value.lower()}
            self.text = None
        if name == "page":
            self.done.append(self.page)

    def article(self, page: dict[str, str]) -> Record | None:
        """A page's record, None where it is no article."""
        return _article(page, self.site, self.hidden)


def _refuse(*_):
    raise OSError("a document type, which no dump has")


def _article(page: dict[str, str], site: dict[str, str], hidden: frozenset[str]) -> Record | None:
    source, title = page.get("revision/text", ""), page.get("page/title", "")
    is_article = (
        page.get("page/ns", "0") == "0" and page.get("revision/model", "wikitext") == "wikitext"
    )
    if not is_article or "redirect" in page or REDIRECT.match(source):
        return None
    meta = {"title": title}
    meta |= {
        f"{of}_id": int(page[f"{of}/id"])
        for of in ("page", "revision")
        if re.fullmatch(r"[0-9]{1,18}", page.get(f"{of}/id", ""))
    }
    known = {
        "url": _address(site.get("base", ""), title),
        "date": page.get("revision/timestamp", ""),
        "language": _language(site),
        "meta": meta,
    }
    why = ""
    if len(source) > MAX_PAGE_CHARS:
        why = f"more than {MAX_PAGE_CHARS} characters, which is the most that is read"
    elif not (body := to_text(source, hidden)):
        why = "no text in it"
    return Record(0, "" if why else f"{title}\n\n{body}", why, **known)


def _address(base: str, title: str) -> str:
    """A page's address, beside the main page's."""
    folder = base.rpartition("/")[0]
    return f"{folder}/{quote(title.replace(' ', '_'), safe=URL_SAFE)}" if folder else ""


def _language(site: dict[str, str]) -> str:
    host = HOST.match(site.get("base", ""))
    name = host[1] if host else site.get("dbname", "").removesuffix("wiki").replace("_", "-")
    return LANGUAGES.get(name, name if LANGUAGE.fullmatch(name) else site.get("language", ""))
