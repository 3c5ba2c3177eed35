"""Books: what an edition put in is taken out, what the writer wrote stays, verse as it was."""

import gzip
import json
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from data.readers import books

BOOKS = Path(__file__).resolve().parents[3] / "shared/data/pretrain/books/books.jsonl.gz"
PROSE = (
    "It was a bright cold day in the far north, and the clocks of the little town were striking "
    "one after the other, none of them at the same time, so that the noise went on for as long as "
    "an hour; nobody minded, because nobody there had ever owned a watch or wished for one."
)
ANSWER = (
    "The remarkable thing, as the schoolmaster used to remark, was that the trains were punctual "
    "all the same. He never found out why, though he looked into the matter for eleven years, and "
    "wrote a remarkable book about it, which was read by his sister and by the station's cat."
)
VERSE = "When the long night is over,\n  And all the clocks are still,\nThe fox comes out of clover"
TABLE = (
    "Town          Clocks    Watches\nNorthend          21          0\nSouthend           3     11"
)
HEADS = {
    "one line": "*** START OF THIS PROJECT GUTENBERG EBOOK CLOCKS ***",
    "two lines": "*** START OF THE PROJECT GUTENBERG EBOOK THE CLOCKS OF\nTHE NORTH ***",
    "no blank": "***START OF THE PROJECT GUTENBERG EBOOK CLOCKS***",
    "small print": "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    "small print since": "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
}
TAILS = {
    "stars": "*** END OF THIS PROJECT GUTENBERG EBOOK CLOCKS ***\n\nUpdated editions.",
    "words": "End of the Project Gutenberg EBook of Clocks, by A. Writer\n\n*** END OF THE PROJECT",
    "possessive": "End of Project Gutenberg's Clocks, by A. Writer\n\nLimited warranty.",
    "etext": "End of The Project Gutenberg Etext of Clocks\n\nMore.",
    "licence": "*** START: FULL LICENSE ***\n\nTHE FULL PROJECT GUTENBERG LICENSE",
}


def wrap(*paragraphs, width=70):
    """The parts as an edition with short lines prints them; verse and tables are left."""
    return "\n\n".join(
        part if "\n" in part else "\n".join(textwrap.wrap(part, width)) for part in paragraphs
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tail", TAILS)
def test_edition_is_taken_off(head, tail):
    credits = "Produced by A. Body and the Online Distributed\nProofreading Team at pgdp"
    text = (
        "The Project Gutenberg EBook of Clocks, by A. Writer\n\nThis eBook is for anyone.\n\n"
        f"{HEADS[head]}\n\n\n{credits}\n\n\nCLOCKS\n\n{wrap(PROSE, ANSWER)}\n\n{TAILS[tail]}\n"
    )
    assert books.clean(text.replace("\n", "\r\n")) == f"CLOCKS\n\n{PROSE}\n\n{ANSWER}\n"


def test_book_that_speaks_of_editions_is_not_cut():
    text = "Produced by hand, the clocks went on.\n\nHe read Project Gutenberg's books.\n"
    assert books.clean(text) == text
    assert books.clean("") == books.clean(" \r\n\f\n") == ""


def test_illustrations_and_pages_inside_lines_go():
    text = (
        "One [Pg 12]two [Pg 13] three [page 14]\nfo[Pg 15]ur.\n\n[Illustration]\n\n"
        "[Illustration: A clock\nof the north]\n\n[Pg xii] Five[1] [page].\n"
    )
    assert books.clean(text) == "One two three\nfour.\n\nFive[1] [page].\n"


def test_wrapped_prose_is_unwrapped_and_the_rest_is_not():
    text = wrap(PROSE, VERSE, TABLE, ANSWER, "- one\n- two", PROSE + " " + ANSWER)
    expected = [PROSE, VERSE, TABLE, ANSWER, "- one\n- two", f"{PROSE} {ANSWER}"]
    assert books.clean(text) == "\n\n".join(expected) + "\n"


def test_long_verse_stays_by_its_capitals():
    verse = "\n".join(
        [
            "_This is the forest primeval. The murmuring pines and the hemlocks,_",
            "_Bearded with moss, and in garments green, indistinct in the twilight,_",
            "_Stand like Druids of eld, with voices sad and prophetic,_",
            "_Stand like harpers hoar, with beards that rest on their bosoms._",
        ]
    )
    text = wrap(PROSE, verse, ANSWER, PROSE)
    assert verse in books.clean(text)


def test_lines_that_end_early_before_a_capital_stay_apart():
    prose, close = f"{ANSWER} {PROSE} {ANSWER} And that was all.", "Yours faithfully,\nThe Master"
    letter, expected = f"{wrap(prose)}\n{close}", f"{prose}\n{close}\n"
    assert books.clean(letter) == expected


def test_book_with_whole_paragraphs_on_lines_is_left_alone():
    text = f"# A\n\n{PROSE}\n\n{VERSE}\n\n{ANSWER}\n\nYours,\nA. Writer\n"
    assert books.clean(text.replace("\n", "\r\n")) == text


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a re-", "markable thing", "a remarkable thing"),  # the joined word occurs elsewhere
        ("a school-", "master", "a schoolmaster"),
        ("the far-", "away north", "the far-away north"),  # neither is known
        ("the well-", "known", "the well-known"),  # both are, this one more often
        ("he said--", "nothing", "he said--nothing"),
        ("the year 19-", "20", "the year 19- 20"),
    ],
)
def test_hyphens_at_line_ends(left, right, expected):
    known = "Well-known and well-known, wellknown; remarkable, schoolmaster."
    fill = " ".join(["and so it went on and on until the end of the longest day"] * 2)
    first, last = f"{fill[: 69 - len(left)]} {left}", f"{right} {fill[:40]}"
    found = books.clean(wrap(PROSE, ANSWER, f"{known} {PROSE}") + f"\n\n{first}\n{last}\n")
    assert found.split("\n")[-2] == f"{fill[: 69 - len(left)]} {expected} {fill[:40]}"


