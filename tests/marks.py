"""Which cases of an exhaustive test run by default."""

from collections.abc import Sequence

import pytest


def by_default(cases: Sequence, *chosen: int) -> list:
    """The chosen cases (by index) as they are, and the others marked slow."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)))
        if number in chosen
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]
