"""Mappings to frozen dataclasses and back, with one clear message for each mistake.

A section of a configuration is a dataclass: its fields are the keys, their defaults are the
defaults, and the comment beside a field says what the key means, with its unit.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from data.errors import BadInput

INFINITY = "inf"


class Frozen(dict):
    """A mapping that stays as it is, and that other processes can be sent."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(f"{key!r}: settings cannot be changed")

    def __reduce__(self):
        return Frozen, (dict(self),)


def to_dataclass(cls: type, section: Any, path: str) -> Any:
    """Builds `cls` from a mapping of some of its fields; those with defaults may be left out.

    Raises:
      BadInput: an unknown or missing key, a wrong type, or a value that `cls` refuses; the message
        names key, value and what is allowed.
    """
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise BadInput(f"{path} is {section!r}; it must be a section with keys")
    hints, given = typing.get_type_hints(cls), dict(section.items())
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in given:
        if key not in hints:
            raise BadInput(f"{_join(path, key)}: unknown key; allowed here: {', '.join(hints)}")
    for key, field in fields.items():
        if key not in given and not has_default(field):
            raise BadInput(f"{_join(path, key)}: missing; the section needs {', '.join(hints)}")
    values = {key: _convert(hints[key], value, _join(path, key)) for key, value in given.items()}
    try:
        return cls(**values)
    except ValueError as error:
        named = not path or str(error).startswith(path)
        # A message that begins with a key goes on with the path to it.
        begins = re.match(r"\w+", str(error))
        joint = "." if begins and begins[0] in hints else ": "
        raise BadInput(str(error) if named else f"{path}{joint}{error}") from error


def has_default(field: dataclasses.Field) -> bool:
    """Whether a key may be left out."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        kinds = [kind for kind in arguments if kind is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        # A string, or a section.
        return _convert(str if str in kinds and isinstance(value, str) else kinds[-1], value, path)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise BadInput(f"{path} is {value!r}; it must be a tuple")
        return tuple(_convert(arguments[0], x, f"{path}[{i}]") for i, x in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not hasattr(value, "items"):
            raise BadInput(f"{path} is {value!r}; it must be a section with keys")
        return Frozen({k: _convert(arguments[1], x, _join(path, k)) for k, x in value.items()})
    if hint is float and (type(value) is int or value == INFINITY):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{path} is larger than any float") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadInput(f"{path} is {value!r}; it must be of type {hint.__name__}")
    if value != value:
        raise BadInput(f"{path} is not a number; it must be one")
    return value


def to_dict(value: Any) -> Any:
    """Plain JSON-able form of settings; JSON has no infinity, so that it is a string."""
    return _plain(value, lambda _: True)


def identity(value: Any) -> Any:
    """As `to_dict`, without the fields that cannot change a result (model.config.LAYOUT)."""
    return _plain(value, lambda field: field.metadata.get("identity", True))


def _plain(value: Any, is_wanted: Callable[[dataclasses.Field], bool]) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if is_wanted(field)]
        found = {field.name: getattr(value, field.name) for field in fields}
        # A section that no stage reads is None.
        return {key: _plain(item, is_wanted) for key, item in found.items() if item is not None}
    if isinstance(value, Mapping):
        return {key: _plain(item, is_wanted) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, is_wanted) for item in value]
    return INFINITY if value == math.inf else value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)
