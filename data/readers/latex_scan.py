r"""LaTeX without comments and author's commands to text: one pass, a token at a time.

What lies between two commands, mathematics too, passes in one match. Every pattern is linear in its
input: repeats are possessive, and what is delimited either cannot hold its own opening or nests at
most GROUP_DEPTH deep. Nothing has to match: a brace or environment left open costs its own mark.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.readers import latex_words

GROUP_DEPTH = 8

GROUP = "(?!)"
for _ in range(GROUP_DEPTH):
    GROUP = rf"\{{(?:[^{{}}\\]++|(?s:\\.)|{GROUP})*+\}}"
OPTION = rf"\[(?:[^\[\]{{}}\\]++|(?s:\\.)|{GROUP})*+\]"
DISPLAY = (
    r"\{(?:narrow)?(?:equation|(?:fl|x?x)?align(?:at)?|gather|multline|d?math|displaymath|eqnarray"
    r"|IEEEeqnarray|dgroup|mathpar(?:page)?(?:breakable)?)\*?\}"
)
DIAGRAM = r"\{(?:tikzcd|CD|diagram)\}"


def environment(names: str) -> str:
    r"""Gives a pattern for a whole environment that holds none of its own kind.

    Args:
        names: pattern of its name, with the braces.

    Returns:
        The pattern without its first backslash; linear in its input.
    """
    return rf"begin{names}(?:[^\\]++|\\(?!(?:begin|end){names})(?s:.))*+\\end{names}"


# Mathematics in dollars ends with the paragraph at the latest: a lost dollar costs no more.
IN_PARAGRAPH = rf"[^$\\\n{{]++|(?s:\\.)|\n(?![ \t]*+\n)|{GROUP}|\{{"
MATHS = "|".join(
    (
        rf"\$(?:{IN_PARAGRAPH})++\$",
        rf"\$\$(?:{IN_PARAGRAPH}|\$(?!\$))*+\$\$",
        r"\\(?:\[(?:[^\\]++|\\[^\[\]])*+\\\]",
        r"\((?:[^\\]++|\\[^()])*+\\\)",
        environment(DISPLAY),
        environment(DIAGRAM) + ")",
    )
)
TOKEN = re.compile(
    rf"((?:[^\\{{}}$~`'\-&]++|-(?!-)|'(?!')|{MATHS})*+)(?:\\([A-Za-z@]++)|(---?|``|''|(?s:\\?.))|)"
)
ENVIRONMENT_NAME = re.compile(r"\s*+\{([^{}]*+)\}")
TITLE_OPTION = re.compile(rf"\s*+({OPTION})")
BLANKS = re.compile(r"[ \t]*+")
LINE_END = re.compile(r"[ \t]*+\n?")
SPACE = re.compile(r"\s*+")
ITEM = re.compile(rf"[ \t]*+({OPTION})?[ \t]*+(?:\n(?![ \t]*+\n)[ \t]*+)?")
LINE_BREAK = re.compile(rf"\*?(?:{OPTION})?[ \t]*+\n?")
OPENING = re.compile(rf"\*?\s*+(?:{OPTION}\s*+)?\{{")
UNKNOWN_OPENING = re.compile(rf"\*?(?:{OPTION})*+(?=\{{[^}}])")
UNKNOWN_OF_SEVERAL = re.compile(rf"(?:{OPTION})*+{GROUP}(?:{GROUP})++")
NOTED = re.compile(rf"\*?\s*+({OPTION})?\s*+({OPTION})?\s*+\{{([^{{}}]*+)\}}")
GROUPS = re.compile(rf"(?:[ \t]*+(?:{OPTION}|{GROUP}))++")
ONE_GROUP = re.compile(rf"\s*+({GROUP})")
TWO_GROUPS = re.compile(rf"\s*+({GROUP})\s*+{GROUP}")
ACCENTED = re.compile(
    r"\s*+(?:\{\s*+(\\[ij](?![A-Za-z])|[^\W\d_])([^{}\\]*+)\}|(\\[ij](?![A-Za-z]) ?|[^\W\d_]))"
)
LENGTH = r"[=\s]*+-?[\d.]+\s*+(?:true\s*+)?(?:pt|cm|mm|in|ex|em|pc|bp|mu|\\[A-Za-z]+)"
# What goes with a dropped command; the kinds are those of latex_words.DROPPED.
DROPPED = {
    "nothing": re.compile(r"\*?[ \t]*+"),
    "option": re.compile(rf"\*?(?:{OPTION})?"),
    "length": re.compile(rf"(?:{LENGTH}|=?\d+)(?:\s*+(?:plus|minus){LENGTH})*+"),
    "name": re.compile(rf"\s*+(?:{GROUP}|[^\s\\{{}}]++)"),
    "definition": re.compile(rf"\s*+\\[A-Za-z@]++[^{{}}\n]*+{GROUP}"),
} | {
    count: re.compile(rf"\*?(?:\([lr]+\))?(?:\s*+(?:{OPTION}\s*+)*+{GROUP}){{{count}}}")
    for count in ("1", "2", "3")
}
ENVIRONMENTS = {
    name: DROPPED[count]
    for count, names in latex_words.ENVIRONMENTS.items()
    for name in names.split()
}
DRAWINGS = frozenset(latex_words.DRAWINGS.split())


class _Frame(NamedTuple):
    """What is open: a brace, or an environment by its name.

    Attributes:
        environment: its name, '' of a brace.
        closer: what is written where it ends.
        start: number of pieces written before it if they are all that stays of it, else -1.
        kind: "list", "table" or ''.
    """

    environment: str
    closer: str
    start: int = -1
    kind: str = ""


BRACE = _Frame("", "")


class Scanner:
    """One pass over a source.

    Args:
        source: LaTeX without comments.
        titles: what a theorem-like environment is headed with, by its name without a star.
    """

    def __init__(self, source: str, titles: Mapping[str, str]):
        self.source = source
        self.titles = titles
        self.out: list[str] = []
        self.frames: list[_Frame] = []
        self.open: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.items: list[int | None] = []

    def run(self) -> str:
        """Gives the text, with blanks and empty lines where commands were."""
        source, out, position, end = self.source, self.out, 0, len(self.source)
        match, commands = TOKEN.match, COMMANDS
        while position < end:
            found = match(source, position)
            plain, name, symbol = found.groups()
            position = found.end()
            if plain:
                out.append(plain.replace("\n", " ") if self.kinds["table"] else plain)
            if token := name or symbol:
                action = commands.get(token)
                if action is None:
                    position = self._unknown(token, position)
                elif type(action) is str:
                    out += action and [action]
                else:
                    position = action[0](self, action[1], position)
        out += [frame.closer for frame in reversed(self.frames)]
        # In mathematics alone is this left.
        return "".join(out).replace("\\ensuremath", "")

    def _inner(self, source: str) -> str:
        return " ".join(Scanner(source, {}).run().split())

    def _unknown(self, name: str, position: int) -> int:
        if name.startswith("if"):
            return position
        if "cite" in name.lower() or name.lower().endswith("ref"):
            return self._note(name, position)
        pattern = UNKNOWN_OPENING
        if name.startswith("index") or name.endswith(("index", "label")):
            pattern = GROUPS
        elif found := UNKNOWN_OF_SEVERAL.match(self.source, position):
            self.out.append(f"\\{name}{found[0]}")
            return found.end()
        if found := pattern.match(self.source, position):
            return found.end() if pattern is UNKNOWN_OPENING else self._close_gap(found.end())
        self.out.append("\\" + name if name[0].isalpha() else name)
        return position

    def _note(self, name: str, position: int) -> int:
        """A citation or reference: its keys and what is said with them, in brackets."""
        found = NOTED.match(self.source, position)
        if not found:
            self.out.append("\\" + name)
            return position
        before, after, keys = found.groups()
        if not after:
            before, after = None, before
        parts = [self._inner(before[1:-1]) + " " if before else ""]
        parts.append(", ".join(key.strip() for key in keys.split(",")))
        parts.append(", " + self._inner(after[1:-1]) if after else "")
        self.out.append(f"[{''.join(parts)}]")
        return found.end()

    def _drop(self, pattern: re.Pattern, position: int) -> int:
        found = pattern.match(self.source, position)
        # A paragraph's end in an argument: a brace was lost, and half the text is not an argument.
        if found and "\n\n" not in found[0]:
            position = found.end()
        return self._close_gap(position)

    def _close_gap(self, position: int) -> int:
        """Where to go on after what is dropped, so that no second blank or empty line is left."""
        last = self.out[-1] if self.out else "\n"
        if last.rstrip(" \t").endswith("\n"):
            return LINE_END.match(self.source, position).end()
        return BLANKS.match(self.source, position).end() if last[-1:] in " \t" else position

    def _wrap(self, marks: tuple[str, str], position: int) -> int:
        found = OPENING.match(self.source, position)
        if not found:
            return position
        self.out.append(marks[0])
        self.frames.append(_Frame("", marks[1]))
        return found.end()

    def _caption(self, _: None, position: int) -> int:
        kind = "Table" if self.kinds["table"] else "Figure"
        return self._wrap((f"\n\n{kind}: ", "\n\n"), position)

    def _open_brace(self, _: None, position: int) -> int:
        self.frames.append(BRACE)
        return position

    def _close_brace(self, _: None, position: int) -> int:
        if self.frames and not self.frames[-1].environment:
            self.out.append(self.frames.pop().closer)
        return position

    def _begin(self, _: None, position: int) -> int:
        found = ENVIRONMENT_NAME.match(self.source, position)
        if not found:
            return position
        full, position = found[1].strip(), found.end()
        name = full.rstrip("*")
        closer, start, kind = "", -1, ""
        if name in self.titles:
            closer = "\n"
            position = self._head(name, position)
        else:
            extent = ENVIRONMENTS.get(full) or ENVIRONMENTS.get(name, DROPPED["option"])
            position = LINE_END.match(self.source, self._drop(extent, position)).end()
            self._end_line()
        if name in DRAWINGS:
            start = len(self.out)
        elif "tab" in name:
            kind = "table"
        elif "enum" in name or "item" in name or name in ("description", "list"):
            kind = "list"
            self.items.append(0 if "enum" in name else None)
        self.frames.append(_Frame(full, closer, start, kind))
        self.open[full] += 1
        self.kinds[kind] += 1
        return position

    def _head(self, name: str, position: int) -> int:
        """The line that names a theorem; a proof's own name takes its place."""
        title = self.titles[name]
        if found := TITLE_OPTION.match(self.source, position):
            position = found.end()
            note = self._inner(found[1][1:-1])
            dot = "." if title.endswith(".") else ""
            title = f"{title.removesuffix('.')} ({note}){dot}"
            if name in latex_words.PROOFS:
                title = note.removesuffix(".") + "."
        self.out.append(f"\n\n{title}\n")
        return SPACE.match(self.source, position).end()

    def _end(self, _: None, position: int) -> int:
        found = ENVIRONMENT_NAME.match(self.source, position)
        if not found:
            return position
        name = found[1].strip()
        while self.open[name]:
            if self._pop() == name:
                break
        return LINE_END.match(self.source, found.end()).end()

    def _pop(self) -> str:
        frame = self.frames.pop()
        if frame.start >= 0:
            del self.out[frame.start :]
        if frame.environment:
            self.open[frame.environment] -= 1
            self.kinds[frame.kind] -= 1
            self._end_line()
            if frame.kind == "list":
                self.items.pop()
        self.out += frame.closer and [frame.closer]
        return frame.environment

    def _item(self, _: None, position: int) -> int:
        found = ITEM.match(self.source, position)
        if found[1]:
            mark = self._inner(found[1][1:-1])
        elif self.items and self.items[-1] is not None:
            self.items[-1] += 1
            mark = f"{self.items[-1]}."
        else:
            mark = "-"
        self._end_line()
        self.out.append(mark + " ")
        return found.end()

    def _end_line(self):
        if self.out and not self.out[-1].rstrip(" \t").endswith("\n"):
            self.out.append("\n")

    def _cell(self, _: None, position: int) -> int:
        self.out.append("\0|" if self.kinds["table"] else "&")
        return position

    def _break_line(self, _: None, position: int) -> int:
        self.out.append("\n")
        return LINE_BREAK.match(self.source, position).end()

    def _letter(self, letter: str, position: int) -> int:
        self.out.append(letter)
        return DROPPED["nothing"].match(self.source, position).end()

    def _accent(self, mark: str, position: int) -> int:
        found = ACCENTED.match(self.source, position)
        if not found:
            self.out.append({"\u0302": "^", "\u0303": "~"}.get(mark, ""))
            return position
        base = (found[1] or found[3]).strip().lstrip("\\")
        self.out.append(unicodedata.normalize("NFC", base + mark) + (found[2] or ""))
        return found.end()

    def _ensure_maths(self, _: None, position: int) -> int:
        found = ONE_GROUP.match(self.source, position)
        self.out.append(f"${found[1][1:-1]}$" if found else "")
        return found.end() if found else position

    def _first_of_two(self, _: None, position: int) -> int:
        found = TWO_GROUPS.match(self.source, position)
        if not found:
            return position
        self.out.append(self._inner(found[1]))
        return found.end()


