"""Packing of token ids into rows, and the ArrayRecord shards that hold the rows.

A record is a row of L+1 tokens and a mask of the same length: mask 1 where the token is a
supervised target. The first token of a row is never a target of that row. The shards carry TFDS
metadata, so `tfds.builder_from_directory(directory).as_data_source()` reads them too.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.tokenizers.tokenizer import PAD_ID

SPLIT = "train"
BLOCK_TOKENS = 1 << 20
# First-fit looks into this many of the newest rows; older ones are all but full.
NUM_OPEN_ROWS = 2048

Record = dict[str, np.ndarray]
Example = tuple[np.ndarray, np.ndarray]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds the ids of a vocabulary: uint16 up to 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def pack_documents(
    docs: Iterable[Sequence[int]], seq_len: int, bos_id: int, eos_id: int
) -> Iterator[Record]:
    """Concatenates BOS doc EOS and splits the stream into rows that overlap by one token.

    The last token of a row is the first of the next, so that each token of the stream is a target
    exactly once, but the BOS ones, which are never. The last row is padded; nothing is lost.

    Args:
        docs: ids of each document without BOS and EOS: lists or arrays, each in [0, 2**31).
        seq_len: L, the number of targets in a row, at least 1.
        bos_id, eos_id: the tokenizer's.

    Yields:
        {tokens: int32 [L+1], mask: uint8 [L+1]}; mask 1 except on BOS, padding, and position 0.
    """
    rest = np.zeros(0, np.int32)
    for block in _blocks(docs, bos_id, eos_id):
        stream = np.concatenate([rest, block])
        num_rows = (len(stream) - 1) // seq_len
        yield from _split(stream[: num_rows * seq_len + 1], seq_len, bos_id)
        rest = stream[num_rows * seq_len :]
    # A single token left is the overlap: it was a target in the row before.
    if len(rest) > 1:
        padding = np.full(seq_len + 1 - len(rest), PAD_ID, np.int32)
        yield from _split(np.concatenate([rest, padding]), seq_len, bos_id)


def _blocks(docs: Iterable[Sequence[int]], bos_id: int, eos_id: int) -> Iterator[np.ndarray]:
    bos, eos = np.array([bos_id], np.int32), np.array([eos_id], np.int32)
    parts, num_tokens = [], 0
    for doc in docs:
        parts += [bos, np.asarray(doc, np.int32), eos]
        num_tokens += len(doc) + 2
        if num_tokens >= BLOCK_TOKENS:
            yield np.concatenate(parts)
            parts, num_tokens = [], 0
    if parts:
        yield np.concatenate(parts)


def _split(stream: np.ndarray, seq_len: int, bos_id: int) -> Iterator[Record]:
    if len(stream) <= seq_len:
        return
    rows = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len]
    masks = ((rows != bos_id) & (rows != PAD_ID)).astype(np.uint8)
    masks[:, 0] = 0
    for tokens, mask in zip(rows, masks, strict=True):
        yield {"tokens": tokens, "mask": mask}


def pack_examples(
    examples: Iterable[Example], seq_len: int, pad_id: int
) -> tuple[list[Record], dict[str, int]]:
    """Places whole conversations into rows, each in the first row that has room.

    Args:
        examples: (ids, mask) as `chat.render` gives them: BOS first, its mask 0.
        seq_len: L; a row holds L+1 tokens.
        pad_id: fills what is left of a row.

    Returns:
        The rows, {tokens: int32 [L+1], mask: uint8 [L+1]}, and
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
            raise ValueError("an example must have a mask of its length that is 0 on its BOS")
        oldest = max(0, len(rows) - NUM_OPEN_ROWS)
        row = oldest + int(np.argmax(room[oldest : len(rows) + 1] >= len(ids)))
        if row == len(rows):
            rows.append([])
        rows[row].append((ids, mask))
        room[row] -= len(ids)
    return rows


def _fill(row: list[Example], seq_len: int, pad_id: int) -> Record:
    tokens = np.full(seq_len + 1, pad_id, np.int32)
    mask = np.zeros(seq_len + 1, np.uint8)
    start = 0
    for ids, supervised in row:
        tokens[start : start + len(ids)] = ids
        mask[start : start + len(ids)] = supervised
        start += len(ids)
    return {"tokens": tokens, "mask": mask}


def write_file(
    records: Iterable[Record], path: Path, seq_len: int, dtype: np.dtype
) -> dict[str, int]:
    """Writes records to one ArrayRecord file, a pure function of the arguments.

    Args:
        records: {tokens [L+1], mask [L+1]}, as the packers give them.
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

    tokens, mask = record["tokens"], record["mask"]
    if tokens.shape != (seq_len + 1,) or mask.shape != (seq_len + 1,):
        raise ValueError(f"record of shapes {tokens.shape}, {mask.shape}: must be {(seq_len + 1,)}")
    if tokens.min() < 0 or tokens.max() > np.iinfo(dtype).max:
        raise ValueError(f"token ids [{tokens.min()}, {tokens.max()}] do not fit {dtype}")
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["tokens"].bytes_list.value.append(tokens.astype(dtype).tobytes())
    feature["mask"].bytes_list.value.append(mask.astype(np.uint8).tobytes())
    # TFDS's own serializer leaves the order of the map to chance: other bytes in each process.
    return example.SerializeToString(deterministic=True)


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
        features=tfds.features.FeaturesDict({"tokens": row(dtype), "mask": row(np.uint8)}),
        split_infos=[split],
        version="1.0.0",
        check_data=False,
    )


def open_shards(directory: Path) -> "Shards":
    """Opens what `publish` made, as a sequence of {tokens [L+1], mask [L+1]}.

    Raises:
        BadInput: no shards there, or files that do not match their metadata.
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

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2

        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        # Seven times as fast as features.deserialize_example_np, of which it is the core.
        feature = tf_example_pb2.Example.FromString(self._source[index % len(self)])
        tokens = feature.features.feature["tokens"].bytes_list.value[0]
        mask = feature.features.feature["mask"].bytes_list.value[0]
        return {
            "tokens": np.frombuffer(tokens, self.dtype),
            "mask": np.frombuffer(mask, np.uint8),
        }
