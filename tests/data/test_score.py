"""All measures on a made-up DIR with known answers, and on the real one with floors."""

import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path

import pytest

from data.document import place
from data.errors import BadInput
from data.gates import classifier
from data.scoring import score, score_table
from eval import sets
from tests.data.test_measures import PII_ROWS
from tests.data.test_planted import CONFIG, prose, quiz

DATA = Path("../shared/data")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def warc_record(number, num_lacking=0):
    body = f"<html><body><p>buy now {number} {prose(1000 + number, 30)}</p></body></html>"
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{body}"
    return (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://s.org/{number}\r\n"
        f"Content-Type: application/http\r\nContent-Length: {len(http) + num_lacking}\r\n\r\n"
        f"{http}\r\n\r\n"
    )


def tweet(number):
    kind = number % 3
    words = prose(number, 40 if number % 6 == 3 else 5)
    return {"class": str(kind), "tweet": words if kind == 2 else f"{words} zork{'y' * kind}"}


PII_JSON = [
    {
        "full_text": text,
        "spans": [
            {"entity_type": kind, "start_position": start, "end_position": end}
            for kind, start, end in spans
        ],
    }
    for text, spans in PII_ROWS
]
POSTS = """<?xml version="1.0"?>
<posts>
<row Id="1" PostTypeId="1" Title="Why?" Body="&lt;p&gt;Why so?&lt;/p&gt;" />
<row Id="2" PostTypeId="2" ParentId="1" Body="&lt;p&gt;So.&lt;/p&gt;" Score="3" />
<row Id="3" PostTypeId="2" ParentId="1" Body="&lt;p&gt;Not so.&lt;/p&gt;" />
<row Id="4" PostTypeId="1" Title="How?" Body="&lt;p&gt;How so?&lt;/p&gt;" />
<row Id="5" PostTypeId="2" ParentId="77" Body="&lt;p&gt;Lost.&lt;/p&gt;" />
<row Id="6" PostTypeId="4" Body="&lt;p&gt;A tag.&lt;/p&gt;" />
</posts>
"""
NAMES = ("functionality", "label_gold", "target_ident", "test_case")
CHECKS = [
    ("slur_h", "hateful", "women", "you zork zorky"),
    ("ident_nh", "non-hateful", "", "hello"),
]
SETS = {
    "filters/pii_presidio/half.jsonl": json_lines(PII_JSON),
    "multilingual/tatoeba/half.jsonl": json_lines(
        [{"lang": "deu", "text": "Das ist nicht wahr, sagte der alte Mann."}] * 3
        + [{"lang": "tlh", "text": "nuqneH"}]
    ),
    "multilingual/udhr2/half.jsonl": json_lines(
        [{"name": "eng_x", "text": "All human beings are born free and equal in dignity."}]
    ),
    "filters/toxic_tweets/half.csv": table([tweet(n) for n in range(300)]),
    "filters/toxigen_demos/half.jsonl": json_lines(
        {"text": prose(n, 6) + " grol" * (n % 2), "label": ("neutral", "hate")[n % 2]}
        for n in range(40)
    ),
    "filters/hatecheck/half.csv": table([dict(zip(NAMES, row, strict=True)) for row in CHECKS * 5]),
    "filters/dclm_quality_votes/half.jsonl": json_lines(
        {
            "text": prose(n) if n % 2 else f"buy now {n}",
            "label": n % 2,
            "all_annotators_agree": n < 8,
        }
        for n in range(20)
    ),
    "pretrain/books/half.jsonl": json_lines({"text": prose(n)} for n in range(40)),
    "web/c4_en/half.jsonl": json_lines({"text": prose(n)} for n in range(30, 60)),
    "pretrain/math_latex/half.jsonl": json_lines(
        [{"text": "One $x$.%no\n"}, {"text": "\\section{Two}"}]
    ),
    "qa/stackexchange/half.Posts.xml": POSTS,
}
RECORDS = [*map(warc_record, range(11)), warc_record(11, num_lacking=20)]


def make_sets(root, name="half", suffix=".gz"):
    for path, content in SETS.items():
        write(root / (path.replace("half", name) + suffix), content)
    packed = [gzip.compress(record.encode()) for record in RECORDS]
    archive = b"".join(packed) if suffix else "".join(RECORDS)
    path = root / f"web/warc/{name}.warc{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(archive if suffix else archive.encode())
    write(root / "filters/bad_words/en.txt", "zork\n")
    for folder in ("filters/pii_presidio", "web/warc", "pretrain/books"):
        write(root / folder / "SOURCE.txt", "from nowhere " * 200)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    make_sets(root)
    return root, measure(root)


def measure(root, config=CONFIG.gates, evaluation=None):
    lines = []
    evaluation = quiz(30) if evaluation is None else evaluation
    result = score.score(root, config, CONFIG.dedup, evaluation, lines.append)
    assert json.loads(json.dumps(result)) == result, "not of JSON types"
    return result


