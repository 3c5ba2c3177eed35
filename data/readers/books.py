"""Books: the text without what a digital or printed edition put around and into it."""

import collections
import itertools
import re
from typing import NamedTuple

# Project Gutenberg: after the first of these its header ends, at the second its footer begins.
START = re.compile(
    r"(?im)^[^\w\n]*(?:START OF (?:THE |THIS )?PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
    r"|END[^\w\n]*THE SMALL PRINT)"
    r"(?:[^\n]*\*[ \t]*$|[^\n]*\n[^\n]+\*[ \t]*$|[^\n]*$)"
)
END = re.compile(
    r"(?im)^[^\w\n]*(?:END OF (?:THE |THIS )?PROJECT GUTENBERG\b|START: FULL LICENSE\b)|\Z"
)
CREDITS = re.compile(
    r"(?i)\W*(?:this )?(?:e-?(?:text|book) )?(?:was )?"
    r"(?:produced|prepared|transcribed|scanned|digiti[sz]ed|proofread)(?: and \w+)*"
    r"(?: for \S+)? by\b"
)
NUM_CREDITS_BLOCKS = 8

ILLUSTRATION = re.compile(r"\[Illustration(?::[^\[\]]*)?\]")
# A page's number inside a line.
INLINE_PAGE = re.compile(r"(?i)\[p(?:g|age)\.? ?[0-9ivxlc]+\]([ \t]*)")
# A page's number on a line of its own, with or without a running head.
PAGE = re.compile(
    r"(?i)[\[({\u2013\u2014. -]*(?:page |pg\.? |p\. ?)?(?P<alone>[0-9]{1,4})[\])}\u2013\u2014. -]*"
    r"|(?P<first>[0-9]{1,4}) +\S.{2,60}|\S.{2,60}? +(?P<last>[0-9]{1,4})"
)
HEADING = re.compile(
    r"(?i)#|(?:chapter|book|part|volume|act|scene|section|letter|canto|stave|no)\b"
)
# Numbers are those of pages if enough of them, no further apart than pages are, follow on each
# other, and if enough of them part a sentence; what stands beside a tenth of them is their head.
MIN_PAGES, MAX_PAGE_CHARS, REACH, MIN_PARTED, MIN_HEADS, MIN_HEAD_SHARE = 5, 8000, 3, 0.25, 5, 0.1

WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
DASHES = ("--", "\u2014")
LINE_END_HYPHEN = re.compile(r"([^\W\d_]+)-\Z")
LINE_START_WORD = re.compile(r"[^\W\d_]+")
# A book is hard-wrapped if hardly any of it is in longer lines, and a paragraph is if hardly any of
# its lines had room for the next one's first word. Verse has such room, or capitals at line starts.
LONG_LINE_CHARS, MAX_LONG_LINES = 100, 0.05
MIN_WIDTH, MAX_ROOM, MIN_FULL_LINES, MAX_CAPITALS = 40, 0.25, 0.8, 0.6
COLUMNS = re.compile(r"\S {3,}\S|\t")
CAPITAL_START = re.compile(r"[\W_]*([^\W\d_])")


class Block(NamedTuple):
    """Lines between empty lines."""

    lines: tuple[str, ...]
    place: int


def clean(text: str) -> str:
    """Takes a book's text out of its edition.

    Args:
        text: the whole book, plain text or Markdown.

    Returns:
        The text with LF; no header, footer, licence and credits of Project Gutenberg; no
        [Illustration] and its caption; no page numbers and running heads that stand between empty
        lines (such numbers rise, and often part a sentence, which is mended; numbers of chapters
        do not); hard-wrapped paragraphs on one line each, words that the line's end had hyphenated
        joined if the book has the joined word elsewhere. Verse, tables, lists and footnote marks
        stay as they are; between paragraphs is one empty line.
    """
    text = re.sub(r"\r\n?|\f", "\n", text)
    text = INLINE_PAGE.sub(_close_up, ILLUSTRATION.sub("", _without_edition(text)))
    blocks = _blocks(text)
    width = _wrap_width(blocks)
    pages = _find_pages(blocks)
    words = collections.Counter(WORD.findall(text.lower()) if width or pages else [])
    paragraphs = _without_pages(blocks, pages, words, bool(width))
    if width:
        paragraphs = [_unwrap(lines, width, words) for lines in paragraphs]
    return "\n\n".join("\n".join(lines) for lines in paragraphs) + "\n" if paragraphs else ""


def _without_edition(text: str) -> str:
    """The text between the markers of Project Gutenberg, and without its credits."""
    if "gutenberg" not in text.lower():
        return text
    first = START.search(text)
    end = END.search(text, first.end() if first else 0).start()
    starts = list(START.finditer(text, 0, end))
    if not starts and end == len(text):
        return text
    blocks = _blocks(text[starts[-1].end() if starts else 0 : end])
    kept = [
        block
        for index, block in enumerate(blocks)
        if index >= NUM_CREDITS_BLOCKS or not CREDITS.match(block.lines[0])
    ]
    return "\n\n".join("\n".join(block.lines) for block in kept)


def _close_up(page: re.Match) -> str:
    """The blanks that stay where a page's number goes: those on one side of it."""
    before = page.string[page.start() - 1 : page.start()]
    return page[1] if before and not before.isspace() else ""


