"""A benchmark put to a model: tokens as lm-eval cuts them, means, stops, nothing of the batch."""

import jax
import numpy as np
import pytest

from eval import harness
from eval.task import Example, Task, grade_choice
from model import decode, transformer
from tests.eval.test_dialog import CONFIG
from tests.eval.test_dialog import Letters as Bytes

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Letters(Bytes):
    adds_bos = True


class Words(Letters):
    """A token is a word with the space before it, or a space that has no word behind it."""

    def encode_batch(self, texts):
        return [
            [len(part) for part in text.replace(" ", "\0 ").split("\0") if part] for text in texts
        ]


def pieces(*pairs, tokenizer=None, **changes):
    tokenizer = tokenizer or Letters()
    for key, value in changes.items():
        setattr(tokenizer, key, value)
    return harness.encode_pairs(tokenizer, pairs)


def ids(text):
    return [8 + byte for byte in text.encode()]


def test_white_space_at_the_end_of_a_context_goes_to_the_continuation():
    plain, spaced = pieces(("Q:", " yes"), ("Q: \n", "yes"))
    assert plain == ([1, *ids("Q:")], ids(" yes"))
    assert spaced == ([1, *ids("Q:")], ids(" \nyes"))


def test_both_are_encoded_together_and_cut_where_the_context_ends():
    """'ab' + 'cd' is one word of four letters: cut after one token, nothing is left to score."""
    joined, apart = pieces(("ab", "cd"), ("ab", " cd"), tokenizer=Words(), adds_bos=False)
    assert joined == ([4], [])
    assert apart == ([2], [3])


@pytest.mark.parametrize(
    ("changes", "first"),
    [({}, 1), ({"adds_bos": False}, 1), ({"adds_bos": False, "bos_id": None}, 2)],
)
def test_an_empty_context_is_bos_or_the_end_of_a_text(changes, first):
    assert pieces(("", "yes"), **changes) == [([first], ids("yes"))]
    assert pieces((" ", "yes"), **changes) == [([first], ids(" yes"))]


def test_bos_stands_where_the_tokenizer_puts_it():
    assert pieces(("Q", " a"), adds_bos=False) == [(ids("Q"), ids(" a"))]


EXAMPLES = tuple(
    Example(
        f"{'x' * n} is",
        "b",
        ("a", "b", "ccc"),
        (0, 0, 1, 2)[n % 4],
        group="odd" if n % 2 else "even",
    )
    for n in range(12)
)
QUIZ = Task(
    "quiz", 3, EXAMPLES, {"odd": EXAMPLES[1::2], "even": EXAMPLES[::2]}, 1, "acc", grade_choice
)


def measure(task, params, **changes):
    keys = {"num_shots": -1, "limit": 0, "batch_size": 4, "log": lambda line: None}
    return harness.measure(task, CONFIG, params, Letters(), **(keys | changes))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda weight: 4 * weight, transformer.init(CONFIG, jax.random.key(0)))


def test_a_uniform_model_takes_the_shortest_choice_and_of_equals_the_first(params):
    """Every token costs the same: 'a' and 'b' are likelier than 'ccc'; a character, all but ' '.

    ' a' has two tokens for one character, ' ccc' four for three: acc_norm takes 'ccc'.
    """
    found = measure(QUIZ, jax.tree.map(np.zeros_like, params))
    half = {"mean": 0.5, "stderr": pytest.approx(np.sqrt(1 / 4 / 11)), "count": 12}
    quarter = {"mean": 0.25, "stderr": pytest.approx(np.sqrt(3 / 16 / 11)), "count": 12}
    of_group = {"mean": 0.5, "stderr": pytest.approx(np.sqrt(1 / 4 / 5)), "count": 6}
    assert found == {
        **half,
        "metric": "acc",
        "version": 3,
        "shots": 1,
        "metrics": {"acc": half, "acc_norm": quarter},
        "groups": {"even": of_group, "odd": of_group},
    }


def test_batch_size_changes_nothing(params):
    found = measure(QUIZ, params)
    assert measure(QUIZ, params, batch_size=1) == found == measure(QUIZ, params, batch_size=7)


def test_a_limit_is_spread_evenly(params):
    assert harness.choose(EXAMPLES, 4) == list(EXAMPLES[::3])
    assert harness.choose(EXAMPLES, 5) == [EXAMPLES[i] for i in (0, 2, 4, 7, 9)]
    assert harness.choose(EXAMPLES, 0) == harness.choose(EXAMPLES, 99) == list(EXAMPLES)
    found = measure(QUIZ, params, limit=5, num_shots=0)
    assert (found["count"], found["shots"]) == (5, 0)
    assert {name: row["count"] for name, row in found["groups"].items()} == {"even": 3, "odd": 2}


@pytest.fixture
def written(monkeypatch):
    """Replaces generation: what is written, and a list of the prompts."""
    texts, prompts = ["so 7. Question: 8", "7</s>9", "seven", "7"], []
    marks = [[], [], [2], [7]]  # the end of a text, the end of a turn; something goes on behind

    def generate(config, params, rows, **keys):
        assert (keys["max_new_tokens"], keys["temperature"], keys["end_id"]) == (9, 0.0, 2)
        prompts.extend(rows)
        return [
            (*ids(text), *mark, *(ids("!7") if mark else ()))
            for text, mark in zip(texts, marks, strict=True)
        ]

    monkeypatch.setattr(harness.batching, "generate", generate)
    return prompts


def test_a_written_answer_ends_at_a_stop_or_an_end(written):
    seen = []

    def grade(example, text):
        seen.append(text)
        return {"right": float("7" in text)}

    examples = tuple(Example(f"Question: {n}", "7") for n in range(4))
    stops = {"max_new_tokens": 9, "stops": ("Question:", "</s>")}
    quiz = Task("quiz", 1, examples, {}, 0, "right", grade, **stops)
    found = measure(quiz, None)
    assert seen == ["so 7. ", "7", "seven", "7"]
    assert (found["mean"], found["count"]) == (0.75, 4) and "groups" not in found
    assert written[2] == [1, *ids("Question: 2")]


def test_written_answers_are_greedy_and_those_of_one_prompt_alone(params):
    seen = []

    def grade(example, text):
        seen.append(text)
        return {"right": 0.0}

    examples = tuple(Example("ab" * n + "?", "") for n in (3, 1, 17, 30))
    quiz = Task("quiz", 1, examples, {}, 0, "right", grade, max_new_tokens=6)
    measure(quiz, params, batch_size=3)
    prompt = np.array([[1, *ids("ab" * 17 + "?")]])
    alone = decode.generate(
        *(CONFIG, params, prompt, np.ones_like(prompt), jax.random.key(0)),
        **dict(max_new_tokens=6, temperature=0.0, end_id=2, pad_id=0),
    )
    mask = np.asarray(alone.mask_BR[0]) == 1
    assert seen[2] == Letters().decode(np.asarray(alone.tokens_BR[0])[mask].tolist())
