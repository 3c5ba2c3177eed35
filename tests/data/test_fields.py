"""Fields: the text, URL, date and language of a row are found, and the rest is kept small."""

import datetime
import json

import pyarrow as pa
import pytest

from data.document import Record
from data.readers import fields
from data.readers.fields import Fields
from tests.data.test_parquet import read_table
from tests.data.test_tables import USUAL, json_lines, read_json


def test_named_fields_are_taken_and_missing_ones_named(tmp_path):
    row = {
        "text": "no",
        "story": "yes",
        "page": "http://b.example",
        "when": 1589000000,
        "l": "en-US",
    }
    (record,) = read_json(tmp_path, json_lines([row]), Fields("story", "page", "when", "l"))
    assert record == Record(
        1, "yes", "", "http://b.example", "2020-05-09T04:53:20Z", "en", meta={"text": "no"}
    )
    for position in range(4):
        names = ["story", "page", "when", "l"]
        names[position] = "absent"
        (record,) = read_json(tmp_path, json_lines([row]), Fields(*names))
        assert record.why == (
            "no field 'absent'; its fields are ['l', 'page', 'story', 'text', 'when']"
        )
    (record,) = read_json(tmp_path, json_lines([{f"f{n:03}": 1 for n in range(500)}]))
    assert record.why.endswith("'f019'] and 480 more") and len(record.why) < 400


def test_the_first_usual_name_with_a_string_is_the_text():
    def text(**row):
        return fields.to_record(1, row, fields.lay_out(tuple(row), USUAL))

    assert text(body="b", content="c").text == "c"
    assert text(text=None, content="c").text == "c"
    assert text(text=3, document="d", body=None).text == "d"
    assert text(text="t", content="c").meta == {"content": "c"}
    assert text(text="").why == "", "an empty text is no broken one"
    assert text(text=3).why == "field 'text' is int, not a string"
    assert text(uri="u", link="l", text="t").url == "u"
    assert text(crawl_date="2020", timestamp="2021", text="t").date == "2021"


def test_conversations_become_turns(tmp_path):
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes.\n"}]
    rows = [
        {"messages": turns, "id": 1},
        {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "P"}, {"image": 1}]}]},
        {"messages": [*turns, {"role": "assistant", "content": None, "tool_calls": []}]},
        {"messages": {"role": ["u", "a"], "content": ["x", "y"]}},
        {"text": "own", "messages": turns},
        {"messages": [{"content": "who?"}]},
        {"messages": ["no"]},
        {"messages": []},
        {"messages": 3},
    ]
    records = read_json(tmp_path, json_lines(rows))
    spoken = "user: Hello?\n\nassistant: Yes."
    assert [record.text for record in records[:6]] == [
        spoken,
        "human: A\n\ngpt: B",
        "user: P",
        spoken,
        "u: x\n\na: y",
        "own",
    ]
    assert records[0].meta == {"id": 1}
    assert [record.why for record in records[6:]] == [
        "turn 0 names no speaker; its fields are ['content']",
        "turn 0 is str, not an object",
        "has none of the fields messages, conversations, prompt, question, instruction, "
        "inputs_pretokenized, inputs",
        "turns are int, not a list",
    ]
    (record,) = read_json(tmp_path, json_lines([{"chat": turns}]), Fields("chat", "", "", ""))
    assert record.text == spoken
    table = pa.table({"messages": [turns], "id": [1]})
    assert [record.text for record in read_table(tmp_path, table)] == [spoken]


UTC = datetime.UTC


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("2019-04-25T12:57:54Z", "2019-04-25T12:57:54Z"),
        ("2020-01-02 03:04:05", "2020-01-02T03:04:05"),
        ("2020-01-02 03:04:05.123+0000", "2020-01-02T03:04:05.123000Z"),
        ("2020-01-02T03:04+02:00", "2020-01-02T03:04:00+02:00"),
        ("2020-01-02 03:04:05 UTC", "2020-01-02T03:04:05Z"),
        (" 2020-01-02 ", "2020-01-02"),
        ("2020-01", "2020-01"),
        ("1998", "1998"),
        (1998, "1998"),
        ("Mon, 06 Mar 2017 04:02:06 GMT", "2017-03-06T04:02:06Z"),
        ("6 Mar 2017 04:02:06 -0500", "2017-03-06T04:02:06-05:00"),
        (1589000000, "2020-05-09T04:53:20Z"),
        (1589000000.0, "2020-05-09T04:53:20Z"),
        ("1589000000", "2020-05-09T04:53:20Z"),
        (1589000000123, "2020-05-09T04:53:20.123000Z"),
        (1589000000 * 10**6, "2020-05-09T04:53:20Z"),
        (1589000000 * 10**9, "2020-05-09T04:53:20Z"),
        (20200102, "2020-01-02"),
        ("20080430204825", "2008-04-30T20:48:25Z"),
        (b"2020", "2020"),
        (datetime.datetime(2020, 1, 2, 3, tzinfo=UTC), "2020-01-02T03:00:00Z"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        *((value, "") for value in ("yesterday", "", "2020-13-01", "2020-02-30", "0000", "٢٠٢٠")),
        *((value, "") for value in (None, True, 12, -1, 1e30, float("nan"), 10**400, [2020])),
    ],
)
def test_dates_become_iso_8601(value, iso):
    assert fields.iso_date(value) == iso


def test_a_date_that_says_nothing_is_kept_as_it_is(tmp_path):
    row = {"text": "t", "date": "long ago", "language": "Klingon", "url": 3}
    (record,) = read_json(tmp_path, json_lines([row]))
    assert (record.date, record.language, record.url) == ("", "", "")
    assert record.meta == {"url": 3, "date": "long ago", "language": "Klingon"}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("zh-CN", "zh"),
        ("DEU", "de"),
        ("yue", "yue"),
    ]
    + [(given, "") for given in ("und", "mul", "English", "", None, 3, "e")],
)
def test_languages_become_codes(given, code):
    assert fields.language_code(given) == code


def test_language_codes_are_those_of_iso_639():
    pairs = dict(fields.TWO_LETTERS)
    # As data.gates.language gives Norwegian.
    assert (pairs.pop("nob"), pairs.pop("nb")) == ("no", "no")
    assert len(pairs) == len(set(pairs.values())) == 183
    assert all(len(three) == 3 and len(two) == 2 for three, two in pairs.items())
    codes = {"deu": "de", "zho": "zh", "heb": "he", "ind": "id", "jav": "jv", "hbs": "sh"}
    assert codes.items() <= pairs.items()


def test_meta_is_small(tmp_path):
    row = {f"f{number:02}": number for number in range(30)}
    row |= {"text": "t", "a": "x" * 201, "b": "x" * 200, "c": [1], "d": 10**30, "e": 1e999, "g": ""}
    (record,) = read_json(tmp_path, json_lines([dict(sorted(row.items()))]))
    expected = {"b": "x" * 200} | {f"f{number:02}": number for number in range(15)}
    assert dict(record.meta) == expected
    json.dumps(dict(record.meta), allow_nan=False).encode()
