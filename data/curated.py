"""Reading what curation wrote: its documents, a sample or a few of them, and the story of one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import BadInput
from data.tasks import order, place

BATCH_DOCUMENTS = 1024


def read(folder: Path, columns: Sequence[str]) -> Iterator[dict]:
    """Yields the rows of a table of documents, part by part.

    Args:
        folder: documents/ or dropped/ of a curation.
        columns: of data.tasks.KEPT_COLUMNS or DROPPED_COLUMNS.

    Raises:
        BadInput: absent or damaged.
    """
    for path in _parts(folder):
        try:
            for batch in pq.ParquetFile(path).iter_batches(BATCH_DOCUMENTS, columns=list(columns)):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error


def _parts(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise BadInput(f"{folder}: absent or empty; `seedbed curate --fresh` writes it")
    return paths


def _damaged(path: Path) -> BadInput:
    return BadInput(f"{path}: damaged; `seedbed curate --fresh` writes it")


def sample(folder: Path, num_bytes: int) -> Iterator[str]:
    """Yields training texts that make up about so many bytes, each domain its equal share.

    A domain that has less gives what it has. Which texts: those whose ids hash lowest.

    Args:
        folder: documents/ of a curation.
        num_bytes: of UTF-8.
    """
    sizes: dict[str, int] = {}
    for row in read(folder, ["domain", "split", "text"]):
        if row["split"] == "train":
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + len(row["text"].encode())
    below = _shares(sizes, num_bytes)
    for row in read(folder, ["id", "domain", "split", "text"]):
        if row["split"] == "train" and place(row["id"]) < below[row["domain"]]:
            yield row["text"]


def collect(
    folder: Path, split: str, most: int, size: Callable[[str], int], *, scattered: bool
) -> dict[str, list[str]]:
    """Texts of each domain up to a bound: what is read does not grow with the corpus.

    Of all row groups only domains and splits are read, and the texts of those row groups that hold
    something wanted.

    Args:
        folder: documents/ of a curation.
        split: 'train' or 'heldout'.
        most: sum of sizes of a domain's texts; its first text is taken whatever its size.
        size: of a text.
        scattered: whether row groups are visited in the order of their hashes, for a sample of the
            whole table, or as they come.

    Returns:
        Texts by domain, in the order of the table; every domain of the split has at least one.

    Raises:
        BadInput: absent or damaged.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    left: dict[str, int] = {}  # of each domain; at 0 and below it is full
    for number, path, footer, group in _row_groups(folder, scattered):
        try:
            file = pq.ParquetFile(path, metadata=footer)
            if not any(
                row["split"] == split and left.get(row["domain"], most) > 0
                for row in file.read_row_group(group, ["domain", "split"]).to_pylist()
            ):
                continue
            rows = file.read_row_group(group, ["domain", "split", "text"]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        for domain, text in ((r["domain"], r["text"]) for r in rows if r["split"] == split):
            if left.setdefault(domain, most) > 0:
                left[domain] -= size(text)
                if left[domain] >= 0 or domain not in found:
                    found.setdefault(domain, []).append((number, text))
    # Sorting is stable: texts of one row group stay as they came.
    ordered = {domain: sorted(texts, key=lambda item: item[0]) for domain, texts in found.items()}
    return {domain: [text for _, text in texts] for domain, texts in sorted(ordered.items())}


def _row_groups(folder: Path, scattered: bool) -> list[tuple[int, Path, pq.FileMetaData, int]]:
    """Number in the table, file, its footer and number in the file of each row group.

    A footer grows with the row groups of its file, so it is read once.
    """
    places = []
    for path in _parts(folder):
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        places += [(path, footer, group) for group in range(footer.num_row_groups)]
    groups = [(number, *found) for number, found in enumerate(places)]
    if scattered:
        groups.sort(key=lambda item: order(f"{item[1].name}:{item[3]}"))
    return groups


def _shares(sizes: dict[str, int], num_bytes: int) -> dict[str, float]:
    """The share of each domain that is taken: small domains whole, the others as much each."""
    shares, left = {}, float(num_bytes)
    for number, (domain, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        quota = left / (len(sizes) - number)
        taken = min(size, quota)
        shares[domain] = taken / size if size else 0.0
        left -= taken
    return shares


def explain(folder: Path, key: str) -> dict:
    """Tells the story of one document.

    Args:
        folder: a finished curation.
        key: the document's id.

    Returns:
        {fate: kept or dropped, and the columns of its row}; of a duplicate also `stays`, the
        row of the one that stays for it.

    Raises:
        BadInput: no document has this id, and the message names some that begin like it; or a
            table is damaged.
    """
    found = _find(folder, key)
    if found is None:
        near = _similar(folder, key)
        raise BadInput(
            f"--explain={key}: no document has this id, DOMAIN/FILE:RECORD#PIECE (RECORD only of a "
            f"file of several, PIECE only of a text that was cut); allowed: one such as "
            f"{', '.join(near)}"
        )
    if found.get("duplicate_of"):
        found["stays"] = _find(folder, found["duplicate_of"])
    return found


def _find(folder: Path, key: str) -> dict | None:
    for table, fate in (("documents", "kept"), ("dropped", "dropped")):
        for path in sorted((folder / table).glob("*.parquet")):
            try:
                rows = pq.read_table(path, filters=[("id", "==", key)]).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise _damaged(path) from error
            if rows:
                return {"fate": fate, **rows[0]}
    return None


def _similar(folder: Path, key: str) -> list[str]:
    ids = (row["id"] for table in ("documents", "dropped") for row in read(folder / table, ["id"]))
    best = sorted(ids, key=lambda name: -len(_common(name, key)))
    return best[:3]


def _common(left: str, right: str) -> str:
    size = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        size += 1
    return left[:size]
