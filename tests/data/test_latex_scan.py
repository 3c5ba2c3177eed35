"""LaTeX to text: every construct against its text worked by hand, hostile input in linear time."""

import time

import pytest

from data.readers.latex import to_text

MAX_SECS_PER_MEGABYTE = 10

CONSTRUCTS = [
    # Comments, escapes, line ends.
    ("a% note\nb", "ab"),
    ("a % note\nb", "a b"),
    ("a\n% whole line\nb", "a\nb"),
    ("a % ends the paragraph\n\nb", "a\n\nb"),
    (r"50\% of \$5 \& \#1\_x \{y\}", r"50% of \$5 & #1_x {y}"),
    ("x\\\\% comment after a line's end\ny", "x\ny"),
    ("a\r\nb\rc", "a\nb\nc"),
    (r"a\iffalse never \fi b", "a b"),
    ("a\n\\begin{comment}\nno\n\\end{comment}\nb", "a\n\nb"),
    # What is literal.
    ("\\begin{verbatim}\n  x % 1 {\n\\alpha\n\\end{verbatim}", "  x % 1 {\n\\alpha"),
    ("\\begin{lstlisting}[language=C]\nint a[2] = {0};\n\\end{lstlisting}", "int a[2] = {0};"),
    (r"use \verb|\foo{%}| or \verb!x|y!", r"use \foo{%} or x|y"),
    (r"see \url{http://a.b/c%20d_e}", "see http://a.b/c%20d_e"),
    # Mathematics stays.
    (r"if $a_{1} < b~c$ and \(x--y\)", r"if $a_{1} < b~c$ and \(x--y\)"),
    (r"$a$$b$", "$a$$b$"),
    ("$$ f'' \\text{ if $x \\in X$ } $$", "$$ f'' \\text{ if $x \\in X$ } $$"),
    ("$\\mbox{ for \\emph{all} $x$}$", "$\\mbox{ for \\emph{all} $x$}$"),
    ("\\[ a \\\\[2pt] b \\]", "\\[ a \\\\[2pt] b \\]"),
    (
        "\\begin{align*}\n a &= b \\label{eq:a} \\\\\n & = c\n\\end{align*}",
        "\\begin{align*}\na &= b \\\\\n& = c\n\\end{align*}",
    ),
    (
        "\\begin{equation}\n  \\label{e}\n  x\n\\end{equation}",
        "\\begin{equation}\nx\n\\end{equation}",
    ),
    (
        r"\begin{equation}\begin{aligned}a\end{aligned}\end{equation}",
        r"\begin{equation}\begin{aligned}a\end{aligned}\end{equation}",
    ),
    (r"in text \ensuremath{x^2} is", "in text $x^2$ is"),
    # Structure.
    ("\\section{One \\emph{two}}\\label{s}\nText", "One two\n\nText"),
    ("\\chapter*[short]{Long}\nText", "Long\n\nText"),
    (r"\title{T\thanks{Grant} x}\author{A \and B}\maketitle Go", "T x\n\nGo"),
    ("\\begin{abstract}\nShort.\n\\end{abstract}\nLong.", "Abstract\nShort.\n\nLong."),
    ("\\begin{lemma}\\label{l}\nA.\n\\end{lemma}\nB", "Lemma.\nA.\n\nB"),
    ("\\begin{thm}[Main, \\cite{X}]\nA.\n\\end{thm}", "Theorem (Main, [X]).\nA."),
    ("\\begin{proof}[Proof of $x$]\nA.\\qed\n\\end{proof}", "Proof of $x$.\nA."),
    ("\\newtheorem{foo}[bar]{Foo Bar}\n\\begin{foo}A\\end{foo}", "Foo Bar.\nA"),
    (
        "We have\n\\begin{enumerate}\n\\item one\n\\item two\n\\begin{itemize}\n\\item in\n"
        "\\end{itemize}\n\\item[(c)] three\n\\item four\n\\end{enumerate}\nAnd",
        "We have\n1. one\n2. two\n- in\n(c) three\n3. four\nAnd",
    ),
    (
        "\\begin{figure}[t]\\centering\\includegraphics[width=1cm]{a}\n"
        "\\caption{A cat}\\end{figure}",
        "Figure: A cat",
    ),
    (
        "\\begin{table}\n\\caption[s]{Tab}\n\\begin{tabular}{|l|r|}\\hline\na & $b$\\\\ \\hline\n"
        "c &\nd\\\\[1ex]\n\\multicolumn{2}{c}{both}\\\\\n\\end{tabular}\n\\end{table}",
        "Table: Tab\n\na | $b$\nc | d\nboth",
    ),
    (r"a\footnote{see \emph{b}} c", "a [see b] c"),
    (r"\cite{a, b} \citep[see][p.~3]{c} \cite[T]{d}", "[a, b] [see c, p. 3] [d, T]"),
    (r"Lemma~\ref{l} and (\eqref{e}), \Cref{x,y}", "Lemma [l] and ([e]), [x, y]"),
    ("word\\index{word} next \\index{a}again", "word next again"),
    ("a\n\\vspace*{1cm}\nb \\hspace{2pt} c\\vskip 2pt plus 1pt d", "a\nb c d"),
    ("\\begin{tikzpicture}\\draw (0,0);\\end{tikzpicture}after", "after"),
    ("A\n\\begin{thebibliography}{9}\n\\bibitem{a} B\n\\end{thebibliography}\nC", "A\nC"),
    (r"\href{http://x}{text} \textcolor{red}{warm} \texorpdfstring{$n$}{n}", "text warm $n$"),
    # Letters and signs.
    (r"\'etale, G\"odel, {\ss}, \v{C}ech, \c c", "étale, Gödel, ß, Čech, ç"),
    (r"na\"\i ve, \'{\i}, \O re, Erd\H{o}s, \L{}ódź", "naïve, í, Øre, Erdős, Łódź"),
    (r"\.Z, \~n, a\~{}b, \`a, {\v C}ech", "Ż, ñ, a~b, à, Čech"),
    ("``a'' --- 1--2~b-c `d'", "“a” — 1–2 b-c 'd'"),
    (r"\LaTeX{} and \S 3, e.g.\ x, 5\,km, co\-op", "LaTeX and § 3, e.g. x, 5 km, coop"),
    # Unknown commands.
    (r"\foo{kept} \bar[option]{kept} in \Coq, \choice{} x", r"kept kept in \Coq, \choice x"),
    (r"\eqv{A}{B} is", r"\eqv{A}{B} is"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), CONSTRUCTS, ids=lambda text: text[:40])
