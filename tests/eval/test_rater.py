"""The gold rater: every term of the rubric moves the score its own way, and pairs follow it."""

import numpy as np
import pytest

from data.quickstart.instruct import CLOSERS, KINDS, OPENERS, Example, InstructConfig, build
from eval import rater

TOLERANCE = 1e-12
NOISE_TOLERANCE = 0.02
BOOTSTRAP_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def examples():
    config = InstructConfig(
        seed=0,
        num_train=1000,
        num_heldout_per_kind=15,
        filler_rate=1.0,
        mix=dict.fromkeys(KINDS, 1.0),
        date="2026-01-01",
    )
    splits = build(config)
    return splits["train"] + splits["heldout"]


def example(reference, check="exact"):
    messages = ({"role": "user", "content": "What is the first item of red, blue?"},)
    return Example("x", "first", messages, reference, check, reference)


def test_the_reference_is_best_and_filler_is_stripped(examples):
    for one in examples:
        assert rater.gold_score(one, one.reference, True) == 1
        core, num_fillers = rater.strip_filler(one.demonstration)
        assert core == one.reference
        assert num_fillers in (1, 2)
        expected = 1 - num_fillers * rater.FILLER_PENALTY
        score = rater.gold_score(one, one.demonstration, True)
        assert score == pytest.approx(expected, abs=TOLERANCE)


def test_filler_is_separate_from_correctness():
    direct, wrong = example("red"), "blue"
    worst_right = OPENERS[0] * 5 + "red" + CLOSERS[0] * 5
    right = rater.gold_score(direct, worst_right, True)
    assert right == pytest.approx(1 - 2 * rater.FILLER_PENALTY, abs=TOLERANCE)
    assert right > rater.gold_score(direct, wrong, True) == 0
    assert rater.gold_score(direct, OPENERS[1] + wrong, True) < 0


def test_unfinished_costs():
    one = example("red")
    for output in ("red", "blue", ""):
        cut = rater.gold_score(one, output, False)
        full = rater.gold_score(one, output, True)
        assert full - cut == pytest.approx(rater.UNFINISHED_PENALTY, abs=TOLERANCE)


def test_verbosity_and_repetition_are_monotone():
    one = example("use a slice", "refusal")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    longer = [rater.gold_score(one, " ".join(words[:n]), True) for n in range(3, 11)]
    assert all(a > b for a, b in zip(longer, longer[1:], strict=False))
    fresh = rater.gold_score(one, "a b c d e f g h", True)
    looped = rater.gold_score(one, "a b a b a b a b", True)
    stuck = rater.gold_score(one, "a a a a a a a a", True)
    assert fresh > looped > stuck


def test_bounds():
    one = example("red")
    worst = OPENERS[0] * 3 + "again " * 500 + CLOSERS[0] * 3
    assert -1 <= rater.gold_score(one, worst, False) < -0.95
    assert rater.gold_score(one, "red", True) == 1


def test_a_corrupted_answer_differs_and_scores_lower(examples):
    rng = np.random.default_rng(0)
    for _ in range(3):
        for one in examples:
            worse = rater.corrupt(one, one.reference, rng)
            assert worse != one.reference
            assert worse
            assert rater.gold_score(one, worse, True) < 1, (one, worse)


def test_corruption_comes_in_many_forms(examples):
    rng = np.random.default_rng(1)
    for kind, least in {"first": 8, "add": 8, "unsafe": 4, "unknown": 8, "benign": 8}.items():
        one = next(one for one in examples if one.kind == kind)
        forms = {rater.corrupt(one, one.reference, rng) for _ in range(200)}
        assert len(forms) >= least, (kind, forms)
    again = [rater.corrupt(examples[0], "red", np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_prefer_is_right_but_for_the_noise():
    rng = np.random.default_rng(0)
    assert {rater.prefer(0.3, 0.1, 0.0, rng) for _ in range(50)} == {0}
    assert {rater.prefer(0.1, 0.3, 0.0, rng) for _ in range(50)} == {1}
    assert {rater.prefer(0.1, 0.1, 0.5, rng) for _ in range(50)} == {None}
    for better, scores in ((0, (0.9, 0.2)), (1, (0.2, 0.9))):
        labels = np.array([rater.prefer(*scores, 0.1, rng) for _ in range(10_000)])
        assert abs((labels != better).mean() - 0.1) < NOISE_TOLERANCE


def test_win_rate_counts_ties_as_half():
    rate = rater.win_rate([1, 1, 1, 0], [0, 0, 1, 1])
    assert rate["win_rate"] == (2 + 0.5) / 4
    assert (rate["wins"], rate["ties"], rate["losses"], rate["count"]) == (2, 1, 1, 4)
    reverse = rater.win_rate([0, 0, 1, 1], [1, 1, 1, 0])
    assert reverse["win_rate"] == 1 - rate["win_rate"]
    for scores in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="scores"):
            rater.win_rate(*scores)


def test_win_rate_interval_matches_a_plain_paired_bootstrap():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 3, 80), rng.integers(0, 3, 80)
    outcome = np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))
    resampled = outcome[rng.integers(0, 80, (4000, 80))].mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    rate = rater.win_rate(a, b)
    assert rate["low"] == pytest.approx(low, abs=BOOTSTRAP_TOLERANCE)
    assert rate["high"] == pytest.approx(high, abs=BOOTSTRAP_TOLERANCE)
    assert rate["low"] < rate["win_rate"] < rate["high"]
    assert rate == rater.win_rate(a, b)
