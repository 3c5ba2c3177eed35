"""Preference pairs: who is paired with whom, the stated noise, and the rows made of them."""

import dataclasses
import json

import numpy as np
import pytest

from alignment.preference import (
    Pair,
    PreferenceConfig,
    make_pairs,
    pair_rows,
    read_pairs,
    write_pairs,
)
from data.errors import BadInput
from data.quickstart.instruct import Example
from data.tokens import chat
from eval.dialog import Response
from tests.ranges import check_ranges

NUM_SIGMAS = 4.5  # of a binomial count; the seeds are fixed
MARGIN_RTOL = 1e-9

CONFIG = PreferenceConfig(
    num_prompts=8,
    samples_per_prompt=3,
    max_new_tokens=8,
    temperature=1.0,
    corrupt_rate=0.0,
    noise_rate=0.0,
    heldout_fraction=0.5,
)


class Letters:
    """Eight control tokens and the 256 bytes."""

    pad_id, bos_id, eos_id, unk_id, system_id, user_id, assistant_id, end_id = range(8)

    def encode(self, text):
        return [8 + byte for byte in text.encode()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def make_example(number):
    question = ({"role": "user", "content": f"What is {number} + 1?"},)
    answer = str(number + 1)
    return Example(str(number), "add", question, answer, "exact", answer)


def say(text, finished=True):
    tokens = Letters().encode(text)
    return Response(text, (*tokens, Letters.end_id) if finished else tuple(tokens), finished)


def label(config, num_prompts, answers, seed=0):
    """Pairs of both splits, in the order of the prompts."""
    examples = [make_example(number) for number in range(num_prompts)]
    pairs = make_pairs(
        config, examples, [answers(example) for example in examples], Letters(), seed
    )
    return pairs["train"] + pairs["heldout"], pairs


def right_and_wrong(example):
    return [say("no"), say(example.reference), say(f"Sure! {example.reference}")]


def test_the_best_is_paired_with_the_worst():
    """Scores 0, 1 and 0.85: the bare answer is preferred to the wrong one, by a margin of 1."""
    pairs, _ = label(CONFIG, 8, right_and_wrong)
    assert len(pairs) == 8
    by_prompt = {pair.prompt: pair for pair in pairs}
    for example in (make_example(number) for number in range(8)):
        prompt = tuple(chat.render_prompt(Letters(), example.messages).tolist())
        chosen, rejected = say(example.reference).tokens, say("no").tokens
        assert by_prompt[prompt] == Pair(prompt, chosen, rejected, 1.0)


def test_an_unfinished_answer_is_worse_and_keeps_its_tokens():
    pairs, _ = label(CONFIG, 8, lambda x: [say(x.reference, finished=False), say(x.reference)])
    for pair in pairs:
        assert pair.chosen == (*pair.rejected, Letters.end_id)
        np.testing.assert_allclose(pair.gold_margin, 0.2, MARGIN_RTOL)


def test_equal_scores_make_no_pair():
    def answers(example):
        return [say("no"), say("nope")] if int(example.id) % 2 else right_and_wrong(example)

    pairs, _ = label(CONFIG, 12, answers)
    assert len(pairs) == 6


@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.3])
def test_labels_are_flipped_at_the_stated_rate(noise_rate):
    num_prompts = 2000
    config = dataclasses.replace(CONFIG, noise_rate=noise_rate)
    pairs, _ = label(config, num_prompts, right_and_wrong)
    wrong = say("no").tokens
    flipped = sum(pair.chosen == wrong for pair in pairs)
    assert all(wrong in (pair.chosen, pair.rejected) for pair in pairs)
    assert {pair.gold_margin for pair in pairs} == {1.0}  # the rater's own, whatever the label
    sigma = np.sqrt(num_prompts * noise_rate * (1 - noise_rate))
    assert abs(flipped - num_prompts * noise_rate) <= NUM_SIGMAS * sigma