def test_every_set_is_measured(made_up):
    _, result = made_up
    assert result["absent"] == {}
    assert result["pii"]["kinds"]["mail"]["overlapping"]["precision"] == 0.5
    assert result["pii"]["kinds"]["mail"]["overlapping"]["recall"] == 0.6667, "not rounded"
    assert result["tatoeba"]["accuracy"] == 1.0 and result["tatoeba"]["unknown"] == {"tlh": 1}
    assert (result["udhr"]["accuracy"], result["udhr"]["languages"]) == (1.0, 1)
    assert result["tweets"]["auc"]["toxic"] > 0.95
    assert result["hatecheck"]["cases"] == 10 and result["hatecheck"]["auc"] == 1.0
    hits = {name: (row["hit"], row["too_many"]) for name, row in result["bad_words"].items()}
    assert hits == {"hate": (1.0, 0.5), "neither": (0.0, 0.0), "offensive": (0.0, 0.0)}
    assert result["quality"]["all"]["auc"] > 0.9 and result["quality"]["agreed"]["texts"] == 8
    assert result["duplicates"]["originals"] == 60 and result["duplicates"]["exact"]["recall"] == 1
    assert result["contamination"]["recall"] == {"as_it_is": 1.0, "retyped": 1.0}
    archive = result["archives"]["half.warc.gz"]
    assert (archive["records"], archive["documents"], len(archive["broken"])) == (12, 11, 1)
    assert archive["broken"][0].startswith("record 12: ")
    assert result["forums"]["half.Posts.xml.gz"] == {
        "question_rows": 2, "answer_rows": 3, "questions": 2, "answers": 2, "broken": 1
    }  # fmt: skip
    assert result["papers"]["documents"] == 2 and not any(result["papers"]["left"].values())


def test_names_and_packing_of_files_do_not_count(made_up, tmp_path):
    _, result = made_up
    for name, suffix in (("half", ".gz"), ("other", ".gz"), ("other", "")):
        root = tmp_path / f"{name}{suffix}"
        make_sets(root, name, suffix)
        found = json.dumps(measure(root)).replace(f"{name}.warc{suffix}", "half.warc.gz")
        found = found.replace(f"{name}.Posts.xml{suffix}", "half.Posts.xml.gz")
        assert found == json.dumps(result), f"differs with files named {name}.*{suffix}"


def test_absent_sets_are_named(made_up, tmp_path):
    _, result = made_up
    names = [name for name in result if name != "absent"]
    empty = measure(tmp_path, evaluation=[])
    assert list(empty) == ["absent"] and list(empty["absent"]) == names
    assert empty["absent"]["pii"] == "filters/pii_presidio: no .jsonl there"
    assert empty["absent"]["contamination"] == "no texts of evaluation sets"
    write(tmp_path / "filters/pii_presidio/b.jsonl.gz", json_lines(PII_JSON))
    write(tmp_path / "filters/hatecheck/b.csv", SETS["filters/hatecheck/half.csv"])
    write(tmp_path / "filters/toxic_tweets/b.csv", table([tweet(n) for n in range(5)]))
    write(tmp_path / "multilingual/tatoeba/b.jsonl", "")
    write(tmp_path / "pretrain/a.jsonl", json_lines([{"text": "Too short."}]))
    write(tmp_path / "web/c4_en/a.jsonl", json_lines([{"text": "Too short."}]))
    part = measure(tmp_path)
    assert part["pii"] == result["pii"] and list(part["absent"]) == names[1:]
    too_little = "filters/toxic_tweets: too little to train from: examples: "
    assert part["absent"]["hatecheck"].startswith(too_little)
    assert part["absent"]["tweets"].startswith(too_little)
    assert part["absent"]["tatoeba"] == "multilingual/tatoeba: no row in it"
    assert part["absent"]["duplicates"] == "pretrain, web/c4_en: no text of 100 words"


def test_only_tweets_that_were_not_trained_on_are_tested(made_up, tmp_path, monkeypatch):
    root, result = made_up
    given = []
    train = classifier.train

    def remember(texts, *rest):
        given.extend(map(str.strip, texts))
        return train(texts, *rest)

    monkeypatch.setattr(classifier, "train", remember)
    found = score._score_tweets(root, CONFIG.gates)
    tweets = {tweet(n)["tweet"] for n in range(300)}
    trained = {text for text in tweets if place(text) < 0.8}
    assert tweets & set(given) == trained
    assert found["texts"] == len(tweets - trained) and 30 < found["texts"] < 90
    assert found["how"].startswith("trained here") and "toxigen" in found["how"]
    model = train(given, ["zork" in text for text in given], CONFIG.gates.toxicity.train)
    model.save(tmp_path / "model")
    toxic = dataclasses.replace(CONFIG.gates.toxicity, model=str(tmp_path / "model"), max_score=0.4)
    config = dataclasses.replace(CONFIG.gates, toxicity=toxic)
    given.clear()
    found = score._score_tweets(root, config)
    assert found["texts"] == 300 and found["how"] == score.CONFIGURED and not given
    checked = score._score_hatecheck(root, config)
    assert checked["max_score"] == 0.4 and checked["how"] == score.CONFIGURED
    assert checked["accuracy"] == 1.0


