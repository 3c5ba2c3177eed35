"""Mail: a record a message, with what its writer wrote; HTML as text, every word in its order."""

import bz2
import gzip
import json
import mailbox
import random
import re
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import zstandard

from data.readers import mail

DUMPS = Path(__file__).resolve().parents[3] / "shared/data/qa/stackexchange"
HEADERS = (
    "From: Ann B. <ann@Uni.example.org>\nDate: Fri, 3 Jun 2005 14:37:12 +0200\nSubject: A plan\n"
)


def read(path, content, name="x.eml"):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(mail.read(str(path / name)))


def body_of(path, body, headers=""):
    [record] = read(path, f"{HEADERS}{headers}\n{body}")
    assert record.why == "" and record.text.startswith("A plan\n\n" if record.text else "")
    return record.text.removeprefix("A plan\n\n")


def mbox(*messages):
    return b"".join(b"From a@b Fri Jun  3 14:37:12 2005\n" + text + b"\n" for text in messages)


def test_record_of_a_message(tmp_path):
    text = (
        f"{HEADERS}Message-ID: <1.2@uni.example.org>\nIn-Reply-To: <0.9@other.example>\n"
        "List-Id: Plans of all kinds <plans.Lists.example.org>\nTo: bob@x.example\n\nHello.\n"
    )
    [record] = read(tmp_path, text)
    assert record.text == "A plan\n\nHello."
    assert (record.number, record.why, record.markup) == (1, "", "plain")
    assert record.date == "2005-06-03T14:37:12+02:00"
    assert record.meta["from_domain"] == "uni.example.org"
    assert record.meta["list"] == "plans.lists.example.org"
    assert "@" not in json.dumps([record.text, dict(record.meta)])
    [answer] = read(tmp_path, "In-Reply-To: <1.2@uni.example.org>\nDate: soon\n\nYes.\n")
    assert answer.meta["in_reply_to"] == record.meta["message_id"] != ""
    assert answer.meta["message_id"] == answer.meta["list"] == answer.date == ""
    assert re.fullmatch("[0-9a-f]{16}", record.meta["in_reply_to"])
    [answer] = read(tmp_path, "References: <0.9@other.example>\n <1.2@uni.example.org>\n\nYes.\n")
    assert answer.meta["in_reply_to"] == record.meta["message_id"]
    [obscured] = read(tmp_path, "From: ann at uni.example.org (Ann)\nSubject: x\n\nYes.\n")
    assert obscured.meta["from_domain"] == "uni.example.org"


