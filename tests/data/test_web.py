"""Web pages: what is a page is told from what is none, and becomes its text."""

import gzip
import sys
import types

import pytest

from data.errors import BadInput
from data.readers import web
from data.readers.borders import to_the_damage
from tests.data.test_encodings import OLDER
from tests.data.test_warc import WARCS, page, read, read_page, real, response, warc_record

ARTICLE = "<p>" + "A paragraph of some length that anybody would call content. " * 4 + "</p>"


def test_what_is_no_page_is_numbered_and_passed_over(tmp_path):
    html = page(1)
    records = [
        warc_record("warcinfo", b"software: x", Content_Type="application/warc-fields"),
        warc_record("request", b"GET / HTTP/1.0\r\n\r\n"),
        warc_record("revisit", response(html)),
        warc_record("metadata", b"{}", Content_Type="application/json"),
        warc_record("continuation", html, Content_Type="text/html"),
        *(warc_record(content=response(html, status)) for status in ("301 No", "404 No", "503 No")),
        warc_record(content=response(b"\x89PNG", Content_Type="image/png")),
        warc_record(content=response(b"{}", Content_Type="application/json")),
        warc_record(content=response(b"\x89PNG\r\n\x1a\n", Content_Type="text/html")),
        warc_record(content=response(b"MZ\0\0\0", Content_Type="text/plain")),
        warc_record(content=response(b"\x01\x02", Content_Type=None)),
        warc_record(content=b"a 1", Content_Type="text/dns"),
        warc_record(
            content=response(b"User-agent: *", Content_Type="text/plain"),
            WARC_Target_URI="http://a.example/robots.txt",
        ),
        warc_record(
            "resource",
            b"wget 1.0",
            Content_Type="text/plain",
            WARC_Target_URI="<metadata://gnu.org/software/wget/warc/wget.log>",
        ),
        warc_record(content=response(html)),
    ]
    broken, record = read(tmp_path, b"".join(records))
    assert record.number == len(records)
    assert (broken.number, broken.why) == (12, "it holds zero bytes and is no text")


def test_pages_that_are_a_little_wrong_are_read_all_the_same(tmp_path):
    html = page(1)
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    for content in (
        response(html.replace(b"word1", b"wo\0rd1", 1)),
        response(html, Content_Type="text/html charset=utf-8"),
        interim * 2 + response(html),
    ):
        (record,) = read(tmp_path, warc_record(content=content))
        assert (record.why, record.meta["title"], record.meta["status"]) == ("", "T1", 200)
        assert "word1 word1" in record.text


@pytest.mark.parametrize("codec", ["cp949", "shift_jis", "cp1251", "euc_jp", "gb18030"])
def test_pages_that_declare_no_encoding_are_decoded(tmp_path, codec):
    html = f"<html><body><p>{OLDER[codec] * 5}</p></body></html>"
    (record,) = read(tmp_path, warc_record(content=response(html.encode(codec))))
    assert "".join(record.text.split()) == "".join((OLDER[codec] * 5).split())


def test_resources_conversions_and_plain_text_are_documents(tmp_path):
    records = [
        warc_record("resource", page(1), Content_Type="text/html"),
        warc_record(
            "conversion",
            "Ein Text.\nÄ <b>\n".encode(),
            Content_Type="text/plain",
            WARC_Identified_Content_Language="deu,eng",
        ),
        warc_record(content=response(b"as <it> is\n", Content_Type="text/plain; charset=ascii")),
        warc_record(content=response(page(4), Content_Type=None)),
        warc_record(
            content=response(page(5), Content_Type=None),
            WARC_Identified_Payload_Type="application/xhtml+xml",
            WARC_Identified_Content_Language="yue",
            WARC_Date="yesterday",
        ),
    ]
    found = read(tmp_path, b"".join(records))
    assert [record.why for record in found] == [""] * 5
    assert found[1].text == "Ein Text.\nÄ <b>\n"
    assert found[2].text == "as <it> is\n"
    assert [record.language for record in found] == ["", "de", "", "", "yue"]
    assert found[3].meta["content_type"] == "text/html"
    assert found[4].date == ""
    assert [found[0].meta.get("status"), found[4].meta["status"]] == [None, 200]


def test_a_page_that_the_archive_cut_says_so(tmp_path):
    packed = gzip.compress(page(1))[:-20]
    content = response(packed, Content_Encoding="gzip")
    (record,) = read(tmp_path, warc_record(content=content, WARC_Truncated="length"))
    assert record.meta["truncated"] == "length"
    assert record.text.startswith("Document number 1")
    (record,) = read(tmp_path, warc_record(content=content))
    assert record.why == "its gzip body breaks off" and not record.text


