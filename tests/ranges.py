"""Both ends of the range of each number of a config."""

import dataclasses
import re
from collections.abc import Mapping

import pytest


def check_ranges(config, ranges: Mapping[str, tuple[tuple, tuple]]) -> None:
    """Holds each number of a dataclass against {key: (values it takes, values it refuses)}.

    A refusal is a ValueError that names key and value.
    """
    for key, (taken, refused) in ranges.items():
        for value in taken:
            assert getattr(dataclasses.replace(config, **{key: value}), key) == value
        for value in refused:
            with pytest.raises(ValueError, match=re.escape(f"{key} is {value!r}; it must be ")):
                dataclasses.replace(config, **{key: value})