ON = "On Fri, 3 Jun 2005 at 14:37, Bob <bob@x.example> wrote:"


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (f"{ON}\n> What?\n> Why?\n\nBecause.", "Because."),
        (f"{ON}\n>> What?\n>\n\n> Why?\n\nBecause.\n\n> And how?\n\nSo.", "Because.\n\nSo."),
        ("Yes.\n\nOn Friday, 3 June 2005, Bob\nBuilder <b@x.example>\nwrote:\n\n> What?", "Yes."),
        ("Dear all,\nBob wrote:\n> What?\nThis.", "Dear all,\nThis."),
        ("Am 3. Juni 2005 schrieb Bob:\n> Was?\n\nDas.", "Das."),
        ("Le 3 juin 2005 à 14:37, Bob a écrit :\n> Quoi ?\n\nCela.", "Cela."),
        ("Bob <bob@x.example> napisał(a):\n> Co?\n\nTo.", "To."),
        ("Bob writes:\n> What?\n[...]\n> How?\n\nSo.\n[snip rest]\n", "So."),
        ("He wrote:\n\na letter.", "He wrote:\n\na letter."),
        ("Try:\n\n>>> import os\n>>> os.name\n'a'", "Try:\n\n>>> import os\n>>> os.name\n'a'"),
        ("Bob wrote:\n>>> import os\n\nNo.", "No."),
        ("Text.\n-- \nAnn\nUni of X", "Text."),
        ("Text.\n--\nAnn", "Text."),
        ("One\n--\n" + "two\n" * 10 + "three", "One\n--\n" + "two\n" * 10 + "three"),
        ("Text.\n________________________\nPlans mailing list\nhttp://x/listinfo/plans", "Text."),
        ("Text.\n\n-\nTo unsubscribe from this list: send the line", "Text."),
        ("Text.\n---\nThis mail is sponsored by X\nbuy\n____\nFoo mailing list\nurl", "Text."),
        ("Text.\n\n---\n\nMore text.", "Text.\n\n---\n\nMore text."),
        ("Text.\n\n-----Original Message-----\nFrom: Bob\nWhat?", "Text."),
        ("Text.\n\nFrom: Bob\nSent: Friday\nTo: Ann\nSubject: x\n\nWhat?", "Text."),
        ("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\nText.\n-----BEGIN PGP SIGNATURE-----\n"
         "Version: 1\n\nabc=\n-----END PGP SIGNATURE-----\n", "Text."),
        ("One.  \n\n\n\n\nTwo.\n", "One.\n\nTwo."),
        ("    indented code\nnot", "    indented code\nnot"),
        ("> only\n> quotes", ""),
    ],
)  # fmt: skip
def test_what_the_writer_wrote(tmp_path, body, own):
    assert body_of(tmp_path, body) == own
    assert body_of(tmp_path, body.replace("\n", "\r\n")) == own


def test_flowed_text_is_joined(tmp_path):
    body = "One line \nthat goes \non.\n stuffed\nDone \n-- \nAnn"
    flowed = "Content-Type: text/plain; format=flowed\n"
    assert body_of(tmp_path, body, flowed) == "One line that goes on.\nstuffed\nDone"
    assert body_of(tmp_path, "> quote \nown \ntext", flowed) == "own text"
    assert body_of(tmp_path, body).startswith("One line\nthat goes\non.")


def message(*parts, subtype="mixed", **headers):
    whole = EmailMessage()
    for name, value in {"Subject": "A plan", **headers}.items():
        whole[name.replace("_", "-")] = value
    if len(parts) == 1:
        whole.set_content(parts[0][1], subtype=parts[0][0])
        return whole
    whole["MIME-Version"] = "1.0"
    whole["Content-Type"] = f"multipart/{subtype}; boundary=b"
    whole.set_payload([])
    for kind, text in parts:
        part = EmailMessage()
        part.set_content(text, subtype=kind)
        whole.attach(part)
    return whole


def test_plain_text_is_preferred_and_html_is_turned_into_text(tmp_path):
    page = ("html", "<p>Rich <b>text</b></p><blockquote>old</blockquote><ul><li>one</ul>")
    both = message(page, ("plain", "Plain."), subtype="alternative")
    assert read(tmp_path, both.as_bytes())[0].text == "A plan\n\nPlain."
    assert read(tmp_path, message(page).as_bytes())[0].text == "A plan\n\nRich text\n\n- one"
    inner = message(page, ("calendar", "x"), subtype="alternative")
    outer = message(("x-other", "no"), ("x-other", "no"))
    outer.attach(inner)
    assert read(tmp_path, outer.as_bytes())[0].text == "A plan\n\nRich text\n\n- one"


def test_attachments_and_forwarded_messages_are_left_out(tmp_path):
    whole = message(("plain", "Own."), ("plain", "Footer."))
    assert read(tmp_path, whole.as_bytes())[0].text == "A plan\n\nOwn."
    attached = message(("plain", "see file"), ("html", "x"))
    attached.get_payload()[0]["Content-Disposition"] = "attachment; filename=a.txt"
    assert read(tmp_path, attached.as_bytes())[0].text == "A plan\n\nx"
    forward = EmailMessage()
    forward["Subject"] = "Fwd"
    forward.add_attachment(message(("plain", "inner")))
    assert read(tmp_path, forward.as_bytes())[0].text == ""


