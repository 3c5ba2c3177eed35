"""The texts of all evaluations, for curation to keep out of training."""

from collections.abc import Callable, Iterator

from data import storage
from data.quickstart import instruct
from eval import sets, task
from launch import own_sets
from launch.schema import to_dict
from launch.settings import Settings
from launch.store.rundir import digest


def texts(settings: Settings, note: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Yields (set, text) of all that this configuration evaluates.

    The held-out conversations of the eval stage, every example of `eval.tasks`, and the files of
    `eval.sets`; `note` takes a line on those that cannot be read, and on benchmarks that no source
    is compared with.
    """
    if not _is_wanted(settings):
        if settings.eval.tasks:
            note("eval.tasks: no source has the gate 'contamination': training may hold their text")
        return
    if "sft" in settings.stages and "eval" in settings.stages:
        examples = list(instruct.build(settings.instruct)["heldout"])
        for made in own_sets.read(settings, "sft", note).values():
            examples += made.heldout
        for example in examples:
            yield "instruct", example.reference
            yield from (("instruct", message["content"]) for message in example.messages)
    for name in settings.eval.tasks:
        for example in task.load(name, settings.eval.data).examples:
            yield from ((name, text) for text in (*example.texts, "\n".join(example.texts)))
    yield from sets.texts(settings.eval.sets, note)


def _is_wanted(settings: Settings) -> bool:
    sources = settings.data.sources
    given = [] if isinstance(sources, str) else [source.gates for source in sources.values()]
    return not given or any("contamination" in names or "auto" in names for names in given)


def fingerprint(settings: Settings) -> str:
    """Hash of all these texts; '' where no document is compared with them."""
    if not _is_wanted(settings):
        return ""
    found = settings.eval.sets
    hashes = storage.fingerprint("eval.sets", found) if found else []
    dialog = "sft" in settings.stages and "eval" in settings.stages
    held_out = [to_dict(settings.instruct), own_sets.fingerprint(settings, "sft")]
    return digest([hashes, held_out if dialog else None, task_files(settings)])


def task_files(settings: Settings) -> dict[str, list[list[str]]]:
    """Names and hashes of the files of each benchmark that is named."""
    folder = settings.eval.data
    return {
        name: storage.fingerprint("eval.data", f"{folder}/{name}") for name in settings.eval.tasks
    }
