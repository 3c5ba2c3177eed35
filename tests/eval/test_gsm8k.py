"""GSM8K: lm-evaluation-harness's prompt and both of its extractions, text by text."""

import json
from pathlib import Path

import pytest

from data.errors import BadInput
from eval import task
from eval.task import Example
from eval.tasks import gsm8k

DATA = Path(__file__).parents[3] / "shared" / "data" / "eval"
TRAIN = [("Two and  two? ", "2+2=<<2+2=4>>4\n#### 4"), ("Half of 1,000?", "1,000/2=$500\n#### 500")]
TEST = [("Three times 4?", "3*4=12\n#### 12")]
# Of lm-evaluation-harness 0.4.13, `gsm8k` over these rows with the first two shots.
PROMPT = (
    "Question: Two and  two? \nAnswer: 2+2=<<2+2=4>>4\n#### 4\n\n"
    "Question: Half of 1,000?\nAnswer: 1,000/2=$500\n#### 500\n\n"
    "Question: Three times 4?\nAnswer:"
)
# What its filters and its exact_match make of a text where 12 is right; None is its "[invalid]".
GRADES = [
    ("#### 12", "12", True, "12", True),
    (" 3*4 = 12\n#### 12", "12", True, "12", True),
    ("#### 12.", "12.", True, "12.", True),
    ("#### $12", None, False, "$12", True),
    ("####12", None, False, "12", True),
    ("the answer is 12", None, False, "12", True),
    ("12 apples and 13 pears", None, False, "13", False),
    ("about -12.", None, False, "-12.", False),
    ("$12.00", None, False, "$12.00", False),
    ("12.0", None, False, "12.0", False),
    ("1,2", None, False, "1,2", True),
    ("#### 1,2\n#### 12", "1,2", True, "12", True),
    ("no number", None, False, None, False),
    ("", None, False, None, False),
    ("#### -12", "-12", False, "-12", False),
    ("costs $12.", None, False, "$12.", True),
    ("5 .. ", None, False, "..", False),
    ("#### abc 12", None, False, "12", True),
    ("#### 12,", "12,", True, "12,", True),
    ("so 12 - 5", None, False, "5", False),
    ("12%", None, False, "12", True),
]


def write(folder, name, rows):
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "gsm8k", "train.jsonl", TRAIN)
    write(tmp_path / "gsm8k", "test.jsonl", TEST)
    write(tmp_path / "gsm8k", "test_socratic.jsonl", TEST * 2)
    return tmp_path


@pytest.mark.parametrize(("text", "strict", "is_strict", "flexible", "is_flexible"), GRADES)
def test_answers_are_read_and_graded_as_lm_eval_does(
    text, strict, is_strict, flexible, is_flexible
):
    assert gsm8k.extract(text) == {"strict": strict, "flexible": flexible}
    example = Example("", TEST[0][1])
    assert gsm8k.grade(example, text) == {"strict": is_strict, "flexible": is_flexible}


def test_a_reference_with_marks_in_it_is_stripped_too():
    assert gsm8k.grade(Example("", "so $1,200\n#### $1,200."), "#### 1200")["strict"] == 1


def test_the_prompt_is_lm_evals(folder):
    loaded = task.load("gsm8k", str(folder))
    (example,) = loaded.examples
    assert loaded.prompt(example, 2) == PROMPT
    assert example.texts == TEST[0] and example.choices == ()
    assert loaded.stops[0] == "Question:" and loaded.max_new_tokens == 256


def test_an_answer_without_its_number_is_bad_input(folder):
    write(folder / "gsm8k", "test.jsonl", [*TEST, ("Why?", "12")])
    with pytest.raises(BadInput, match=r"test\.jsonl, row 2: the answer is '12'; it must end with"):
        task.load("gsm8k", str(folder))


@pytest.mark.real
@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="no GSM8K beside the checkout")
def test_the_published_files_are_read():
    loaded = task.load("gsm8k", str(DATA))
    assert (len(loaded.examples), len(loaded.shots[""])) == (660, 7473)
    assert loaded.prompt(loaded.examples[0], 5).count("Question: ") == 6
    assert all(
        loaded.grade(one, one.answer) == {"strict": 1, "flexible": 1} for one in loaded.examples
    )
