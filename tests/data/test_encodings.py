"""Bytes become text: whole and damaged UTF-8, UTF-16, older encodings; what is no text does not."""

import dataclasses
import io
import json
import random

import pytest

from data import encodings
from data.kinds import recognise
from tests.data.test_sources import SOURCE, read, write

FRENCH = "Le café était fermé, et la fenêtre à côté du théâtre restait ouverte. "
GERMAN = "Die Häuser sind größer, und über den Dächern hört man schöne Töne. "
RUSSIAN = "Это простой текст на русском языке, написанный для проверки. «ДА»! "
POLISH = "Zażółć gęślą jaźń, proszę państwa, mówię już po raz drugi. "
THAI = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน เช่นเดียวกับภาษาจีน "
JAPANESE = "これは日本語の文章です。漢字とカタカナも入っています。"
CHINESE = "这是一个中文文本，用来检查编码。我们希望它能够被正确地读出来。"
KOREAN = "이것은 한국어 문장입니다. 문자 집합을 알아내는 시험입니다. "
ENGLISH = "Plain English words that stand in a line and say nothing at all. "
OLDER = {
    "latin-1": FRENCH,
    "cp1252": f"\u201c{GERMAN}\u201d \u2014 ",
    "cp1251": RUSSIAN,
    "koi8-r": RUSSIAN.replace("«", '"').replace("»", '"'),
    "cp866": RUSSIAN.replace("«", '"').replace("»", '"'),
    "iso8859-2": POLISH,
    "cp1250": POLISH,
    "cp874": THAI,
    "shift_jis": JAPANESE,
    "euc_jp": JAPANESE,
    "gb18030": CHINESE,
    "cp949": KOREAN,
}


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("codec", OLDER)
def test_older_encodings_are_found(codec, count):
    text = OLDER[codec] * count
    found = encodings.decode(text.encode(codec))
    assert (found.text, found.why, found.replaced) == (text, "", 0)
    assert found.encoding not in ("", "utf-8")
    assert recognise("a.txt", text.encode(codec)[: (1 << 16) - 1]) == "text"


def test_what_looks_like_latin_1_may_hold_quotes_of_windows():
    text = f"{GERMAN}\u201e\u00dcber\u201c " * 30
    assert encodings.decode(text.encode("cp1252")) == (text, "cp1252", 0, "")
    assert encodings.decode((GERMAN * 30).encode("latin-1")).encoding == "cp1252"


@pytest.mark.parametrize("word", ["Caf\u00e9", "ma\u00f1ana", "\u201cquoted\u201d", "\u00a9 2001"])
@pytest.mark.parametrize("before", [10, 9999])
def test_few_letters_in_much_ascii_are_western(word, before):
    text = ENGLISH * before + word + ENGLISH * 10
    found = encodings.decode(text.encode("cp1252"))
    assert found == (text, "cp1252", 0, "")


@pytest.mark.parametrize("language", [FRENCH, GERMAN, RUSSIAN, JAPANESE, THAI])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9", b"\x80", b"\xe2\x80"])
def test_utf8_with_wrong_bytes_stays_utf8(language, bad):
    start, end = (language * 60).encode(), (language * 3).encode()
    for data in (start + bad + b" " + end, end + bad, (start + bad + b"\n") * 9):
        num_bad = data.count(bad + b" ") + data.count(bad + b"\n") + data.endswith(bad)
        found = encodings.decode(data)
        assert (found.encoding, found.why) == ("utf-8", "")
        assert found.replaced == found.text.count("\ufffd") == num_bad
        assert found.text == data.decode(errors="replace")


def test_utf8_that_is_hardly_beyond_ascii_stays_utf8():
    data = (ENGLISH * 50 + "\u2019").encode() + b"\xff" + ENGLISH.encode()
    assert encodings.decode(data).encoding == "utf-8"
    # Of which nothing says that it is UTF-8, and of which the file has said so before.
    assert encodings.decode(b"one \xe9 alone").encoding != "utf-8"
    assert encodings.decode(b"one \xe9 alone", is_utf8=True) == ("one \ufffd alone", "utf-8", 1, "")