GERMAN, RUSSIAN, JAPANESE, CHINESE = (
    "Größe – „ja“",
    "Привет, мир",
    "日本語の文章です",
    "简体中文网页",
)


@pytest.mark.parametrize(
    ("body", "declared", "text"),
    [
        (GERMAN.encode(), "utf-8", GERMAN),
        (GERMAN.encode(), "iso-8859-1", GERMAN),
        (GERMAN.encode(), "", GERMAN),
        (GERMAN.encode("utf-8-sig"), "iso-8859-1", GERMAN),
        (GERMAN.encode("utf-16"), "", GERMAN),
        (GERMAN.encode("utf-16-be"), "utf-16be", GERMAN),
        (GERMAN.encode("cp1252"), "iso-8859-1", GERMAN),
        (GERMAN.encode("cp1252"), "utf-8", GERMAN),
        (RUSSIAN.encode("cp1251"), "windows-1251", RUSSIAN),
        (RUSSIAN.encode("koi8-r"), "KOI8-R", RUSSIAN),
        (JAPANESE.encode("cp932"), "Shift_JIS", JAPANESE),
        ("①髙".encode("cp932"), "Shift_JIS", "①髙"),
        ("똠방각하".encode("cp949"), "euc-kr", "똠방각하"),
        ("丂丄".encode("gb18030"), "gb2312", "丂丄"),
        (JAPANESE.encode("euc_jp"), "euc-jp", JAPANESE),
        (JAPANESE.encode("iso2022_jp"), "iso-2022-jp", JAPANESE),
        (CHINESE.encode("gb18030"), "gb2312", CHINESE),
        ((CHINESE * 9).encode("gb18030") + b"\xff", "gb2312", CHINESE * 9 + "\ufffd"),
        ((RUSSIAN * 9).encode()[:-1], "utf-8", RUSSIAN * 9 and (RUSSIAN * 9)[:-1] + "\ufffd"),
        (b"only ascii", "no-such-charset", "only ascii"),
    ],
)
def test_the_encoding_that_fits_is_taken(tmp_path, body, declared, text):
    kind = "text/plain" + (f"; charset={declared}" if declared else "")
    assert read_page(tmp_path, body, Content_Type=kind).text == text


def test_the_encoding_that_the_page_declares_is_taken(tmp_path):
    for meta in (
        '<meta charset="windows-1251">',
        "<META content='text/html; charset=windows-1251' http-equiv=Content-Type>",
    ):
        body = f"<html><head>{meta}</head><body><p>{RUSSIAN}</p></body></html>".encode("cp1251")
        assert read_page(tmp_path, body).text == RUSSIAN
        wrong = read_page(tmp_path, body, Content_Type="text/html; charset=utf-8")
        assert wrong.text == RUSSIAN, "a declaration that the bytes belie was believed"


def test_the_encoding_is_found_where_none_is_declared(tmp_path):
    text = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 5
    record = read_page(tmp_path, text.encode("cp1251"), Content_Type="text/plain")
    assert record.text == text


def test_main_content_is_without_what_surrounds_it():
    html = (
        "<html><head><title>T</title><style>p {}</style><script>var x = 1;</script></head><body>"
        "<header class='site-header'>The masthead</header>"
        "<nav><ul><li><a href=/>Home</a></li><li><a href=/about>About us</a></li></ul></nav>"
        "<ul><li><a href=/a>Menu one</a></li><li><a href=/b>Menu two</a></li></ul>"
        f"<main><h1>The heading</h1>{ARTICLE}<ul><li>First point</li><li>Second point</li></ul>"
        "<table><tr><th>Year</th><th>Sum</th></tr><tr><td>1979</td><td>12</td></tr></table>"
        "<pre><code>def f(x):\n    return x</code></pre>"
        "<figure class=highlight><pre>in a figure</pre><figcaption>A caption</figcaption></figure>"
        "<img alt='An image'></main><aside>Read next</aside>"
        "<div class='cookie-consent'>We use cookies</div><footer>Imprint</footer></body></html>"
    )
    text = web.extract(html)
    for kept in (
        "The heading",
        "anybody would call content",
        "\u2022 First point\n",
        "\u2022 Second point\n",
        "Year\t\tSum\n1979\t\t12",
        "def f(x):\n    return x",
        "in a figure",
        "A caption",
    ):
        assert kept in text, f"{kept!r} is lost: {text}"
    for dropped in ("masthead", "Home", "Menu", "Read next", "cookies", "Imprint", "var", "image"):
        assert dropped not in text, f"{dropped!r} is left: {text}"
    whole = web.extract(html, "page")
    assert all(part in whole for part in ("masthead", "Menu one", "cookies", "Imprint"))
    assert "var x" not in whole and "p {}" not in whole


