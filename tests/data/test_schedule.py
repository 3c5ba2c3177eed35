"""Which source each row comes from: against a plain count, row by row."""

import math
import random

import pytest

from data.errors import BadInput
from data.mixture.schedule import ENDLESS, Schedule

# What the tree of pairs cannot exceed, and what a source's whole number of rows is off its share.
MAX_ROWS_OFF, MAX_ROUNDING = 2, 1


def random_weights(rng):
    kinds = (rng.random, lambda: 10 ** rng.uniform(-3, 1), lambda: 2.0 ** rng.randrange(12))
    weights = [rng.choice(kinds)() for _ in range(rng.randrange(1, 12))]
    return [weight * (rng.random() < 0.8) for weight in weights] + [0.5]


def test_shares_are_kept_at_every_row_and_exactly_at_the_end():
    rng, worst = random.Random(0), 0.0
    for _ in range(60):
        weights, num_rows = random_weights(rng), rng.randrange(1, 1500)
        schedule = Schedule([num_rows], [weights])
        (counts,) = schedule.counts
        for rows, weight in zip(counts, weights, strict=True):
            assert abs(rows - num_rows * weight / math.fsum(weights)) < MAX_ROUNDING
        seen = [0] * len(weights)
        for row in range(num_rows):
            source, index = schedule[row]
            assert index == seen[source], "each row of a source comes once, in order"
            seen[source] += 1
            off = [abs(n - (row + 1) * of / num_rows) for n, of in zip(seen, counts, strict=True)]
            worst = max(worst, *off)
        assert seen == counts and sum(counts) == num_rows
    assert 0.5 < worst < MAX_ROWS_OFF


def test_two_sources_worked_example():
    """3 of 8 rows: after 1 to 8 rows 0.4, 0.8, 1.1, 1.5, 1.9, 2.3, 2.6 and 3, rounded."""
    schedule = Schedule([8], [[3.0, 5.0]])
    of_first = [schedule.count(row + 1)[0][0] for row in range(8)]
    assert of_first == [0, 1, 1, 2, 2, 2, 3, 3]


def test_stages_follow_one_another_and_the_last_goes_on():
    rng = random.Random(1)
    for _ in range(20):
        stage_rows = [rng.randrange(1, 90) for _ in range(rng.randrange(1, 5))]
        weights = [[rng.choice((0.0, 1.0, 2.5)) for _ in range(3)] + [0.1] for _ in stage_rows]
        schedule = Schedule(stage_rows, weights)
        num_rows = sum(stage_rows) + 2 * stage_rows[-1]
        seen, by_stage = [0] * 4, [[0] * 4 for _ in stage_rows]
        for row in range(num_rows):
            assert schedule.count(row) == by_stage
            source, index = schedule[row]
            assert index == seen[source]
            seen[source] += 1
            ends = [sum(stage_rows[: i + 1]) for i in range(len(stage_rows))]
            stage = next((i for i, end in enumerate(ends) if row < end), len(stage_rows) - 1)
            by_stage[stage][source] += 1
        assert by_stage[:-1] == schedule.counts[:-1]
        assert by_stage[-1] == [3 * rows for rows in schedule.counts[-1]]


def test_without_stages_there_is_no_end():
    schedule = Schedule((), [[1.0, 2.0]])
    for start in (0, 10**12, ENDLESS * 1000 - 5):
        rows = [schedule[row] for row in range(start, start + 300)]
        first = [index for source, index in rows if source == 0]
        assert first == list(range(first[0], first[0] + len(first)))
        assert abs(len(first) - 100) <= MAX_ROWS_OFF
        assert abs(first[0] - start / 3) < 1 + 300 * start / ENDLESS


def test_ties_go_to_the_first_source():
    assert Schedule([4], [[1.0, 1.0, 1.0]]).counts == [[2, 1, 1]]
    assert Schedule([1], [[1.0, 1.0]]).counts == [[1, 0]]


def test_a_stage_without_rows_is_named():
    with pytest.raises(BadInput, match="stage 2 of the mixture has 0 rows"):
        Schedule([5, 0], [[1.0], [1.0]])
