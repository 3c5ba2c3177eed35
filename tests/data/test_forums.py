"""Forums: conversations come out whole and in order, however their posts lie in the dump."""

import bz2
import gzip
import json
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from data import unpacking
from data.readers import forums
from data.readers.borders import to_the_damage
from data.unpacking import zstd

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
DUMPS = SHARED / "qa/stackexchange"
SEED = SHARED / "sft/open_assistant_seed/realistic_seed_data.json"
needs_dumps = [
    pytest.mark.real,
    pytest.mark.skipif(not DUMPS.is_dir(), reason="the Stack Exchange set is not beside here"),
]


def row(**attributes):
    element = ElementTree.Element("row", {name: str(value) for name, value in attributes.items()})
    return ElementTree.tostring(element).replace(b"\n", b"&#xA;")


def question(number, **more):
    values = {"Id": number, "PostTypeId": 1, "Title": f"Title {number}", "Score": 3}
    body, date = f"<p>Q{number}</p>", "2014-01-21T20:26:05.383"
    return row(**{**values, "Body": body, "CreationDate": date, **more})


def answer(number, parent, score=0, **more):
    values = {"Id": number, "PostTypeId": 2, "ParentId": parent, "Body": f"<p>A{number}</p>"}
    return row(**{**values, "Score": score, **more})


def dump(rows):
    head = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'
    return head + b"".join(b"  " + line + b"\n" for line in rows) + b"</posts>"


def read(path, rows, name="Posts.xml"):
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(rows if isinstance(rows, bytes) else dump(rows))
    return list(to_the_damage(forums.read_stack_exchange(str(path / name))))


def test_layout_of_a_conversation(tmp_path):
    rows = [
        question(
            7, AcceptedAnswerId=9, Tags="<hops><dry-hopping>", ContentLicense="CC BY-SA 3.0",
            Title="Why  hops & not\nthyme?", Body="<p>Is <em>it</em> &lt; 2?</p>\n<p>Or:</p>",
        ),
        answer(8, 7, 5, Body="<pre><code>if x:\n    y()\n</code></pre>"),
        answer(9, 7, -1),
        answer(10, 7, 5, Body=""),
    ]  # fmt: skip
    [record] = read(tmp_path, rows, "beer.Posts.xml")
    assert record.text == (
        "Why hops & not thyme?\n\nIs it < 2?\n\nOr:\n\nAnswer:\n\nA9\n\n"
        "Answer:\n\n```\nif x:\n    y()\n```"
    )
    assert (record.number, record.date) == (1, "2014-01-21T20:26:05.383")
    assert record.url == "https://beer.stackexchange.com/questions/7"
    assert record.meta == {
        "site": "beer.stackexchange.com", "id": 7, "score": 3, "tags": ["hops", "dry-hopping"],
        "accepted": 9, "licence": "CC BY-SA 3.0", "num_answers": 3, "answers": [
            {"id": 9, "score": -1, "accepted": True}, {"id": 8, "score": 5, "accepted": False},
            {"id": 10, "score": 5, "accepted": False},
        ],
    }  # fmt: skip


def test_answers_go_by_acceptance_then_score_then_age(tmp_path):
    rows = [answer(20, 3, 4), answer(15, 3, 4), answer(30, 3, 9), answer(12, 3, 1), question(3)]
    [record] = read(tmp_path, rows)
    assert [post["id"] for post in record.meta["answers"]] == [30, 15, 20, 12]
    assert record.text.split("\n\nAnswer:\n\n")[1:] == ["A30", "A15", "A20", "A12"]
    [record] = read(tmp_path, [*rows[:-1], question(3, AcceptedAnswerId=12, Tags="|a|b c|")])
    assert [post["id"] for post in record.meta["answers"]] == [12, 30, 15, 20]
    assert record.meta["tags"] == ["a", "b c"]
    [record] = read(tmp_path, [*rows[:-1], question(3, AcceptedAnswerId=999)])
    assert [post["id"] for post in record.meta["answers"]] == [30, 15, 20, 12]


def test_many_answers_are_all_in_the_text_but_not_in_meta(tmp_path):
    [record] = read(tmp_path, [question(1), *(answer(number, 1) for number in range(2, 102))])
    assert record.text.count("Answer:") == record.meta["num_answers"] == 100
    assert len(record.meta["answers"]) == forums.MAX_META_POSTS


