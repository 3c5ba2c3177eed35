"""Repair: one form for every text, each mending tried on a case worked by hand, nothing else."""

import gzip
import random
import unicodedata
from pathlib import Path

import pytest

from data.gates import repair

DATA = Path("../shared/data")
# Every sign that some rule looks at, and plain ones between.
SIGNS = [
    *"aZ0. ,\n\t\r\x0b\x0c\x00\x7f\x85\x92\xa0\xad&;#@-<>|",
    *"\u0300\u0301\u0e01\u1780\u200b\u200c\u200d\u200e\u202a\u2028\u202f\u2003\u3000\ufeff\ufffc",
    *"\ufffd\u05d0\u0646\u0915\u4e2d\u1820é’“€Ãâ™Â\ud83d\ude00😀\u037e\u2000\u212b",
    *("&amp;", "nbsp;", "&#38;", "lt;", " @-@ ", "&#x27;", "&copy;", "\r\n", " . "),
]


def normal_form(text):
    """The form that `normalise` promises, step by step, for texts without surrogates."""
    for end in ("\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        text = text.replace(end, "\n")
    text = "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc")
    text = unicodedata.normalize("NFC", text.replace("\ufeff", ""))
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[0]:
        del lines[0]
    while lines and not lines[-1]:
        del lines[-1]
    return "".join(line + "\n" for line in lines)


def wild_texts(seed, count):
    rng = random.Random(seed)
    return ["".join(rng.choices(SIGNS, k=rng.randrange(30))) for _ in range(count)]


def test_normal_form_is_the_one_spelled_out():
    for text in wild_texts(1, 3000):
        text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
        assert repair.normalise(text) == normal_form(text), f"{text!r}"


@pytest.mark.parametrize("function", [repair.normalise, repair.repair])
def test_what_is_mended_needs_no_mending(function):
    for text in wild_texts(2, 4000):
        once = function(text)
        assert function(once) == once, f"{text!r} -> {once!r}"
        once.encode()  # no lone surrogate is left
        assert once == "" or (once[-1] == "\n" and once.strip("\n") + "\n" == once)


def test_good_text_is_the_very_same():
    text = "Café “here” — 5\u202f% of it, naïve 😀.\n\nSecond\tparagraph; x < y & z.\n".replace(
        "\u202f", " "
    )
    assert repair.repair(text) is text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("one\r\ntwo\rthree\u2028four\x0cfive \t \n\n", "one\ntwo\nthree\nfour\nfive\n"),
        ("  indented\x00\x1b stays  ", "  indented stays\n"),
        ("\n \n", ""),
        ("cafe\u0301 \u212b", "café Å\n"),
        ("\ud83d\ude00 and \ud83d alone", "😀 and \ufffd alone\n"),
        ("lost \ufffd\ufffd\ufffd, \ufffd", "lost \ufffd, \ufffd\n"),
        ("it\x92s \x93so\x94 \x85", "it’s “so” …\n"),
        ("It&apos;s R&amp;D &mdash; 5 &lt; 6", "It's R&D — 5 < 6\n"),
        ("a&amp;nbsp;b&amp;amp;nbsp;c &#x27;d&#39; &amp;#8217;", "a b c 'd' ’\n"),
        ("fianc&eacute;, &copy; 2004 Foo&reg; x", "fiancé, © 2004 Foo® x\n"),
        ("Write <b>&amp;lt;</b> here", "Write <b>&amp;lt;</b> here\n"),
        ("p = &copy;\nq = &image; r = &x;", "p = &copy;\nq = &image; r = &x;\n"),
        ("hy\u00adphen\u2060ated\ufeff", "hyphenated\n"),
        ("zero\u200bwidth \u200ea\u200d", "zerowidth a\n"),
        ("no\u00a0break\u2009thin\u3000wide", "no break thin wide\n"),
        ("a large @-@ eyed 1 @,@ 000 . 0 @.@ 7 <unk> .", "a large-eyed 1,000. 0.7 <unk>.\n"),
        (
            ' = = A title = = \n \n The " red @-@ tipped " one ( 24 in ) , it \'s 79 % . \n',
            'A title\n\nThe "red-tipped" one (24 in), it\'s 79%.\n',
        ),
        ("that face @-@ and 1 @,@ 5", "that face @-@ and 1 @,@ 5\n"),
        ("Thatâ€™s cafÃ© â€œno. 1â€", "That’s café “no. 1”\n"),
    ],
)
def test_mending(wrong, right):
    assert repair.repair(wrong) == right


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم\n",  # Persian joins words without it
        "क\u094d\u200dष और क\u094d\u200cष\n",
        "👩\u200d👩\u200d👧 family\n",
        "ភាសា\u200bខ្មែរ\n",  # Khmer marks words so
        "\u05d0\u200f, \u05d1\n",
        "\u3000\u3000中文段落，\u3000中\n",
        "ᠮᠣᠩᠭᠣᠯ\u202fᠤᠨ\n",
    ],
)
def test_invisible_signs_stay_where_a_script_needs_them(text):
    assert repair.repair(text) == text


def test_code_keeps_what_prose_would_lose():
    code = 's = "&amp;nbsp;â€™\u200b"\n'
    assert repair.normalise(code) == code
    assert repair.repair(code) != code


def read(name):
    path = DATA / name
    if not path.exists():
        pytest.skip("the data sets are not beside the checkout")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        return stream.read()


@pytest.mark.real
def test_stories_lose_their_mojibake():
    text = repair.repair(read("pretrain/tinystories/tinystories_a.txt.gz"))
    assert not any(sign in text for sign in "âÃ€œ™"), "misread quotation marks are left"
    assert text.count("“") > 100 and text.count("’") > 100


@pytest.mark.real
def test_wikitext_is_joined_and_its_unknown_words_stay():
    raw = read("pretrain/wikitext2/valid.txt.gz")
    text = repair.repair(raw)
    assert raw.count("@-@") > 1000 and text.count("@-@") < 20, "few stand beside other signs"
    assert text.count("<unk>") == raw.count("<unk>") > 1000
