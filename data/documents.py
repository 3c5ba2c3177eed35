"""Reading what curation wrote: its documents, a sample or a few of them, and the history of one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.document import order, place
from data.errors import BadInput

BATCH_DOCUMENTS = 1024
MAX_SAMPLED = 8  # a sample is chosen from so many times its bytes


class RowGroup(NamedTuple):
    """A row group: its number in the table, file, the file's footer, and its number in the file."""

    number: int
    path: Path
    footer: pq.FileMetaData
    index: int


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

    A domain that has less gives what it has. Which texts: those whose ids hash lowest, of as many
    row groups, chosen by hash, as hold MAX_SAMPLED times the bytes: what is read is bounded.

    Args:
        folder: documents/ of a curation.
        num_bytes: of UTF-8.

    Raises:
        BadInput: absent or damaged.
    """
    chosen = _choose(_row_groups(folder, scattered=True), MAX_SAMPLED * num_bytes)
    sizes: dict[str, int] = {}
    for row in _train_rows(chosen):
        sizes[row["domain"]] = sizes.get(row["domain"], 0) + len(row["text"].encode())
    below = _shares(sizes, num_bytes)
    for row in _train_rows(chosen):
        if place(row["id"]) < below[row["domain"]]:
            yield row["text"]


def _choose(groups: list[RowGroup], num_bytes: int) -> list[RowGroup]:
    """Row groups, in the order of the table, that hold about so many bytes of text.

    Sizes and domains are those of the footers. The documents of a file are of one domain.
    """
    sizes: dict[str, int] = {}
    known = []
    for group in groups:
        columns = group.footer.row_group(group.index).to_dict()["columns"]
        column = {one["path_in_schema"]: one for one in columns}
        domain = column["domain"]["statistics"]["min"]
        size = column["text"]["total_uncompressed_size"]
        sizes[domain] = sizes.get(domain, 0) + size
        known.append((group, domain, size))
    left = {domain: share * sizes[domain] for domain, share in _shares(sizes, num_bytes).items()}
    chosen = []
    for group, domain, size in known:
        if left[domain] > 0:
            left[domain] -= size
            chosen.append(group)
    return sorted(chosen, key=lambda group: group.number)


def _train_rows(groups: Sequence[RowGroup]) -> Iterator[dict]:
    for group in groups:
        rows = _read_group(group, ["id", "domain", "split", "text"])
        yield from (row for row in rows if row["split"] == "train")


def _read_group(group: RowGroup, columns: list[str]) -> list[dict]:
    try:
        file = pq.ParquetFile(group.path, metadata=group.footer)
        return file.read_row_group(group.index, columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(group.path) from error


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
    for group in _row_groups(folder, scattered):
        if not any(
            row["split"] == split and left.get(row["domain"], most) > 0
            for row in _read_group(group, ["domain", "split"])
        ):
            continue
        rows = _read_group(group, ["domain", "split", "text"])
        for domain, text in ((r["domain"], r["text"]) for r in rows if r["split"] == split):
            if left.setdefault(domain, most) > 0:
                left[domain] -= size(text)
                if left[domain] >= 0 or domain not in found:
                    found.setdefault(domain, []).append((group.number, text))
    # Sorting is stable: texts of one row group stay as they came.
    ordered = {domain: sorted(texts, key=lambda item: item[0]) for domain, texts in found.items()}
    return {domain: [text for _, text in texts] for domain, texts in sorted(ordered.items())}


def _row_groups(folder: Path, scattered: bool) -> list[RowGroup]:
    """All row groups, in the order of the table or of their hashes.

    A footer grows with the row groups of its file, so it is read once.
    """
    places = []
    for path in _parts(folder):
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        places += [(path, footer, index) for index in range(footer.num_row_groups)]
    groups = [RowGroup(number, *found) for number, found in enumerate(places)]
    if scattered:
        groups.sort(key=lambda group: order(f"{group.path.name}:{group.index}"))
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
    """The history of one document.

    Args:
        folder: a finished curation.
        key: the document's id.

    Returns:
        {outcome: kept or dropped, and the columns of its row}; of a duplicate also `stays`, the
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
    for table, outcome in (("documents", "kept"), ("dropped", "dropped")):
        for path in sorted((folder / table).glob("*.parquet")):
            try:
                rows = pq.read_table(path, filters=[("id", "==", key)]).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise _damaged(path) from error
            if rows:
                return {"outcome": outcome, **rows[0]}
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
