r"""The author's own LaTeX commands: found, and put in place of their uses.

\newcommand, \def without delimiters, \let and \DeclareMathOperator. A definition that branches,
defines or counts is left alone. Lengths and depths are bounded, so that commands which multiply
themselves end in the source as it was, not in a flood.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data.readers.latex_scan import COMMANDS, GROUP, OPTION

MAX_DEFINITIONS = 2000
MAX_BODY_CHARS = 2000
MAX_PARAMETERS = 20
MAX_DEPTH = 5
MAX_GROWTH = 4
SPARE_CHARS = 20_000
ROUNDS = 3
MAX_NAME_CHARS = 40

DEFINING = ("\\newcommand", "\\renewcommand", "\\providecommand", "\\DeclareRobustCommand")
DEFINING += ("\\def", "\\gdef", "\\let", "\\DeclareMathOperator")
NAME = r"\s*+(?:\{{\s*+)?\\(?P<{}>[A-Za-z@]++)\s*+(?:\}}\s*+)?"
DEFINITION = re.compile(
    rf"\\(?:(?:newcommand|renewcommand|providecommand|DeclareRobustCommand)\*?{NAME.format('new')}"
    rf"(?:\[(?P<count>\d)\]\s*+)?(?P<default>{OPTION})?\s*+(?P<newbody>{GROUP})"
    rf"|g?def\s*+\\(?P<def>[A-Za-z@]++)\s*+(?P<numbers>(?:\#\d)*+)\s*+(?P<defbody>{GROUP})"
    r"|let\s*+\\(?P<let>[A-Za-z@]++)\s*+=?\s*+(?P<letbody>\\(?:[A-Za-z@]++|[^\sA-Za-z]))"
    rf"|DeclareMathOperator(?P<star>\*?){NAME.format('operator')}(?P<operatorbody>{GROUP}))"
)
UNSAFE = re.compile(
    r"\\(?:@|[gex]?def\b|(?:new|renew|provide)[a-z]|if|else\b|fi\b|csname|expandafter|let\b|futurelet"
    r"|begingroup|bgroup|mathchoice|mathpalette|catcode|noexpand|the[a-z]|setcounter)|\#\#"
)
COMMAND = re.compile(r"\\([A-Za-z]++)")
ARGUMENT = re.compile(rf"\s*+(?:({GROUP})|(\\[A-Za-z]++|\\.|[^\s{{}}\\$&]))")
GIVEN_OPTION = re.compile(rf"\s*+({OPTION})")
LAST_COMMAND = re.compile(r"\\[A-Za-z]+\Z")
# One token, one group, or what braces would break.
WHOLE = re.compile(r"\A(?:|.|\\[A-Za-z]+|\{[^{}]*\})\Z|\\(?:begin|end)\b|[$\n]|\\\\")
PARAMETER = re.compile(r"\#([1-9])")
# Words of the language itself keep their meaning here, whatever a class makes of their looks.
PROTECTED = {name for name, action in COMMANDS.items() if type(action) is tuple}
PROTECTED -= set("bcdHkrtuvOoLlij") | {"text", "aa", "AA", "ss", "th", "or", "em", "tt"}


class Macro(NamedTuple):
    """One command.

    Attributes:
        num_arguments: how many it takes, with the optional one.
        default: of its optional first argument; None if it has none.
        pieces: text, number of a parameter, text, ..., text.
    """

    num_arguments: int
    default: str | None
    pieces: tuple[str, ...]


def define(source: str, macros: dict[str, Macro]) -> None:
    """Collects the definitions in a source.

    Args:
        source: LaTeX without comments.
        macros: by name; what can be expanded safely is put in, later definitions over earlier.
    """
    for found in _definitions(source):
        name, macro = _read(found)
        _set(name, macro, macros)


def expand(source: str, macros: dict[str, Macro]) -> str:
    """Takes definitions out and puts what commands stand for in place of their uses.

    Args:
        source: LaTeX without comments.
        macros: by name, from `define`; definitions in the source hold from where they stand.

    Returns:
        The source; at most MAX_GROWTH times as long and a bit: what would grow more stays as it is.
    """
    parts, pieces, done = [], [], 0
    for found in _definitions(source):
        pieces.append(source[done : found.start()])
        done = found.end()
        name, macro = _read(found)
        if name in macros and macros[name] != macro:
            parts.append(_expand_with("".join(pieces), macros))
            pieces = []
        _set(name, macro, macros)
    parts.append(_expand_with("".join(pieces) + source[done:], macros))
    return "".join(parts)


def _definitions(source: str) -> Iterator[re.Match]:
    return DEFINITION.finditer(source) if any(word in source for word in DEFINING) else iter(())


def _set(name: str, macro: Macro | None, macros: dict[str, Macro]):
    if macro is None:
        macros.pop(name, None)
    elif name in macros or len(macros) < MAX_DEFINITIONS:
        macros[name] = macro


def _read(found: re.Match) -> tuple[str, Macro | None]:
    """A definition's name and meaning, None where it cannot be expanded safely."""
    kind = found.lastgroup.removesuffix("body")
    name, body = found[kind], found[f"{kind}body"]
    count, default = 0, None
    if kind == "let":
        body = "{" + body + "}"
    elif kind == "operator":
        body = f"{{\\operatorname{found['star']}{body}}}"
    elif kind == "def":
        count = len(found["numbers"]) // 2
    else:
        count = int(found["count"] or 0)
        default = found["default"][1:-1] if found["default"] else None
    body = body[1:-1].replace("\\xspace", "").strip()
    pieces = tuple(PARAMETER.split(body))
    safe = "@" not in name and name not in PROTECTED and not UNSAFE.search(body)
    fits = len(body) <= MAX_BODY_CHARS and len(pieces) // 2 <= MAX_PARAMETERS
    if safe and fits and all(int(number) <= count for number in pieces[1::2]):
        return name, Macro(count, default, pieces)
    return name, None


