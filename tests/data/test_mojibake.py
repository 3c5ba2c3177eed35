"""Mojibake: made here by hand, undone again; correct text stays the very same object."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from data.gates import mojibake

DATA = Path("../shared/data")
# Share of real sentences, and of whole declarations, that come back exactly. What the compiled code
# had that ftfy replaced: cp1252 .968 and .997, cp1251 .808 and .958, mac_roman .900 and .984.
FLOORS = {
    "cp1252": (0.98, 0.99),
    "latin-1": (0.99, 0.99),
    "cp1251": (0.8, 0.96),
    "mac_roman": (0.9, 0.97),
    "cp437": (0.9, 0.96),
    "cp1250": (0.9, 0.97),
}


def misread(text, codec):
    """Independent of the module: UTF-8 read in a codec byte by byte, its gaps as controls."""
    chars = []
    for byte in text.encode():
        try:
            chars.append(bytes((byte,)).decode(codec))
        except UnicodeDecodeError:
            chars.append(chr(byte))
    return "".join(chars)


TEXTS = {
    "en": "“It’s a café,” she said — naïve as ever… He paid 5 € for the jalapeño™.",
    "fr": "L’été dernier, « la forêt » était déjà fermée : où aller ? À Noël, à l’hôtel, ça va.",
    "pl": "Zażółć gęślą jaźń. Wałęsa był prezydentem, a Łódź jest większa niż Gdańsk.",
    "ru": "Старый лоцман утром дошёл до конца каменного причала и смотрел на серое море.",
    "el": "Ο γέρος πιλότος περπάτησε το πρωί μέχρι την άκρη της προβλήτας.",
    "he": "הטייס הזקן הלך בבוקר עד קצה המזח והביט בים האפור.",
    "hi": "बूढ़ा नाविक सुबह घाट के छोर तक गया और धूसर समुद्र को देखता रहा।",
    "zh": "老领航员早上走到码头尽头，望着灰色的大海。",
    "ja": "老いた水先案内人は朝、桟橋の端まで歩き、灰色の海を見た。",
    "vi": "Người hoa tiêu già đi bộ đến cuối bến tàu và nhìn ra biển xám.",
}


@pytest.mark.parametrize("codec", FLOORS)
@pytest.mark.parametrize("language", TEXTS)
def test_text_read_in_a_wrong_encoding_is_read_again(language, codec):
    text = TEXTS[language]
    assert misread(text, codec) != text
    assert mojibake.undo(misread(text, codec)) == text
    assert mojibake.undo(text) is text
    twice = misread(misread(text, "cp1252"), "cp1252")
    assert mojibake.undo(twice) == text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Iâ€™ve", "I’ve"),
        ("exceptionalâ\x80\x94what", "exceptional—what"),
        ("a cafÃ© and a bar", "a café and a bar"),
        ("Barrio GÃ³tico, fiancÃ©e", "Barrio Gótico, fiancée"),
        ("about Â£50, GREÂ®, 50Â°F, 9Â½", "about £50, GRE®, 50°F, 9½"),
        ("Ã‰tat, Ã–sterreich, Ãngström", "État, Österreich, Ãngström"),
        ("â€œArrow,â€ he said, and â€œgoâ€.", "“Arrow,” he said, and “go”."),
        ("Il va Ã  lâ€™Ã©cole", "Il va à l’école"),
        ("ï»¿start, lost ï¿½ byte", "\ufeffstart, lost \ufffd byte"),
        ("ðŸ˜€ fine", "😀 fine"),
        ("Un naïve cafÃ© et déjà", "Un naïve café et déjà"),
    ],
)
def test_mojibake_among_correct_words(wrong, right):
    assert mojibake.undo(wrong) == right


@pytest.mark.parametrize(
    "text",
    [
        "MENÜ“ UND „CAFÉ…“, GRÖSSE: Å, Ä»",
        "The sign CAFÉ” is open",
        "« Je n’ai jamais pensé\xa0», dit-il à l’été.",
        "Вітаю! Ніхто не ведае. Її рідна мова, Рё.",
        "ОПШТА ДЕКЛАРАЦИЈА О ПРАВИМА ЧОВЈЕКА, УСВОЈЕНА",
        "Ovttastuvvon Náššuvnnaid, zvlášť těžší",
        "2√π x + √∑y, 5×10, Ø 12 mm, 20 °C, § 5 ¶",
        "┌──────┐\n│ café │\n├──┬───┤\n└──┴───┘",
        "C’était l’été, qu’à l’État “épinette”",
        "„Ähnlich“ ‚Ähnlich‘ «Île» —Él dijo —Ése",
        "Letters: Â, Ã, â; or à, Ð. And €5. The  is, an à as",
    ],
)
def test_signs_after_capitals_are_no_proof(text):
    assert mojibake.undo(text) is text


def test_a_line_is_judged_alone_in_a_mixed_text():
    good, bad = "Déjà vu — «\xa0Noël\xa0»", misread("Привет, мир и 中文", "cp1252")
    assert mojibake.undo(f"{good}\n{bad}\n{good}") == f"{good}\nПривет, мир и 中文\n{good}"


def test_any_characters_come_to_rest():
    """The result has nothing left to undo, however wild the text."""
    rng = random.Random(7)
    alphabet = [
        *map(chr, range(0x20, 0x100)),
        *"€’“”™œƒÐÂÃâï¿½РСвЂЄі√≈‚ÄΓÇ├⌐ \n",
        "\ufffd",
        "😀",
        "字",
    ]
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
        once = mojibake.undo(text)
        assert mojibake.undo(once) is once, f"not at rest: {text!r} -> {once!r}"


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip("the data sets are not beside the checkout")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def real_texts():
    """Sentences and declarations in the languages of the world."""
    return [
        [row["text"] for row in rows(f"multilingual/{name}")]
        for name in ("tatoeba/tatoeba_a.jsonl.gz", "udhr2/udhr2.jsonl.gz")
    ]


@pytest.mark.real
def test_correct_text_in_the_languages_of_the_world_is_left_alone(real_texts):
    sentences, declarations = real_texts
    assert not [text for text in sentences if mojibake.undo(text) is not text]
    # Two hold controls of Latin-1, which ftfy reads as the quotation marks of cp1252.
    changed = [text for text in declarations if mojibake.undo(text) is not text]
    assert len(changed) == 2 and all(re.search("[\x80-\x9f]", text) for text in changed)


@pytest.mark.real
def test_only_what_was_seen_to_be_mojibake_changes_in_the_web():
    documents = rows("web/c4_en/c4_train.jsonl.gz")
    changed = [n for n, row in enumerate(documents) if mojibake.undo(row["text"]) != row["text"]]
    assert changed == [19, 135, 139, 901, 923]


@pytest.mark.real
@pytest.mark.parametrize("codec", FLOORS)
def test_most_real_text_is_restored_exactly(codec, real_texts):
    for texts, step, floor in zip(real_texts, (23, 3), FLOORS[codec], strict=True):
        texts = [text for text in texts[::step] if not text.isascii()]
        restored = sum(mojibake.undo(misread(text, codec)) == text for text in texts)
        assert restored >= floor * len(texts), f"{restored} of {len(texts)}"
