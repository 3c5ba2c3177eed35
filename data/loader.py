"""The loader: a weighted mixture of sources in shuffled order, for ever, restartable anywhere."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import BadInput
from data.tokenizer import BOS_ID, PAD_ID

# Batches read ahead, and the threads that read them: more gained nothing.
NUM_READ_THREADS = 2
NUM_PREFETCHED_BATCHES = 8

# For ever: Grain's own length for that, 2**63 - 1, overflows in batches of one row.
MAX_ROWS = 1 << 53

Batch = dict[str, np.ndarray]


def lm_batch(rows: Batch) -> Batch:
    """Turns packed rows into what a language model is trained on.

    Args:
        rows: {tokens [B, L+1], mask [B, L+1]} as `data.shards` packs them: documents begin with
            BOS, padding is at the end, mask 1 where a token is a supervised target.

    Returns:
        tokens_BL: int32, inputs.
        targets_BL: int32, the token after each input.
        weights_BL: float32, the mask of the target. It is 0 where the target is a BOS, which
            is the one case in which the target belongs to another segment than its input.
        segments_BL: int32, 1, 2, ... along the row, a new one at each BOS; 0 on padding. A row
            that begins inside a document begins with segment 1 too.
        positions_BL: int32, from 0 in each segment; 0 on padding.
    """
    tokens_BL = rows["tokens"][:, :-1].astype(np.int32)
    starts_BL = tokens_BL == BOS_ID
    starts_BL[:, 0] = True
    real_BL = tokens_BL != PAD_ID
    index_L = np.arange(tokens_BL.shape[1], dtype=np.int32)
    start_BL = np.maximum.accumulate(np.where(starts_BL, index_L[None], 0), axis=1)
    return {
        "tokens": tokens_BL,
        "targets": rows["tokens"][:, 1:].astype(np.int32),
        "weights": rows["mask"][:, 1:].astype(np.float32),
        "segments": np.where(real_BL, np.cumsum(starts_BL, axis=1), 0).astype(np.int32),
        "positions": np.where(real_BL, index_L[None] - start_BL, 0).astype(np.int32),
    }


class Loader:
    """Iterates over batches without end; the state is what was consumed, not what was read ahead.

    The rows of a step are a pure function of (sources, batch_size, seed, step). Every record of a
    source comes once in each of its epochs, in another order each time.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Sequence[Batch], float]],
        batch_size: int,
        seed: int,
        transform: Callable[[Batch], Batch],
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Builds the pipeline; nothing is read ahead before the first batch is asked for.

        Args:
            sources: name to (records, weight). Records are dicts of numpy arrays, of the same
                keys, shapes and types in all sources. Weights are relative shares of the rows, at
                least 0; a source of weight 0 is left out.
            batch_size: rows of the global batch, a multiple of process_count.
            seed: of the shuffling.
            transform: applied to a stacked batch, such as `lm_batch`.
            process_index, process_count: each process yields batch_size / process_count rows;
                joined in the order of process_index they are the batch of a single process.

        Raises:
            BadInput: a source that is empty or unlike the others, weights that cannot be
                shares, a batch that cannot be divided; the message names it.
        """
        _check_division(batch_size, process_index, process_count)
        shares = _shares({name: weight for name, (_, weight) in sources.items()})
        records = {name: sources[name][0] for name in shares}
        _check_records(records)
        self._batch_size = batch_size
        self._identity = {
            "seed": seed,
            "batch_size": batch_size,
            "sources": {name: [len(records[name]), share] for name, share in shares.items()},
        }
        self._rows = dict.fromkeys(shares, 0)
        # The same mixture of the names tells which source each global row comes from.
        self._names = _mix([_repeat([name]) for name in shares], shares)
        rows = _mix([_shuffle(records[name], _source_seed(seed, name)) for name in shares], shares)
        batches = rows[:MAX_ROWS].batch(batch_size // process_count)
        self._iterator = _prefetch(batches[process_index::process_count].map(transform))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        first_row = self._num_batches() * self._batch_size
        batch = next(self._iterator)
        for row in range(first_row, first_row + self._batch_size):
            self._rows[self._names[row]] += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch yielded, as JSON: the same in every process."""
        return {
            "num_batches": self._num_batches(),
            "rows": dict(self._rows),
            "identity": self._identity,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `get_state` gave, in this process or another.

        Raises:
            BadInput: the state is of another seed, batch size or set of sources, whose
                batches cannot be continued.
        """
        import grain

        for key, value in self._identity.items():
            if state["identity"][key] != value:
                raise BadInput(
                    f"loader state: {key} was {state['identity'][key]} when it was saved, must "
                    f"be {value} as configured"
                )
        grain.experimental.set_next_index(self._iterator, state["num_batches"])
        self._rows = dict(state["rows"])

    def realised(self) -> dict[str, float]:
        """The share of each source in the rows of all processes so far; 0 before the first."""
        num_rows = max(1, sum(self._rows.values()))
        return {name: count / num_rows for name, count in self._rows.items()}

    def close(self) -> None:
        """Stops the reading threads; the loader yields nothing after it."""
        self._iterator.close()

    def _num_batches(self) -> int:
        import grain

        return grain.experimental.get_next_index(self._iterator)


def _repeat(records: Sequence[Any]):
    import grain

    return grain.MapDataset.source(records).repeat()


def _shuffle(records: Sequence[Any], seed: int):
    import grain

    # Shuffling before repeating: Grain then reseeds the order in each epoch.
    return grain.MapDataset.source(records).shuffle(seed=seed).repeat()


def _mix(datasets: Sequence[Any], shares: Mapping[str, float]):
    import grain

    return grain.MapDataset.mix(datasets, list(shares.values()))


def _prefetch(dataset):
    import grain

    options = grain.ReadOptions(
        num_threads=NUM_READ_THREADS, prefetch_buffer_size=NUM_PREFETCHED_BATCHES
    )
    return iter(dataset.to_iter_dataset(options))


def _source_seed(seed: int, name: str) -> int:
    # By name, so that a source keeps its order when others are added.
    mixed = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(mixed.generate_state(1)[0])


def _check_division(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise BadInput(
            f"batch_size={batch_size}: must be a positive multiple of the number of processes, "
            f"{process_count}"
        )
    if not 0 <= process_index < process_count:
        raise BadInput(f"process_index={process_index}: must be in [0, {process_count})")


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares of one, without those that are 0, in the order of the names."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise BadInput(f"source {name!r}: weight {weight}; must be a finite number, at least 0")
    total = sum(weights.values())
    if total <= 0:
        raise BadInput(f"weights of the sources {dict(weights)}: at least one must be above 0")
    return {name: weights[name] / total for name in sorted(weights) if weights[name] > 0}


def _check_records(sources: Mapping[str, Sequence[Batch]]) -> None:
    layouts = {}
    for name, records in sources.items():
        if not len(records):
            raise BadInput(f"source {name!r}: 0 records; must hold at least one")
        record = records[0]
        layouts[name] = {key: (record[key].shape, str(record[key].dtype)) for key in record}
    first = next(iter(layouts))
    for name, layout in layouts.items():
        if layout != layouts[first]:
            raise BadInput(
                f"source {name!r}: records of {layout}; must be as in {first!r}, {layouts[first]}"
            )