def _expand_with(source: str, macros: dict[str, Macro]) -> str:
    known = _used(source, macros)
    for _ in range(ROUNDS):
        before = dict(known)
        for name, macro in before.items():
            del known[name]
            body = "".join(f"#{p}" if i % 2 else p for i, p in enumerate(macro.pieces))
            pieces = tuple(PARAMETER.split(_expand(body, known, MAX_DEPTH)))
            if sum(map(len, pieces)) <= MAX_BODY_CHARS and len(pieces) // 2 <= MAX_PARAMETERS:
                known[name] = macro._replace(pieces=pieces)
        if known == before:
            break
    return _expand(source, known, MAX_DEPTH) if known else source


def _used(source: str, macros: dict[str, Macro]) -> dict[str, Macro]:
    """The commands that a source needs, those in others' bodies too, in a fixed order."""
    names, seen = set(COMMAND.findall(source)) & macros.keys(), set()
    while names:
        seen |= names
        bodies = " ".join(piece for name in names for piece in macros[name].pieces)
        names = set(COMMAND.findall(bodies)) & macros.keys() - seen
    return {name: macros[name] for name in sorted(seen)}


def _expand(source: str, macros: dict[str, Macro], depth: int) -> str:
    parts, done = [], 0
    room = MAX_GROWTH * len(source) + SPARE_CHARS
    for use in COMMAND.finditer(source):
        macro = macros.get(use[1])
        if macro is None or use.start() < done:
            continue
        if not macro.num_arguments:
            value, end = macro.pieces[0], use.end()
        elif filled := _fill(source, use.end(), macro, macros, depth):
            value, end = filled
        else:
            continue
        room -= len(value)
        if room < 0:
            break
        if _is_argument(source, use.start()) and not WHOLE.search(value):
            value = "{" + value + "}"
        parts += (source[done : use.start()], value)
        done = end
    return "".join(parts) + source[done:]


def _fill(
    source: str, position: int, macro: Macro, macros: dict[str, Macro], depth: int
) -> tuple[str, int] | None:
    """A use with its arguments put in, and where it ends; None if they are not there."""
    arguments = []
    if macro.default is not None:
        given = GIVEN_OPTION.match(source, position)
        arguments.append(given[1][1:-1] if given else macro.default)
        position = given.end() if given else position
    while len(arguments) < macro.num_arguments:
        found = ARGUMENT.match(source, position)
        if not found:
            return None
        arguments.append(found[1][1:-1] if found[1] else found[2])
        position = found.end()
    if depth and any("\\" in argument for argument in arguments):
        arguments = [_expand(argument, macros, depth - 1) for argument in arguments]
    chosen = [arguments[int(p) - 1] if i % 2 else p for i, p in enumerate(macro.pieces)]
    for index in range(1, len(chosen), 2):
        # \mathbf#1 with x for #1 is not \mathbfx.
        if chosen[index][:1].isalpha() and _ends_in_command(chosen[index - 1]):
            chosen[index] = " " + chosen[index]
    return "".join(chosen), position


def _is_argument(source: str, position: int) -> bool:
    r"""Whether what stands here may be another's argument without braces: x^\foo, \bar\foo."""
    before = source[position - 1 : position]
    start = max(0, position - MAX_NAME_CHARS)
    return before in ("^", "_", "]") or (
        before.isalpha() and _ends_in_command(source[start:position])
    )


def _ends_in_command(text: str) -> bool:
    return bool(LAST_COMMAND.search(text[-MAX_NAME_CHARS:]))
