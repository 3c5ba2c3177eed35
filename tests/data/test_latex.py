"""LaTeX papers: archives against what was put in them, real books against another way to strip."""

import gzip
import io
import json
import re
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from data import unpacking
from data.readers import latex
from data.readers.borders import to_the_damage
from data.readers.latex import to_text

REAL = Path(__file__).parents[3] / "shared" / "data" / "pretrain" / "math_latex"


def test_document_is_cut_out_of_its_preamble_with_its_title():
    source = (
        "\\documentclass[a4]{article}\n\\newcommand{\\N}{\\mathbb N}\n\\title{On $\\N$}\n"
        "\\author{Nobody}\nPreamble\n\\begin{document}\n\\maketitle\nBody $\\N$.\n"
        "\\bibliography{x}\n\\end{document}\nAfter"
    )
    assert to_text(source) == "On $\\mathbb N$\n\nBody $\\mathbb N$.\n"
    assert to_text("") == to_text("% nothing\n") == ""


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    records = list(to_the_damage(latex.read(str(tmp_path / name))))
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    return records


DOCUMENT = (
    b"\\documentclass{article}\\title{A Title}\\begin{document}Text \\emph{here}.\\end{document}"
)


def test_a_paper_is_told_from_what_lies_beside_it(tmp_path):
    text = b"Words of some licence or other, and no LaTeX. " * 9
    notes = {"notes/a.txt": text, "notes/LICENSE": text, "notes/a.py": b"import os\n"}
    [broken] = read(tmp_path, "notes.tar.gz", gzip.compress(tar_of(notes)))
    assert broken.why == "no LaTeX in it"
    source = b"\\begin{document}Words of a paper.\\end{document}"
    [record] = read(tmp_path, "a.tar", tar_of(notes | {"notes/paper": source}))
    assert record.text == "Words of a paper.\n"


@pytest.mark.parametrize("name", ["2101.00001.gz", "2101.00001v2.tex", "2101.00001.tar.gz"])
def test_single_source_is_read(tmp_path, name):
    data = DOCUMENT if name.endswith(".tex") else gzip.compress(DOCUMENT)
    (record,) = read(tmp_path, name, data)
    assert record.text == "A Title\n\nText here.\n"
    assert (record.why, record.markup, record.date) == ("", "plain", "2021-01")
    assert record.url == "https://arxiv.org/abs/2101.00001"
    assert record.meta == {"title": "A Title", "files": 1, "arxiv_id": "2101.00001"}


def test_paper_of_many_files_is_put_together(tmp_path):
    files = {
        "paper/main.tex": b"% \\input{old}\n\\documentclass{amsart}\\usepackage{my, other}\n"
        b"\\begin{document}\\title{T}\n\\input{sections/one}\n\\include{sections/two.tex}\n"
        b"\\input missing \\input{../../paper/three}\n\\end{document}",
        "paper/old.tex": b"Old, long and unused. " * 99,
        "paper/my.sty": b"\\newcommand{\\N}{\\mathbb{N}}",
        "paper/sections/one.tex": b"One $\\N$. \\input{sections/deep}",
        "paper/sections/deep.tex": b"Deep. \\input{main}",
        "paper/sections/two.tex": b"\\documentclass{x}\n"
        + b"\\usepackage{much}\n" * 50
        + b"\\begin{document}Two.\\end{document}",
        "paper/three.tex": "Drei: ü.".encode("latin-1"),
        "paper/figure.png": b"\0" * 2000,
        "paper/figure.eps.gz": b"not even gzip",
    }
    (record,) = read(tmp_path, "hep-th9901001.tar.gz", gzip.compress(tar_of(files)))
    assert record.text == "T\n\nOne $\\mathbb{N}$. Deep.\nTwo.\nDrei: ü.\n"
    assert (record.url, record.date) == ("https://arxiv.org/abs/hep-th/9901001", "1999-01")
    assert record.meta["files"] == len(files)


def test_main_file_is_the_largest_document_else_the_largest_text(tmp_path):
    files = {
        "reply.tex": b"\\documentclass{letter}\\begin{document}Dear\\end{document}",
        "notes.tex": b"\\section{x} no document " * 9,
        "paper.tex": DOCUMENT,
    }
    (record,) = read(tmp_path, "a.tar", tar_of(files))
    assert record.text == "A Title\n\nText here.\n"
    assert record.url == ""
    plain = {"a.tex": b"\\input b.tex more", "b.tex": b"text of b"}
    (record,) = read(tmp_path, "b.tar", tar_of(plain))
    assert record.text == "text of b more\n"