def test_construct_gives_its_text(source, expected):
    assert to_text(source) == expected + "\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a } b { c", "a  b  c"),
        ("it costs 5$ today\n\n\\emph{and} $x$ too", "it costs 5$ today\n\nand $x$ too"),
        ("\\begin{enumerate}\\item a\\end{lemma}\\item b\\end{enumerate}", "1. a\n2. b"),
        ("\\footnote{open\n\nnext", "[open\n\nnext]"),
        ("\\index{lost brace\n\nkept } too", "lost brace\n\nkept  too"),
        ("\\begin{lemma}a\n\n\\begin{itemize}\\item b\\end{lemma}\nc", "Lemma.\na\n\n- b\n\nc"),
        ("a\\end{lemma}b", "ab"),
        ("\\begin{tikzpicture} cut off", "cut off"),
        ("\\begin{align} x\n\nafter", "x\n\nafter"),
        ("\\begin{verbatim}\nx", "x"),
        ("\\section{open\n\nText", "open\n\nText"),
        ("ends in \\", "ends in \\"),
        ("\\newcommand{\\a}{open\n\nText", "\\aopen\n\nText"),
    ],
)
def test_what_does_not_match_costs_little(source, expected):
    assert to_text(source) == expected + "\n"


HOSTILE = [
    *(
        "{",
        "}",
        "$",
        "$$",
        "%",
        "&",
        "{[",
        "${",
        "\\[",
        "\\(",
        "\\\\[",
        "\\'{",
        "\\foo{",
        "\\item[",
    ),
    *("\\begin{align}", "\\begin{verbatim}", "\\begin{comment}", "\\begin{theorem}[", "\\begin{a}"),
    *(
        "\\begin{tikzpicture}",
        "\\begin{align}\\begin{equation}",
        "\\iffalse",
        "\\verb|",
        "\\x{a}{b",
    ),
    *("\\footnote{", "\\label{", "\\cite[", "\\index{a{", "\\section[", "\\texorpdfstring{a}{"),
    *(
        "\\def\\a{",
        "\\newcommand{\\a}{",
        "\\newcommand{\\f}[1]{#1}\\f{",
        "\\ensuremath{",
        "\\vskip 1",
    ),
]


@pytest.mark.parametrize("token", HOSTILE)
def test_hostile_input_ends_in_time(token):
    size = 200_000
    start = time.process_time()
    to_text(token * (size // len(token)))
    secs = time.process_time() - start
    # A quadratic scan takes minutes here; the bound is far above what a slow machine needs.
    assert secs < MAX_SECS_PER_MEGABYTE * size / 1e6, f"{token!r} took {secs:.1f} s"
