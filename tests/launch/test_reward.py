"""What the rewards of a reward model are measured against, where all pairs are the user's own."""

import numpy as np
import pytest

from alignment.preference import Pair, pair_rows
from data.errors import BadInput
from launch.stages import pairs, reward

PAD = 0


def make_rows(count):
    """Pairs of one prompt: the chosen answer of pair i is i + 10, the rejected one is 5."""
    made = [Pair((1, 2), (number + 10, 3), (5, 3), 0.0) for number in range(count)]
    return pair_rows(made, 6, PAD)[0]


def found(**counts):
    sources = {name: (make_rows(count), 1.0) for name, count in counts.items()}
    return pairs.Rows(sources, {}, {})


def test_chosen_answers_of_own_pairs_are_the_references():
    rows = reward._chosen_rows(found(mine=2, others=1))
    np.testing.assert_array_equal(
        [row["tokens"] for row in rows],
        [[1, 2, 10, 3, 0, 0], [1, 2, 11, 3, 0, 0], [1, 2, 10, 3, 0, 0]],
    )
    np.testing.assert_array_equal([row["real"] for row in rows], [[1, 1, 1, 1, 0, 0]] * 3)


def test_every_set_has_its_part_of_many(monkeypatch):
    monkeypatch.setattr(reward, "MAX_CHOSEN", 4)
    rows = reward._chosen_rows(found(mine=9, others=9))
    assert [row["tokens"][2] for row in rows] == [10, 11, 10, 11]


def test_one_pair_has_no_deviation():
    with pytest.raises(BadInput, match="reward.data has 1 pairs to train on; at least 2"):
        reward._chosen_rows(found(mine=1))