@pytest.mark.parametrize("alone", ["–", "字", "ก", "€", "&ndash;", "&#8211;", "&#x5b57;", "ー"])
@pytest.mark.parametrize("how", ["main", "page"])
def test_a_character_that_stands_alone_is_kept(alone, how):
    text = web.extract(f"<body>{ARTICLE}<p><b>1979</b>{alone}<i>1983</i></p></body>", how)
    character = {"&ndash;": "–", "&#8211;": "–", "&#x5b57;": "字"}.get(alone, alone)
    assert text.endswith(f"1979{character}1983")


@pytest.mark.parametrize("sign", ["\ue001", "&#xe001;", "\u00b6"])
def test_signs_of_icon_fonts_are_left_out_of_main_content(sign):
    assert web.extract(f"<body>{ARTICLE}<p>word <i>{sign}</i></p></body>").endswith("word")


def test_a_page_without_main_content_gives_its_whole_text(tmp_path):
    body = b"<html><body><nav><a href=/>The only words</a></nav></body></html>"
    record = read_page(tmp_path, body)
    assert record.text == web.extract(body.decode()) == "The only words"
    assert record.meta["extracted"] == "page"
    assert "extracted" not in read_page(tmp_path, page(1)).meta
    record = read_page(tmp_path, b"<frameset><frame src=a></frameset>")
    assert (record.text, record.why) == ("", ""), "a page without text is no broken record"


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 20_000 + "x",
        "<DIV>" * 20_000 + "x" + "</DIV>" * 20_000,
        "<ul><li>" * 10_000 + "x",
    ],
    ids=["open divisions", "closed divisions", "lists"],
)
def test_pages_made_to_stall_the_search_for_content_are_taken_whole(tmp_path, html):
    record = read_page(tmp_path, html.encode())
    assert record.text.endswith("x") and record.meta["extracted"] == "page"
    flat = "<div>x</div>" * 20_000
    assert "extracted" not in read_page(tmp_path, flat.encode()).meta


def test_tags_made_to_stall_the_parser_lose_their_attributes(monkeypatch):
    lengths, tree = [], web.HTMLTree

    def parse(html):
        lengths.append(len(html))
        return tree.parse(html)

    monkeypatch.setattr(web, "HTMLTree", types.SimpleNamespace(parse=parse))
    attributes = " ".join(f"a{number}=1" for number in range(40_000))
    assert web.extract(f"<body><p {attributes}>x <b {attributes}>y</b></p></body>") == "x y"
    assert max(lengths) < 100


def test_a_list_of_links_stays_with_the_paragraph_that_announces_it():
    items = "<ul><li><a href=a>HTTP: here</a></li><li><a href=b>FTP: there</a></li></ul>"
    ways = f"<h2>Ways</h2><p>We provide it via three methods:</p>{items}"
    body = "<div>" * 4 + ways + "</div>" * 4
    assert web.extract(f"<body>{body}</body>").split("\n\n")[1:] == [
        "We provide it via three methods:",
        "  \u2022 HTTP: here\n  \u2022 FTP: there",
    ]
    menu = items.replace("HTTP", "Home")
    assert "Home" not in web.extract(f"<body>{ARTICLE}<div><div>{body}{menu}</div></div></body>")


def test_html_file(tmp_path):
    html = (
        "<html><head><title> A \n title </title><link rel=canonical href='http://a.example/x'>"
        f"</head><body>{ARTICLE}</body></html>"
    )
    for name, data in (("a.html", html.encode()), ("b.html.gz", gzip.compress(html.encode()))):
        (tmp_path / name).write_bytes(data)
        (record,) = web.read_html(str(tmp_path / name))
        assert (record.number, record.why, record.url) == (1, "", "http://a.example/x")
        assert record.meta == {"title": "A title"}
        assert record.text.startswith("A paragraph of some length")
    (tmp_path / "c.html").write_bytes(gzip.compress(html.encode() * 9)[:-30])
    (record,) = to_the_damage(web.read_html(str(tmp_path / "c.html")))
    assert "breaks off" in record.why and not record.text
    (tmp_path / "d.html").write_bytes(b"\0\1\2")
    assert "no text" in next(web.read_html(str(tmp_path / "d.html"))).why
    with pytest.raises(OSError, match="absent"):
        list(web.read_html(str(tmp_path / "absent.html")))


def test_an_unknown_extraction_is_bad_input(tmp_path):
    (tmp_path / "a.html").write_bytes(page(1))
    for call in (
        lambda: web.extract("", "best"),
        lambda: list(web.read(str(tmp_path / "a.html"), "best")),
        lambda: list(web.read_html(str(tmp_path / "a.html"), "best")),
    ):
        with pytest.raises(BadInput, match="'best' is unknown; allowed: main, page, trafilatura"):
            call()


