"""Which documents are held out from training: by the hash of a name, the same for ever."""

from collections.abc import Sequence

import numpy as np

from data.tasks import Part


def find_thresholds(fraction: float, parts: Sequence[Part], alive: np.ndarray) -> dict[str, dict]:
    """For each domain by which fact documents are held out, and below which value.

    All documents of one source file or record go to the same side, in every domain: the parts of
    a book, or a module's docstrings and its code, which holds them too. Where a domain has one
    source only, its documents are parted one by one. A domain of two or more has some on each side.

    Args:
        fraction: share of the names held out, above 0 and below 1.
        parts: of the corpus.
        alive: which documents stay, bool [documents].

    Returns:
        {domain: {column: group or own, below: a number}}, as data.tasks.write takes it.
    """
    return {
        domain: _threshold(fraction, [part for part in parts if part.domain == domain], alive)
        for domain in {part.domain: None for part in parts}
    }


def _threshold(fraction: float, parts: list[Part], alive: np.ndarray) -> dict:
    for column in ("group", "own"):
        num_groups, num_below, lowest, highest = 0, 0, 1.0, 0.0
        for part in parts:
            facts = np.load(part.folder / "facts.npy", mmap_mode="r")
            mine = alive[part.start : part.start + len(facts)]
            places = np.unique(facts[column][mine])
            if len(places):
                num_groups += len(places)
                num_below += int((places < fraction).sum())
                lowest, highest = min(lowest, places[0]), max(highest, places[-1])
        if num_groups > 1:
            break
    if num_groups < 2:
        return {"column": column, "below": 0.0}
    if num_below == 0:
        return {"column": column, "below": float(np.nextafter(lowest, 1))}
    return {"column": column, "below": float(highest) if num_below == num_groups else fraction}
