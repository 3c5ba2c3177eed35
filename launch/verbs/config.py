"""Every key of a configuration: its value, where that is from, and what it means."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from launch.schema import about, keys_of
from launch.settings import SHARED, Settings
from launch.store.rundir import flatten

COMMAND_LINE, FILE, DEFAULT = "command line", "config file", "default"


def run_config(config: ConfigDict, settings: Settings, overridden: Collection[str]) -> list[dict]:
    """Lists the keys that a configuration has, or leaves to their defaults.

    What a stage takes from the shared sections `optimizer` and `loop` is listed there alone, and of
    a source what the configuration says of it.

    Args:
      config: as it was given, overrides included.
      settings: what became of it.
      overridden: dotted paths of the overrides.

    Returns:
      A row a key: {"key", "value", "origin": one of the three above, "about"}.
    """

    def rows(section: Any, given: Mapping, path: str, is_partial: bool) -> Iterator[dict]:
        meanings = about(type(section))
        for key in keys_of(type(section)):
            value, place = getattr(section, key), f"{path}{key}"
            own = given.get(key, {}) if hasattr(given, "items") else {}
            if value is None or (is_partial and key not in given):
                continue
            if dataclasses.is_dataclass(value):
                yield from rows(value, own, f"{place}.", is_partial or type(value) in shared)
            elif isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, value.values())):
                for name, item in value.items():
                    yield from rows(item, own[name], f"{place}.{name}.", True)
            elif isinstance(value, Mapping) and value:
                for name, item in value.items():
                    yield row(f"{place}.{name}", item, name in own, meanings.get(key, ""))
            else:
                yield row(place, value, key in given, meanings.get(key, ""))

    def row(place: str, value: Any, is_given: bool, meaning: str) -> dict:
        origin = COMMAND_LINE if place in overridden else FILE if is_given else DEFAULT
        return {"key": place, "value": value, "origin": origin, "about": meaning}

    def shared_rows(name: str, cls: type) -> Iterator[dict]:
        given, meanings = config.get(name, {}), about(cls)
        for key, field in keys_of(cls).items():
            value = given.get(key, field.default)
            plain = value.to_dict() if isinstance(value, ConfigDict) else value
            for place, item in flatten({key: plain}).items():
                if item is not dataclasses.MISSING:
                    yield row(f"{name}.{place}", item, key in given, meanings.get(key, ""))

    shared = tuple(SHARED.values())
    found = list(rows(settings, config, "", False))
    return found + [row for name, cls in SHARED.items() for row in shared_rows(name, cls)]
