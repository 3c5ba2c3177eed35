"""Web pages as text: out of WARC and WET files, and loose HTML files.

Documents are the pages that were found: responses with a status of 2xx and resources that hold
HTML or plain text, and the conversions of WET files. Everything else that an archive holds is
numbered and passed over without a word, since it is no text that is broken: requests, revisits,
metadata (WAT), warcinfo, images, other statuses, and the robots.txt and logs of the crawl itself.
"""

import importlib.util
import io
import itertools
import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from data import encodings, storage
from data.document import EXTRACTORS, Record
from data.errors import BadInput
from data.readers import fields, warc
from data.readers.borders import attempt
from data.unpacking import whole

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain",)
MAX_TITLE_CHARS = 300

MIME = re.compile(r"[^;,\s]*")
CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,]+)", re.IGNORECASE)
META_CHARSET = re.compile(
    rb"<(?:meta|\?xml)\b[^>]{0,400}?\b(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE
)
META_BYTES = 4096
SNIFFED_BYTES = 1024
HTML_START = re.compile(rb"(?:<\?xml[^>]*>|<!--.*?-->|\s)*<(?:!doctype\s+html|html)\b", re.I | re.S)
# What is declared as text and is none.
BINARY_STARTS = (
    b"%PDF-",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"PK\x03\x04",
    b"RIFF",
    b"\x1f\x8b",
)
MAX_ZEROS = 0.01  # of a page that is text all the same: browsers pass over them

UNSEEN = ["img", "area", "svg", "object", "video", "audio", "embed"]
# Resiliparse's main content leaves out text nodes of one character that UTF-8 writes in three
# bytes, which it takes for the signs of icon fonts: most dashes and Chinese characters. A mark
# behind them, which no text has, keeps them. Real private-use signs stay without.
ALONE = re.compile(r">(\s*(?:[\u0800-\uffff]|&#?\w{2,8};))(?=\s*<)")
KEPT_ALONE = re.compile(
    r"[\u0800-\u200a\u2010-\u2027\u202f-\u205f\u2061-\ud7ff\uf900-\ufefe\uff00-\ufffc]"
)
MARK = "\ufdd0"
# The time of main-content extraction grows with the square of the depth of these.
NESTED = re.compile(r"<(/?)(?:div|ul|article|footer)\b", re.IGNORECASE)
MAX_DEPTH = 2000
# Lists, links, paragraphs, and what ends a paragraph.
LIST_TAG = re.compile(
    r"</?(?:[uo]l|a|p|h[1-6]|nav|footer|div|table|t[dhr]|form|section)\b", re.IGNORECASE
)
LIST_TOKEN = re.compile(rf"({LIST_TAG.pattern}[^<>]*>)", re.IGNORECASE)
# And the time of parsing with the square of a tag's attributes.
LONG_TAG = re.compile(r"<([a-zA-Z][\w:-]*)[^<>]{65536,}>")
LONG_PAGE_CHARS = 1 << 18


class _Page(NamedTuple):
    """A page as it was sent: its bytes, type, declared encoding, status (0: none), and damage."""

    body: bytes
    mime: str
    charset: str
    status: int
    why: str


class _Extract(NamedTuple):
    """A page's text, its title, the URL that it calls its own, and how the text was got."""

    text: str
    title: str
    canonical: str
    how: str


class _Damage(Exception):
    """Why a record's content cannot be had."""


def read(path: str, how: str = "main") -> Iterator[Record]:
    """Reads the pages of a WARC or WET file, packed by gzip or zstd or plain.

    Args:
        path: local path or object-store URI.
        how: one of EXTRACTORS, see `extract`; plain text stays as it is.

    Yields:
        The documents and the broken records, numbered over all records of the file. `meta` has
        content_type, status, title and warc_record_id where they are known; `truncated`, the
        archive's own reason, where it kept only the start of a page; `extracted` where another
        extraction than the one asked for had to do.

    Raises:
        BadInput: an unknown `how`, or one whose package is missing.
        OSError: the file cannot be opened.
    """
    _check(how)
    with storage.open_raw(path) as stream:
        for number, headers, content, why in warc.records(stream):
            if why:
                yield Record(number, "", why)
            elif record := attempt(number, _document, number, headers, content, how):
                yield record