def test_dump_of_many_papers_goes_on_after_broken_ones(tmp_path):
    truncated = gzip.compress(tar_of({"a.tex": DOCUMENT}))[:-40]
    files = {
        "2101/2101.00001.gz": gzip.compress(DOCUMENT),
        "2101/2101.00002.pdf": b"%PDF-1.4",
        "2101/2101.00003.gz": truncated,
        "2101/2101.00004.gz": gzip.compress(tar_of({"b.tex": DOCUMENT, "c.eps": b"\\x"})),
        "2101/2101.00005.gz": gzip.compress(b"%PDF-1.4 alone"),
        "2101/2101.00006.gz": gzip.compress(b"%auto-ignore\n\\def\\x{}\n"),
        "2101/2101.00007.gz": gzip.compress(tar_of({"a.pdf": b"%PDF"})),
        "math/9901002.gz": gzip.compress(DOCUMENT.replace(b"here", b"last")),
    }
    records = read(tmp_path, "arXiv_src_2101_001.tar", tar_of(files))
    assert [bool(record.why) for record in records] == [0, 1, 1, 0, 1, 1, 1, 0]
    assert records[1].why == records[4].why == "a PDF without its LaTeX"
    assert "damaged" in records[2].why
    assert records[5].why == "no text in it"
    assert records[6].why == "no LaTeX in it"
    assert records[3].text == "A Title\n\nText here.\n"
    assert records[3].meta["files"] == 2
    assert records[7].url == "https://arxiv.org/abs/math/9901002"
    assert [record.meta["arxiv_id"] for record in records[:3]] == [
        f"2101.0000{number}" for number in (1, 2, 3)
    ]


