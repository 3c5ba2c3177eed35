"""Mappings to frozen dataclasses and back, with one clear message for each mistake.

A section of a configuration is a dataclass: its fields are the keys, their defaults are the
defaults, and the comment beside a field says what the key means, with its unit.
"""

import ast
import dataclasses
import inspect
import itertools
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from data.errors import BadInput

INFINITY = "inf"


class Frozen(dict):
    """An immutable mapping that can be pickled."""

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
    check_keys(cls, section, path)
    given, fields = dict(section.items()), keys_of(cls)
    hints = typing.get_type_hints(cls)
    for key, field in fields.items():
        if key not in given and not has_default(field):
            needed = ", ".join(key for key, field in fields.items() if not has_default(field))
            raise BadInput(f"{_join(path, key)}: missing; the section needs {needed}")
    values = {key: _convert(hints[key], value, _join(path, key)) for key, value in given.items()}
    try:
        return cls(**values)
    except ValueError as error:
        named = not path or str(error).startswith(path)
        # A message that begins with a key goes on with the path to it.
        begins = re.match(r"\w+", str(error))
        joint = "." if begins and begins[0] in hints else ": "
        raise BadInput(str(error) if named else f"{path}{joint}{error}") from error


def check_keys(cls: type, section: Any, path: str) -> None:
    """Raises BadInput if this is not a section, or has a key that `cls` does not."""
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise BadInput(f"{path} is {section!r}; it must be a section with keys")
    for key, _ in section.items():
        if key not in keys_of(cls):
            allowed = ", ".join(keys_of(cls))
            raise BadInput(f"{_join(path, key)}: unknown key; allowed here: {allowed}")


def keys_of(cls: Any) -> dict[str, dataclasses.Field]:
    """The fields of a section (or of one that may be None) that a configuration may set."""
    cls = typing.get_args(cls)[0] if typing.get_origin(cls) is types.UnionType else cls
    return {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("key", True)}


def is_section(hint: Any) -> bool:
    """Whether a type is that of a section."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    return dataclasses.is_dataclass(kinds[0])


def is_mapping(hint: Any) -> bool:
    """Whether a type is a mapping whose keys the user names."""
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


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
    if is_mapping(hint):
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
        raise BadInput(f"{path} is {value}; it must be a number")
    return value


def to_dict(value: Any) -> Any:
    """Plain JSON-able form of settings; JSON has no infinity, so that it is a string."""
    return _plain(value, lambda _: True)


def identity(value: Any) -> Any:
    """As `to_dict`, without the fields that cannot change a result (model.config.LAYOUT)."""
    return _plain(value, lambda field: field.metadata.get("identity", True))


def _plain(value: Any, is_wanted: Callable[[dataclasses.Field], bool]) -> Any:
    if dataclasses.is_dataclass(value):
        fields = filter(is_wanted, keys_of(type(value)).values())
        found = {field.name: getattr(value, field.name) for field in fields}
        # A section that no stage reads is None.
        return {key: _plain(item, is_wanted) for key, item in found.items() if item is not None}
    if isinstance(value, Mapping):
        return {key: _plain(item, is_wanted) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, is_wanted) for item in value]
    return INFINITY if value == math.inf else value


def about(cls: type) -> dict[str, str]:
    """What each key of a section means: the comment beside its field, or what the docstring says.

    A comment may also stand in lines of its own above; the docstring has `Attributes:` with a line
    or more for a key, or for several separated by commas.
    """
    found = _documented(inspect.getdoc(cls) or "")
    for base in cls.__bases__:
        found |= about(base) if dataclasses.is_dataclass(base) else {}
    lines, _ = inspect.getsourcelines(cls)
    for node in ast.parse(textwrap.dedent("".join(lines))).body[0].body:
        if isinstance(node, ast.AnnAssign):
            _, _, beside = lines[node.end_lineno - 1].partition("  # ")
            if comment := beside or _above(lines[: node.lineno - 1]):
                found[node.target.id] = comment.strip().rstrip(".")
    return found


def _above(lines: Sequence[str]) -> str:
    """The comment that these lines end with."""
    comment = itertools.takewhile(lambda line: line.lstrip().startswith("# "), reversed(lines))
    return " ".join(line.strip().removeprefix("# ") for line in reversed(list(comment)))


def _documented(text: str) -> dict[str, str]:
    _, _, attributes = text.partition("Attributes")
    entries = re.findall(r"^ +([a-z_0-9, ]+): (.*(?:\n {6,}.*)*)", attributes, re.MULTILINE)
    return {
        key: " ".join(meaning.split()).rstrip(".")
        for keys, meaning in entries
        for key in keys.split(", ")
    }


def hint_of(hint: Any, path: str) -> Any:
    """The type at a dotted path in a section or a mapping of this type; None if there is none."""
    for key in path.split(".") if path else ():
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        hint = kinds[-1] if typing.get_origin(hint) is types.UnionType else hint
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint)[key] if key in keys_of(hint) else None
        elif is_mapping(hint):
            hint = typing.get_args(hint)[1]
        else:
            return None
    return hint


def place(cls: type, config: ConfigDict, path: str) -> None:
    """Makes a key settable that a configuration leaves to its default.

    The value there is of the key's type, by which config_flags then parses the one that is given.
    Nothing is done if there is no such key.
    """
    hint, (*parents, last) = hint_of(cls, path), path.split(".")
    is_path_or_section = typing.get_origin(hint) is types.UnionType and str in typing.get_args(hint)
    kind = str if is_path_or_section else typing.get_origin(hint) or hint
    if kind not in ZEROS:
        return
    with config.unlocked():
        for key in parents:
            if key not in config:
                config[key] = ConfigDict()
            config = config[key]
            if not isinstance(config, ConfigDict):
                return
        if is_path_or_section and isinstance(config.get(last), ConfigDict):
            del config[last]  # a value of another type may not take its place
        if last not in config:
            config[last] = ZEROS[kind]


# A value of each type that a key on the command line may have.
ZEROS = {int: 0, float: 0.0, str: "", bool: False, tuple: ()}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)