def _blocks(text: str) -> list[Block]:
    blocks, lines, place = [], [], 0
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            blocks.append(Block(tuple(lines), place))
            place += sum(map(len, lines))
            lines = []
    return blocks


def _wrap_width(blocks: list[Block]) -> int:
    """How many characters fit a line of a book that is hard-wrapped; 0 of one that is not."""
    lengths = [len(line) for block in blocks for line in block.lines]
    long = sum(length for length in lengths if length > LONG_LINE_CHARS)
    inner = sorted(len(line) for block in blocks for line in block.lines[:-1])
    if not inner or long > MAX_LONG_LINES * sum(lengths):
        return 0
    width = inner[len(inner) * 9 // 10]
    return width if width >= MIN_WIDTH else 0


def _unwrap(lines: tuple[str, ...], width: int, words: collections.Counter) -> tuple[str, ...]:
    """Joins the lines of a paragraph that was broken where its lines were full."""
    indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
    if len(indents) != 1 or sum(bool(COLUMNS.search(line.strip())) for line in lines) > 1:
        return lines
    room, capitals = [], []
    for line, following in itertools.pairwise(lines):
        room.append(width - len(line) - 1 - len(following.split()[0]))
        capital = CAPITAL_START.match(following)
        capitals.append(capital is not None and capital[1].isupper())
    is_full = [left < MAX_ROOM * width for left in room]
    if sum(is_full) < MIN_FULL_LINES * len(room):
        return lines
    if sum(capitals) > MAX_CAPITALS * len(room) and max(room) >= 0:
        return lines
    joined = [lines[0].strip()]
    for line, full, capital in zip(lines[1:], is_full, capitals, strict=True):
        if full or not capital:
            joined[-1] = _joined(joined[-1], line.strip(), words)
        else:
            joined.append(line.strip())
    return tuple(joined)


def _joined(left: str, right: str, words: collections.Counter) -> str:
    """Two pieces of a line that was broken between them."""
    before = LINE_END_HYPHEN.search(left[-40:]) if left.endswith("-") else None
    after = LINE_START_WORD.match(right)
    if before and after:
        halves = before[1].lower(), after[0].lower()
        num_joined = words["".join(halves)]
        is_one_word = num_joined and num_joined >= words["-".join(halves)]
        return (left[:-1] if is_one_word else left) + right
    if left.endswith(DASHES) or right.startswith(DASHES):
        return left + right
    return f"{left} {right}"


def _without_pages(
    blocks: list[Block], pages: set[int], words: collections.Counter, is_wrapped: bool
) -> list[tuple[str, ...]]:
    """Lines of the blocks that are text, sentences mended that a page's end had parted."""
    kept, parted = [], False
    for index, block in enumerate(blocks):
        if index in pages:
            parted = True
        elif parted and kept and _parts_a_sentence(kept[-1], block.lines):
            # A wrapped paragraph is unwrapped later on.
            middle = (kept[-1][-1], block.lines[0])
            joined = middle if is_wrapped else (_joined(*middle, words),)
            kept[-1] = (*kept[-1][:-1], *joined, *block.lines[1:])
            parted = False
        else:
            kept.append(block.lines)
            parted = False
    return kept


def _parts_a_sentence(before: tuple[str, ...], after: tuple[str, ...]) -> bool:
    last, first = before[-1][-1], after[0].lstrip()[0]
    return (last.isalnum() or last in ",;-\u2014") and first.islower()


def _find_pages(blocks: list[Block]) -> set[int]:
    """Blocks that are numbers of pages, with or without their running heads."""
    numbers = {}
    for index, block in enumerate(blocks):
        line = block.lines[0].strip()
        found = PAGE.fullmatch(line) if len(block.lines) == 1 else None
        if found and not HEADING.match(line):
            numbers[index] = int(found["alone"] or found["first"] or found["last"])
    items = list(numbers.items())
    linked = set()
    for start, (index, number) in enumerate(items):
        for other, later in items[start + 1 : start + 1 + REACH]:
            chars = blocks[other].place - blocks[index].place
            if 0 < later - number <= REACH and chars <= MAX_PAGE_CHARS * (later - number):
                linked |= {index, other}
    beside = collections.defaultdict(set)
    for index in linked:
        for neighbour in {index - 1, index + 1}.intersection(range(len(blocks))) - linked:
            if len(blocks[neighbour].lines) == 1:
                beside[blocks[neighbour].lines[0].strip().lower()].add(neighbour)
    least = max(MIN_HEADS, MIN_HEAD_SHARE * len(linked))
    pages = linked.union(*(places for places in beside.values() if len(places) >= least))
    num_parted = sum(_parts_a_sentence(*_around(blocks, index, pages)) for index in linked)
    is_sure = len(linked) >= MIN_PAGES and num_parted >= MIN_PARTED * len(linked)
    return pages if is_sure else set()


def _around(blocks: list[Block], index: int, pages: set[int]) -> tuple[tuple[str, ...], ...]:
    """The lines of the text before and after a page's end."""
    before = (blocks[i].lines for i in range(index)[: -REACH - 1 : -1] if i not in pages)
    after = (blocks[i].lines for i in range(len(blocks))[index + 1 :][:REACH] if i not in pages)
    return next(before, (".",)), next(after, (".",))
