"""The user's own conversations, prompts and pairs: formats, what is broken or held out."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.conversations import OwnSet, PairText, read_conversations, read_pairs
from data.errors import BadInput

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
real = [
    pytest.mark.real,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no real data sets beside the checkout"),
]
ALL = {"heldout_fraction": 0.0}


def say(*texts, system=None):
    roles = ("user", "assistant") * len(texts)
    turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def read(path, rows, needs_answer=True, **changes):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_conversations(
        "sft.data.mine", OwnSet(str(path), **changes), needs_answer=needs_answer
    )


HELLO = say("Hi", "Hello")
FORMATS = {
    "messages": {"messages": HELLO, "id": 7},
    "messages with more keys": {"messages": [m | {"weight": 1} for m in HELLO]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    },
    "Alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "Dolly": {"instruction": "Hi", "context": "", "response": "Hello", "category": "x"},
    "prompt and completion": {"prompt": "Hi", "completion": "Hello"},
    "prompt as messages": {"prompt": say("Hi"), "completion": "Hello"},
    "question and answer": {"question": "Hi", "answer": "Hello"},
    "P3": {"inputs": [1, 2], "inputs_pretokenized": "Hi", "targets_pretokenized": "Hello"},
    "P3 as text": {"inputs": "Hi", "targets": "Hello"},
    "parts": {
        "messages": [
            {"role": "user", "content": ["Hi"]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
        ]
    },
    "Self-Instruct": {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]},
    "ranked answers": {"prompt": "Hi", "responses": ["Go", "Hello"], "scores": [1, 2]},
    "tree": {"prompt": {"text": "Hi", "role": "prompter", "replies": [
        {"text": "Go", "role": "assistant", "rank": 1},
        {"text": "Hello", "role": "assistant", "rank": 0},
    ]}},
}  # fmt: skip


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_every_format_is_the_same_conversation(tmp_path, row):
    found = read(tmp_path / "a.jsonl", [row], **ALL)
    (example,) = found.train
    assert list(example.messages) == HELLO[:1] and not found.broken and not found.heldout
    assert example.reference == example.demonstration == "Hello"
    assert (example.kind, example.check, example.id) == (
        "mine",
        "overlap",
        "sft.data.mine-a.jsonl-1",
    )


def test_an_input_follows_its_instruction_and_a_system_message_comes_first(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"system": "Be kind.", "prompt": "Hi", "response": "Hello"},
    ]
    first, second = read(tmp_path / "a.jsonl", rows, **ALL).train
    assert first.messages[0]["content"] == "Add.\n\n1, 2"
    assert [message["role"] for message in second.messages] == ["system", "user"]


def test_a_prompt_needs_no_answer_and_keeps_one_as_its_reference(tmp_path):
    rows = [{"prompt": "Hi"}, {"messages": HELLO}, {"messages": say("Hi", "Ho", "And?")}]
    found = read(tmp_path / "a.jsonl", rows, needs_answer=False, **ALL)
    assert [example.reference for example in found.train] == ["", "Hello", ""]
    assert [len(example.messages) for example in found.train] == [1, 1, 3]


def test_files_folders_arrays_parquet_and_packed_files_are_read(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(
        json.dumps([{"prompt": f"a{i}", "answer": "x"} for i in range(3)])
    )
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write('{"prompt": "b", "answer": "x"}\n' * 2)
    pq.write_table(pa.table({"prompt": ["c"], "answer": ["x"]}), folder / "c.parquet")
    messages = pa.array([say("d", "x")])
    pq.write_table(pa.table({"messages": messages}), folder / "d.parquet")
    (folder / "notes.txt").write_text("not\ndata\n")
    found = read_conversations("sft.data.mine", OwnSet(str(folder), **ALL), needs_answer=True)
    assert [e.messages[0]["content"] for e in found.train] == ["a0", "a1", "a2", "b", "b", "c", "d"]
    assert found.broken == [
        {"file": "notes.txt", "record": 1, "why": "neither JSON, CSV nor parquet"}
    ]


BROKEN = {
    b"{not json": "malformed JSON",
    b"\xff\xfe": "not UTF-8",
    b"[" * 100_000: "malformed JSON",
    b'["messages"]': "not an object",
    b'{"text": "x"}': "has none of the fields",
    b'{"messages": []}': "has none of the fields",
    b'{"prompt": "x"}': "has no answer",
    b'{"messages": [{"role": "user", "content": ""}]}': "no text",
    b'{"prompt": "\\ud800", "answer": "a"}': "surrogates",
    b'{"messages": [{"role": "tool", "content": "x"}]}': "role 'tool' is unknown",
    b'{"messages": 3}': "turns are int",
    json.dumps(
        {"messages": say("a", "b") + say("c", "d")[1:]}
    ).encode(): "user and assistant in turn",
}


@pytest.mark.parametrize(("line", "why"), BROKEN.items(), ids=lambda x: x[:20] if x else "")
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path, line, why):
    good = b'{"prompt": "Hi", "answer": "Hello"}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good)
    own = OwnSet(str(tmp_path / "a.jsonl"), **ALL)
    found = read_conversations("sft.data.mine", own, needs_answer=True)
    assert len(found.train) == 2
    (broken,) = found.broken
    assert (broken["file"], broken["record"]) == ("a.jsonl", 3) and why in broken["why"]


def test_a_pair_of_equal_answers_is_malformed(tmp_path):
    rows = [{"prompt": "Hi", "chosen": "a", "rejected": worse} for worse in "ab"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs("reward.data.mine", OwnSet(str(tmp_path / "a.jsonl"), **ALL))
    assert [(pair.chosen, pair.rejected) for pair in found.train] == [("a", "b")]
    assert [(row["record"], row["why"][-17:]) for row in found.broken] == [(1, "are the same text")]


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(BadInput, match=r"no usable row to train on; a.jsonl: it is empty"):
        read_conversations("sft.data.mine", OwnSet(str(tmp_path / "a.jsonl")), needs_answer=True)


@pytest.mark.parametrize("content", ["", "{\n", "[{]", "[]"])
def test_nothing_to_train_on_is_refused_by_the_key(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(BadInput, match=r"^sft.data.mine.path"):
        read_conversations("sft.data.mine", OwnSet(str(tmp_path / "a.jsonl")), needs_answer=True)


def test_held_out_prompts_are_chosen_by_their_content_and_never_trained_on(tmp_path):
    rows = [{"prompt": f"p{i % 500}", "answer": f"a{i}"} for i in range(2000)]
    found = read(tmp_path / "a.jsonl", rows, heldout_fraction=0.2)
    again = read(tmp_path / "b.jsonl", rows[::-1], heldout_fraction=0.2)
    prompts = [{x.messages[0]["content"] for x in part} for part in (found.train, found.heldout)]
    assert not prompts[0] & prompts[1] and len(found.train) + len(found.heldout) == 2000
    assert 0.15 < len(prompts[1]) / 500 < 0.25  # 0.2, and 3 deviations of 500 draws
    assert {x.messages[0]["content"] for x in again.heldout} == prompts[1]


HUMAN = "\n\nHuman: Hi\n\nAssistant: "
PAIRS = {
    "texts": {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
    "messages": {
        "messages": say("Hi"),
        "chosen": say("Hi", "Hello")[1],
        "rejected": say("", "Go")[1],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go"},
    },
    "whole conversations": {"chosen": say("Hi", "Hello"), "rejected": say("Hi", "Go")},
    "both": {"prompt": "Hi", "chosen": say("Hi", "Hello"), "rejected": say("Hi", "Go")},
    "transcripts": {"chosen": f"{HUMAN}Hello", "rejected": f"{HUMAN}Go"},
    "UltraFeedback": {
        "instruction": "Hi",
        "completions": [
            {"response": "Go", "overall_score": 2.5},
            {"response": "Hello", "overall_score": 9},
        ],
    },
    "Nectar": {
        "prompt": HUMAN,
        "answers": [{"answer": "Go", "rank": 2.0}, {"answer": "Hello", "rank": 1.0}],
    },
    "tree": FORMATS["tree"],
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_every_format_is_the_same_pair(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    found = read_pairs("reward.data.mine", OwnSet(str(tmp_path / "a.jsonl"), **ALL))
    assert found.train == [PairText(tuple(say("Hi")), "Hello", "Go")] and not found.broken


def test_a_list_of_ranks_gives_a_pair_of_each_two_that_follow_and_none_of_ties(tmp_path):
    row = {"prompt": "Hi", "responses": ["c", "a", "b", "b too"], "ranks": [3, 1, 2, 2]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    found = read_pairs("reward.data.mine", OwnSet(str(tmp_path / "a.jsonl"), **ALL))
    assert [(pair.chosen, pair.rejected) for pair in found.train] == [("a", "b"), ("b too", "c")]


def test_posts_of_a_tree_are_joined_whatever_their_order(tmp_path):
    """As Open Assistant's are published: a row a message, in JSON, CSV and parquet."""
    posts = [
        {"message_id": "d", "parent_id": "b", "role": "prompter", "text": "And?", "rank": 0},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Hello", "rank": 0},
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi", "rank": None},
        {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "Go", "rank": 1},
        {"message_id": "e", "parent_id": "d", "role": "assistant", "text": "So.", "rank": 0},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    pq.write_table(pa.Table.from_pylist(posts), tmp_path / "b.parquet")
    own = OwnSet(str(tmp_path), **ALL)
    found = read_conversations("sft.data.mine", own, needs_answer=True)
    best = ["Hi", "Hello", "And?"]
    texts = [[message["content"] for message in example.messages] for example in found.train]
    assert texts == [best] * 2
    assert [example.reference for example in found.train] == ["So."] * 2
    pairs = read_pairs("reward.data.mine", own).train
    assert pairs == [PairText(tuple(say("Hi")), "Hello", "Go")] * 2


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_in_csv_are_read(tmp_path, delimiter):
    text = f"instruction{delimiter}output\nHi{delimiter}Hello\n"
    (tmp_path / "a.csv").write_text(text)
    own = OwnSet(str(tmp_path / "a.csv"), **ALL)
    (example,) = read_conversations("sft.data.mine", own, needs_answer=True).train
    assert (list(example.messages), example.reference) == (HELLO[:1], "Hello")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello"},
        {"chosen": say("Hi", "Hello"), "rejected": say("Ho", "Go")},
        {"chosen": say("Hi", "Hello", "And", "So"), "rejected": say("Hi", "Go")},
        {"chosen": "Hello", "rejected": "Go"},
        {"prompt": "Hi", "chosen": "", "rejected": "Go"},
    ],
)
def test_what_is_no_pair_is_left_out(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIRS['texts'])}\n{json.dumps(row)}")
    found = read_pairs("reward.data.mine", OwnSet(str(tmp_path / "a.jsonl"), **ALL))
    assert len(found.train) == 1 and len(found.broken) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("path", ""), ("weight", 0.0), ("heldout_fraction", 1.0)]
)
def test_a_set_out_of_range_is_named(key, value):
    with pytest.raises(ValueError, match=f"^{key}"):
        OwnSet(**({"path": "x"} | {key: value}))