@pytest.mark.parametrize(
    ("declared", "content", "text"),
    [
        ("iso-8859-1", "Grüße".encode("latin-1"), "Grüße"),
        ("KOI8-R", "Привет".encode("koi8-r"), "Привет"),
        ("gb2312", "你好".encode("gb2312"), "你好"),
        ("utf-8", "Grüße \u20ac".encode(), "Grüße \u20ac"),
        ("x-unknown", "Grüße".encode(), "Grüße"),
        ("us-ascii", "Grüße \x93a\x94".encode("latin-1"), "Grüße \u201ca\u201d"),
        ("utf-8", b"a\x81b\xff", "a\ufffdb\xff"),
        ("utf-7", b"a+2AA-b", "a?b"),
        ("zip", b"abc", "abc"),
        ("", "Grüße".encode(), "Grüße"),
    ],
)
def test_charsets(tmp_path, declared, content, text):
    kind = f"Content-Type: text/plain; charset={declared}\n" if declared else ""
    raw = f"{HEADERS}{kind}Content-Transfer-Encoding: 8bit\n\n".encode() + content
    [record] = read(tmp_path, raw)
    assert record.text == f"A plan\n\n{text}"
    record.text.encode()


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        (b"=?utf-8?B?R3LDvMOfZQ==?= an =?iso-8859-1?Q?M=FCnchen?=", "Grüße an München"),
        (b"=?utf-8?Q?ein_=C3?=\n =?utf-8?Q?=BC?=", "ein ü"),
        ("Grüße".encode(), "Grüße"),
        (b"folded\n  subject", "folded subject"),
        (b"=?x-none?Q?abc?= d", "=?x-none?Q?abc?= d"),
        (b"=?utf-8?B?R?= x", "=?utf-8?B?R?= x"),
    ],
)
def test_subjects(tmp_path, subject, text):
    [record] = read(tmp_path, b"Subject: " + subject + b"\n\nBody.\n")
    assert record.text == f"{text}\n\nBody."


def test_transfer_encodings(tmp_path):
    printable = (
        "Content-Transfer-Encoding: quoted-printable\nContent-Type: text/plain; charset=utf-8\n"
    )
    assert body_of(tmp_path, "Gr=C3=BC=\n=C3=9Fe=20", printable) == "Grüße"
    packed = "Content-Transfer-Encoding: base64\nContent-Type: text/plain; charset=utf-8\n"
    assert body_of(tmp_path, "R3LDvMOf\nZQ==", packed) == "Grüße"
    assert body_of(tmp_path, "R3LDvMOf\n!?ZQ", packed) == "Grüße"
    [record] = read(tmp_path, f"{HEADERS}{packed}\nR3LDvMOfZ")
    assert record.text == "" and "not base64" in record.why


def test_mbox_is_what_the_standard_library_wrote(tmp_path):
    bodies = [
        "One.\n\nFrom here on, at 10:30 it\nwas quiet.",
        "From the start: 11:00\nSubject: not a header\n>From quoted",
        "",
        "Last.\n\n>>From deep",
    ]
    box = mailbox.mbox(tmp_path / "a.mbox")
    for number, body in enumerate(bodies):
        box.add(
            mailbox.mboxMessage(message(("plain", body), Date=f"{number + 1} Jun 2007 10:00:00"))
        )
    box.flush()
    records = list(mail.read(str(tmp_path / "a.mbox")))
    assert [record.number for record in records] == [1, 2, 3, 4] and len(box) == 4
    box.close()
    assert [record.date[:10] for record in records] == [f"2007-06-0{n}" for n in (1, 2, 3, 4)]
    # The library quotes 'From ' alone, so a line that had a '>' loses it; deeper ones, one of them.
    expected = [bodies[0], bodies[1].replace(">From", "From"), "", "Last."]
    assert [record.text.removeprefix("A plan\n\n") for record in records] == expected


