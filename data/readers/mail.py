"""Mail archives: what each writer wrote, without headers, quotes and signatures; HTML as text."""

import collections
import contextlib
import hashlib
import html
import itertools
import re
from collections.abc import Iterator
from email import errors, header, message_from_bytes, utils
from email.message import Message

from resiliparse.parse.html import HTMLTree

from data import storage
from data.document import Record

MAX_MESSAGE_BYTES, STEP_BYTES, MAX_NESTING = 16 << 20, 16 << 10, 32
PIECE = re.compile(rb"[^\n]*\n|[^\n]+")

FROM_LINE = re.compile(rb"From \S.*\d:\d\d")
HEADER = re.compile(rb"[!-9;-~]+[ \t]*:")
QUOTED_FROM = re.compile(rb">+From ")
IN_ANGLES = re.compile(r"<([!-;=?-~]+)>")
DOMAIN = re.compile(r"(?:@| at )([\w-]+(?:\.[\w-]+)+)")

QUOTE = re.compile(r" ?>|\[(?:\.\.\.|\u2026|snip[^\]]*)\]\s*$")
PROMPT = re.compile(r">>>(?: |$)")
ATTRIBUTION = re.compile(
    r"(?i)(?:\b(?:wrote|writes|said|écrit|escribió|escreveu|scritto|scrive|skrev|kirjoitti|napsal|"
    r"napisał(?:\(a\))?|пишет|написала?|(?:schrieb|schreibt|schreef)(?: .+)?)(?: in message \S+)?"
    r"|写道|^quoting .*|.*<[^<>\s]+@[^<>\s]+>.*)\s*[:：]\s*$"
)
ATTRIBUTION_START = re.compile(r"(?:On|Am|Le|El|Il|Em|Op|Den|Dne|W dniu|At|In|В|На|在) ?\S*[\d,]")
MAX_ATTRIBUTION_LINES, MAX_ATTRIBUTION_CHARS, MAX_FOOTER_LINES, FOOTER_REACH = 4, 300, 16, 4
# From such a line on, a mail program repeats the message that is answered.
REPEATED = re.compile(
    r"(?im)^(-{3,} ?(Original Message|Ursprüngliche Nachricht|Message d'origine) ?-{3,}"
    r"|From: .+\n(Sent|Date): .+\n(Cc: .+\n)?To: .+)$"
)
PGP = re.compile(
    r"(?m)^-----BEGIN PGP (SIGNED MESSAGE-----\n(\w+: .*\n)*\n?"
    r"|SIGNATURE-----\n(.*\n){0,99}?-----END PGP SIGNATURE-----)"
)
# Soft line ends, and the blanks that keep lines from looking like quotes. Source: RFC 3676.
FLOWED = re.compile(r"(?m)^(?!>|-- $)(.* )\n(?!>|-- $) ?")
STUFFED = re.compile(r"(?m)^ ")
SEPARATOR = re.compile(r"[-_=~*][-_=~* ]*$")
FOOTER = re.compile(r"(?i)unsubscribe|mailing[ -]list|listinfo|sponsored by|groups\.google\.")
# Sent without its blank, as many do, only where a short end of the text follows.
SIGNATURE = re.compile(r"(?m)^--(?: $|$(?=(?:\n.*){0,9}\Z))")

# HTML as browsers write it out: attributes, what is not text, what stands on lines of its own, and
# what has empty lines around it too.
ATTRIBUTES = r"""((?:[^>"]|"[^"]*")*)"""
TOKEN = re.compile(rf"(?s)<(/?)([a-zA-Z][^\s>]*){ATTRIBUTES}>|([^<]+)|<!--.*?-->")
UNSEEN = re.compile(
    "(?s)<(title|script|style|template|noscript|noframes|noembed|iframe|object|svg|select|textarea)"
    rf"(?=[\s>]){ATTRIBUTES}>.*?</\1>"
)
AIRY = re.compile("p|h[1-6]|blockquote|pre|ul|ol|dl|table|hr|figure|details")
BLOCK = re.compile(
    f"{AIRY.pattern}|div|li|tr|dt|dd|section|article|header|footer|address|option|center|caption"
)
BLANKS = re.compile(r"[ \t\n\r\f]+")
LANGUAGE = re.compile(r"\blang(?:uage)?-(?!none|all)([\w+#-]+)")
START = re.compile(r'\bstart="([0-9]{1,9})"')