def test_trafilatura_is_used_where_it_is_there_and_named_where_it_is_not(monkeypatch):
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install trafilatura"):
        web.extract("<p>x", "trafilatura")
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: name)
    answers = {"<p>x": "theirs", "<p>y": None}
    stand_in = types.SimpleNamespace(extract=answers.get)
    monkeypatch.setitem(sys.modules, "trafilatura", stand_in)
    assert web.extract("<p>x", "trafilatura") == "theirs"
    assert web.extract("<p>y", "trafilatura") == "y"


# By hand: (file, beginning of the URL, phrases of the content, phrases of what surrounds it).
PAGES = [
    (
        "warcio__example-iana.org-chunked.warc",
        "http://www.iana.org/",
        ["The global coordination of the DNS Root, IP addressing", "in the revised root anchors"],
        ["Presentations", "IDN Repository", "an affiliate of ICANN"],
    ),
    (
        "warcio__example-wget-bad-target-uri.warc.gz",
        "http://example.com/",
        ["This domain is established to be used for illustrative examples in documents."],
        [],
    ),
    (
        "whirlwind-python__whirlwind.warc.gz",
        "https://an.wikipedia.org/",
        [
            "Escopete ye un municipio d'a provincia de Guadalachara, en a comunidat autonoma",
            "Ye situato a 860 metros d'altaria sobre o ran d'a mar",
            "feitas por Felipe II de Castiella en 1578.",
            "Chentilicio \t\tescopetero / escopetera",
            "1979–1983\n1983–1987",
        ],
        ["Declaración de cookies", "Menú principal", "Zaguers cambeos", "Creyar cuenta"],
    ),
    (
        "whirlwind-python__whirlwind.warc.wet.gz",
        "https://an.wikipedia.org/",
        ["Escopete ye un municipio d'a provincia de Guadalachara"],
        [],
    ),
    (
        "chatnoir-resiliparse__warcfile.warc.gz",
        "http://01spb.ru/company/",
        [
            "Стратегия пожарной безопасности",
            "Мы проектируем, монтируем и комплексно обслуживаем предприятия",
            "Мы работаем в Москве и Московской области.",
        ],
        ["Заказать звонок", "Каталог", "Огнетушители", "Реквизиты"],
    ),
    (
        "chatnoir-resiliparse__warcfile.warc.gz",
        "http://0900-hovenier.nl/",
        [
            "Bent u verhuisd en is uw nieuwe tuin slecht onderhouden?",
            "Onder Oosterbeek vallen de volgende plaatsen:\n\n  \u2022 Rheden\n  \u2022 Heteren",
        ],
        ["CONTACT", "Home > Gelderland", "Privacy Verklaring", "© 2020"],
    ),
    (
        "chatnoir-resiliparse__warcfile.warc.gz",
        "http://041696.com/",
        ["更有大量的武钢耐磨板销售价格优惠欢迎来电", "行业：钢铁"],
        ["最快开奖现场9769", "admin"],
    ),
    (
        "aut__example.warc.gz",
        "http://www.archive.org/about/faq.php?faq_id=252",
        [
            "FLAC stands for free lossless audio codec.",
            "Directories should be named with .flac16 or .flac24 suffix, not .flac.",
        ],
        [],
    ),
    (
        "aut__example.warc.gz",
        "http://www.archive.org/details/secretarmiesb00spivrich",
        [
            "Author: Spivak, John L. (John Louis), b. 1897\nPublished: 1939",
            "To me, the story was enlightening and plausible.",
            "Identifier\t\tsecretarmiesb00spivrich",
        ],
        ["View the book", "Flip Book", "Report errors"],
    ),
    (
        "aut__example.warc.gz",
        "http://deadlists.com/deadlists/showresults.asp?KEY=12/16/78",
        ["Venue\t\tNashville Municipal Auditorium", "Me And My Uncle [2:58] > Big River [5:53]"],
        [],
    ),
]


@real
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "url", "kept", "dropped"), PAGES, ids=lambda value: str(value)[:60]
)
def test_real_pages_give_what_was_found_in_them_by_hand(name, url, kept, dropped):
    texts = {
        how: next(
            record.text for record in web.read(str(WARCS / name), how) if record.url.startswith(url)
        )
        for how in ("main", "page")
    }
    assert [phrase for phrase in kept if phrase not in texts["main"]] == []
    assert [phrase for phrase in dropped if phrase in texts["main"]] == []
    assert [phrase for phrase in dropped if phrase not in texts["page"]] == []
    assert not any(word in texts["main"] for word in ("function(", "</", "font-family", "&nbsp;"))