def test_broken_rows_are_named_and_the_rest_is_read(tmp_path):
    rows = {
        question(2): "",
        b'<row Id="3" PostTypeId="1" Title="cut': "malformed XML",
        answer(4, 2): "",
        b"what is this": "not a row",
        row(Id="five", PostTypeId=1): "Id is 'five', not a number",
        row(Id=6, PostTypeId=2): "ParentId is None, not a number",
        answer(7, 99): "an answer to question 99, which is not in the file",
        question(2, Title="again"): "a second row of Id 2",
        answer(4, 2, 1): "a second row of Id 4",
        row(Id=8, PostTypeId=4, Body="a tag wiki"): "",
        b'<row Id="9" PostTypeId="1" Body="bad \xff byte" />': "malformed XML",
        question(1): "",
    }
    records = read(tmp_path, rows)
    good = [record for record in records if not record.why]
    assert [(record.number, record.meta["id"]) for record in good] == [(12, 1), (1, 2)]
    assert good[1].text == "Title 2\n\nQ2\n\nAnswer:\n\nA4"
    whys = {record.number: record.why for record in records if record.why}
    expected = {number: why for number, why in enumerate(rows.values(), 1) if why}
    assert whys.keys() == expected.keys()
    assert all(part in whys[number] for number, part in expected.items()), whys


def test_characters_that_xml_forbids_are_left_out(tmp_path):
    line = question(1, Body="<p>aXbYcZ</p>").replace(b"X", b"&#x0;").replace(b"Y", b"&#x1B;")
    [record] = read(tmp_path, [line.replace(b"Z", b"&#11;&#9;&#x41;&#10;d")])
    assert record.text == "Title 1\n\nabc\tA d"


SITES = {
    "beer.Posts.xml.gz": "beer.stackexchange.com",
    "ai.stackexchange.com/Posts.xml": "ai.stackexchange.com",
    "stackoverflow.com-Posts.xml": "stackoverflow.com",
    "stackoverflow.Posts.xml": "stackoverflow.com",
    "ai.meta.Posts.xml.zst": "ai.meta.stackexchange.com",
    "mathoverflow.Posts.xml": "mathoverflow.net",
    "askubuntu_Posts.xml": "askubuntu.com",
    "dumps/Posts.xml": "",
    "dumps/part 7.Posts.xml": "",
}


@pytest.mark.parametrize(("name", "site"), SITES.items())
def test_site_is_told_by_the_name(tmp_path, name, site):
    [record] = read(tmp_path, [question(5)], name)
    assert record.meta["site"] == site
    assert record.url == (f"https://{site}/questions/5" if site else "")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstd.compress])
def test_packed_dumps(tmp_path, pack):
    rows = [question(1), answer(2, 1)]
    assert read(tmp_path, pack(dump(rows))) == read(tmp_path, rows)


