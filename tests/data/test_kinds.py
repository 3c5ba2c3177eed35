"""What a file is, is told by how it begins and what it is called, not by what it speaks of."""

import json

import pytest

from data.kinds import recognise

PROSE = "A sentence of some words that stands for a text. " * 6
LATEX = f"\\documentclass{{article}}\n\\begin{{document}}\n{PROSE}\n\\end{{document}}\n"
WIKIPEDIA = f"<mediawiki xml:lang='en'>\n<page><text>{PROSE}</text></page>\n</mediawiki>"
POSTS = f"<posts>\n<row Id='1' Body='{PROSE}' />\n</posts>\n"
TUTORIAL = f"# LaTeX\n\n{PROSE}\n\n```\n{LATEX}```\n"
OBJECT = json.dumps({"text": PROSE, "id": 1})
# What a file is that speaks of another format, or begins as one does.
LOOKALIKES = {
    "writer.py": (f'"""{PROSE}"""\nHEAD = r"""\n{LATEX}"""\n', "code"),
    "tutorial.md": (TUTORIAL, "text"),
    "first.md": (LATEX, "text"),
    "tutorial": (TUTORIAL, "text"),
    "tex.csv": (f'text,n\n"{LATEX}",1\n', "csv"),
    "plain.tex": (PROSE, "latex"),
    "paper.txt": (LATEX, "latex"),
    "commented": (f"% A paper.\n%\n\n  % Draft\r\n\r\n{LATEX}", "latex"),
    "options": (
        "\\NeedsTeXFormat{LaTeX2e}\n\\PassOptionsToPackage{a}{b} % why\n"
        f"\\RequirePackage[b]{{c}}\n\\pdfoutput=1\n{LATEX}",
        "latex",
    ),
    "old": (LATEX.replace("class", "style"), "latex"),
    "wiki.py": (f"# {PROSE}\nDUMP = '''{WIKIPEDIA}'''\n", "code"),
    "posts.py": (f"# {PROSE}\nDUMP = '''{POSTS}'''\n", "code"),
    "page.jinja": (f"{{# {PROSE} #}}\n<p>{{{{ x }}}}</p>\n", "text"),
    "block.jinja": (f"{{% for x in y %}}\n{PROSE}\n{{% endfor %}}\n", "text"),
    "note": (f"{{Note to the reader}} {PROSE}", "text"),
    "quoted": (f'{{"Note"}} {PROSE}', "text"),
    "shell.nix": ("{ }:\nlet x = 1; in x\n", "code"),
    "bracket": (f"[1] {PROSE}", "text"),
    "object": (OBJECT, "json"),
    "spread": (json.dumps({"text": PROSE, "id": 1}, indent=2), "json"),
    "array": (f"[\n {OBJECT},\n {OBJECT}]", "json"),
    "first is empty": (f"{{}}\n{OBJECT}\n", "json"),
    "escaped": (json.dumps({'a "key" \\': 1, "text": PROSE}), "json"),
    "cut.jsonl": (f"{{cut off\n{OBJECT}\n", "json"),
    "cut.ndjson": (f"{{cut off\n{OBJECT}\n", "json"),
    "null.json": (f"[null, {OBJECT}]", "json"),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_a_file_speaks_of_is_not_what_it_is(name):
    content, kind = LOOKALIKES[name]
    assert recognise(name, content.encode()) == kind
    assert recognise(f"{name}.gz", b"\xef\xbb\xbf" + content.encode()) == kind


def test_all_latex_files_of_a_head_are_told_in_time():
    head = b"\\command{x}\n% comment\n   \n" * 2500
    assert recognise("paper", head) == "text"
    assert recognise("paper", head + b"\\documentclass{article}") == "latex"


POST = {"id": "a", "author": "ann", "body": PROSE}
TREE = {"text": PROSE, "author": "ann", "replies": [{"text": "x", "author": "bob"}]}
ASSISTANT = {"message_id": "x", "text": PROSE, "role": "prompter"}
NO_THREADS = {
    "a number": {"text": PROSE, "id": 1, "replies": 7},
    "no list": {"text": PROSE, "id": 1, "replies": "7"},
    "a list of numbers": {"text": PROSE, "id": 1, "replies": [1, 2]},
    "a list of strings": {"text": PROSE, "id": 1, "replies": ["one", "two"]},
    "cut list of strings": {"text": PROSE, "id": 1, "replies": [PROSE] * 999},
    "a parent of what": {"parent_id": 4, "text": PROSE},
    "a parent that is none": {"parent_id": [4], "text": PROSE, "id": 1},
    "true": {"parent_id": True, "text": PROSE, "id": 1},
    "no text": {"parent_id": 4, "id": 1, "words": PROSE},
    "inside meta": {"text": PROSE, "id": 1, "meta": {"parent_id": 4, "id": 5}},
    "spoken of": {"text": json.dumps(POST | {"parent_id": None}), "id": 1},
}
THREADS = {
    "null": POST | {"parent_id": None},
    "a number": POST | {"parent_id": 4},
    "reddit": POST | {"parent_id": "t3_b", "link_id": "t3_b", "subreddit": "x"},
    "link": POST | {"link_id": "t3_b"},
    "a long text first": {"body": PROSE * 100, "id": 1, "parent_id": 3},
    "open assistant": ASSISTANT | {"parent_message_id": None},
    "tree": TREE,
    "no replies yet": TREE | {"replies": []},
    "long tree": TREE | {"replies": [TREE] * 500},
    "around": {"message_tree_id": "x", "prompt": ASSISTANT | {"replies": [ASSISTANT]}},
    "long around": {"message_tree_id": "x", "prompt": ASSISTANT | {"replies": [TREE] * 500}},
}


@pytest.mark.parametrize("rows", [THREADS, NO_THREADS])
@pytest.mark.parametrize("form", ["lines", "array", "pretty array", "later"])
def test_threads_are_told_from_tables(rows, form):
    for name, row in rows.items():
        text = {
            "lines": f"{json.dumps(row)}\n" * 2,
            "array": json.dumps([row, row]),
            "pretty array": json.dumps([row, row], indent=1),
            "later": f"{json.dumps(POST)}\n{json.dumps(row)}\n",
        }[form]
        head = text.encode()[: 1 << 16]
        assert recognise("a", head) == ("threads" if rows is THREADS else "json"), name


def test_threads_have_a_line_each():
    text = json.dumps(THREADS["null"], indent=1)
    assert recognise("a", text.encode()) == "json"


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("page", b"<!-- saved from url=(0014)about:internet -->\n<html><body>", "html"),
        ("page", b'<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE html>', "html"),
        ("page.html", b'<section class="a"><p>Hi', "html"),
        ("page", b"<title>T</title>", "html"),
        ("notes.txt", b"<p> is a tag", "text"),
        ("notes.txt", b'{"key": "value"} is what JSON looks like.\n\nIt is.', "text"),
        ("rows", b'{"key": "value"}\n{"key": 2}\n', "json"),
        ("rows", b' [ {"key": "value"}, {"key', "json"),
        ("rows", b'{"key": "val', "json"),
        ("rows.jsonl", b'"one"\n"two"\n', "json"),
        ("rows.jsonl", b'\x1e{"key": 1}\n', "json"),
        ("nested", b'{"a":' * 9000, "json"),
        ("a.ipynb", b'{"cells": []}', "notebook"),
        ("a.zip", b"PK\x03\x04" + bytes(99), "archive"),
        ("a.docx", b"PK\x03\x04" + bytes(99), "neither text nor a format that we read"),
        ("post.md", b"title: x\nauthor: y\nfrom: z\ndate: q\n\nbody", "text"),
        ("essay", b"Title: Whales\nSubject: whales\nFrom: the sea\n\nCall me", "text"),
    ],
)
def test_what_a_file_is(name, head, kind):
    assert recognise(name, head) == kind