@pytest.mark.parametrize("corrupt_rate", [0.0, 0.4, 1.0])
def test_corrupted_references_join_at_the_stated_rate(corrupt_rate):
    """Two right answers tie, so that there is a pair only with a corrupted third."""
    num_prompts = 600
    config = dataclasses.replace(CONFIG, corrupt_rate=corrupt_rate)

    def answers(example):
        return [say(example.reference)] * 2

    if not corrupt_rate:
        with pytest.raises(BadInput):
            label(config, num_prompts, answers)
        return
    pairs, _ = label(config, num_prompts, answers)
    sigma = np.sqrt(num_prompts * corrupt_rate * (1 - corrupt_rate))
    assert abs(len(pairs) - num_prompts * corrupt_rate) <= NUM_SIGMAS * sigma
    for pair in pairs:
        assert pair.rejected[-1] == pair.chosen[-1] == Letters.end_id
        assert pair.gold_margin > 0 and pair.rejected != pair.chosen


def test_pairs_are_a_pure_function_of_the_seed():
    config = dataclasses.replace(CONFIG, corrupt_rate=0.5, noise_rate=0.2)
    once, again, other = (label(config, 60, right_and_wrong, seed)[1] for seed in (3, 3, 4))
    assert once == again and once != other


def test_prompts_are_held_out_at_the_stated_rate_and_never_on_both_sides():
    config = dataclasses.replace(CONFIG, heldout_fraction=0.25)
    pairs, splits = label(config, 1200, right_and_wrong)
    sigma = np.sqrt(1200 * 0.25 * 0.75)
    assert abs(len(splits["heldout"]) - 300) < NUM_SIGMAS * sigma
    assert len({pair.prompt for pair in pairs}) == 1200


def test_a_split_without_pairs_is_refused():
    config = dataclasses.replace(CONFIG, heldout_fraction=1e-9)
    with pytest.raises(BadInput, match="num_prompts is 8: no heldout pair"):
        label(config, 8, right_and_wrong)


def test_written_pairs_are_read_back(tmp_path):
    config = dataclasses.replace(CONFIG, corrupt_rate=1.0)
    pairs, _ = label(config, 20, lambda example: [say("no"), say(f"{example.reference} maybe")])
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs
    assert len(path.read_text().splitlines()) == 20 and list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text().splitlines()[0]).keys() == {
        "prompt",
        "chosen",
        "rejected",
        "gold_margin",
    }


def test_rows_by_hand():
    pair = Pair((1, 5, 6), (20, 21, 7), (30, 7), 0.5)
    rows, num_long = pair_rows([pair], 8, pad_id=0)
    assert num_long == 0 and len(rows) == 1
    expected = {
        "tokens": [[1, 5, 6, 20, 21, 7, 0, 0], [1, 5, 6, 30, 7, 0, 0, 0]],
        "real": [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]],
        "answer": [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]],
        "weight": 1.0,
    }
    assert {name: array.tolist() for name, array in rows[0].items()} == expected
    types = {name: str(array.dtype) for name, array in rows[0].items()}
    assert types == dict.fromkeys(expected, "int32") | {"weight": "float32"}


def test_pairs_that_do_not_fit_are_left_out_and_counted():
    fits = Pair((1, 5, 6), (20, 21, 7), (30, 7), 0.5)
    long_chosen = Pair((1, 5, 6), (20, 21, 22, 7), (30, 7), 0.5)
    long_rejected = Pair((1, 5, 6), (30, 7), (20, 21, 22, 7), 0.5)
    rows, num_long = pair_rows([long_chosen, fits, long_rejected], 6, pad_id=0)
    assert num_long == 2 and len(rows) == 1
    assert rows[0]["real"][0].all()
    assert pair_rows([long_chosen, fits], 5, pad_id=0) == ([], 2)


RANGES = {
    "num_prompts": ((2,), (1,)),
    "samples_per_prompt": ((2,), (1,)),
    "max_new_tokens": ((1,), (0,)),
    "temperature": ((0.01,), (0.0, -1.0)),
    "corrupt_rate": ((0.0, 1.0), (-0.1, 1.1)),
    "noise_rate": ((0.0, 0.49), (-0.1, 0.5)),
    "heldout_fraction": ((0.01, 0.99), (0.0, 1.0)),
}


def test_each_number_is_taken_in_its_range_alone():
    assert RANGES.keys() == {field.name for field in dataclasses.fields(PreferenceConfig)}
    check_ranges(CONFIG, RANGES)
