"""The author's own commands: what they expand to, worked by hand, and that they cannot flood."""

import pytest

from data.readers import latex_macros
from data.readers.latex import to_text

MACROS = [
    (r"\newcommand{\R}{\mathbb{R}} $x \in \R, y$", r"$x \in \mathbb{R}, y$"),
    (
        r"\def\be{\begin{equation}}\def\ee{\end{equation}} \be x~y \ee",
        r"\begin{equation} x~y \end{equation}",
    ),
    (r"\newcommand\norm[1]{\|#1\|} $\norm{\norm x}$", r"$\|\|x\|\|$"),
    (r"\newcommand{\id}[2][A]{#2_{#1}} $\id{x}\id[B]{y}$", r"$x_{A}y_{B}$"),
    (r"\newcommand{\vect}[1]{\mathbf#1} $\vect{x}\vect1$", r"$\mathbf x\mathbf1$"),
    (r"\let\phi\varphi $\phi$", r"$\varphi$"),
    (r"\DeclareMathOperator{\Hom}{Hom} $\Hom(A)$", r"$\operatorname{Hom}(A)$"),
    (r"\DeclareMathOperator*\colim{colim} $\colim$", r"$\operatorname*{colim}$"),
    (r"\newcommand{\etal}{\emph{et al.}\xspace} Knuth \etal say", "Knuth et al. say"),
    (r"\newcommand{\todo}[1]{} a \todo{never}b", "a b"),
    (r"\newcommand{\set}{\ensuremath{S}\xspace} A \set, $\set$", "A $S$, ${S}$"),
    # As another's argument it needs braces.
    (r"\def\v{\mathbf{v}} $\hat\v x^\v + \v$", r"$\hat{\mathbf{v}} x^{\mathbf{v}} + \mathbf{v}$"),
    # Of two definitions the one before a use holds; in the preamble, the last.
    (r"\newcommand{\a}{1}\a\renewcommand{\a}{2} \a", "1 2"),
    (r"\def\a{1}\def\a{2}\begin{document}\a", "2"),
    # One that uses a later one; one that branches; one that means itself; one with delimiters.
    (r"\def\x{\y z}\def\y{w} \x", "w z"),
    (r"\def\x#1{\ifmmode#1\else a\fi} \x{b}", "b"),
    (r"\def\x{\x a} \x", r"\x a"),
    (r"\def\x(#1){b#1} c", "c"),
]


@pytest.mark.parametrize(("source", "expected"), MACROS, ids=[source[:40] for source, _ in MACROS])
def test_command_gives_what_its_author_meant(source, expected):
    assert to_text(source) == expected + "\n"


def doubling(depth):
    """Commands, each twice the one before; without bounds the last is 2 ** depth letters long."""
    names = ["a" * count for count in range(1, depth + 1)]
    steps = zip(names[1:], names, strict=False)
    return "\\def\\a{xyz}" + "".join(f"\\def\\{n}{{\\{o} \\{o} }}" for n, o in steps), names[-1]


@pytest.mark.parametrize("depth", [3, 12, 60])
def test_commands_that_double_each_other_expand_within_bounds(depth):
    definitions, last = doubling(depth)
    text = to_text(definitions + f"\\{last} " * 1000)
    source_chars = 1000 * (len(last) + 2)
    most = latex_macros.MAX_GROWTH * source_chars + 2 * latex_macros.SPARE_CHARS
    assert len(text) <= most + source_chars, "more grew than the bound says"
    # Four short words for each use if that fits, and else the use as it was.
    assert ("xyz xyz xyz xyz" in text) == (depth == 3)
    assert ("\\aaa" in text) == (depth != 3)


def test_arguments_that_double_each_other_expand_within_bounds():
    source = "\\newcommand{\\f}[1]{#1#1}" + "\\f{" * 30 + "xyz" + "}" * 30
    assert len(to_text(source)) <= 2**latex_macros.MAX_DEPTH * 2 * len(source)
    flood = "\\newcommand{\\f}[1]{" + "#1" * 20 + "}" + "\\f{" * 6 + "xyz" * 999 + "}" * 6
    assert len(to_text(flood)) <= (latex_macros.MAX_GROWTH + 1) * len(flood) + 20_000


def test_command_without_its_arguments_stays():
    assert to_text("\\newcommand{\\f}[2]{#2#1} $\\f{a}$ $\\f{a}{b}$") == "$\\f{a}$ $ba$\n"


def test_definitions_are_taken_from_the_preamble_and_go():
    source = (
        "\\newcommand{\\X}{long\n\nbody}\\def\\Y{\\X!}\\begin{document}\\Y and \\Z{}\\end{document}"
    )
    assert to_text(source) == "long\n\nbody! and \\Z\n"
