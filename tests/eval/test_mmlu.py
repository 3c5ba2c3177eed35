"""MMLU: lm-evaluation-harness's prompt to the letter, and the files as they were published."""

from pathlib import Path

import pytest

from data.errors import BadInput
from eval import task
from eval.task import grade_choice

DATA = Path(__file__).parents[3] / "shared" / "data" / "eval"
DEV = '" Who wrote it? ",Ann,"Bob "," Cy",D.,B\n"Line one\r\nline two",1,2,3,4,D\r\n'
TEST = '"When?\n",Now,Then,Never,Soon,A\n'
# Of lm-evaluation-harness 0.4.13, `mmlu_high_school_us_history` over these rows, two shots.
PROMPT = (
    "The following are multiple choice questions (with answers) about high school us history.\n\n"
    "Who wrote it?\nA. Ann\nB. Bob \nC.  Cy\nD. D.\nAnswer: B\n\n"
    "Line one\nline two\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: D\n\n"
    "When?\nA. Now\nB. Then\nC. Never\nD. Soon\nAnswer:"
)


@pytest.fixture
def folder(tmp_path):
    for split, text in (("dev", DEV), ("test", TEST)):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"high_school_us_history_{split}.csv").write_bytes(
            text.encode()
        )
    return tmp_path


def test_the_prompt_is_lm_evals(folder):
    mmlu = task.load("mmlu", str(folder))
    (example,) = mmlu.examples
    assert mmlu.prompt(example, 2) == PROMPT
    assert (example.choices, example.target) == (("A", "B", "C", "D"), 0)
    assert grade_choice(example, [-1.0, -2.0, -3.0, -4.0])["acc"] == 1
    assert grade_choice(example, [-3.0, -2.0, -3.0, -4.0])["acc"] == 0


def test_what_training_may_not_hold_is_the_question_and_its_choices(folder):
    (example,) = task.load("mmlu", str(folder)).examples
    assert example.texts == ("When?\n", "Now", "Then", "Never", "Soon")


@pytest.mark.parametrize("row", ["When?,Now,Then,Never,A", "When?,Now,Then,Never,Soon,E", "a"])
def test_a_row_of_another_shape_is_bad_input(folder, row):
    path = folder / "mmlu" / "test" / "high_school_us_history_test.csv"
    path.write_text(TEST + row + "\n")
    with pytest.raises(BadInput, match=rf"eval\.data: {path}, row 2 is .*four choices and a let"):
        task.load("mmlu", str(folder))


def test_a_file_without_questions_is_bad_input(folder):
    (folder / "mmlu" / "test" / "high_school_us_history_test.csv").write_text("")
    with pytest.raises(BadInput, match=r"eval\.data: .*/mmlu: not one question in its files"):
        task.load("mmlu", str(folder))


@pytest.mark.real
@pytest.mark.skipif(not (DATA / "mmlu").exists(), reason="no MMLU beside the checkout")
def test_the_published_files_are_read():
    mmlu = task.load("mmlu", str(DATA))
    assert (len(mmlu.examples), len(mmlu.shots)) == (7390, 29)
    assert {len(shots) for shots in mmlu.shots.values()} == {5}
    first = mmlu.prompt(mmlu.examples[0], 5)
    assert first.startswith("The following are multiple choice questions (with answers) about anat")
    assert first.count("\n\n") == 6 and first.endswith("\nAnswer:")