def test_line_that_begins_like_a_separator_is_text_unless_a_header_follows(tmp_path):
    one = b"Subject: a\n\nSo.\n\nFrom my house at 10:30 we\nwent.\nFrom here on: quiet\nNote: x\n"
    records = read(tmp_path, mbox(one, b"Subject: b\n\nTwo.\n"), "a.mbox")
    assert [record.text for record in records] == [one[9:-1].decode(), "b\n\nTwo."]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.compress, bytes])
def test_packed_archives(tmp_path, pack):
    archive = mbox(b"Subject: a\n\nOne.\n", b"Subject: b\n\nTwo.\n", b"Subject: c\n\nThree.\n")
    records = read(tmp_path, pack(archive), "list.mbox")
    assert [record.text for record in records] == ["a\n\nOne.", "b\n\nTwo.", "c\n\nThree."]


def test_archive_that_breaks_off_gives_what_came_before(tmp_path):
    rng = random.Random(0)
    archive = mbox(*(b"Subject: %d\n\n%d\n" % (n, rng.getrandbits(900)) for n in range(2000)))
    packed = gzip.compress(archive)
    *records, last = read(tmp_path, packed[: len(packed) // 2], "a.mbox.gz")
    assert "breaks off" in last.why and last.number == len(records) + 1
    assert [record.text.partition("\n")[0] for record in records] == [
        str(number) for number in range(len(records))
    ]
    assert 800 < len(records) < 1000


def test_message_that_is_too_long_is_broken_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "MAX_MESSAGE_BYTES", 1000)
    long = b"Subject: a\n\n" + b"word and word\n" * 100
    line = b"Subject: b\n\n" + b"x" * 5000 + b"\nmore\n"
    records = read(tmp_path, mbox(b"Subject: 0\n\nA.\n", long, line, b"Subject: z\n\nZ.\n"), "m")
    assert [record.text for record in records] == ["0\n\nA.", "", "", "z\n\nZ."]
    assert "longer than 1000" in records[1].why and "longer than 1000" in records[2].why


def test_lines_are_those_of_the_file(tmp_path):
    rng = random.Random(0)
    lines = [b"x" * rng.choice([0, 1, 9, 10, 11, 12, 40000]) + b"\n" for _ in range(300)] + [b"end"]
    (tmp_path / "a").write_bytes(b"".join(lines))
    found = list(mail.read_lines(str(tmp_path / "a"), 11))
    assert [line for line, _ in found] == [line if len(line) <= 11 else b"" for line in lines]
    assert all(
        (why == "") == (len(line) <= 11) for line, (_, why) in zip(lines, found, strict=True)
    )


def test_whatever_is_in_a_message_nothing_is_raised(tmp_path):
    whole = message(
        ("plain", "Grüße\n> quote"), ("html", "<p>x<pre><code>y"), subtype="alternative",
        From="Ann <a@b.example>", Message_ID="<1@b>", List_Id="<x.y>", Date="Fri, 1 Jun 2007 1:2:3",
    )  # fmt: skip
    start, rng = whole.as_bytes(), random.Random(0)
    pieces = [b"\xff", b"\n", b"=?utf-8?b?", b'"', b";", b"boundary=", b"base64", b"\0", b"<", b">"]
    for _ in range(400):
        broken = bytearray(start)
        for _ in range(rng.randint(1, 12)):
            place = rng.randrange(len(broken))
            broken[place : place + rng.randint(0, 9)] = rng.choice(pieces)
        for record in read(tmp_path, bytes(broken)):
            record.text.encode()
            json.dumps(dict(record.meta)).encode()
            assert record.number == 1 and bool(record.why) <= (record.text == "")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("", ""),
        ("a &lt; b &amp; c&nbsp;d &copy; &#8364;", "a < b & c\xa0d \u00a9 \u20ac"),
        ("<p>a  <b>b</b>\n c</p>\n\n<p>d<br>e</p>", "a b c\n\nd\ne"),
        ("one<div>two</div><div><br></div><div>three<br></div>four", "one\ntwo\n\nthree\nfour"),
        ("<h2>T</h2>x<hr>y", "T\n\nx\n\ny"),
        ("see <a href='http://x'>this <i>page</i></a>.", "see this page."),
        ("<img src='a' alt='b'>x<script>if (a<b) {}</script><style>p{}</style><!-- c -->", "x"),
        ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul>e", "- a\n- b\n  - c\n- d\n\ne"),
        ("<ol start=9><li>a</li><li><p>b</p><p>c</p></li></ol>", "9. a\n\n10. b\n\n    c"),
        ("<ol start=x><li>a</ol><li>b", "1. a\n\n- b"),
        (
            "<blockquote><p>a</p><p>b<br>c</p><ul><li>d</ul></blockquote>e",
            "> a\n>\n> b\n> c\n>\n> - d\n\ne",
        ),
        ("<blockquote>a<blockquote>b</blockquote></blockquote>", "> a\n>\n> > b"),
        ("<blockquote>a</blockquote><blockquote>b</blockquote>", "> a\n\n> b"),
        ("run <code>a  b</code> or <code>`c`</code><code> </code>", "run `a b` or ```c```"),
        ("<pre><code>if x:\n    y  # &lt;z&gt;\n\n\tw\n</code></pre>t", "```\nif x:\n    y  # <z>\n"
         "\n\tw\n```\n\nt"),
        ("<pre class='lang-py x'><code>y\n</code></pre>", "```py\ny\n```"),
        ("<pre><code class='language-c++'>y</code></pre>", "```c++\ny\n```"),
        ("<pre class='lang-none'><code>a ``` b</code></pre>", "````\na ``` b\n````"),
        ("<pre>\n plain\n   text<br>x</pre>", " plain\n   text\nx"),
        ("<li><pre><code>a\n  b</code></pre></li>", "- ```\n  a\n    b\n  ```"),
        ("10<sup>6</sup> H<sub>2</sub>O, <sup>small</sup>", "10^6 H2O, small"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "a | b\nc"),
        ("<p>open <b>bold<p>next", "open bold\n\nnext"),
        ("<textarea>a</textarea><select><option>b</select>c", "c"),
        ("\ud800x", "?x"),
    ],
)  # fmt: skip
def test_html_to_text(markup, text):
    assert mail.html_to_text(markup) == text


