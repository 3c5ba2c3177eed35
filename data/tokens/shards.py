"""Packing of token ids into rows, and the ArrayRecord shards that hold the rows.

A record is a row of L+1 tokens with two arrays of the same length. `segments` says which document
or conversation of the row each token belongs to: 1, 2, ... along the row, 0 on padding. `mask` is 1
where the token is a supervised target; the first token of a row or of a segment never is. Both are
written here, where the documents are known: no reader may infer them from token ids, since those of
BOS, EOS and padding differ between tokenizers, may be equal, and may be missing. The shards carry
TFDS metadata, so `tfds.builder_from_directory(directory).as_data_source()` reads them too.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput

SPLIT = "train"
BLOCK_TOKENS = 1 << 20
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
    ids, owners = np.zeros(0, np.int32), np.zeros(0, np.int64)
    for more_ids, more_owners in _blocks(docs, bos_id, eos_id):
        ids, owners = np.concatenate([ids, more_ids]), np.concatenate([owners, more_owners])
        used = (len(ids) - 1) // seq_len * seq_len
        yield from _cut(ids[: used + 1], owners[: used + 1], seq_len)
        ids, owners = ids[used:], owners[used:]
    # A single token left is the overlap: it was a target in the row before.
    if len(ids) > 1:
        padding = (0, seq_len + 1 - len(ids))
        yield from _cut(np.pad(ids, padding), np.pad(owners, padding, constant_values=-1), seq_len)


def _blocks(
    docs: Iterable[Sequence[int]], bos_id: int, eos_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The stream in blocks of about BLOCK_TOKENS: ids, and the number of each token's document."""
    bos, eos = np.array([bos_id], np.int32), np.array([eos_id], np.int32)
    parts, sizes, num_tokens, first = [], [], 0, 0
    for doc in docs:
        parts += [bos, np.asarray(doc, np.int32), eos]
        sizes.append(len(doc) + 2)
        num_tokens += sizes[-1]
        if num_tokens >= BLOCK_TOKENS:
            yield np.concatenate(parts), first + np.repeat(np.arange(len(sizes)), sizes)
            first += len(sizes)
            parts, sizes, num_tokens = [], [], 0
    if parts:
        yield np.concatenate(parts), first + np.repeat(np.arange(len(sizes)), sizes)


def _cut(ids: np.ndarray, owners: np.ndarray, seq_len: int) -> Iterator[Record]:
    """Rows of a stream of a multiple of L, plus one, tokens; owner -1 is padding, at the end."""
    if len(ids) <= seq_len:
        return
    rows, owner = (
        np.lib.stride_tricks.sliding_window_view(x, seq_len + 1)[::seq_len] for x in (ids, owners)
    )
    segments = np.where(owner < 0, 0, owner - owner[:, :1] + 1).astype(np.int32)
    masks = np.zeros(rows.shape, np.uint8)
    masks[:, 1:] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    for tokens, segment, mask in zip(rows, segments, masks, strict=True):
        yield {"tokens": tokens, "segments": segment, "mask": mask}


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

    Raises:
        BadInput: not one supervised token is left, so that training would learn nothing.
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
    if not report["num_tokens"]:
        raise BadInput(
            f"packing: no supervised token in {len(examples)} conversations "
            f"({report['num_dropped']} dropped as longer than {seq_len + 1} tokens); "
            "at least one assistant message must fit"
        )
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


def _fill(row: list[Example], seq_len: int, pad_id: int) -> Record:
    tokens = np.full(seq_len + 1, pad_id, np.int32)
    segments, mask = np.zeros(seq_len + 1, np.int32), np.zeros(seq_len + 1, np.uint8)
    start = 0
    for segment, (ids, supervised) in enumerate(row, 1):
        end = start + len(ids)
        tokens[start:end], segments[start:end], mask[start:end] = ids, segment, supervised
        start = end
    return {"tokens": tokens, "segments": segments, "mask": mask}


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

    num_records, num_tokens, dtype = 0, 0, np.dtype(dtype)
    # Groups of one record: what random access needs.
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    try:
        for record in records:
            writer.write(_serialize(record, seq_len, dtype))
            num_records += 1
            num_tokens += int(record["mask"].sum())
    finally:
        writer.close()
    return {"num_records": num_records, "num_tokens": num_tokens}


