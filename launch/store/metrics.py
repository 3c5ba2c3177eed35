"""metrics.jsonl, written and read line by line, whatever a killed process has left in it."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

from launch.store.atomic import write_text

MAX_UNIX_SECS = 253_402_300_800  # the year 10000, which no date reaches


def read_metrics(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields the lines of metrics.jsonl that hold a record of a stage, and those records.

    Lines that a killed process or a damaged disk has left are skipped: a few numbers are no reason
    to lose a run. A record has a stage, a step, and finite numbers or None for the rest.
    """
    with path.open("rb") as lines:
        for line in lines:
            record = _parse_metrics(line)
            if record is not None:
                yield line.decode().strip(), record


def _parse_metrics(line: bytes) -> dict | None:
    try:
        record = json.loads(line.decode())
        stage, step, secs = record["stage"], record["step"], record.get("time", 0)
        numbers = [value for name, value in record.items() if name != "stage" and value is not None]
        is_sound = isinstance(stage, str) and type(step) is int and 0 <= step < 1 << 63
        is_sound = is_sound and 0 <= secs < MAX_UNIX_SECS and all(map(math.isfinite, numbers))
        is_sound = is_sound and (record.get("train_secs") is None or record["train_secs"] > 0)
    # Not UTF-8, not JSON, nested deeper than Python goes, no object, no numbers, too large ones.
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return record if is_sound else None


def truncate(path: Path, stage: str, step: int) -> None:
    """Drops a stage's lines after `step`, and lines that are damaged."""
    if not path.exists():
        return
    kept = [
        line + "\n"
        for line, record in read_metrics(path)
        if record["stage"] != stage or record["step"] <= step
    ]
    write_text(path, "".join(kept))


class MetricsWriter:
    """Appends a stage's metrics to metrics.jsonl and to TensorBoard events."""

    def __init__(self, run: Path, stage: str):
        from tensorboardX import SummaryWriter

        self._run, self._stage = run, stage
        self._file = None
        self._events = lambda step: SummaryWriter(
            str(run / "tensorboard" / stage), purge_step=step or None
        )
        self._writer = None

    def truncate(self, step: int) -> None:
        """Drops lines written after `step`; call once, before the first line."""
        path = self._run / "metrics.jsonl"
        truncate(path, self._stage, step)
        self._file = path.open("a")
        self._writer = self._events(step)

    def write(self, line: dict) -> None:
        """Writes one line; `step` is required."""
        # Not-a-number is no JSON: null says that there was nothing to measure.
        clean = {name: value if math.isfinite(value) else None for name, value in line.items()}
        record = {"stage": self._stage, "time": round(time.time(), 3), **clean}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Closes both files."""
        if self._file is not None:
            self._file.close()
            self._writer.close()
