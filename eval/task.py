"""A benchmark: its examples, the prompt made of one, the grade of an output; a file in tasks/ each.

A file eval/tasks/NAME.py is the benchmark NAME: its `load(folder)` makes a `Task` of local files.
"""

import dataclasses
import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data import storage
from data.errors import BadInput
from eval import sets, tasks

# What stands between question and answer, and between one example and the next.
ANSWER_MARK, SHOT_MARK = " ", "\n\n"


@dataclasses.dataclass(frozen=True)
class Example:
    """A question.

    Attributes:
      question: as it stands in the prompt, up to where the answer begins.
      answer: what a prompt shows as its answer where it is a shot.
      choices: continuations of which one is right; () where the answer is to be written.
      target: index of the right choice.
      group: the part of the benchmark that it belongs to; '' where there are no parts.
      texts: what its row says, as it stands there: what training may not hold.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    target: int = 0
    group: str = ""
    texts: tuple[str, ...] = ()


Output = str | Sequence[float]  # a written answer; or a log-probability of each choice


def render(example: Example, shots: Sequence[Example]) -> str:
    """The shots with their answers, then the question.

    Source: ConfigurableTask.fewshot_context of lm-evaluation-harness 0.4.13.
    """
    before = (shot.question + ANSWER_MARK + shot.answer + SHOT_MARK for shot in shots)
    return "".join(before) + example.question


def grade_choice(example: Example, logprobs: Output) -> dict[str, float]:
    """Whether the likeliest choice is right (acc), and the likeliest by character (acc_norm).

    Source: ConfigurableTask.process_results of lm-evaluation-harness 0.4.13. Of equals, the first.
    """
    by_char = np.asarray(logprobs) / [len(choice) for choice in example.choices]
    found = {"acc": np.argmax(logprobs), "acc_norm": np.argmax(by_char)}
    return {name: float(choice == example.target) for name, choice in found.items()}


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: that of its file.
      version: of prompt and grade: scores of two versions do not compare.
      examples: in the order of the files; the questions of all have choices, or of none.
      shots: examples to show before a question, by group.
      num_shots: how many are shown unless the configuration says otherwise.
      metric: the grade that stands for the task.
      grade: an example and an output to its grades by name, each in [0, 1].
      render: an example and its shots to the prompt.
      max_new_tokens: of an answer that is written.
      stops: texts at which such an answer ends.
    """

    name: str
    version: int
    examples: tuple[Example, ...]
    shots: Mapping[str, tuple[Example, ...]]
    num_shots: int
    metric: str
    grade: Callable[[Example, Output], dict[str, float]]
    render: Callable[[Example, Sequence[Example]], str] = render
    max_new_tokens: int = 0
    stops: tuple[str, ...] = ()

    def prompt(self, example: Example, num_shots: int) -> str:
        """The prompt: the first shots of the example's group, itself left out, and the question.

        Raises:
          BadInput: there are fewer.
        """
        others = (shot for shot in self.shots.get(example.group, ()) if shot != example)
        shots = list(itertools.islice(others, num_shots))
        if len(shots) < num_shots:
            where = f"{self.name} {example.group}".strip()
            raise BadInput(
                f"eval.num_shots: {where}: {num_shots} examples are to be shown before a question, "
                f"and {len(shots)} are there beside it; it must be at most {len(shots)}"
            )
        return self.render(example, shots)


def names() -> list[str]:
    """The benchmarks that there are: the files of eval/tasks."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def load(name: str, data: str) -> Task:
    """Reads a benchmark.

    Args:
      name: one of `names`.
      data: the folder, local or on an object store, that holds a folder NAME with its files.

    Raises:
      BadInput: a file is missing, empty, or not what the benchmark publishes.
    """
    loaded = importlib.import_module(f"eval.tasks.{name}").load(f"{data}/{name}")
    if not loaded.examples:
        raise BadInput(f"eval.data: {data}/{name}: not one question in its files")
    return loaded


def read(folder: str, pattern: str, kind: str) -> Iterator[tuple[str, str, Any]]:
    """Reads the rows of the files of one split.

    Args:
      folder: path or URI; folders in it are searched too.
      pattern: regular expression that the name of such a file fulfils, without its packing; its
        one group, if any, names the group of its rows.
      kind: what the files are, for messages.

    Yields:
      (group, place, row): the place is FILE, row NUMBER; a row is a list of strings from CSV, any
      object from JSON lines.

    Raises:
      BadInput: there is no such file, or one that cannot be read.
    """
    found = []
    for file in storage.find("eval.data", folder):
        if match := re.fullmatch(pattern, sets.unpacked_name(file.name).rpartition("/")[2]):
            found.append((match[1] if match.groups() else "", file))
    if not found:
        raise BadInput(f"eval.data: {folder}: no file {kind} found, compressed or not")
    for group, file in found:
        for number, row in enumerate(sets.rows("eval.data", file), start=1):
            yield group, f"eval.data: {file.path}, row {number}", row


def texts(row: Any, place: str, *keys: str) -> list[str]:
    """The texts of a JSON row by their keys.

    Raises:
      BadInput: one is missing, or no text.
    """
    found = [row.get(key) if isinstance(row, dict) else None for key in keys]
    for key, value in zip(keys, found, strict=True):
        if not isinstance(value, str):
            raise BadInput(f"{place}: {key} is {value!r}; it must be a text")
    return found