def read_html(path: str, how: str = "main") -> Iterator[Record]:
    """Reads an HTML file, packed or not, as one record; `url` is the canonical one it names.

    Args:
        path: local path or object-store URI.
        how: one of EXTRACTORS, see `extract`.

    Yields:
        One record; `meta` has its title.

    Raises:
        BadInput: an unknown `how`, or one whose package is missing.
        OSError: the file cannot be opened.
    """
    _check(how)
    with storage.open_plain(path) as stream, whole(stream) as body:
        yield _html_record(body, how)


def _html_record(body: bytes, how: str) -> Record:
    text, why = _decode(body, "", is_html=True)
    if why:
        return Record(1, "", why)
    page = _extract(text, how)
    return Record(1, page.text, url=page.canonical, meta=_page_meta(page, how))


def extract(html: str, how: str = "main") -> str:
    """Takes the text out of a page.

    Args:
        html: the page, decoded.
        how: 'main', the main content: without navigation, headers, footers, sidebars, link
            lists; 'page', all that can be seen; 'trafilatura', the main content as that
            package sees it, about twenty times slower. Where a way finds no text at all, as on
            pages without an article, the text is that of 'page'.

    Returns:
        Plain text: paragraphs with empty lines between, list items after a bullet or number,
        preformatted text as it stands, cells of a table row after tabs.

    Raises:
        BadInput: an unknown `how`, or one whose package is missing.
    """
    _check(how)
    return _extract(html, how).text


def _check(how: str):
    if how not in EXTRACTORS:
        raise BadInput(f"extraction {how!r} is unknown; allowed: {', '.join(EXTRACTORS)}")
    if how == "trafilatura" and importlib.util.find_spec("trafilatura") is None:
        raise BadInput("extraction 'trafilatura': pip install trafilatura, or take 'main'")


def _extract(html: str, how: str) -> _Extract:
    if len(html) > LONG_PAGE_CHARS:
        html = LONG_TAG.sub(r"<\1>", html)
    marked = ALONE.sub(_mark, html)
    tree = HTMLTree.parse(_free_lists(marked) if how == "main" else marked)
    title = " ".join((tree.title or "").replace(MARK, "").split())[:MAX_TITLE_CHARS]
    link = tree.head.query_selector("link[rel=canonical]") if tree.head else None
    canonical = (link.getattr("href") or "").strip() if link else ""
    text = ""
    if how == "trafilatura":
        import trafilatura

        text = (trafilatura.extract(html) or "").strip()
    elif how == "main" and tree.body and _depth(html) <= MAX_DEPTH:
        _deepen(tree)
        text = extract_plain_text(tree, main_content=True, skip_elements=UNSEEN).strip()
    if not text and tree.body:
        how, text = "page", extract_plain_text(tree, skip_elements=UNSEEN).strip()
    return _Extract(text.replace(MARK, ""), title, canonical, how)


def _mark(match: re.Match) -> str:
    alone = KEPT_ALONE.fullmatch(unescape(match[1]).strip())
    return match[0] + MARK if alone else match[0]


def _depth(html: str) -> int:
    """How deep elements of NESTED are in one another, at most; 0 where it cannot matter."""
    if html.count("<") <= MAX_DEPTH:
        return 0
    return max(
        itertools.accumulate((-1 if slash else 1 for slash in NESTED.findall(html)), initial=0)
    )


def _free_lists(html: str) -> str:
    """Takes the links off lists that belong to the paragraph before them.

    Resiliparse takes a list for a menu where most of it is links, wherever it stands: the heading
    and the paragraph that announce it would stay without it.
    """
    parts = LIST_TOKEN.split(html)
    depth, paragraph = 0, ""  # of lists, and the tag of the paragraph that is open or just closed
    for at in range(1, len(parts), 2):
        tag = LIST_TAG.match(parts[at])[0].lower()
        if tag in ("<ul", "<ol") and (depth or paragraph):
            is_next = paragraph == "<p" or not parts[at - 1].strip()
            depth += 1 if depth or is_next else 0
        elif tag in ("</ul", "</ol"):
            depth = max(0, depth - 1)
        elif depth and tag in ("<a", "</a"):
            parts[at] = ""
        elif tag[1:] in ("h1", "h2", "h3", "h4", "h5", "h6", "nav", "footer"):
            depth = 0  # The list is not closed.
        if tag not in ("<a", "</a"):
            paragraph = tag if tag in ("<p", "</p") else ""
    return "".join(parts)


