"""Benchmarks: prompts with shots, grades of choices, files that are read and those refused."""

import gzip

import pytest

from data.errors import BadInput
from eval import task
from eval.task import Example, Task


def choice(target, *choices):
    return Example("Q", choices[target], choices, target)


def make(shots, **changes):
    examples = (Example("Q: how?", "so"),)
    keys = {"version": 1, "num_shots": 2, "metric": "acc", "grade": task.grade_choice}
    return Task(name="quiz", examples=examples, shots=shots, **(keys | changes))


def test_a_prompt_is_the_first_shots_of_the_group_and_the_question():
    first, second = (Example(f"Q: {x}?", x, group="a") for x in "xy")
    quiz = make({"a": (first, second), "b": (Example("Q: no", "no", group="b"),)})
    asked = Example("Q: how?", "so", group="a")
    assert quiz.prompt(asked, 0) == "Q: how?"
    assert quiz.prompt(asked, 2) == "Q: x? x\n\nQ: y? y\n\nQ: how?"
    assert quiz.prompt(first, 1) == "Q: y? y\n\nQ: x?", "a question is not its own shot"
    with pytest.raises(
        BadInput, match=r"quiz a: 3 examples are to be shown before a question, and 2 are"
    ):
        quiz.prompt(asked, 3)


@pytest.mark.parametrize(
    ("choices", "target", "logprobs", "acc", "acc_norm"),
    [
        # -2 / 4 characters beats -1 / 1, though -1 is likelier.
        (("a", "long"), 0, (-1.0, -2.0), 1, 0),
        (("a", "long"), 1, (-1.0, -2.0), 0, 1),
        # A character is one, however many bytes it has: -3/2 beats -2/1.
        (("éé", "b"), 0, (-3.0, -2.0), 0, 1),
        (("A", "B"), 0, (-1.0, -1.0), 1, 1),  # of equals the first
    ],
)
def test_choices_by_likelihood_and_by_likelihood_a_character(
    choices, target, logprobs, acc, acc_norm
):
    found = task.grade_choice(choice(target, *choices), logprobs)
    assert found == {"acc": acc, "acc_norm": acc_norm}


def test_rows_of_a_split_are_found_packed_or_not(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b_test.csv.gz").write_bytes(gzip.compress(b'"x, y",1\n'))
    (tmp_path / "a_test.csv").write_text("q,2\n")
    (tmp_path / "a_dev.csv").write_text("other,3\n")
    (tmp_path / "SOURCE.txt").write_text("text")
    found = list(task.read(str(tmp_path), r"(\w+)_test\.csv", "SUBJECT_test.csv"))
    assert [(group, row) for group, _, row in found] == [("a", ["q", "2"]), ("b", ["x, y", "1"])]
    assert found[1][1] == f"eval.data: {tmp_path}/deep/b_test.csv.gz, row 1"


def test_what_is_not_there_or_cannot_be_read_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"eval\.data: .*/none: no file found"):
        list(task.read(str(tmp_path / "none"), "x", "x"))
    (tmp_path / "other.csv").write_text("a")
    with pytest.raises(
        BadInput, match=r"eval\.data: .*: no file test\.jsonl found, compressed or not"
    ):
        list(task.read(str(tmp_path), r"test\.jsonl", "test.jsonl"))
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(BadInput, match=r"eval\.data: .*test\.jsonl: cannot be read"):
        list(task.read(str(tmp_path), r"test\.jsonl", "test.jsonl"))


@pytest.mark.parametrize("row", [{"q": 1}, {}, [], "q", None, 3])
def test_a_row_without_its_texts_is_bad_input(row):
    assert task.texts({"q": "a", "r": "b"}, "here", "r", "q") == ["b", "a"]
    with pytest.raises(BadInput, match="here, row 1: q is .*; it must be a text"):
        task.texts(row, "here, row 1", "q")
