"""The loader: sources mixed stage by stage, in shuffled order, for ever, restartable anywhere."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import BadInput
from data.mixture.schedule import Schedule

# Batches read ahead, and the threads that read them: more gained nothing.
NUM_READ_THREADS = 2
NUM_PREFETCHED_BATCHES = 8

Batch = dict[str, np.ndarray]


def lm_batch(rows: Batch) -> Batch:
    """Turns packed rows into what a language model is trained on.

    Args:
        rows: {tokens, segments, mask}, each [B, L+1], as `data.tokens.shards` packs them.

    Returns:
        tokens_BL: int32, inputs.
        targets_BL: int32, the token after each input.
        weights_BL: float32, the mask of the target: 0 where the target is the first token of a
            segment, so that every weighted target belongs to the segment of its input.
        segments_BL: int32, 1, 2, ... along the row; 0 on padding.
        positions_BL: int32, from 0 in each segment; 0 on padding.
    """
    segments_BL = rows["segments"][:, :-1].astype(np.int32)
    index_L = np.arange(segments_BL.shape[1], dtype=np.int32)
    starts_BL = np.diff(segments_BL, axis=1, prepend=0) != 0
    start_BL = np.maximum.accumulate(np.where(starts_BL, index_L[None], 0), axis=1)
    return {
        "tokens": rows["tokens"][:, :-1].astype(np.int32),
        "targets": rows["tokens"][:, 1:].astype(np.int32),
        "weights": rows["mask"][:, 1:].astype(np.float32),
        "segments": segments_BL,
        "positions": np.where(segments_BL > 0, index_L[None] - start_BL, 0).astype(np.int32),
    }


def fixed_batches(
    rows: Sequence[Batch], batch_size: int, filler: Batch | None = None
) -> Iterator[Batch]:
    """Stacks rows in order, batch_size at a time, and fills up the last batch.

    Args:
        rows: at least one.
        batch_size: rows of every batch.
        filler: the row to fill up with; by default one of zeros, which carries no weight: its
            segments, mask or weight are 0.
    """
    if filler is None:
        filler = {key: np.zeros_like(array) for key, array in rows[0].items()}
    for start in range(0, len(rows), batch_size):
        chunk = list(rows[start : start + batch_size])
        chunk += [filler] * (batch_size - len(chunk))
        yield {key: np.stack([row[key] for row in chunk]) for key in filler}


class Loader:
    """Iterates over batches without end; the state is what was consumed, not what was read ahead.

    The rows of a step are a pure function of (sources, stages, batch_size, seed, step). Every
    record of a source comes once in each of its epochs, in another order each time, whatever the
    stages: a source goes on in the next one where it stopped.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Sequence[Batch], float | Sequence[float]]],
        batch_size: int,
        seed: int,
        transform: Callable[[Batch], Batch],
        process_index: int = 0,
        process_count: int = 1,
        stage_rows: Sequence[int] = (),
    ):
        """Builds the pipeline; nothing is read ahead before the first batch is asked for.

        Args:
            sources: name to (records, weight). Records are dicts of numpy arrays, of the same
                keys, shapes and types in all sources. Weights are relative shares of the rows, at
                least 0: one number, or one for each stage. A source without any is left out.
            batch_size: rows of the global batch, a multiple of process_count.
            seed: of the shuffling.
            transform: applied to a stacked batch, such as `lm_batch`.
            process_index, process_count: each process yields batch_size / process_count rows;
                joined in the order of process_index they are the batch of a single process.
            stage_rows: rows of each stage, in order; after them the last one's weights go on. ()
                is one stage without an end. A batch may lie in two stages.

        Raises:
            BadInput: a source that is empty or unlike the others, weights that cannot be
                shares, a batch that cannot be divided; the message names it.
        """
        import grain

        _check_division(batch_size, process_index, process_count)
        shares = _share({name: weight for name, (_, weight) in sources.items()}, stage_rows)
        records = {name: sources[name][0] for name in shares}
        _check_records(records)
        self._names = list(shares)
        self._batch_size = batch_size
        self._schedule = Schedule(stage_rows, list(zip(*shares.values(), strict=True)))
        self._identity = {
            "seed": seed,
            "batch_size": batch_size,
            "sources": {name: [len(records[name]), *shares[name]] for name in shares},
            "stage_rows": list(stage_rows),
        }
        rows = grain.MapDataset.select_from_datasets(
            [_shuffle(records[name], _source_seed(seed, name)) for name in shares], self._schedule
        )
        batches = rows.batch(batch_size // process_count)
        self._iterator = _prefetch(batches[process_index::process_count].map(transform))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch yielded, as JSON: the same in every process."""
        return {"num_batches": self._num_batches(), "identity": self._identity}

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

    def realised(self) -> dict[str, float]:
        """The share of each source in the rows of all processes so far; 0 before the first."""
        stages = self.realised_rows()
        num_rows = max(1, sum(sum(rows.values()) for rows in stages))
        return {name: sum(rows[name] for rows in stages) / num_rows for name in self._names}

    def realised_rows(self) -> list[dict[str, int]]:
        """The rows of each source in all processes so far, by stage."""
        stages = self._schedule.count(self._num_batches() * self._batch_size)
        return [self._by_name(counts) for counts in stages]

    def close(self) -> None:
        """Stops the reading threads; the loader yields nothing after it."""
        self._iterator.close()

    def _num_batches(self) -> int:
        import grain

        return grain.experimental.get_next_index(self._iterator)

    def _by_name(self, counts: Sequence[int]) -> dict[str, int]:
        return dict(zip(self._names, counts, strict=True))


def _shuffle(records: Sequence[Any], seed: int):
    import grain

    # Shuffling before repeating: Grain then reseeds the order in each epoch.
    return grain.MapDataset.source(records).shuffle(seed=seed).repeat()


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


def _share(
    given: Mapping[str, float | Sequence[float]], stage_rows: Sequence[int]
) -> dict[str, Sequence[float]]:
    """The share of each source by stage, in the order of the names; of none that has nothing."""
    num_stages = len(stage_rows) or 1
    weights = {
        name: [weight] * num_stages if isinstance(weight, int | float) else list(weight)
        for name, weight in given.items()
    }
    for name, row in weights.items():
        if len(row) != num_stages:
            raise BadInput(f"source {name!r}: {len(row)} weights; must be one for each stage")
        for weight in row:
            if not (math.isfinite(weight) and weight >= 0):
                raise BadInput(
                    f"source {name!r}: weight {weight}; must be a finite number, at least 0"
                )
    totals = [math.fsum(row[stage] for row in weights.values()) for stage in range(num_stages)]
    for stage, total in enumerate(totals):
        if not total:
            where = f" in stage {stage + 1}" if stage_rows else ""
            raise BadInput(
                f"weights of the sources {dict(given)}: at least one must be above 0{where}"
            )
    return {
        name: [weight / total for weight, total in zip(weights[name], totals, strict=True)]
        for name in sorted(weights)
        if any(weights[name])
    }


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