def _deepen(tree: HTMLTree):
    """Puts the body's content three levels deeper.

    Resiliparse takes every list near the top of a page for a menu, and takes lists by their
    links, and divisions too, only further down; pages with few levels would lose their lists.
    """
    outer = inner = tree.create_element("div")
    for _ in range(2):
        inner = inner.append_child(tree.create_element("div"))
    body = tree.body
    while (child := body.first_child) is not None:
        inner.append_child(child)
    body.append_child(outer)


def _page_meta(page: _Extract, how: str) -> dict:
    meta = {"title": page.title} if page.title else {}
    if page.how != how:
        meta["extracted"] = page.how
    return meta


def _document(number: int, headers: dict[str, str], content: bytes, how: str) -> Record | None:
    """The document that a record holds, broken or not, or None where it holds none."""
    if headers["warc-type"].lower() not in ("response", "resource", "conversion"):
        return None
    url = headers.get("warc-target-uri", "").strip("<>")
    if url.startswith("metadata:") or url.partition("?")[0].endswith("/robots.txt"):
        return None
    truncated = headers.get("warc-truncated", "")
    try:
        page = _payload(headers, content)
        if page is None:
            return None
        if page.why and not truncated:
            raise _Damage(page.why)
        if page.body.startswith(BINARY_STARTS):
            return None
        text, why = _decode(page.body, page.charset, page.mime in HTML_TYPES)
        if why:
            raise _Damage(why)
    except _Damage as error:
        return Record(number, "", str(error))
    meta = {"content_type": page.mime}
    if page.status:
        meta["status"] = page.status
    if truncated:
        meta["truncated"] = truncated
    if "warc-record-id" in headers:
        meta["warc_record_id"] = headers["warc-record-id"].strip("<>")
    if page.mime in HTML_TYPES:
        found = _extract(text, how)
        text, meta = found.text, meta | _page_meta(found, how)
    languages = headers.get("warc-identified-content-language", "")
    return Record(
        number,
        text,
        url=url,
        date=fields.iso_date(headers.get("warc-date", "")),
        language=fields.language_code(languages.split(",")[0]),
        meta=meta,
    )


def _payload(headers: dict[str, str], content: bytes) -> _Page | None:
    """The page in a record's block, None where it is no page."""
    declared, status, why = headers.get("content-type", ""), 0, ""
    is_http = declared.lower().startswith("application/http")
    header: dict[str, str] = {}
    if is_http:
        status, header, content = warc.split_http(content)
        if not status:
            return _Page(b"", "", "", 0, "its block is no HTTP response")
        declared = header.get("content-type", "")
    mime = MIME.match(declared.strip().lower())[0]
    mime = mime or headers.get("warc-identified-payload-type", "")
    is_error = is_http and not 200 <= status < 300
    if is_error or (mime and mime not in HTML_TYPES + TEXT_TYPES):
        return None
    if is_http:
        content, why = warc.unpack_http(header, content)
    if not mime and HTML_START.match(content[:SNIFFED_BYTES]):
        mime = "text/html"
    charset = CHARSET.search(declared)
    return _Page(content, mime, charset[1] if charset else "", status, why) if mime else None


def _decode(body: bytes, declared: str, is_html: bool) -> tuple[str, str]:
    """The text in the encoding that its bytes bear out best, or why it is none.

    First what cannot be by chance: a byte order mark, valid UTF-8; then what HTTP declares, what
    the page declares, and what the bytes look like. What is none of these is read as browsers do.
    """
    stream, marked = encodings.after_mark(io.BufferedReader(io.BytesIO(body)))
    body = stream.read()
    labels = [declared]
    if is_html and (found := META_CHARSET.search(body, 0, META_BYTES)):
        labels.append(found[1].decode("ascii", "replace"))
    codecs = [map_encoding_to_html5(label, fallback_utf8=False) for label in labels if label]
    wide = [codec for codec in codecs if codec and codec.startswith("utf-16")]
    if wide and b"\0" in body[:SNIFFED_BYTES] and not marked:
        return body.decode(wide[0], "replace"), ""
    num_zeros = body.count(0)
    if num_zeros > MAX_ZEROS * len(body):
        return "", "it holds zero bytes and is no text"
    body = body.translate(None, b"\0") if num_zeros else body
    found = encodings.decode(body, declared=[codec for codec in codecs if codec not in wide])
    return ((found.text or body.decode(encodings.WESTERN, "replace")), "")
