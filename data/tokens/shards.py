"""Packing of token ids into rows, and the ArrayRecord shards that hold the rows.

A record is a row of L+1 tokens with two arrays of the same length. `segments` says which document
or conversation of the row each token belongs to: 1, 2, ... along the row, 0 on padding. `mask` is 1
where the token is a supervised target; the first token of a row or of a segment never is. Both are
written here, where the documents are known: no reader may infer them from token ids, since those of
BOS, EOS and padding differ between tokenizers, may be equal, and may be missing.

On disk a record is the bytes of the three arrays, one after the other; INDEX, beside the files,
says how long they are and how many bytes a token has.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput

INDEX = "rows.json"
# First-fit looks into this many of the newest rows; older ones are all but full.
NUM_OPEN_ROWS = 2048

Record = dict[str, np.ndarray]
Example = tuple[np.ndarray, np.ndarray]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds the ids of a vocabulary: uint16 up to 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def segment_dtype(seq_len: int) -> np.dtype:
    """The smaller of uint16 and uint32 that numbers the segments of a row of L+1 tokens."""
    return token_dtype(seq_len + 2)


def pack_documents(
    docs: Iterable[Sequence[int]], seq_len: int, bos_id: int, eos_id: int
) -> Iterator[Record]:
    """Concatenates BOS doc EOS and splits the stream into rows that overlap by one token.

    The last token of a row is the first of the next, so that each token of the stream is a target
    exactly once, except the BOS tokens, which are never targets: a document's first token is
    predicted from its own BOS, and no document from another. The last row is padded with id 0;
    nothing is lost.

    Args:
        docs: ids of each document without BOS and EOS: lists or arrays, each in [0, 2**31).
        seq_len: L, the number of targets in a row, at least 1.
        bos_id, eos_id: the tokenizer's; they may be equal, and may occur inside documents.

    Yields:
        {tokens: int32 [L+1], segments: int32 [L+1], mask: uint8 [L+1]}; a row that begins inside
        a document begins with segment 1 too.
    """
    row, used, segment = _blank_row(seq_len, 0), 0, 0
    for doc in docs:
        ids = np.empty(len(doc) + 2, np.int32)
        ids[0], ids[1:-1], ids[-1] = bos_id, doc, eos_id
        segment, start = segment + 1, 0
        while True:
            part = ids[start : start + seq_len + 1 - used]
            place = slice(used, used + len(part))
            row["tokens"][place], row["segments"][place], row["mask"][place] = part, segment, 1
            if start == 0:
                row["mask"][used] = 0  # BOS
            used += len(part)
            if used <= seq_len:
                break
            row["mask"][0] = 0
            yield row
            # The last token is the next row's first.
            start += len(part) - 1
            row, used, segment = _blank_row(seq_len, 0), 0, 1
    # A single token left is the overlap: it was a target in the row before.
    if used > 1:
        row["mask"][0] = 0
        yield row


def _blank_row(seq_len: int, pad_id: int) -> Record:
    shape = seq_len + 1
    tokens, segments = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    return {"tokens": tokens, "segments": segments, "mask": np.zeros(shape, np.uint8)}


def pack_examples(
    examples: Iterable[Example], seq_len: int, pad_id: int
) -> tuple[list[Record], dict[str, int]]:
    """Places whole conversations into rows, each in the first row that has room.

    Args:
        examples: (ids, mask) as `chat.render` gives them; the first token's mask is 0.
        seq_len: L; a row holds L+1 tokens.
        pad_id: fills what is left of a row; segment 0 marks it, so any id will do.

    Returns:
        The rows, {tokens: int32 [L+1], segments: int32 [L+1], mask: uint8 [L+1]}, and
        {num_rows, num_examples, num_dropped, num_tokens}: rows, conversations placed,
        conversations longer than L+1, and supervised tokens.
    """
    examples = list(examples)
    kept = [example for example in examples if len(example[0]) <= seq_len + 1]
    records = [_fill(row, seq_len, pad_id) for row in _first_fit(kept, seq_len + 1)]
    report = {
        "num_rows": len(records),
        "num_examples": len(kept),
        "num_dropped": len(examples) - len(kept),
        "num_tokens": sum(int(record["mask"].sum()) for record in records),
    }
    return records, report


def _first_fit(examples: list[Example], row_tokens: int) -> list[list[Example]]:
    rows: list[list[Example]] = []
    room = np.full(len(examples) + 1, row_tokens)
    for ids, mask in examples:
        if len(ids) != len(mask) or mask[0]:
            raise ValueError(
                "an example must have a mask of its length that is 0 on its first token"
            )
        oldest = max(0, len(rows) - NUM_OPEN_ROWS)
        row = oldest + int(np.argmax(room[oldest : len(rows) + 1] >= len(ids)))
        if row == len(rows):
            rows.append([])
        rows[row].append((ids, mask))
        room[row] -= len(ids)
    return rows


def _fill(examples: list[Example], seq_len: int, pad_id: int) -> Record:
    row, start = _blank_row(seq_len, pad_id), 0
    for segment, (ids, supervised) in enumerate(examples, 1):
        place = slice(start, start + len(ids))
        row["tokens"][place], row["segments"][place], row["mask"][place] = ids, segment, supervised
        start += len(ids)
    return row


def write_file(
    records: Iterable[Record], path: Path, seq_len: int, dtype: np.dtype
) -> dict[str, int]:
    """Writes records to one ArrayRecord file, a pure function of the arguments.

    Args:
        records: {tokens, segments, mask}, each [L+1], as the packers give them.
        path: the file.
        seq_len: L.
        dtype: `token_dtype(vocab_size)`.

    Returns:
        {num_records, num_tokens}: tokens are the supervised targets.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    num_records, num_tokens, row = 0, 0, _row_type(seq_len, dtype)
    # Groups of one record: what random access needs.
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    try:
        for record in records:
            writer.write(_serialize(record, row))
            num_records += 1
            num_tokens += int(record["mask"].sum())
    finally:
        writer.close()
    return {"num_records": num_records, "num_tokens": num_tokens}