def test_html_nested_too_deep_is_still_text():
    assert mail.html_to_text("<blockquote>" * 5000 + "x") == "> " * mail.MAX_NESTING + "x"
    assert mail.html_to_text("<div>" * 50_000 + "x") == "x"
    assert mail.html_to_text("<ul><li>a" * 40 + "</ul>" * 40 + "b").endswith("\n\nb")


class Words(HTMLParser):
    """An independent reading of well-formed HTML: its text, blocks apart."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.text += "" if tag in ("a", "em", "strong", "b", "i", "sub", "strike") else " "

    def handle_endtag(self, tag):
        self.text += " " if tag == "code" else ""

    def handle_data(self, data):
        self.text += data


@pytest.mark.real
@pytest.mark.skipif(not DUMPS.is_dir(), reason="the Stack Exchange set is not beside here")
@pytest.mark.parametrize("site", ["beer", "ai"])
def test_words_of_real_posts_are_all_there_in_order(site):
    word = re.compile(r"[^\W\d_]+")
    content = gzip.decompress((DUMPS / f"{site}.Posts.xml.gz").read_bytes())
    bodies = [row.get("Body", "") for row in ElementTree.fromstring(content)]
    for body in bodies:
        oracle = Words()
        oracle.feed(body)
        oracle.close()
        assert word.findall(mail.html_to_text(body)) == word.findall(oracle.text), body
    codes = [code for body in bodies for code in re.findall("<pre><code>(.*?)</code>", body, re.S)]
    assert len(codes) > 10