def test_marks_that_stand_for_nothing_are_no_damage():
    text = f"{FRENCH}\ufffd\ufffd"
    assert encodings.decode(text.encode()) == (text, "", 0, "")
    assert encodings.decode(text.encode() + b"\xff").replaced == 1


def test_utf8_that_is_half_wrong_is_none():
    rng = random.Random(0)
    data = bytearray((RUSSIAN * 99).encode())
    for place in rng.sample(range(len(data)), len(data) // 6):
        data[place] = rng.choice(b"\xff\xfe\xc0")
    found = encodings.decode(bytes(data))
    assert found.text == "" and "characters are damaged" in found.why


@pytest.mark.parametrize("length", [100, 1000, 60_000])
def test_what_is_packed_is_no_text(length):
    rng = random.Random(length)
    data = rng.randbytes(length)
    assert encodings.decode(data).why.startswith("not UTF-8")
    assert encodings.decode(data.replace(b"\0", b"")).why.startswith("not UTF-8")
    # Fifty pairs of bytes may be fifty characters.
    for mark in (b"", b"\xff\xfe", b"\xfe\xff") if length > 100 else (b"",):
        assert recognise("a.txt", mark + data) == "neither text nor a format that we read"
    latin = (FRENCH * 99).encode("latin-1")
    assert encodings.decode(latin + b"\0").why and not encodings.decode(latin + b"\x1a").why


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("step", [1, 3, 100_000])
def test_marks_of_wide_encodings_are_honoured(monkeypatch, codec, step):
    monkeypatch.setattr(encodings, "STEP_BYTES", step)
    text = f"{FRENCH}{JAPANESE}\U0001f600\r\n" * 9
    data = f"\ufeff{text}".encode(codec)
    stream, encoding = encodings.after_mark(io.BufferedReader(io.BytesIO(data)))
    assert (stream.read().decode(), encoding) == (text, codec)
    assert encodings.head_as_utf8(data) == text.encode()
    # One that ends inside a character.
    stream, _ = encodings.after_mark(io.BufferedReader(io.BytesIO(data[:-1])))
    assert stream.read().decode().rstrip("\ufffd\r\n") == text.rstrip("\r\n")
    assert recognise("a", data) == "text"
    assert recognise("a", f'\ufeff{{"text": "{text.strip()}"}}'.encode(codec)) == "json"


LATIN = "La tâche était terminée, et la forêt était déjà très sombre à côté. " * 4
FILES = {
    "latin-1": (LATIN, "latin-1"),
    "cp1251": ("Это простой текст на русском языке, написанный для проверки. " * 4, "cp1251"),
    "utf-16": (f"\ufeff{LATIN}", "utf-16-le"),
    "utf-16 of two": (f"\ufeff{LATIN}", "utf-16-be"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("markup", ["auto", "book"])
def test_texts_and_books_in_other_encodings_are_read(tmp_path, name, markup):
    text, codec = FILES[name]
    path = write(tmp_path / "a.txt", text.encode(codec))
    source = dataclasses.replace(SOURCE, path=str(path), markup=markup)
    (row,), broken = read({"prose": source})
    assert row["text"].strip() == text.strip("\ufeff ") and broken == []
    found = json.loads(row["meta"])["encoding"]
    assert text.strip("\ufeff").encode(found) == text.strip("\ufeff").encode(codec)


def test_utf8_with_a_wrong_byte_is_read_and_says_so(tmp_path):
    path = write(tmp_path / "a.txt", (LATIN * 9).encode() + b"\xff\n")
    (row,), broken = read(path)
    assert row["text"] == LATIN * 9 + "\ufffd\n" and broken == []
    assert json.loads(row["meta"]) == {"encoding": "utf-8", "replaced": 1}
    (row,), _ = read(write(tmp_path / "b.txt", LATIN))
    assert row["meta"] == ""


def test_tables_with_the_mark_of_utf16_are_read(tmp_path):
    for name, text in (
        ("a.csv", f'text,n\n"{LATIN}",1\n'),
        ("a.jsonl", json.dumps({"text": LATIN})),
    ):
        (row,), broken = read(write(tmp_path / name, f"\ufeff{text}".encode("utf-16-le")))
        assert (row["text"], broken) == (LATIN, [])
