"""Repair: one form for every text, each mending tried on a case worked by hand, nothing else."""

import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

from data.gates import repair

DATA = Path("../shared/data")
BOILERPLATE = """
Share on Facebook
Tweet
Facebook Twitter Pinterest 12 Reddit
Skip to main content
© 2004-2011 Example Inc. All rights reserved.
Copyright (c) 2019 Some Body
Click here to sign up for our list.
[Click here]
Read more »
Please enable JavaScript to view this page.
JavaScript must be enabled in your browser
This site requires JavaScript.
Home | About | Contact
Home > Forums > Search > Sign in
- Page 1 of 3 -
Seite 2 von 10
This entry was posted in Art and tagged pinterest.
We use cookies to give you the best experience on our site.
By continuing to use this website you accept the use of cookies.
Wir verwenden Cookies, um Ihre Erfahrung auf dieser Seite zu verbessern.
Ce site utilise des cookies pour améliorer votre navigation.
Utilizamos cookies para mejorar su experiencia en el sitio.
Questo sito utilizza i cookie per migliorare la navigazione.
Usamos cookies para melhorar sua navegação no site. Aceitar?
Deze site gebruikt cookies om uw ervaring te verbeteren.
Наш сайт использует файлы cookie. Соглашаюсь
Ta strona używa plików cookie. Dowiedz się więcej
当サイトではクッキーを使用しています。同意する
本网站使用cookie来改善您的体验。
Auf Facebook teilen
Partager sur Twitter
Compartir en Facebook
Condividi su WhatsApp
Compartilhar no Facebook
Delen op LinkedIn
Поделиться в Facebook
Udostępnij na Facebook
Facebookでシェア
分享到微信
Alle Rechte vorbehalten.
Tous droits réservés
版权所有
"""
PROSE = """
Share prices rose on Friday, and so did bonds.
He asked me to share it with Facebook friends, and I did.
You can click here and there, but nothing will happen to the page until you reload it once more.
Preheat the oven and grease a cookie sheet; set cookies on it to cool.
Use cookies as a base and pour the chocolate over them.
JavaScript is a language that browsers run.
How does the archive behave with Javascript turned off?
Page 1 of the book was torn, and page 3 of it was gone.
Name | Age | City
2007 | 2011 | 2015
1946 67,229
Home is where the heart is.
Posted to Vienna in spring, he learned to dance.
The copyright law of 1909 was amended twice.
2015 has been declared the International Year of Light.
Reserved and shy, she kept all rights to herself.
Next post I will write about bread.
Hier | dort | überall
Subscribe to the view that all is well
"""
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
        ("a large @-@ eyed 1 @,@ 000 . 0 @.@ 7 <unk> .", "a large-eyed 1,000 . 0.7 <unk> .\n"),
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


@pytest.mark.parametrize("line", BOILERPLATE.strip().split("\n"))
def test_boilerplate_goes(line):
    prose = "The pilot walked to the end of the pier.\n\nNobody spoke.\n"
    assert repair.drop_boilerplate(f"{line}\n{prose}  {line.upper()}\n") == (prose, 2)


@pytest.mark.parametrize("line", PROSE.strip().split("\n"))
def test_prose_and_tables_stay(line):
    assert repair.drop_boilerplate(line + "\n") == (line + "\n", 0)


def test_a_text_of_nothing_but_boilerplate_is_empty():
    assert repair.drop_boilerplate("Menu | Home | Contact | FAQ\nShare this\n") == ("", 2)
    assert repair.drop_boilerplate("") == ("", 0)


def test_long_lines_are_never_boilerplate():
    line = "We use cookies on this site. " * 8
    assert len(line) > repair.MAX_LINE_CHARS
    assert repair.drop_boilerplate(line) == (line, 0)


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


@pytest.mark.real
def test_no_prose_of_books_and_declarations_is_boilerplate():
    rows = read("pretrain/books/books.jsonl.gz") + read("multilingual/udhr2/udhr2.jsonl.gz")
    texts = [json.loads(row)["text"] for row in rows.split("\n") if row]
    assert sum(repair.drop_boilerplate(repair.normalise(text))[1] for text in texts) == 0