def publish(
    files: Sequence[tuple[Path, int]], directory: Path, name: str, seq_len: int, dtype: np.dtype
) -> None:
    """Makes a folder of shards with TFDS metadata out of files, all or nothing.

    Everything is put into a hidden folder beside `directory`, which takes its place at the end.

    Args:
        files: what `write_file` wrote, and the records in each, in the order of the shards.
        directory: the folder to make; shards that it already holds are replaced.
        name: the data set's name for TFDS, of lower-case letters, digits and underscores.
        seq_len: L.
        dtype: of the tokens.

    Raises:
        BadInput: no records, an unusable name, or `directory` holds something else.
    """
    directory, dtype = Path(directory), np.dtype(dtype)
    _check_target(directory, name)
    files = [(path, count) for path, count in files if count]
    if not files:
        raise BadInput(f"{name}: there is nothing to write; at least one record is needed")
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for index, (path, _) in enumerate(files):
            shard = f"{name}-{SPLIT}.array_record-{index:05d}-of-{len(files):05d}"
            link(path, temporary / shard)
        _write_metadata(temporary, name, seq_len, dtype, [count for _, count in files])
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


def _check_target(directory: Path, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BadInput(
            f"data set name {name!r}: must be lower-case letters, digits and underscores, "
            "beginning with a letter"
        )
    if directory.exists() and not (directory / "dataset_info.json").is_file():
        raise BadInput(f"{directory}: exists and holds no shards; must be free or hold shards")


def _serialize(record: Record, seq_len: int, dtype: np.dtype) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    tokens, types = record["tokens"], _types(seq_len, dtype)
    shapes = {name: record[name].shape for name in types}
    if set(shapes.values()) != {(seq_len + 1,)}:
        raise ValueError(f"record of shapes {shapes}: each must be {(seq_len + 1,)}")
    if tokens.min() < 0 or tokens.max() > np.iinfo(dtype).max:
        raise ValueError(f"token ids [{tokens.min()}, {tokens.max()}] do not fit {dtype}")
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name, kind in types.items():
        feature[name].bytes_list.value.append(record[name].astype(kind).tobytes())
    # TFDS's own serializer leaves the order of the map to chance: other bytes in each process.
    return example.SerializeToString(deterministic=True)


def _types(seq_len: int, dtype: np.dtype) -> dict[str, np.dtype]:
    """How each array of a record is stored."""
    return {"tokens": dtype, "segments": segment_dtype(seq_len), "mask": np.dtype(np.uint8)}


def _write_metadata(
    directory: Path, name: str, seq_len: int, dtype: np.dtype, counts: list[int]
) -> None:
    import tensorflow_datasets as tfds

    def row(kind):
        encoding = tfds.features.Encoding.BYTES
        return tfds.features.Tensor(shape=(seq_len + 1,), dtype=kind, encoding=encoding)

    template = tfds.core.ShardedFileTemplate(
        data_dir=str(directory),
        dataset_name=name,
        split=SPLIT,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=counts,
        num_bytes=sum(path.stat().st_size for path in directory.iterdir()),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=tfds.features.FeaturesDict(
            {name: row(kind) for name, kind in _types(seq_len, dtype).items()}
        ),
        split_infos=[split],
        version="2.0.0",
        check_data=False,
    )


def open_shards(directory: Path) -> "Shards":
    """Opens what `publish` made, as a sequence of {tokens, segments, mask}, each [L+1].

    Raises:
        BadInput: no shards there, shards without segments (an older version wrote them), or files
            that do not match their metadata.
    """
    return Shards(Path(directory))


class Shards(Sequence):
    """Random access to records; picklable, safe to read from several threads.

    Attributes:
        seq_len: L.
        dtype: of the tokens.
    """

    def __init__(self, directory: Path):
        import grain
        import tensorflow_datasets as tfds

        if not (directory / "dataset_info.json").is_file():
            raise BadInput(f"{directory}: must be a folder of finished shards")
        info = tfds.builder_from_directory(str(directory)).info
        if "segments" not in info.features:
            raise BadInput(
                f"{directory}: shards without segments, which an older version wrote; pack them "
                "again (the tokenizer stage)"
            )
        paths = [str(path) for path in info.splits[SPLIT].filepaths]
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise BadInput(f"{missing[0]}: named by its metadata but missing")
        self._source = grain.sources.ArrayRecordDataSource(paths)
        if len(self._source) != info.splits[SPLIT].num_examples:
            raise BadInput(
                f"{directory}: {len(self._source)} records, "
                f"must be {info.splits[SPLIT].num_examples} by its metadata"
            )
        self.seq_len = info.features["tokens"].shape[0] - 1
        self.dtype = np.dtype(info.features["tokens"].np_dtype)
        self._types = _types(self.seq_len, self.dtype)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2

        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        # Seven times as fast as features.deserialize_example_np, of which it is the core.
        example = tf_example_pb2.Example.FromString(self._source[index % len(self)])
        feature = example.features.feature
        return {
            name: np.frombuffer(feature[name].bytes_list.value[0], kind)
            for name, kind in self._types.items()
        }
