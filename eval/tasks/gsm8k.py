"""GSM8K: sums in words, five shots, the answer is written out and its last number read.

Source: Cobbe et al. 2021 (arXiv 2110.14168); its files train.jsonl and test.jsonl of question and
answer. Prompt and grades are those of `gsm8k` in lm-evaluation-harness, version 3.0, but for the
shots: here the first ones of train, there others for each question.
"""

import re
from collections.abc import Iterator

from data.errors import BadInput
from eval.task import Example, Output, Task, read, texts

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
# Removed, in this order, from what was found and from the reference.
IGNORED = (r",", r"\$", r"(?s).*#### ", r"\.$")
STOPS = ("Question:", "</s>", "<|im_end|>")
MAX_NEW_TOKENS = 256


def load(folder: str) -> Task:
    """Reads train, for the shots, and test; `eval.task.load` says more."""
    shots = {"": tuple(_read(folder, "train"))}
    return Task(
        name="gsm8k",
        version=1,
        examples=tuple(_read(folder, "test")),
        shots=shots,
        num_shots=5,
        metric="strict",
        grade=grade,
        max_new_tokens=MAX_NEW_TOKENS,
        stops=STOPS,
    )


def grade(example: Example, text: Output) -> dict[str, float]:
    """Whether the number after #### is right (strict), and the last number (flexible).

    Args:
      example: its answer ends with '#### NUMBER'.
      text: what the model wrote.
    """
    wanted, found = _strip(example.answer), extract(text)
    return {name: float(_strip(answer) == wanted) for name, answer in found.items()}


def extract(text: str) -> dict[str, str | None]:
    """The answer in a text by each rule: strict the first after ####, flexible the last number."""
    strict = STRICT.search(text)
    last = [match[0].strip() for match in FLEXIBLE.finditer(text)][-1:]
    return {"strict": strict[1].strip() if strict else None, "flexible": next(iter(last), None)}


def _strip(answer: str | None) -> str | None:
    for pattern in IGNORED if answer is not None else ():
        answer = re.sub(pattern, "", answer)
    return answer if answer is None else answer.lower()


def _read(folder: str, split: str) -> Iterator[Example]:
    # Beside them lie train_socratic.jsonl and test_socratic.jsonl: the same questions again.
    for _, place, row in read(folder, rf"{split}(?!_socratic)\w*\.jsonl", f"{split}.jsonl"):
        question, answer = texts(row, place, "question", "answer")
        if "#### " not in answer:
            raise BadInput(f"{place}: the answer is {answer!r}; it must end with '#### NUMBER'")
        yield Example(f"Question: {question}\nAnswer:", answer, texts=(question, answer))
