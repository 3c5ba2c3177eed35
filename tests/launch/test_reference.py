"""The reference of verbs, keys and metrics says what the code says today."""

import re
from collections.abc import Mapping

from configs import quickstart
from launch import reference, schema
from launch.flags import FLAG_LINES, VERBS
from launch.report.metrics import METRICS
from launch.report.page import PANELS
from launch.settings import SHARED, Settings
from tests.test_setup import ROOT

PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))


def leaves(section: Mapping, path: str = "") -> list[str]:
    """Dotted keys of a configuration, as the reference names them."""
    found = []
    for key, value in section.items():
        if path == "data.sources.":
            key = "NAME"
        if isinstance(value, Mapping) or hasattr(value, "items"):
            found += leaves(value, f"{path}{key}.")
        else:
            found.append(f"{path}{key}")
    return found


def is_listed(key: str) -> bool:
    """Whether a key has a line; one of a stage's loop, say, has that of the shared section."""
    if key in LISTED:
        return True
    *parents, last = key.split(".")
    above = ".".join(parents)
    if f"{above}.KEY" not in LISTED:
        return False
    kind = schema.hint_of(Settings, above)
    return any(kind is cls and f"{name}.{last}" in LISTED for name, cls in SHARED.items())


def test_the_page_is_what_the_code_says():
    assert reference.render() + "\n" == PAGE, (
        "docs/reference.md is out of date: python -m launch.reference > docs/reference.md"
    )


def test_every_key_of_the_quickstart_is_there():
    keys = leaves(quickstart.get_config())
    assert len(keys) > 40
    assert [key for key in keys if not is_listed(key)] == []
    assert not is_listed("sft.loop.num_epochs") and not is_listed("sft.beta")


def test_every_key_has_a_meaning_and_a_default():
    keys = PAGE.partition("## Configuration keys")[2].partition("## Metrics")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*) \|$", keys, re.MULTILINE)
    assert len(rows) > 200
    for key, default, meaning in rows:
        assert meaning.strip(), f"{key} has no comment at its field"
        assert default or key.endswith(".KEY"), key


def test_defaults_are_those_of_a_configuration():
    assert "| `mesh.data` | `-1` |" in PAGE
    assert "| `data.gates.toxicity.l2` | `0.1` |" in PAGE
    assert "| `data.gates.quality.l2` | `3.0` |" in PAGE


def test_every_verb_flag_and_curve_is_there():
    assert set(VERBS) <= LISTED
    assert {line.replace("|", "\\|") for line, _ in FLAG_LINES.values()} <= LISTED
    assert set(PANELS) <= set(METRICS)
