"""Shards of TensorFlow Datasets, without TensorFlow: their examples as records.

Source: TFDS 4.9, whose own deserialiser is used; the format of a shard says how its examples are
stored, and features.json in its folder says what is in them.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data import storage
from data.document import Record
from data.readers.fields import TALK_NAMES, Fields, lay_out, to_record

FEATURES_FILE = "features.json"
BATCH_EXAMPLES = 256


def read_array_record(path: str, fields: Fields) -> Iterator[Record]:
    """Reads a shard that is an ArrayRecord file.

    Args:
        path: its local path.
        fields: which features are what.

    Yields:
        What `read` yields; one broken record for a shard without its index, or on a store.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    if storage.URI.match(path):
        yield Record(1, "", "ArrayRecord shards can be read from local paths only")
        return
    reader = ArrayRecordReader(path)
    num_examples = reader.num_records()
    if not reader.ok():
        yield Record(1, "", "the shard is damaged or breaks off: it has no index")
        return
    try:
        yield from read(path, _read_all(reader, num_examples), fields)
    finally:
        with contextlib.suppress(RuntimeError):  # What is wrong has been told.
            reader.close()


def _read_all(reader: Any, num_examples: int) -> Iterator[bytes | None]:
    """The examples of a shard, None for each that is damaged."""
    for start in range(0, num_examples, BATCH_EXAMPLES):
        end = min(start + BATCH_EXAMPLES, num_examples)
        try:
            yield from reader.read(start, end)
        except RuntimeError:
            for index in range(start, end):
                try:
                    (example,) = reader.read([index])
                except RuntimeError:
                    example = None
                yield example


def read(path: str, examples: Iterable[bytes | None], fields: Fields) -> Iterator[Record]:
    """Makes records of a shard's examples.

    Args:
        path: the shard's, beside which features.json lies.
        examples: serialised; None stands for one that is damaged.
        fields: which features are what.

    Yields:
        A record for each example, or one broken record if the features cannot be read or there is
        none for the text.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _read_features(path, fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        yield Record(1, "", f"{FEATURES_FILE} beside it cannot be read: {error}")
        return
    layout = lay_out(tuple(sorted(features)), fields)
    if layout.why:
        yield Record(1, "", layout.why)
        return
    for number, example in enumerate(examples, 1):
        if example is None:
            yield Record(number, "", "the shard is damaged here")
            continue
        try:
            row = features.deserialize_example_np(example)
        except (
            DecodeError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
        ) as error:
            yield Record(number, "", f"not an example of its features: {error}")
            continue
        yield to_record(number, {name: _to_plain(part) for name, part in row.items()}, layout)


def _read_features(path: str, fields: Fields) -> Any:
    """The deserialiser of the features that a record can use: not of images, not of token ids."""
    import tensorflow_datasets as tfds

    folder, slash, _ = path.rpartition("/")
    with storage.open_raw(folder + slash + FEATURES_FILE) as stream:
        features = tfds.features.FeaturesDict.from_json(json.load(stream))
    used = {
        name: feature
        for name, feature in features.items()
        if name in (fields.text, *TALK_NAMES) or feature.shape == () or _is_ragged(feature)
    }
    return tfds.features.FeaturesDict(used)


def _is_ragged(feature: Any) -> bool:
    """Whether lists are inside lists; TFDS 4.9 fails on examples with one that is not asked for."""
    info = feature.get_serialized_info()
    return any(
        part.sequence_rank > 1 for part in (info.values() if isinstance(info, dict) else [info])
    )


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_plain(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