def test_dump_that_breaks_off_gives_what_came_before(tmp_path):
    rows = [question(number, Body=f"<p>{number**40}</p>") for number in range(1, 3000)]
    packed = gzip.compress(dump(rows))
    *good, broken = read(tmp_path, packed[: len(packed) // 2])
    assert "breaks off" in broken.why and broken.number == len(good) + 1
    assert [record.meta["id"] for record in good] == list(range(1, len(good) + 1))
    assert 1000 < len(good) < 2000


def test_row_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_RECORD_BYTES", 1000)
    broken, record = read(tmp_path, [question(1, Body="x" * 5000), question(2)])
    assert broken.why == "it has more than 1000 bytes" and broken.number == 1
    assert (record.number, record.meta["id"]) == (2, 2)


def test_order_of_rows_and_size_of_memory_change_nothing(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [question(number, Body="word " * 200) for number in range(1, 200)]
    rows += [answer(1000 + number, rng.randint(1, 199), rng.randint(0, 3)) for number in range(800)]
    expected = [record[1:] for record in read(tmp_path, rows)]
    rng.shuffle(rows)
    monkeypatch.setattr(forums, "CACHE_BYTES", 1 << 14)
    found = read(tmp_path, rows)
    assert [record[1:] for record in found] == expected
    assert len({record.number for record in found}) == len(found)


class TestRealDumps:
    pytestmark = needs_dumps

    @pytest.mark.parametrize(("site", "num", "answers"), [("beer", 591, 1398), ("ai", 421, 749)])
    def test_every_post_is_where_it_belongs(self, site, num, answers):
        path = DUMPS / f"{site}.Posts.xml.gz"
        found = {record.meta["id"]: record for record in forums.read_stack_exchange(str(path))}
        assert not any(record.why for record in found.values())
        assert len(found) == num and list(found) == sorted(found)
        assert sum(record.meta["num_answers"] for record in found.values()) == answers
        posts = list(ElementTree.fromstring(gzip.decompress(path.read_bytes())))
        for place, post in enumerate(posts, 1):
            if post.get("PostTypeId") == "1":
                record = found[int(post.get("Id"))]
                assert record.number == place and post.get("Title").split()[0] in record.text
            elif post.get("PostTypeId") == "2":
                record = found[int(post.get("ParentId"))]
                ids = [listed["id"] for listed in record.meta["answers"]]
                scores = [listed["score"] for listed in record.meta["answers"]]
                start = record.meta["accepted"] in ids
                assert int(post.get("Id")) in ids
                assert scores[start:] == sorted(scores[start:], reverse=True)

    def test_questions_that_were_looked_at(self):
        """Compared by eye with the HTML of their rows; phrases, order, code and lists."""
        records = {}
        for site in ("beer", "ai"):
            for record in forums.read_stack_exchange(str(DUMPS / f"{site}.Posts.xml.gz")):
                records[site, str(record.meta["id"])] = record
        text, place = "", 0
        for line in LOOKED_AT.strip("\n").split("\n"):
            site, number, *answers = [*line.split(" "), ""]
            if (site, number) in records:
                meta, text, place = records[site, number].meta, records[site, number].text, 0
                assert [str(post["id"]) for post in meta["answers"]] == answers[:-1], line
                assert text.count("\n\nAnswer:\n\n") == len(answers) - 1, line
            else:
                place = text.find(line.replace("\\n", "\n"), place)
                assert place >= 0, line


# Site, question, its answers in order; then phrases in order.
LOOKED_AT = r"""
beer 154 176
look something like:\n\n```\nPale Lager\nGeneric lager.\nPilsner\nPale Ale (Which style?)
Stout\n```\n\nOf course, I'm not a full on beer
think of:\n\n1. Malty/caramel\n2. Hop-forward\n3. Bitter (Hops)\n4. Yeasty\n\nIt isn't clear
beer 312 318 3412 316
Answer:\n\nLet me start off by saying that I am an Italian-American
results for `polewka piwna` (and `polewka beer`) using
beer 2158 2159 2162
Answer:\n\n> 1. UV light exposure causes negative effects (only a real problem for
\n\n> 2. Extreme fluctuations in temperature are generally not good for the beer.\n\nExtreme
beer 4922 4926 4932
do?\n\n- Brew only in winter.\n\n- Find a spot in your house, a cave, whatever that maintains this
temperature.\n\n- Immerse your fermenter in a larger vessel of water:\n\n  - Find a vessel
\n  - Add blocks of ice a few times a day, as necessary.\n\n- Modify an old freezer
beer 5164 5188
leading questions:\n\n1. Does the brewing process differ?\n2. Do ingredients differ?\n3. Any
```\n12.5 lbs Dingemann's Belgian Pilsner\n2.00 lbs Dingemann's Belgian Pale\n0.10 lbs Belgian
beer 6266 6351
Recipe:\n\n- 1.5 cups vodka (I'm using Tito's)\n- 1.5 - 2 cups fig puree\n\nCombine figs
in a rocks glass, add:\n  - 2 ounces fig liqueur, chilled\n  - 1.5 tbsp simple syrup\n  - j
ai 6 20 1387
lower level goals "\n> — Marvin Minsky paraphrasing Sigmund Freud\n\nI argue
\n\n- Survival of genetic data\n\n  - Energy supply and Water\n\n  - Sex\n\n    - myriad subgoals
ai 1390 1412 1424
into larger, complex structures).^wiki\n\nStudy: AtomNet
```\n 1: for all Matrices and vectors m in ω′ do\n 2:     for all Elements e in m do\n 3:
ai 1691 1704 1696 1715
Answer:\n\nWolfram's image id system
ai 1706 1708
confused me more:\n\n> Statistical relational learning (SRL) is
> - Object classification\n>   - Predicting the category of an object based on its attributes
ai 2118 2121
```\n1. New api/technology or even new language every year.\n2. New design\n3. New hardware
the code\n\n2. Help on design e.g. golden ratio, Material theme color\n\n3. Suggest or determine
1.2 Paper on Automated refactoring\n\n2. Automatically choosing screen colour
ai 2435
by doing:\n\n```\npca.fit(ALL_features)\n```\n\nIF I have
```\nself.pca.transform(self.db_feats)\n```
"""


def read_threads(path, rows, name="posts.jsonl"):
    lines = rows if isinstance(rows, bytes) else b"\n".join(json.dumps(r).encode() for r in rows)
    (path / name).write_bytes(lines)
    return list(to_the_damage(forums.read_threads(str(path / name))))


REDDIT = [
    dict(id="b", subreddit="x", title="Why &amp; how?", selftext="I &lt;3 it", author="ann",
         score=5, created_utc=1388534400, permalink="/r/x/comments/b/why/"),
    dict(id="c1", parent_id="t3_b", link_id="t3_b", body="Because.", author="bob", score=2),
    dict(id="c2", parent_id="t3_b", link_id="t3_b", body="Thus.", author="cat", score=9),
    dict(id="c3", parent_id="t1_c1", link_id="t3_b", body="No.\n\nNever.", author="ann", score=1),
    dict(id="c4", parent_id="t1_c1", link_id="t3_b", body="Yes.", author="[deleted]", score=4),
    dict(id="c5", parent_id="t1_c2", link_id="t3_b", body="[removed]", author="dan", score=3),
    dict(id="c6", parent_id="t1_c5", link_id="t3_b", body="Under removed.", author="bob", score=1),
]  # fmt: skip
REDDIT_TEXT = (
    "Why & how?\n\nA: I <3 it\n\nB: Thus.\n\nC: Under removed.\n\nC: Because.\n\nD: Yes.\n\n"
    "A: No.\n\nNever."
)


def test_thread_is_depth_first_and_best_first(tmp_path):
    [record] = read_threads(tmp_path, REDDIT)
    assert record.text == REDDIT_TEXT
    assert record.number == 1 and record.date == "2014-01-01T00:00:00Z"
    assert record.url == "https://www.reddit.com/r/x/comments/b/why/"
    assert record.meta["num_posts"] == 6
    assert record.meta["posts"][1] == {"id": "t1_c2", "author": "B", "score": 9}


def test_threads_whatever_the_order_of_posts_and_size_of_memory(tmp_path, monkeypatch):
    text, rng = json.dumps(REDDIT), random.Random(0)
    name = re.compile(r'(t3_|id": ")b"')
    rows = [post for n in range(50) for post in json.loads(name.sub(rf'\1b{n}"', text))]
    rng.shuffle(rows)
    monkeypatch.setattr(forums, "CACHE_BYTES", 1 << 14)
    records = read_threads(tmp_path, rows)
    assert [record.text for record in records] == [REDDIT_TEXT] * 50


def test_comments_without_their_submission_are_one_thread(tmp_path):
    [record] = read_threads(tmp_path, REDDIT[1:])
    expected = "A: Thus.\n\nB: Under removed.\n\nB: Because.\n\nC: Yes.\n\nD: No.\n\nNever."
    assert record.text == expected


def test_trees_inside_a_row(tmp_path):
    deep = dict(text="second", author="v", score=1, replies=[dict(text="deep", author="u")])
    replies = [deep, dict(text="first", author="w", score=2)]
    one = dict(text="root", author="u", title="T", replies=replies)
    assistant = {
        "message_tree_id": "x", "tree_state": "ready", "prompt": {
            "message_id": "x", "text": "Hi?", "role": "prompter", "created_date": "2023-01-02",
            "replies": [
                {"message_id": "y", "text": "Worse", "role": "assistant", "rank": 1, "replies": []},
                {"message_id": "z", "text": "Better", "role": "assistant", "rank": 0,
                 "replies": [{"message_id": "q", "text": "Ok", "role": "prompter"}]},
            ]},
    }  # fmt: skip
    first, second = read_threads(tmp_path, [one, assistant])
    assert (first.number, first.text) == (1, "T\n\nA: root\n\nB: first\n\nC: second\n\nA: deep")
    assert (second.number, second.text) == (2, "A: Hi?\n\nB: Better\n\nA: Ok\n\nB: Worse")
    assert second.date == "2023-01-02"


def test_posts_that_name_their_parents_only(tmp_path):
    posts = [(4, 2, "four", 1), (9, 8, "lost", 3), (1, None, "one", 1), (2, 1, "two", 2)]
    posts += [(5, 6, "five", 2), (6, 5, "six", 2), (2, 9, "two again", 2), (10, 11, "lost too", 3)]
    rows = [dict(zip(("id", "parent_id", "text", "user_id"), post, strict=True)) for post in posts]
    rows.append(dict(text="no id"))
    records = read_threads(tmp_path, rows)
    good = {record.number: record.text for record in records if not record.why}
    first = "A: one\n\nB: two\n\nA: four"
    assert good == {1: first, 2: "A: lost", 8: "A: lost too", 9: "A: no id"}
    whys = {record.number: record.why for record in records if record.why}
    assert whys.keys() == {5, 6, 7}
    assert "circle" in whys[5] and "circle" in whys[6]
    assert "a second post of id 2" in whys[7]


def test_long_chains_and_many_authors(tmp_path):
    rows = [dict(id=i, parent_id=i - 1, text=f"t{i}", user_id=i % 800) for i in range(1, 3000)]
    random.Random(1).shuffle(rows)
    [record] = read_threads(tmp_path, rows)
    posts = record.text.split("\n\n")
    assert [post.partition(": ")[2] for post in posts] == [f"t{i}" for i in range(1, 3000)]
    names = [post.partition(": ")[0] for post in posts]
    assert names[:28] == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AA", "AB"]
    assert names[701:704] == ["ZZ", "AAA", "AAB"] and names[800] == "A"


def test_broken_posts_are_named(tmp_path):
    lines = (
        b'{"id": 1, "text": "one"}\n{"id": 2, "text": "cut\n[1]\n\n{"id": 3}\n'
        b'{"id": 4, "text": 7}\n{"id": 5, "text": "half \\ud800"}\n{"id": 6, "text": "\xff"}\n'
        b'{"id": 7, "text": "seven", "score": 1e999}\n' + b"[" * 100_000
    )
    records = read_threads(tmp_path, lines)
    assert [record.text for record in records if not record.why] == ["A: one", "A: seven"]
    whys = [(record.number, record.why) for record in records if record.why]
    expected = ["malformed JSON", "JSON list", "no text under", "no text under", "surrogates",
                "not UTF-8", "malformed JSON"]  # fmt: skip
    assert [number for number, _ in whys] == [2, 3, 5, 6, 7, 8, 10]
    assert all(part in why for part, (_, why) in zip(expected, whys, strict=True)), whys
    json.dumps([record.meta["posts"] for record in records if not record.why], allow_nan=False)


def test_thread_of_deleted_posts_has_no_text(tmp_path):
    rows = [dict(id=1, text="[deleted]"), dict(id=2, parent_id=1, text="x", deleted=True)]
    [record] = read_threads(tmp_path, rows)
    assert (record.text, record.why) == ("", "")


def test_arrays_are_read_and_damaged_ones_named(tmp_path):
    rows = [dict(id=1, text="one"), dict(id=2, parent_id=1, text="two")]
    whole = b" \n" + json.dumps(rows, indent=1).encode()
    assert read_threads(tmp_path, whole) == read_threads(tmp_path, rows)
    for cut in (whole[:-10], gzip.compress(whole)[:-10]):
        *_, broken = read_threads(tmp_path, cut)
        assert "breaks off" in broken.why


@pytest.mark.real
@pytest.mark.skipif(not SEED.is_file(), reason="the Open Assistant set is not beside here")
def test_open_assistant_seed():
    posts = json.loads(SEED.read_text())
    records = list(forums.read_threads(str(SEED)))
    roots = [number for number, post in enumerate(posts, 1) if not post["parent_message_id"]]
    assert [record.number for record in records] == roots and len(roots) == 74
    assert sum(record.meta["num_posts"] for record in records) == len(posts) == 444
    assert "A: Hi, I want to learn to play horseshoes. Can you teach me?\n\nB: I" in records[0].text
    assert [line[:2] for line in records[0].text.split("\n\n")] == ["A:", "B:", "A:", "B:", "B:"]