REAL = {  # rows, and those that are broken, counted by hand with jq and zcat
    "sft/alpaca_en_999/*.jsonl": (999, 0),
    "sft/dolly_151/*.jsonl": (151, 0),
    "sft/code_alpaca_2k/*.jsonl": (2015, 2),
    "sft/gpteacher/*.gz": (8854, 0),
    "sft/p3_t0_sample/*.gz": (10848, 0),
}


@pytest.mark.parametrize(("path", "counts"), REAL.items())
@pytest.mark.parametrize("_", [pytest.param(0, marks=real)])
def test_published_sets_are_read_as_they_are(path, counts, _):
    found = read_conversations("sft.data.mine", OwnSet(f"{SHARED}/{path}"), needs_answer=True)
    assert (len(found.train) + len(found.heldout), len(found.broken)) == counts


@pytest.mark.parametrize(
    ("path", "counts"),
    [("preferences/hh_rlhf_harmless/*.gz", (1619, 7)), ("preferences/dpo_en_demo/*.gz", (300, 0))],
)
@pytest.mark.parametrize("_", [pytest.param(0, marks=real)])
def test_published_pairs_are_read_as_they_are(path, counts, _):
    found = read_pairs("reward.data.mine", OwnSet(f"{SHARED}/{path}"))
    assert (len(found.train) + len(found.heldout), len(found.broken)) == counts