def test_damaged_archive_gives_what_comes_before(tmp_path):
    files = {f"2101.0000{number}.gz": gzip.compress(DOCUMENT) for number in (1, 2, 3)}
    whole = tar_of(files)
    cut = read(tmp_path, "cut.tar", whole[: 2 * 1024 + 550])
    # The third paper is damaged, and the file too.
    assert [bool(record.why) for record in cut] == [False, False, True, True]
    assert cut[3].why.startswith("the file is damaged or breaks off here")
    changed = bytearray(whole)
    changed[1024 + 10] ^= 1
    spoilt = read(tmp_path, "spoilt.tar", bytes(changed))
    assert [bool(record.why) for record in spoilt] == [False, True]
    packed = gzip.compress(whole)
    assert read(tmp_path, "cut.tar.gz", packed[: len(packed) // 2])[-1].why
    assert read(tmp_path, "empty.gz", b"")[0].why == "no LaTeX in it"


def test_too_much_latex_is_named_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(latex, "MAX_TEX_BYTES", 50)
    monkeypatch.setattr(unpacking, "MAX_WHOLE_BYTES", 50)
    (alone,) = read(tmp_path, "a.tex", DOCUMENT)
    (archive,) = read(tmp_path, "b.tar", tar_of({"a.tex": DOCUMENT}))
    assert "50 bytes" in alone.why and "50 are read" in archive.why


def documents(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the real data set {path.name} is not beside the checkout")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {row["name"]: row["text"] for row in map(json.loads, lines)}


DISPLAYS = (
    r"equation|align|alignat|gather|multline|narrowmultline|eqnarray|displaymath|flalign|mathpar\w*"
)
MATHS = re.compile(
    rf"\\begin\{{((?:{DISPLAYS})\*?)\}}.*?\\end\{{\1\}}|\\\[.*?(?<!\\)\\\]"
    r"|\$\$(?:[^$\\]|\\.|\$(?!\$))*\$\$|\$(?:[^$\\]|\\.)*\$",
    re.DOTALL,
)


def roughly_stripped(source):
    """The body without comments, drawings, index and labels: by other means than the module's."""
    body = source.split("\\begin{document}")[-1].split("\\end{document}")[0]
    body = re.sub(r"(?<!\\)%.*", "", body)
    dropped = r"\\begin\{(tikzpicture|comment)\}.*?\\end\{\1\}"
    body = re.sub(dropped, "", body, flags=re.DOTALL)
    nested = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
    return re.sub(rf"\\(?:symlabel|label|index\w*)(?:{nested})+", "", body)


def maths(text):
    return ["".join(found[0].split()) for found in MATHS.finditer(text)]


def words(text):
    plain = unicodedata.normalize("NFD", text).lower()
    return Counter(re.findall(r"[a-z]{2,}", re.sub("[\u0300-\u036f]", "", plain)))


def prose_of_source(stripped):
    argument = r"\{[^{}]*\}"
    prose = MATHS.sub(" ", stripped)
    prose = re.sub(r"\\['\"`^.=~]|\\-", "", prose)
    prose = re.sub(r"\\(?:v|H|c|ss|o)\b ?", "", prose)
    prose = re.sub(rf"\\(?:begin|end){argument}(?:\[[^\]]*\])?|\\href{argument}", " ", prose)
    prose = re.sub(rf"\\(?:\w*ref|cite|input|bibliography\w*)(?:\[[^\]]*\])?{argument}", " ", prose)
    return words(re.sub(r"\\[a-zA-Z]+\*?", " ", re.sub(r"[{}]", "", prose)))


@pytest.mark.real
def test_stacks_project_keeps_all_its_mathematics_and_words():
    num_words, num_lost = 0, 0
    for name, source in documents("stacks_project.jsonl.gz").items():
        text = to_text(source)
        assert not re.search(r"%|\\begin\{document\}|\\label|\\(?:sub)*section\b|\n\n\n", text), (
            name
        )
        stripped = roughly_stripped(source)
        assert maths(text) == maths(stripped), name
        expected = prose_of_source(stripped)
        num_words += expected.total()
        num_lost += (expected - words(MATHS.sub(" ", text))).total()
    assert num_words > 700_000
    assert num_lost < num_words / 10_000, f"{num_lost} of {num_words} words are lost"


# With definitions of its own, or nothing but definitions.
DEFINING = ("macros", "main", "formal", "homotopy", "exercise_solutions", "symbols", "errata")


@pytest.mark.real
def test_hott_book_keeps_all_its_mathematics():
    for name, source in documents("hott_book.jsonl.gz").items():
        text = to_text(source)
        assert not re.search(r"%|\\begin\{document\}|\\label|\\(?:sub)*section\b|\n\n\n", text), (
            name
        )
        if name.removesuffix(".tex") not in DEFINING:
            assert Counter(maths(text)) == Counter(maths(roughly_stripped(source))), name


# Read in the source and in the text, by eye.
SEEN = [
    ("dpa", "$n > 0$ is called a divided power structure\non $I$ if for all"),
    (
        "dpa",
        "1. If $\\gamma$ is a divided power structure [Here\nand in the following, $",
    ),
    ("dpa", "from $I$ to $I$.]\non $I$, then\n$n! \\gamma_n(x)"),
    ("dpa", "(3) If $\\gamma_n : I \\to I$ are maps then\n$$\n\\gamma\\text{ is a divided power"),
    ("descent", "\\begin{equation}\n0 \\to M \\to A \\otimes_R M \\to A \\otimes_R A"),
    (
        "etale",
        "(Descent, Lemma [descent-lemma-descending-property-finite])\nand the proof is",
    ),
    ("exercises", "$n$ in $R_f = R[1/f]$). See [H, page 116+]. Note that there are"),
    ("etale-cohomology", "flasque. In this case, all higher Čech cohomology groups vanish"),
    ("examples", "please email\nstacks.project@gmail.com.\n\nLet $X$ be a smooth"),
    ("logic", "\n\nSets and $n$-types\n\nIn order to explain the connection"),
    ("logic", "\n\nDefinition.\nA type $A$ is a set\nif for all $x,y:A$ and all $p,q:x=y$, we"),
    ("introduction", "\nTypes |  | Logic | Sets | Homotopy\n$A$ |  | proposition | set | space\n"),
    (
        "introduction",
        "\n\nTable: Comparing points of view on type-theoretic operations\n\nOpen problems",
    ),
    (
        "introduction",
        "such as Lawvere's Elementary Theory of the Category of Sets [lawvere:etcs-long], s",
    ),
    ("introduction", "or simply Martin-Löf type theory. This is the basis"),
    ("introduction", "\nUnivalence Axiom: $\\eqvspaced{(A = B)}{(\\eqv A B)}$.\nIn other words"),
    (
        "formal",
        "\n- implement it in proof assistants like \\Coq or \\Agda.\nEven the logical c",
    ),
    ("symbols", "$p\\ct q$\tpath concatenation, p. [lem:concat]\n"),
    (
        "setmath",
        "Since \\choice implies \\LEM, we have a boolean elementary topos with choice by [thm:s",
    ),
]


@pytest.mark.real
def test_places_read_by_eye_stay_as_they_were_read():
    sources = documents("stacks_project.jsonl.gz") | documents("hott_book.jsonl.gz")
    texts = {name: to_text(sources[f"{name}.tex"]) for name in {name for name, _ in SEEN}}
    assert [place for place in SEEN if place[1] not in texts[place[0]]] == []
