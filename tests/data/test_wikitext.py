"""Wikitext: whole articles in three languages and single constructs against text worked by hand."""

import bz2
import gzip
import time
from xml.sax.saxutils import escape

import pytest

from data.readers import wikitext
from data.readers.borders import to_the_damage
from data.readers.wikitext import to_text
from data.unpacking import zstd

MAX_SECS = 10

ENGLISH = """{{Short description|Element}}<!-- {{Old|[[x]]}} -->
{{Infobox element
| name = Helium
| mass = {{val|4.0026|u=u}}
| image = [[File:He.jpg|thumb|A [[discharge tube]] lit]]
|}}
[[File:Helium spectrum.jpg|thumb|upright=1.2|Lines of [[helium|the gas]]{{efn|Not all.}} seen]]
'''Helium''' ({{IPAc-en|ˈ|h|iː|l|i|ə|m}}; from {{lang-el|ἥλιος|translit=helios|lit=sun}}) is a
[[chemical element]] with [[Symbol (chemistry)|symbol]] '''He'''.<ref name="a">{{cite web |url=x
|title=[[Foo]]}}</ref> Its [[boiling point]]s<ref name="b" /> lie near {{convert|-269|C|F|abbr=on}},
and a CO<sub>2</sub> gas is 10<sup>3</sup>&nbsp;times denser&mdash;in the 19<sup>th</sup> century.

== History ==
{{Main|History of helium}}
=== Early work ===
In {{circa|1868}} ''[[Jules Janssen]]'' saw it; see {{lang|fr|hélium}} and
[https://a.b/c the report] [http://d.e].

{{Quote|text=A new line.|author=Janssen}}
=== Empty ===
{{Expand section}}
== Properties ==
{| class="wikitable"
|+ Caption
! a !! b
|-
| 1 || {| class="inner"
| deep
|}
|}
* Light
** Very ''light''
# first
# second
; Term
: Meaning <br /> on two lines
----
The law is <math>E &lt; \\frac{1}{2} mv^2</math>, or
<math display="block">\\sum_{i=1}^{n} i</math>
<syntaxhighlight lang="python">
if a < b:
    print("[[x]]")  # {{y}}
</syntaxhighlight>
It is written <nowiki>[[He]] &amp; '''more'''</nowiki> or <code>x = 1</code>.
<gallery>
He.jpg|Caption
</gallery>
== See also ==
* [[Neon]]
== References ==
{{Reflist}}
=== Works ===
* A book
== Legacy ==
Used __NOTOC__ in {{nihongo|Tokyo|東京|Tōkyō}}.
{{Noble gases}}
[[Category:Gases]] [[de:Helium]] [[:Category:Elements]]
"""
ENGLISH_TEXT = """Helium (from ἥλιος) is a
chemical element with symbol He. Its boiling points lie near -269 C,
and a CO2 gas is 10^3 times denser—in the 19th century.

History

Early work

In c. 1868 Jules Janssen saw it; see hélium and
the report.

A new line.

Properties

- Light
- Very light
1. first
2. second
Term
Meaning
on two lines

The law is $E < \\frac{1}{2} mv^2$, or
$$\\sum_{i=1}^{n} i$$

if a < b:
    print("[[x]]")  # {{y}}

It is written [[He]] & '''more''' or x = 1.

Legacy

Used in Tokyo (東京, Tōkyō).

Category:Elements
"""
GERMAN = """{{Begriffsklärungshinweis}}
[[Datei:Rhein.jpg|mini|hochkant=1.5|Der [[Rhein]] bei {{nowrap|Köln}}]]
Der '''Rhein''' ({{laS|Rhenus}}, [[Französische Sprache|französisch]] {{lang|fr|Rhin}}) ist
{{nowrap|1232,7 km}} lang.<ref>{{Literatur |Autor=A |Titel=B}}</ref>
__INHALTSVERZEICHNIS_ZEIGEN__
== Verlauf ==
Von den ''Alpen'' bis zur [[Nordsee]]; {{Zitat|Warum ist es am Rhein so schön?}}
[[Bild:Alt.png|links]]
== Belege ==
=== Einzelnachweise ===
<references responsive />
== Weblinks ==
* [http://x.de Seite]
[[Kategorie:Fluss]]
"""
GERMAN_TEXT = """Der Rhein (Rhenus, französisch Rhin) ist
1232,7 km lang.

Verlauf

Von den Alpen bis zur Nordsee;
Warum ist es am Rhein so schön?
"""
CHINESE = """{{NoteTA|G1=IT|zh-hans:软件;zh-hant:軟體}}
'''-{zh-hans:计算机; zh-hant:電腦}-'''（{{lang|en|Computer}}；{{IPA|x}}）是一种[[机器|机器]]，
由{{link-en|图灵|Alan Turing}}提出-{H|zh-cn:硬件}-。<ref>书</ref>
[[File:电脑.jpg|缩略图|右|一台[[电脑]]]]
== 历史 ==
早期的[[電腦]]很大，见-{A|zh-cn:史;zh-tw:歷史}-。
== 参考文献 ==
{{reflist}}
== 外部連結 ==
* [http://x.cn 网站]
[[分类:计算机]]
"""
CHINESE_TEXT = """计算机（Computer）是一种机器，
由图灵提出。

历史

早期的電腦很大，见史。
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [(ENGLISH, ENGLISH_TEXT), (GERMAN, GERMAN_TEXT), (CHINESE, CHINESE_TEXT)],
    ids=["English", "German", "Chinese"],
)
def test_article_gives_its_text(source, expected):
    assert to_text(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[[A (b)|]] [[A#B]] [[#C]] [[w:D|E]] [[A]]s", "A A#B #C E As"),
        ("[[Re:Zero]] [[Help:X]] [[Media:a.ogg|listen]]", "Re:Zero Help:X listen"),
        ("a [[Image:x.png|[[b]] {{c|[[d]]}}]] [[category : y]] e", "a e"),
        ("[[fr:Chat]][[zh-min-nan:X]][[:fr:Chat]]", "fr:Chat"),
        ("'''''both''''' l'''Iliade'' don''''t'''", "both l'Iliade don't"),
        ("de l'''Iliade''", "de l'Iliade"),
        ("{{convert|5|to|10|km|mi}}, {{cvt|3|x|4|m}}", "5 to 10 km, 3 × 4 m"),
        ("{{convert|7|ft}} {{convert|8}} {{Cvt}}", "7 ft 8"),
        ("{{formatnum:1234}} {{abbr|AC|x}} {{lang-de|a|b=c}} {{LANG|fr|x}}", "1234 AC a x"),
        ("{{lang|fr|{{nowrap|a [[b|c]]}}}} {{unknown|{{lang|fr|d}}}}", "a c"),
        ("{{lang\n| fr\n| text = x\n}}", "x"),
        ("a<br>b<hr/>c", "a\nb\nc"),
        ("<ref>a<ref name=x>b</ref> c", "a c"),
        ("<ref>a<ref>b</ref> <ref>c</ref> d</ref> e", "e"),
        ("<REF>a</REF>b<ref name='x'/>c <ref\nname=y>d</ref >e", "bc e"),
        ("&lt;b&gt; &amp;amp; &#233; a&nbsp;b", "<b> &amp; é a b"),
        ("<chem>H2O</chem> <math></math> <math chem>x</math>", "$\\ce{H2O}$ $x$"),
        ("a < b and c > d, <u>e</u>", "a < b and c > d, e"),
        ("x__init__y __TOC__", "x__init__y"),
        ("(a; {{x}}) ({{x}}, b) ({{x}}; {{y}}) c ( {{x}} )", "(a) (b) c"),
        ("== A ==\n== B ==\n=== C ===\ntext\n== D ==\n{{x}}", "B\n\nC\n\ntext"),
        ("==See also==\n* a\n===b===\nc\n==  External Links ==\nd\n= E =\nf", "E\n\nf"),
        ("* {{x}}\n* a\n#\n# b\n#: c\n# d", "- a\n\n1. b\nc\n2. d"),
        ("{|\n| a\n|}\n:{| b\n|}\nc", "c"),
        ("<pre>\n  a\n   b\n</pre>c", "  a\n   b\nc"),
    ],
)  # fmt: skip
def test_construct_gives_its_text(source, expected):
    assert to_text(source) == expected + "\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{open|text stays", "open|text stays"),
        ("a }} b ]] c |} d", "a b c |} d"),
        ("[[open link\n\nnext [[b]]", "open link\n\nnext b"),
        ("[[two\n\nparagraphs]]", "two\n\nparagraphs"),
        ("{{a|[[b}} c", "c"),
        ("<ref>open", "open"),
        ("<!-- open", "<!-- open"),
        ("<nowiki>open", "open"),
        ("a\n{|\n| cell\nafter", "a\n\nafter"),
        ("{{lang|fr|a\n{| b }} c", "lang|fr|a\n{| b c"),
        ("== a\nb =", "== a\nb ="),
        ("", ""),
    ],
)
def test_what_does_not_match_costs_little(source, expected):
    assert to_text(source) == (expected + "\n" if expected else "")


HOSTILE = [
    *("{{", "}}", "[[", "]]", "<ref>", "</ref>", "<ref", "<!--", "<math>", "\n{|", "\n|}", "|"),
    *("{{lang|fr|", "{{lang|fr|a", "[[File:", "[[a|", "[http://", "[http://a ", "&", "<", "-{"),
    *("(", "(  ", " ", "\n=", "\n*", "<ref><math>", "{{a|b=", "{{convert|1|", "[[a\n\n", "<sup>1"),
    *("'", "''", "__A"),
]


@pytest.mark.parametrize("token", HOSTILE)
def test_hostile_input_ends_in_time(token):
    start = time.process_time()
    to_text(token * (1_000_000 // len(token)) if len(token) > 1 else token * 300_000)
    secs = time.process_time() - start
    # A quadratic scan takes minutes to hours here.
    assert secs < MAX_SECS, f"{token!r} took {secs:.1f} s"


def test_deep_nesting_ends_in_time_and_loses_no_text_after_it():
    start = time.process_time()
    text = to_text("{{lang|fr|a" * 300_000 + "}}" * 300_000 + "\n\nAfter {{lang|fr|b}}.")
    assert text.endswith("\n\nAfter b.\n")
    assert time.process_time() - start < MAX_SECS


SITE = """<siteinfo><sitename>Wikipedia</sitename><dbname>{dbname}</dbname><base>{base}</base>
<namespaces><namespace key="6" case="first-letter">{file}</namespace><namespace key="0" />
<namespace key="14" case="first-letter">{category}</namespace></namespaces></siteinfo>"""
ENGLISH_SITE = SITE.format(
    dbname="enwiki",
    base="https://en.wikipedia.org/wiki/Main_Page",
    file="File",
    category="Category",
)


def page(title, text, number=1, namespace=0, extra="", attributes="", model="wikitext"):
    return f"""<page><title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>{extra}
