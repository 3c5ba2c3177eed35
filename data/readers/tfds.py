"""Data sets of TensorFlow Datasets, without TensorFlow: `tfds:NAME[/CONFIG][:VERSION]:SPLIT`.

They have to be prepared as array_record, in TFDS's own folder or in that of the environment
variable TFDS_DATA_DIR.
"""

import os
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from data.document import Record
from data.errors import BadInput
from data.readers.fields import Fields, lay_out, to_record
from data.storage import File, hash_content

PATH = re.compile(r"tfds:(?P<name>\w[\w/]*(?::[\d.]+)?):(?P<split>\w+)(?P<range>\[\d*:\d*\])?")


def list_files(key: str, path: str) -> list[File]:
    """Finds the shards of a split.

    Args:
        key: the setting that `path` is of, for messages.
        path: tfds:NAME[/CONFIG][:VERSION]:SPLIT.

    Returns:
        For each shard what `read` takes as its path.

    Raises:
        BadInput: there is no such data set or split, or not in a format that can be read.
    """
    found = _parse(key, path)
    split = _builder(key, path, found["name"]).info.splits.get(found["split"])
    if split is None or not split.shard_lengths:
        raise BadInput(f"{key}: {path}: its data set has no split {found['split']!r}")
    ends = [0, *accumulate(split.shard_lengths)]
    name = f"{found['name']}-{found['split']}".replace("/", "-").replace(":", "-")
    return [
        File(f"{name}-{number:05d}", f"{path}[{begin}:{end}]", "", 0, 0)
        for number, (begin, end) in enumerate(pairwise(ends))
    ]


def hash_files(path: str) -> str:
    """Hashes a data set's shards and what says what is in them; errors as of `list_files`."""
    builder = _builder("data.sources", path, _parse("data.sources", path)["name"])
    files = sorted(file for file in builder.data_path.iterdir() if file.is_file())
    return " ".join(hash_content(str(file)) for file in files)


def read(path: str, fields: Fields) -> Iterator[Record]:
    """Reads examples of a split.

    Args:
        path: as `list_files` gives it.
        fields: which features are what.

    Yields:
        A record for each example.

    Raises:
        BadInput: as of `list_files`.
    """
    found = _parse("data.sources", path)
    builder = _builder("data.sources", path, found["name"])
    source = builder.as_data_source(split=found["split"] + (found["range"] or ""))
    for number in range(len(source)):
        row = {key: _to_plain(value) for key, value in source[number].items()}
        yield to_record(number + 1, row, lay_out(tuple(sorted(row)), fields))


def _parse(key: str, path: str) -> re.Match:
    if found := PATH.fullmatch(path):
        return found
    raise BadInput(f"{key}: {path!r} is not tfds:NAME[/CONFIG][:VERSION]:SPLIT")


def _builder(key: str, path: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        raise BadInput(f"{key}: {path}: {str(error).splitlines()[0]}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        kind = builder.info.file_format
        raise BadInput(
            f"{key}: {path}: stored as {kind and kind.value}; prepare it as array_record"
        )
    return builder


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_plain(part) for name, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