def test_quality_is_measured_with_the_model_that_is_named(made_up, tmp_path):
    root, _ = made_up
    texts = [prose(n) if n % 2 else f"buy now {n}" for n in range(40)]
    model = classifier.train(texts, [n % 2 == 0 for n in range(40)], CONFIG.gates.quality.train)
    model.save(tmp_path / "model")
    quality = dataclasses.replace(CONFIG.gates.quality, model=str(tmp_path / "model"))
    found = score._score_quality(root, dataclasses.replace(CONFIG.gates, quality=quality))
    assert found["how"] == score.CONFIGURED
    assert found["all"]["auc"] < 0.1, "a model of the opposite was asked"


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("filters/pii_presidio/b.jsonl", '{"full_text": "x"}\n', "row 1 has no spans"),
        ("filters/pii_presidio/b.jsonl", "{not JSON\n", "cannot be read as .jsonl"),
        ("filters/pii_presidio/b.jsonl", "[1]\n", "row 1 has no full_text, spans"),
        ("filters/pii_presidio/b.jsonl", '{"full_text": "x", "spans": [{}]}', "entity_type"),
        ("filters/toxic_tweets/b.csv", "class,tweet\n7,x\n", "class '7' is not 0, 1 or 2"),
        ("multilingual/tatoeba/b.jsonl.gz", b"\x1f\x8b\x08 damaged", "cannot be read as .jsonl"),
    ],
)
def test_sets_that_are_not_what_they_should_be(tmp_path, path, content, message):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match=message):
        measure(tmp_path, evaluation=[])


def test_the_table_has_a_row_for_everything(made_up, tmp_path):
    _, result = made_up
    table = score_table.rows(result)
    assert all(isinstance(cell, str) for row in table for cell in row) and len(table[0]) == 3
    figures = {measure: (figure, remark) for measure, figure, remark in table}
    assert figures["PII: mail"][0] == "precision 0.500, recall 0.667, f1 0.571"
    assert figures["PII: phone"][0] == "precision none, recall 0.000, f1 none"
    assert figures["PII: key"][0] == "none there, none found"
    assert figures["Language of sentences: unknown to the model"] == ("1", "tlh")
    assert figures["Word lists: hate tweets"][0] == "hit 1.000, too many 0.500"
    assert figures["Duplicates: exact"][0] == "recall 1.000"
    assert figures["Duplicates: 2% of words replaced"][1].startswith("180 pairs, 0 other pairs")
    assert figures["Contamination: retyped"] == ("recall 1.000", "30 of 30 texts of 3 sets")
    assert figures["Archive: half.warc.gz"][0] == "11 documents of 12 records"
    assert figures["Forum: half.Posts.xml.gz"][0] == "2 questions, 2 answers"
    heads = {measure.partition(":")[0] for measure in figures}
    assert heads == {
        *("PII", "Language of sentences", "Language of declarations", "Toxicity", "HateCheck"),
        *("Word lists", "Quality", "Duplicates", "Contamination", "Archive", "Forum"),
        "LaTeX",
    }
    absent = score_table.rows({"absent": {"pii": "nothing there"}})
    assert absent == [("pii", "not measured", "nothing there")]


@pytest.mark.slow
@pytest.mark.real
def test_real_sets_reach_their_floors():
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside the checkout")
    texts = list(sets.texts(str(DATA / "eval"), print))
    found = score.score(DATA, CONFIG.gates, CONFIG.dedup, texts, lambda line: None)
    assert found["absent"] == {}
    for kind, row in found["pii"]["kinds"].items():
        rates = row["overlapping"]
        assert not row["gold"] or min(rates["precision"], rates["recall"]) >= 0.9, kind
    assert found["tatoeba"]["accuracy"] >= 0.87 and found["tatoeba"]["longer"]["50"]["macro"] >= 0.9
    assert found["udhr"]["accuracy"] >= 0.9
    assert found["tweets"]["auc"]["toxic"] >= 0.96
    assert found["hatecheck"]["auc"] >= 0.5 and len(found["hatecheck"]["false_alarms"]) == 9
    words = {name: row["hit"] for name, row in found["bad_words"].items()}
    assert words["offensive"] >= 0.7 and words["neither"] <= 0.05
    assert found["quality"]["all"]["auc"] >= 0.75 and found["quality"]["agreed"]["auc"] >= 0.85
    duplicates = found["duplicates"]
    assert duplicates["originals"] == 1000 and duplicates["exact"]["recall"] == 1.0
    assert duplicates["near"][0]["recall"] >= 0.95
    assert all(row["false_merges"] == 0 for row in (duplicates["exact"], *duplicates["near"]))
    # One text in fifty is all numbers, which are not looked for.
    assert min(found["contamination"]["recall"].values()) >= 0.98
    assert len(found["contamination"]["hits"]) <= 10
    assert sum(len(row["broken"]) for row in found["archives"].values()) == 3
    for row in found["forums"].values():
        assert (row["questions"], row["answers"]) == (row["question_rows"], row["answer_rows"])
    assert not any(found["papers"]["left"].values())
    assert len(score_table.rows(found)) > 80