Action = Callable[[Scanner, Any, int], int]
COMMANDS: dict[str, str | tuple[Action, Any]] = {
    **latex_words.WRITTEN,
    **dict.fromkeys(latex_words.HEADINGS.split(), (Scanner._wrap, ("\n\n", "\n\n"))),
    **{
        name: (Scanner._drop, DROPPED[kind])
        for kind, names in latex_words.DROPPED.items()
        for name in names.split()
    },
    **{
        name: (Scanner._letter, letter)
        for name, letter in (entry.split("=") for entry in latex_words.LETTERS.split())
    },
    **{
        name: (Scanner._accent, chr(int(code, 16)))
        for name, code in (entry.rsplit("=", 1) for entry in latex_words.ACCENTS.split())
    },
    "begin": (Scanner._begin, None),
    "end": (Scanner._end, None),
    "{": (Scanner._open_brace, None),
    "}": (Scanner._close_brace, None),
    "item": (Scanner._item, None),
    "caption": (Scanner._caption, None),
    "footnote": (Scanner._wrap, (" [", "]")),
    "footnotetext": (Scanner._wrap, (" [", "]")),
    "abstract": (Scanner._wrap, ("\n\nAbstract\n\n", "\n\n")),
    "&": (Scanner._cell, None),
    "\\\\": (Scanner._break_line, None),
    "ensuremath": (Scanner._ensure_maths, None),
    "texorpdfstring": (Scanner._first_of_two, None),
}
