"""Every key that a stage reads as it runs is part of its identity, or named here with a reason."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import pytest

from launch import pipeline
from launch.stages.stage import STAGES, Stage
from tests.launch.test_stages import Pulse

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Keys that a stage reads and its identity lacks, and why: {(stage, section or key): why}.
MEASURED = "measures on the way; what the stage leaves does not hang on it"
NAMED = {
    ("curate", "eval.sets"): "the content of the files is in `evaluation`",
    ("curate", "instruct"): "as eval.sets",
    ("curate", "stages"): "as eval.sets",
    ("curate", "sft.data"): "as eval.sets",
    ("curate", "eval.tasks"): "as eval.sets",
    ("curate", "eval.data"): "as eval.sets",
    ("eval", "eval.data"): "the content of the files is in `task_files`",
    ("eval", "sft.data"): "it is in the result of fine-tuning",
    ("tokenizer", "stages"): "whether there is curated text is in `upstream`",
    **dict.fromkeys(
        ((name, "start") for name in ("tokenizer", "pretrain", "sft", "reward", "dpo")),
        "the content of the run is in `start_weights` and `start_tokenizer`",
    ),
    ("eval", "start"): "as in training",
    ("pretrain", "eval.num_heldout"): MEASURED,
    ("pretrain", "eval.batch_size"): MEASURED,
    ("sft", "eval.num_heldout"): MEASURED,
    ("dpo", "eval.batch_size"): "rows of the reference at a time, each by itself",
    ("ppo", "eval.num_heldout"): MEASURED,
    ("grpo", "eval.num_heldout"): MEASURED,
    ("eval", "stages"): "which of them have results is in `upstream`",
    **{
        (name, "stages"): "which one it starts from is in `upstream`"
        for name, stage in STAGES.items()
        if stage.trains and stage.starts
    },
}


def leaves(value: object, path: str = "") -> Iterator[tuple[object, str, str]]:
    """(dataclass, its field, dotted path) of every key that identity has."""
    for field in dataclasses.fields(value):
        if not field.metadata.get("identity", True):
            continue
        inner, place = getattr(value, field.name), f"{path}{field.name}"
        items = inner.values() if isinstance(inner, Mapping) else [inner]
        sections = [item for item in items if dataclasses.is_dataclass(item)]
        for section in sections:
            yield from leaves(section, f"{place}.")
        if not sections:
            yield value, field.name, place


class Recorder:
    """Notes which keys of the settings are read in the body of each stage."""

    def __init__(self):
        self.seen: dict[str, set[str]] = {}

    def wrap(self, find_body):
        def find(stage: Stage) -> pipeline.Body:
            def body(job):
                with self.recording(stage.name, job.settings):
                    return find_body(stage)(job)

            return body

        return find

    @contextlib.contextmanager
    def recording(self, stage: str, chosen: object) -> Iterator[None]:
        found = self.seen.setdefault(stage, set())
        paths = {(id(owner), name): path for owner, name, path in leaves(chosen)}
        classes = {type(owner) for owner, *_ in leaves(chosen)}

        def read(owner, name):
            if path := paths.get((id(owner), name)):
                found.add(path)
            return object.__getattribute__(owner, name)

        for cls in classes:
            cls.__getattribute__ = read
        try:
            yield
        finally:
            for cls in classes:
                del cls.__getattribute__


def is_in(path: str, section: str) -> bool:
    return not section or path == section or path.startswith(f"{section}.")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "find_body", recorder.wrap(pipeline.find_body))
        folder = tmp_path_factory.mktemp("reads")
        (folder / "set.jsonl").write_text('{"text": "no document has these words"}\n')
        changes = {"data.sources.docs.gates": "('length', 'contamination')"}
        changes["eval.sets"] = folder / "set.jsonl"
        Pulse(folder)("run", **changes)
    return recorder.seen


@pytest.mark.parametrize("name", tuple(STAGES))
def test_what_a_stage_reads_is_part_of_its_identity(seen, name):
    known = [*STAGES[name].reads, *(key for stage, key in NAMED if stage == name)]
    unknown = {path for path in seen[name] if not any(is_in(path, section) for section in known)}
    assert not unknown
    assert seen[name] or name == "report"


def test_every_exception_is_read(seen):
    for stage, section in NAMED:
        assert any(is_in(path, section) for path in seen[stage]), (stage, section)