def read(path: str) -> Iterator[Record]:
    """Reads an mbox archive, or one message (.eml, a file of a Maildir): a record a message.

    A message begins where a From_ line stands and a header follows it; '>From ' is unquoted as in
    mboxrd. The text is the subject, an empty line, and the body without what others wrote:
    quotes with the line that names their author, repeated messages, signatures, list footers;
    '' if nothing is left. text/plain is preferred to text/html, other parts are left out. Text in
    an unknown or wrong charset is read as UTF-8, else as Windows-1252, U+FFFD for what that lacks.

    Args:
        path: a local path or URI; plain, gzip, zstd, bzip2 or xz.

    Yields:
        Records; in `meta` from_domain, message_id and in_reply_to (hashed), list; '' if unknown.

    Raises:
        OSError: the file cannot be opened.
    """
    for number, (content, why) in enumerate(_messages(path), 1):
        try:
            record = Record(number, "", why=why) if why else _record(number, content)
        # What the standard library's parser raises for parts that it did not expect.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            record = Record(number, "", why=f"a message that cannot be parsed: {error}")
        yield record


def read_lines(path: str, max_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Reads lines in bounded memory.

    Args:
        path: a local path or URI; plain, gzip, zstd, bzip2 or xz.
        max_bytes: longest line.

    Yields:
        Each line and '', or b"" and why it is broken: too long, or the file is damaged from here.

    Raises:
        OSError: the file cannot be opened.
    """
    line, num_bytes = [], 0
    with storage.open_plain(path) as stream:
        try:
            # In small steps: of one that meets damage nothing is had.
            while step := stream.read1(STEP_BYTES):
                for piece in PIECE.findall(step):
                    num_bytes += len(piece)
                    line = [*line, piece] if num_bytes <= max_bytes else []
                    if piece.endswith(b"\n"):
                        yield (
                            b"".join(line),
                            "" if line else f"a line longer than {max_bytes} bytes",
                        )
                        line, num_bytes = [], 0
            if num_bytes:
                yield b"".join(line), "" if line else f"a line longer than {max_bytes} bytes"
        except storage.DAMAGE as error:
            yield b"", f"the file is damaged or breaks off here: {error}"


def _messages(path: str) -> Iterator[tuple[bytes, str]]:
    """(message, why it is broken) in order."""
    lines, num_bytes, broken, mbox = [], 0, "", None
    stream = itertools.chain(read_lines(path, MAX_MESSAGE_BYTES), [(b"", "")])
    for (line, why), (following, _) in itertools.pairwise(stream):
        mbox = line.startswith(b"From ") if mbox is None else mbox
        if mbox and FROM_LINE.match(line) and HEADER.match(following):
            if lines or broken:
                yield b"".join(lines), broken
            lines, num_bytes, broken = [], 0, ""
            continue
        num_bytes += len(line)
        if why or num_bytes > MAX_MESSAGE_BYTES:
            lines, broken = [], broken or why or f"a message longer than {MAX_MESSAGE_BYTES} bytes"
        if not broken:
            lines.append(line[1:] if mbox and QUOTED_FROM.match(line) else line)
    if lines or broken:
        yield b"".join(lines), broken


def _record(number: int, content: bytes) -> Record:
    # Not policy.default, which is three times slower and fails on what people send.
    message = message_from_bytes(content)
    headers = collections.defaultdict(str)
    for name, value in message.raw_items():
        headers[name.lower()] = headers[name.lower()] or value
    body = _own_text(_body(message))
    domains = DOMAIN.findall(headers["from"])
    parents = IN_ANGLES.findall(headers["in-reply-to"] or headers["references"])[-1:]
    meta = {
        "from_domain": domains[0].lower() if domains else "",
        "message_id": _hash(IN_ANGLES.findall(headers["message-id"])),
        "in_reply_to": _hash(parents),
        "list": "".join(IN_ANGLES.findall(headers["list-id"])[:1]).lower(),
    }
    text = f"{_subject(headers['subject'])}\n\n{body}".lstrip("\n") if body else ""
    # Some charsets can spell half a surrogate pair.
    text = text.encode("utf-8", "replace").decode()
    return Record(number, text, date=_date(headers["date"]), meta=meta)


def _hash(ids: list[str]) -> str:
    return hashlib.blake2b(ids[0].encode(), digest_size=8).hexdigest() if ids else ""


def _date(value: str) -> str:
    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        return utils.parsedate_to_datetime(value).isoformat()
    return ""


def _subject(value: str) -> str:
    """Encoded words (RFC 2047) decoded; left as they are where that cannot be done."""
    value = _decode(value.encode("utf-8", "surrogateescape"), "")
    with contextlib.suppress(LookupError, ValueError, errors.MessageError):
        value = str(header.make_header(header.decode_header(value)))
    return " ".join(value.split())


def _decode(content: bytes, charset: str) -> str:
    for name in (charset, "utf-8"):
        with contextlib.suppress(LookupError, ValueError):
            return content.decode(name)
    return content.decode("cp1252", "replace")


def _texts(part: Message) -> Iterator[Message]:
    kind = part.get_content_maintype()
    if kind == "multipart" and part.is_multipart():
        for inner in part.get_payload():
            yield from _texts(inner)
    elif kind == "text" and "attachment" not in str(part.get("content-disposition", "")).lower():
        yield part


def _body(message: Message) -> str:
    """The text of the best part, with LF."""
    kinds = {part.get_content_subtype(): part for part in reversed(list(_texts(message)))}
    part = kinds.get("plain", kinds.get("html"))
    if part is None:
        return ""
    content = part.get_payload(decode=True) or b""
    if any(isinstance(defect, errors.InvalidBase64LengthDefect) for defect in part.defects):
        raise ValueError("its body is not base64, as it says")
    text = _decode(content, part.get_content_charset("")).replace("\r\n", "\n").replace("\r", "\n")
    if part.get_content_subtype() == "html":
        return html_to_text(text)
    if part.get_param("format") == "flowed":
        text = STUFFED.sub("", FLOWED.sub(r"\1", text))
    return text


def _own_text(text: str) -> str:
    """What the writer of a message wrote."""
    text = PGP.sub("", text)
    repeated = REPEATED.search(text)
    lines = text[: repeated.start() if repeated else None].split("\n")
    while (end := _footer(lines)) >= 0:
        lines = lines[:end]
    lines = SIGNATURE.split("\n".join(lines), 1)[0].split("\n")
    text = "\n".join(line.rstrip() for line in _without_quotes(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _footer(lines: list[str]) -> int:
    """Where a list's footer begins, or -1."""
    for index in range(max(0, len(lines) - MAX_FOOTER_LINES), len(lines)):
        following = lines[index + 1 : index + 1 + FOOTER_REACH]
        if SEPARATOR.match(lines[index]) and any(map(FOOTER.search, following)):
            return index
    return -1


def _without_quotes(lines: list[str]) -> list[str]:
    own = []
    for quoted, group in itertools.groupby(lines, lambda line: bool(QUOTE.match(line))):
        run = list(group)
        if not quoted:
            own += run
            continue
        start = _attribution(own)
        # Prompts of Python look like quotes of quotes, but nobody is named before them.
        is_code = start == len(own) and all(PROMPT.match(line) for line in run)
        own[start:] = run if is_code else []
    return own


def _attribution(lines: list[str]) -> int:
    """Where 'On ..., ... wrote:' at the end of the lines begins; their number if none is there."""
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    if not end or not ATTRIBUTION.search(lines[end - 1][-MAX_ATTRIBUTION_CHARS:]):
        return len(lines)
    start = end - 1
    while start and lines[start - 1].strip() and end - start < MAX_ATTRIBUTION_LINES:
        start -= 1
    begins = [i for i in range(start, end) if ATTRIBUTION_START.match(lines[i])]
    return begins[-1] if begins else end - 1


def html_to_text(markup: str) -> str:
    """Turns a fragment of HTML, or a small page, into text.

    Args:
        markup: HTML; entities are decoded, whatever is unclosed is closed as browsers do.

    Returns:
        Paragraphs with empty lines between; '- ' or '1. ' before list items, '> ' before quoted
        lines, lines of ``` around code blocks (<pre><code>; their lines are left as they are, as
        in <pre>), ` around code in a line, ^ before a superscript that touches what is before it,
        ' | ' between cells. Of links the text; nothing of images, forms and scripts.
    """
    # Written out again, every element is closed and quoted alike; far faster than to walk the tree.
    body = HTMLTree.parse(markup.encode("utf-8", "replace").decode()).body
    page = _Page()
    for closing, tag, attributes, text in TOKEN.findall(UNSEEN.sub("", body.inner_html)):
        if text:
            page.parts.append(html.unescape(text))
        elif closing:
            page.leave(tag)
        elif tag:
            page.enter(tag, attributes)
    page.end_paragraph()
    return "\n".join(page.lines)


class _Page:
    """Lines of text in the making, inside lists and quotes."""

    def __init__(self):
        self.lines: list[str] = []
        self.parts: list[str] = []  # of the paragraph that is open
        self.code = -1  # where in it code begins
        self.fence: str | None = None  # of the code block that is open; '': of another <pre>
        self.containers: list[list[str]] = []  # what to put before the first line and the others
        self.excess = 0  # how many more are open than MAX_NESTING
        self.floor = 0  # how many containers are those of the last line too
        self.counters: list[int] = []  # of the lists that are open; -1: bullets
        self.blank = False  # is an empty line due?

    def enter(self, tag: str, attributes: str):
        """Takes the start of an element."""
        if tag == "br":
            self.parts.append("\0")
        elif tag == "code" and self.fence is None:
            self.code = len(self.parts)
        elif tag == "code" and not self.parts:
            self.fence = self.fence or "```" + "".join(LANGUAGE.findall(attributes)[:1])
        elif tag == "sup" and self.parts and self.parts[-1][-1:] > " ":
            self.parts.append("^")
        elif tag in ("td", "th") and "".join(self.parts).strip():
            self.parts.append(" | ")
        elif BLOCK.fullmatch(tag):
            self._edge(tag)
            self._open(tag, attributes)

    def leave(self, tag: str):
        """Takes the end of an element."""
        if tag in ("ul", "ol"):
            self.counters.pop()
        elif tag == "pre":
            self._end_code()
        elif tag == "code" and self.code >= 0:
            text = BLANKS.sub(" ", "".join(self.parts[self.code :])).strip()
            ticks = "``" if "`" in text else "`"
            self.parts[self.code :] = [f"{ticks}{text}{ticks}"] if text else []
            self.code = -1
        if BLOCK.fullmatch(tag):
            self._edge(tag)
        if tag in ("li", "blockquote") and self.excess:
            self.excess -= 1
        elif tag in ("li", "blockquote"):
            self.containers.pop()
            self.floor = min(self.floor, len(self.containers))

    def _edge(self, tag: str):
        self.end_paragraph()
        # A list inside a list needs no air.
        if AIRY.fullmatch(tag) and not (tag in ("ul", "ol") and self.counters):
            self.blank = True

    def _open(self, tag: str, attributes: str):
        if tag == "pre":
            self.fence = "".join("```" + name for name in LANGUAGE.findall(attributes)[:1])
        elif tag in ("ul", "ol"):
            start = START.search(attributes)
            self.counters.append(-1 if tag == "ul" else int(start[1]) if start else 1)
        elif tag in ("li", "blockquote") and len(self.containers) < MAX_NESTING:
            self.containers.append(self._marks(tag))
        elif tag in ("li", "blockquote"):
            self.excess += 1

    def _marks(self, tag: str) -> list[str]:
        mark = "> " if tag == "blockquote" else "- "
        if tag == "li" and self.counters and self.counters[-1] >= 0:
            mark = f"{self.counters[-1]}. "
            self.counters[-1] += 1
        return [mark, " " * len(mark) if tag == "li" else mark]

    def _end_code(self):
        code = "".join(self.parts).replace("\0", "\n").strip("\n")
        self.parts.clear()
        fence, self.fence = self.fence, None
        lines = code.split("\n") if code.strip() else []
        if lines and fence:
            ticks = "`" * (1 + max(map(len, re.findall("`{3,}", code)), default=2))
            lines = [ticks + fence.lstrip("`"), *lines, ticks]
        for line in lines:
            self._write(line)

    def end_paragraph(self):
        """Writes the lines that are open."""
        if self.fence is not None or not self.parts:
            self.parts += ["\n"] if self.parts and not self.parts[-1].endswith("\n") else []
            return
        lines, self.code = "".join(self.parts).split("\0"), -1
        self.parts.clear()
        for number, line in enumerate(lines, 1):
            if words := BLANKS.sub(" ", line).strip(" "):
                self._write(words)
            elif number < len(lines):
                self.blank = True

    def _write(self, line: str):
        if self.blank and self.lines:
            self.lines.append("".join(rest for _, rest in self.containers[: self.floor]).rstrip())
        prefix = "".join(first for first, _ in self.containers)
        self.lines.append(prefix + line if line else prefix.rstrip())
        self.containers = [[rest, rest] for _, rest in self.containers]
        self.blank, self.floor = False, len(self.containers)
