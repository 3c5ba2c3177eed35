"""The border around what reads a stranger's file: whatever it raises becomes a broken record."""

import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.parsers.expat import ExpatError

import pyarrow as pa

from data.document import Record
from data.errors import BadInput, printable
from data.unpacking import DAMAGE

# What a file that is damaged or cut off raises in the middle of reading it.
DAMAGES = (*DAMAGE, pa.ArrowException, ExpatError, tarfile.TarError, zipfile.BadZipFile)


def attempt(number: int, make: Callable[..., Record | None], *given) -> Record | None:
    """Makes a record; a broken one, by its number, of what raises. BadInput is of the settings."""
    try:
        return make(*given)
    except BadInput:
        raise
    except Exception as error:
        return Record(number, "", _why(error))


def to_the_damage(records: Iterable[Record]) -> Iterator[Record]:
    """The records of a file, and a broken one where its reader cannot go on."""
    number = 0
    try:
        for record in records:
            number = record.number
            yield record
    except BadInput:
        raise
    except Exception as error:
        yield Record(number + 1, "", _why(error))


def until_damage(found: Iterable[Any], damage: list[Exception]) -> Iterator[Any]:
    """What is found before a file is damaged; the error, for later, goes into the list."""
    try:
        yield from found
    except DAMAGE as error:
        damage.append(error)


def _why(error: Exception) -> str:
    if isinstance(error, DAMAGES):
        return printable(f"the file is damaged or breaks off here: {error}")
    return printable(f"its reader fails here: {type(error).__name__}: {error}")
