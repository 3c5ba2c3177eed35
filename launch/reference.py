"""The reference of verbs, flags, keys and metrics, written from the code.

python -m launch.reference > docs/reference.md
"""

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from launch import schema
from launch.flags import FLAG_LINES, NEEDED, VERBS, flags_of
from launch.report.metrics import METRICS, RESULTS
from launch.settings import SHARED, Settings, Whole
from launch.stages.stage import STAGES
from model.config import LAYOUT

INTRO = """# Reference

Written by `python -m launch.reference > docs/reference.md`; a test compares the two. Edit the code,
not this page. `seedbed config --config=FILE.py` prints the keys of one configuration with their
values and where each comes from."""
KEYS = """## Configuration keys

A key is given in a config file, or on the command line as `--config.KEY=VALUE`. NAME stands for a
name of your choice; letters such as D and N are those of the README. A configuration needs only the
sections that its stages read. What `optimizer`, `loop` and `rollout` say holds for every training
stage whose own section, such as `sft.loop`, does not say otherwise; each stage of the quickstart
has its own `peak_lr`.

The keys of `mesh` and `layout`, and those marked with * below, change a result by rounding at most:
a run may go on under other values of them."""
LINES = """## Metrics

A line of `RUN/metrics.jsonl` has `stage`, `step`, `time` (Unix seconds) and some of these, and
TensorBoard has the same names. What is not a number is null. In ppo and grpo a step is an
iteration: losses and gradient norms are means over its updates, growths the greatest of them."""
KEY, METRIC = ("key", "default", "meaning"), ("metric", "unit", "meaning")


def main() -> None:
    """Prints the page."""
    print(render())


def render() -> str:
    """The page as Markdown."""
    verbs = ((verb, does, ", ".join(_flags(verb))) for verb, does in VERBS.items())
    stages = (
        (row.name, row.about, ", ".join(row.needs), ", ".join(row.starts))
        for row in STAGES.values()
    )
    return "\n\n".join(
        (
            *(INTRO, "## Stages", _table(("stage", "does", "needs", "starts from"), stages)),
            "`reward` is not needed where `reward.function` is set.",
            *("## Verbs", _table(("verb", "does", "flags"), verbs)),
            *("## Flags", _table(("flag", "is"), FLAG_LINES.values())),
            *(KEYS, *_sections()),
            *(LINES, _table(METRIC, ((name, *row) for name, row in METRICS.items()))),
            "### eval/results.json",
            _table(METRIC, ((name, *row) for name, row in RESULTS.items())),
        )
    )


def _flags(verb: str) -> Iterator[str]:
    for name in flags_of(verb):
        yield f"`--{name}`" + " (needed)" * (name in NEEDED.get(verb, ()))


def _sections() -> Iterator[str]:
    """A heading and a table for each section; the keys that are in none come first."""
    yield "### The run"
    yield _table(KEY, (row for row in rows(Settings) if "." not in row[0]))
    for name, field in schema.keys_of(Whole).items():
        kind = _section_in(typing.get_type_hints(Whole)[name])
        if kind:
            yield f"### {name}\n\n{inspect.getdoc(kind).splitlines()[0]}"
            yield _table(KEY, rows(kind, f"{name}.", field.default))


def rows(cls: type, path: str = "", instance: Any = None) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of each key of a section, those of its subsections included.

    Args:
      cls: the section's dataclass.
      path: dotted path to it, with a dot at its end.
      instance: has the defaults; None for those of the class.
    """
    hints, meanings = typing.get_type_hints(cls), schema.about(cls)
    for key, field in schema.keys_of(cls).items():
        is_made = field.default_factory is not dataclasses.MISSING
        value = field.default_factory() if is_made else field.default
        value = value if instance is None else getattr(instance, key)
        hint, section = hints[key], _section_in(hints[key])
        shared = next((name for name, kind in SHARED.items() if kind is hint), "")
        meaning = meanings.get(key, "") + " *" * (
            cls in SHARED.values() and field.metadata == LAYOUT
        )
        shown = "required" if value is dataclasses.MISSING else f"`{value!r}`"
        if shared:
            yield f"{path}{key}.KEY", "", f"the keys of `{shared}`, for this stage alone"
        elif schema.is_section(hint):
            yield from rows(section, f"{path}{key}.", value)
        else:
            yield f"{path}{key}", shown, meaning
            if section:
                entry = (
                    ".NAME." if schema.is_mapping(hint) or str in typing.get_args(hint) else "[I]."
                )
                yield from rows(section, f"{path}{key}{entry}")


def _section_in(hint: Any) -> type | None:
    """The dataclass that a type is, or that its entries are; None if there is none."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_section_in, typing.get_args(hint))), None)


def _table(heads: Sequence[str], found: Iterable[Sequence[str]]) -> str:
    """A table whose first column is code."""
    lines = [heads, ["---"] * len(heads), *((f"`{first}`", *rest) for first, *rest in found)]
    text = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    return text.replace("<", "\\<")


if __name__ == "__main__":
    main()