def with_pages(lines, every, form):
    """Lines with page numbers set between them, and the numbers."""
    pages, number = [], 6
    for start in range(0, len(lines), every):
        pages.append("\n".join(lines[start : start + every]))
        number += 1
        pages.append(form(number))
    return "\n\n".join(pages)


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda number: f"- {number} -",
        lambda number: f"[{number}]",
        lambda number: f"{number} THE CLOCKS" if number % 2 else f"OF THE NORTH {number}",
        lambda number: f"{number}\n\nTHE CLOCKS OF THE NORTH",
    ],
)
def test_page_numbers_and_running_heads_go_and_sentences_are_mended(form):
    prose = " ".join([PROSE, ANSWER] * 5)
    text = with_pages(textwrap.wrap(prose, 70), 7, form)
    assert books.clean(text) == prose + "\n"


def test_chapter_between_pages_stays():
    prose = " ".join([PROSE, ANSWER] * 5)
    text = with_pages(textwrap.wrap(prose, 70), 7, str)
    heading = f"CHAPTER {int(text.split()[-1]) + 1}"
    found = books.clean(f"{text}\n\n{heading}\n\n{wrap(PROSE)}")
    assert found == f"{prose}\n\n{heading}\n\n{PROSE}\n"


def test_numbers_of_chapters_and_sections_stay():
    parts = [part for number in range(1, 12) for part in (str(number), PROSE, ANSWER)]
    assert books.clean("\n\n".join(parts)) == "\n\n".join(parts) + "\n"
    chapters = [part for n in range(1, 12) for part in (f"CHAPTER {n}", "and so on", "it was so")]
    assert books.clean("\n\n".join(chapters)) == "\n\n".join(chapters) + "\n"


def real_books():
    with gzip.open(BOOKS, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


real = [
    pytest.mark.real,
    pytest.mark.skipif(not BOOKS.is_file(), reason="the set of books is not beside the checkout"),
]


class TestRealBooks:
    pytestmark = real

    def test_no_word_is_lost_and_cleaning_again_changes_nothing(self):
        for book in real_books()[::7]:
            found = books.clean(book["text"])
            assert found.split() == book["text"].split(), book["title"]
            assert "\r" not in found and "\n\n\n" not in found, book["title"]
            assert books.clean(found) == found, book["title"]

    def test_five_books_looked_at(self):
        expected = {
            "Dracula": "*(Kept in shorthand.)*\n\n*3 May. Bistritz.*\u2014Left Munich at 8:35 P.",
            "Walden": "-------\n\n##  Economy\n\nWhen I wrote the following pages, or rather the",
            "Alice's Adventures in Wonderland": "     *'How doth the little crocodile\n"
            "      Improve his shining tail,\n     And pour the waters of the Nile\n"
            "      On every golden scale!\n",
            "The Importance of Being Earnest": "\n\n**Lane.**\nI didn't think it polite to listen, "
            "sir.\n\n**Algernon.**\n",
            "Narrative of the Life of Frederick Douglass": '\n\n"Just God! and these are they,\n'
            "Who minister at thine altar, God of right!\nMen who their hands, with prayer",
        }
        texts = {book["title"]: book["text"] for book in real_books()}
        found = {title: books.clean(texts[title]) for title in expected}
        assert found["Walden"].startswith("# Title: Walden\n\n## Author: Henry David Thoreau\n\n")
        for title, words in expected.items():
            assert words in found[title], title

    def test_edition_made_of_a_book_is_undone(self):
        [book] = [book for book in real_books() if book["title"] == "Treasure Island"]
        whole = re.sub(" +", " ", books.clean(book["text"]))
        paragraphs = whole.rstrip("\n").split("\n\n")
        lines = [line for part in paragraphs for line in [*wrap(part).split("\n"), ""]]
        text, number = [], 0
        for count, line in enumerate(lines, 1):
            text.append(line)
            if count % 40 == 0:
                number += 1
                text += ["", f"{number} TREASURE ISLAND" if number % 2 else str(number), ""]
        head, tail = HEADS["one line"], TAILS["words"]
        found = books.clean("\r\n".join([head, "", *text, "", tail])).rstrip("\n").split("\n\n")
        same = sum((Counter(found) & Counter(paragraphs)).values())
        # A page that ends with a sentence leaves its paragraph parted.
        assert same > 0.98 * len(paragraphs)
        words, original = Counter(" ".join(found).split()), Counter(whole.split())
        assert sum((words - original).values()) < 20, words - original
        assert sum((original - words).values()) < 20, original - words