<revision><id>{number + 100}</id><parentid>5</parentid>
<timestamp>2024-01-0{number}T00:00:00Z</timestamp>
<contributor><username>U</username><id>77</id></contributor><model>{model}</model>
<format>text/x-wiki</format>
<text xml:space="preserve"{attributes}>{escape(text)}</text></revision></page>
"""


def dump(*pages, site=ENGLISH_SITE, language="en", before=""):
    return f"""<?xml version="1.0" encoding="utf-8"?>{before}
<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
{site}{"".join(pages)}</mediawiki>
""".encode()


def read(tmp_path, data, name="pages-articles.xml"):
    (tmp_path / name).write_bytes(data)
    records = list(to_the_damage(wikitext.read(str(tmp_path / name))))
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    return records


PAGES = (
    page("Helium (gas)", ENGLISH, 1),
    page("Talk:Helium", "no", 2, namespace=1),
    page("He", "#NOWHERE [[Helium]]", 3, extra='<redirect title="Helium (gas)" />'),
    page("Old He", "#redirect [[Helium]]", 4),
    page("Data", "{}", 5, model="json"),
    page("AC/DC & ü", "Rock ''band''.", 6),
    page("Gone", "", 7, attributes=' deleted="deleted"'),
)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".bz2", bz2.compress), (".gz", gzip.compress)] + [(".zst", zstd.compress)],
)
def test_dump_gives_a_record_an_article(tmp_path, suffix, pack):
    records = read(tmp_path, pack(dump(*PAGES)), "pages-articles.xml" + suffix)
    assert [record.text for record in records] == [
        "Helium (gas)\n\n" + ENGLISH_TEXT,
        "AC/DC & ü\n\nRock band.\n",
        "",
    ]
    first, second, gone = records
    assert (first.url, first.date, first.language, first.why, first.markup) == (
        "https://en.wikipedia.org/wiki/Helium_(gas)",
        "2024-01-01T00:00:00Z",
        "en",
        "",
        "plain",
    )
    assert first.meta == {"title": "Helium (gas)", "page_id": 1, "revision_id": 101}
    assert second.url == "https://en.wikipedia.org/wiki/AC/DC_%26_%C3%BC"
    assert (gone.why, gone.meta["title"]) == ("no text in it", "Gone")


def test_names_of_namespaces_come_from_the_dump(tmp_path):
    site = SITE.format(
        dbname="gwwiki", base="https://gw.wikipedia.org/wiki/X", file="Skeudo", category="Rumm"
    )
    (record,) = read(
        tmp_path, dump(page("A", "a [[Skeudo:x|b]] [[Rumm:y]] [[Other:z]]"), site=site)
    )
    assert record.text == "A\n\na Other:z\n"


@pytest.mark.parametrize(
    ("dbname", "base", "expected"),
    [
        ("dewiki", "https://de.wikipedia.org/wiki/X", "de"),
        ("simplewiki", "https://simple.wikipedia.org/wiki/X", "en"),
        ("zh_yuewiki", "https://zh-yue.wikipedia.org/wiki/X", "yue"),
        ("zh_yuewiki", "", "yue"),
        ("own", "http://localhost.localdomain/X", "ltg"),
    ],
)
def test_language_is_that_of_the_site(tmp_path, dbname, base, expected):
    site = SITE.format(dbname=dbname, base=base, file="F", category="C")
    (record,) = read(tmp_path, dump(page("A", "a"), site=site, language="ltg"))
    assert record.language == expected


def test_last_of_several_revisions_is_read(tmp_path):
    both = page("A", "old").replace("</page>", "") + page("A", "new", 2).partition("</id>")[2]
    (record,) = read(tmp_path, dump(both))
    assert (record.text, record.date) == ("A\n\nnew\n", "2024-01-02T00:00:00Z")
    assert record.meta["revision_id"] == 102


def test_cut_dump_gives_what_comes_before(tmp_path):
    whole = dump(*PAGES)
    at = whole.index(b"AC/DC") + 200
    for name, data in (("a.xml", whole[:at]), ("b.xml.bz2", bz2.compress(whole)[:-50])):
        records = read(tmp_path, data, name)
        assert records[-1].why.startswith("the file is damaged or breaks off here")
        assert not any(record.why for record in records[:-1])
    assert read(tmp_path, whole[:at], "a.xml")[0].text.startswith("Helium (gas)\n\nHelium (from")


def test_document_type_is_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    (record,) = read(tmp_path, dump(page("A", "x").replace(">x<", ">&b;<"), before=bomb))
    assert "document type" in record.why


def test_page_too_long_is_named_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "MAX_PAGE_CHARS", 50)
    records = read(tmp_path, dump(page("A", "word " * 30), page("B", "short", 2)))
    assert "50 characters" in records[0].why
    assert records[1].text == "B\n\nshort\n"
