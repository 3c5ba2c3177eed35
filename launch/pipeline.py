"""The order of stages, the hash of what each depends on, and what makes one finished."""

import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import sources
from data.errors import BadInput
from launch.console import Progress
from launch.rundir import RunDir, digest, hash_file, write_json
from launch.settings import to_dict


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage is given."""

    settings: Any
    run: RunDir
    progress: Progress
    inputs: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: the sections it reads, the stages it stands on, and what it does.

    `body(context) -> summary` may be called again after a kill and goes on from its checkpoint.
    """

    sections: tuple[str, ...]
    needs: tuple[str, ...]
    body: Callable[[Context], dict]


def run_stages(
    settings: Any,
    run: RunDir,
    progress: Progress,
    table: dict[str, Stage],
    *,
    only: str | None,
    fresh: bool,
) -> dict[str, dict]:
    """Runs the pipeline's stages in order, or one of them.

    A finished stage whose inputs have the hash they had is skipped. With `only`, the stages it
    stands on must be finished, and nothing else runs.

    Args:
      settings: from `settings.parse`.
      run: the run directory.
      progress: where lines go.
      table: every stage.
      only: one stage's name, or None for the whole pipeline.
      fresh: throw away what the stages to run have left before.

    Returns:
      {stage: {"status": "done" or "skipped", "secs", **summary}}.

    Raises:
      BadInput: `only` stands on a stage that is not finished.
    """
    names = settings.stages
    if only is not None and only not in names:
        raise BadInput(f"stages is {names}; it must hold {only!r} for this verb")
    inputs = hash_inputs(settings, table)
    context = Context(settings, run, progress, inputs)
    outcome = {}
    for name in names:
        done = run.read_done(name)
        finished = done is not None and done["inputs"] == inputs[name]
        if only is not None and name != only:
            if name in _upstream(only, table, names) and not finished:
                raise BadInput(
                    f"{run.path}: stage {name!r}, which {only!r} stands on, is not finished for "
                    f"this configuration; run `seedbed {name}` or `seedbed run` first"
                )
            continue
        progress.stage(name)
        if finished and not fresh:
            progress.note("nothing to do, its inputs are unchanged")
            outcome[name] = {"status": "skipped", "secs": 0.0, **done["summary"]}
            continue
        # `run` starts over where inputs changed; a single stage refuses, at its checkpoint.
        changed = run.started_with(name) not in (None, inputs[name])
        run.begin(name, inputs[name], fresh=fresh or (changed and only is None))
        outcome[name] = _run_stage(context, name, table[name])
    return outcome


def hash_inputs(settings: Any, table: dict[str, Stage]) -> dict[str, str]:
    """Hash of each stage's inputs: its sections, and the hashes of the stages it stands on.

    Files count by their content. The mesh is left out: a run may go on on another one.
    """
    hashes: dict[str, str] = {}
    for name in settings.stages:
        stage = table[name]
        inputs = {section: to_dict(_section(settings, section)) for section in stage.sections}
        if name == "curate":
            inputs["sources"] = sources.fingerprint(settings.data.sources)
        if name == "sft" and settings.instruct.path:
            inputs["own"] = hash_file(Path(settings.instruct.path))
        inputs["upstream"] = {need: hashes[need] for need in stage.needs if need in hashes}
        hashes[name] = digest({"stage": name, **inputs})
    return hashes


def _section(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = getattr(settings, key)
    return settings


def _upstream(name: str, table: dict[str, Stage], present: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for need in table[name].needs:
        if need in present:
            found |= {need} | _upstream(need, table, present)
    return found


def _run_stage(context: Context, name: str, stage: Stage) -> dict:
    start, cpu_start = time.perf_counter(), _cpu_secs()
    summary = stage.body(context)
    secs = time.perf_counter() - start
    done = {
        "stage": name,
        "inputs": context.inputs[name],
        "secs": round(secs, 2),
        "cpu_secs": round(_cpu_secs() - cpu_start, 2),
        "energy_wh": round(secs * context.settings.cost.machine_watts / 3600, 4),
        "summary": summary,
    }
    write_json(context.run.stage(name) / "done.json", done)
    context.progress.note(f"done in {secs:.1f} s")
    return {"status": "done", "secs": done["secs"], **summary}


def _cpu_secs() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in usage)
