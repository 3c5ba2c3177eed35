"""The user's own sets of each stage, conversations, preference pairs, prompts; and own modules."""

import functools
import sys
from collections.abc import Callable, Mapping

from data import storage
from data.conversations import OwnSet, Read, read_conversations, read_pairs
from launch.settings import Settings

READERS = {
    "sft": functools.partial(read_conversations, needs_answer=True),
    "reward": read_pairs,
}
READ_PROMPTS = functools.partial(read_conversations, needs_answer=False)  # of a rollout
# Stages that read the sets of another: DPO its pairs, evaluation the held-out conversations.
SECTION = {"dpo": "reward", "eval": "sft"}
MAX_NOTED = 3  # broken rows of a set that are named


def sets_of(settings: Settings, stage: str) -> Mapping[str, OwnSet]:
    """The sets that a stage reads, by the dotted path of their section."""
    name = SECTION.get(stage, stage)
    section = getattr(settings, name, None)
    if hasattr(section, "rollout"):
        return {f"{name}.rollout.data.{key}": own for key, own in section.rollout.data.items()}
    found = section.data if section and name in READERS else {}
    return {f"{name}.data.{key}": own for key, own in found.items()}


def fingerprint(settings: Settings, stage: str) -> dict[str, list]:
    """Names and hashes of the files of a stage's sets."""
    found = sets_of(settings, stage)
    return {key: storage.fingerprint(f"{key}.path", own.path) for key, own in found.items()}


def read(settings: Settings, stage: str, note: Callable[[str], None]) -> dict[str, Read]:
    """Reads a stage's sets, by name; `note` takes lines on what they hold and what is left out."""
    found, reader = {}, READERS.get(SECTION.get(stage, stage), READ_PROMPTS)
    for key, own in sets_of(settings, stage).items():
        made = reader(key, own)
        count = len(made.train) + len(made.heldout)
        note(
            f"{key}: {count} rows, {len(made.heldout)} of them held out; "
            f"{share(len(made.broken), count + len(made.broken))} malformed and left out"
        )
        for row in made.broken[:MAX_NOTED]:
            note(f"{key}: {row['file']}, record {row['record']}: {row['why']}")
        found[key.rpartition(".")[2]] = made
    return found


def share(part: int, whole: int) -> str:
    """A count with its share of a whole."""
    return f"{part} ({part / max(1, whole):.1%})"


def find_modules_beside() -> None:
    """Lets modules in the working directory be imported, as `python -m` does by itself."""
    if "" not in sys.path:
        sys.path.insert(0, "")