def _row_type(seq_len: int, dtype: np.dtype) -> np.dtype:
    """How a record is stored: its arrays one after the other."""
    types = {"tokens": np.dtype(dtype), "segments": segment_dtype(seq_len), "mask": np.uint8}
    return np.dtype([(name, kind, (seq_len + 1,)) for name, kind in types.items()])


def _serialize(record: Record, row: np.dtype) -> bytes:
    shapes = {name: record[name].shape for name in row.names}
    if set(shapes.values()) != {row["tokens"].shape}:
        raise ValueError(f"record of shapes {shapes}: each must be {row['tokens'].shape}")
    tokens, dtype = record["tokens"], row["tokens"].base
    if tokens.min() < 0 or tokens.max() > np.iinfo(dtype).max:
        raise ValueError(f"token ids [{tokens.min()}, {tokens.max()}] do not fit {dtype}")
    stored = np.empty((), row)
    for name in row.names:
        stored[name] = record[name]
    return stored.tobytes()


def publish(
    files: Sequence[tuple[Path, int]], directory: Path, seq_len: int, dtype: np.dtype
) -> None:
    """Makes a folder of shards out of files, all or nothing.

    Everything is put into a hidden folder beside `directory`, which takes its place at the end.

    Args:
        files: what `write_file` wrote, and the records in each, in the order of the shards.
        directory: the folder to make; shards that it already holds are replaced.
        seq_len: L.
        dtype: of the tokens.

    Raises:
        BadInput: no records, or `directory` holds something else.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / INDEX).is_file():
        raise BadInput(f"{directory}: exists and holds no shards; must be free or hold shards")
    files = [(path, count) for path, count in files if count]
    if not files:
        raise BadInput(f"{directory}: there is nothing to write; at least one record is needed")
    names = [f"{i:05d}-of-{len(files):05d}.array_record" for i in range(len(files))]
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, (path, _) in zip(names, files, strict=True):
            link(path, temporary / name)
        counts = {name: count for name, (_, count) in zip(names, files, strict=True)}
        index = {"seq_len": seq_len, "dtype": np.dtype(dtype).name, "num_records": counts}
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if directory.exists():
            shutil.rmtree(directory)
        temporary.replace(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Gives a finished file a second name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Shards(Sequence):
    """Random access to the records of a folder that `publish` made, each {tokens, segments, mask}.

    Picklable, and safe to read from several threads.

    Attributes:
        seq_len: L.
        dtype: of the tokens.
    """

    def __init__(self, directory: Path):
        """Opens a folder.

        Raises:
            BadInput: no shards there, an older version's, or files that do not match the index.
        """
        import grain

        index = Path(directory) / INDEX
        if not index.is_file():
            raise BadInput(
                f"{directory}: must be a folder of finished shards, with {INDEX}; shards of an "
                "older version are packed again by the tokenizer stage"
            )
        found = json.loads(index.read_bytes())
        paths = [index.with_name(name) for name in found["num_records"]]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise BadInput(f"{missing[0]}: named by {INDEX} but missing")
        self._source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
        if len(self._source) != (named := sum(found["num_records"].values())):
            raise BadInput(f"{directory}: {len(self._source)} records, must be {named} by {INDEX}")
        self.seq_len, self.dtype = found["seq_len"], np.dtype(found["dtype"])
        self._row = _row_type(self.seq_len, self.dtype)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        row = np.frombuffer(self._source[index % len(self)], self._row)[0]
        return {name: row[name] for name in self._row.names}
