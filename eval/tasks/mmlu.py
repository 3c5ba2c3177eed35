"""MMLU: 57 subjects, four choices, five shots of the subject; the letter is scored.

Source: Hendrycks et al. 2021 (arXiv 2009.03300); its files SPLIT/SUBJECT_SPLIT.csv, without a head:
question, four choices, letter. The prompt is that of `mmlu` in lm-evaluation-harness, version 1.0.
"""

from collections.abc import Iterator, Sequence

from data.errors import BadInput
from eval.task import Example, Task, grade_choice, read, render

LETTERS = ("A", "B", "C", "D")


def load(folder: str) -> Task:
    """Reads dev, for the shots, and test; `eval.task.load` says more."""
    shots: dict[str, tuple[Example, ...]] = {}
    for example in _read(folder, "dev"):
        shots[example.group] = (*shots.get(example.group, ()), example)
    return Task(
        name="mmlu",
        version=1,
        examples=tuple(_read(folder, "test")),
        shots=shots,
        num_shots=5,
        metric="acc",
        grade=grade_choice,
        render=_render,
    )


def _read(folder: str, split: str) -> Iterator[Example]:
    for subject, place, row in read(folder, rf"(\w+)_{split}\.csv", f"SUBJECT_{split}.csv"):
        if len(row) != 6 or row[5] not in LETTERS:
            raise BadInput(f"{place} is {row}; it must be a question, four choices and a letter")
        row = [text.replace("\r\n", "\n") for text in row]  # a line ends so inside of cells too
        lines = [row[0].strip(), *map("{}. {}".format, LETTERS, row[1:5]), "Answer:"]
        target = LETTERS.index(row[5])
        yield Example("\n".join(lines), row[5], LETTERS, target, subject, tuple(row[:5]))


def _render(example: Example, shots: Sequence[Example]) -> str:
    subject = example.group.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return head + render(example, shots)
