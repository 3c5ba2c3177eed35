"""The order of stages, the hash of what each depends on, and what makes one finished."""

import dataclasses
import resource
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from data import curate, files
from data.engine import Runner
from data.errors import BadInput
from launch import evaluation
from launch.console import Progress
from launch.rundir import RunDir, digest, hash_file, remove, write_json
from launch.settings import to_dict


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage is given."""

    settings: Any
    run: RunDir
    progress: Progress
    inputs: dict[str, str]
    runner: Runner


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
    table: Mapping[str, Stage],
    devices: str,
    runner: Runner,
    *,
    only: str | None,
    fresh: bool,
) -> dict[str, dict]:
    """Runs the pipeline's stages in order, or one of them.

    A finished stage is skipped while its inputs have the hash they had and its files are all there.
    With `only`, the stages it stands on must be finished, and nothing else runs. Nothing is written
    before all is checked, and then only under the run's lock.

    Args:
      settings: from `settings.parse`.
      run: the run directory.
      progress: where lines go.
      table: every stage.
      devices: what the stages run on, for config.json.
      runner: where data is worked on.
      only: one stage's name, or None for the whole pipeline.
      fresh: throw away what the stages to run have left before.

    Returns:
      {stage: {"status": "done" or "skipped", "secs", **summary}}.

    Raises:
      BadInput: `only` stands on a stage that is not finished, or has a checkpoint of other inputs;
        or another process writes the run.
    """
    names = settings.stages if only is None else (only,)
    inputs = describe_inputs(settings, table)
    hashes = {name: digest(inputs[name]) for name in inputs}
    context = Context(settings, run, progress, hashes, runner)
    done = _read_finished(run, hashes)
    if only is not None:
        _check_single(only, run, table, inputs, done, fresh)
    if not fresh and all(name in done and run.is_whole(done[name]) for name in names):
        return {name: _skip(progress, name, done[name]) for name in names}
    with run.lock(progress.note):
        done = _read_finished(run, hashes)  # what another process has done until now
        run.write_config(to_dict(settings), devices)
        return {
            name: _bring(context, name, table[name], inputs, done.get(name), fresh)
            for name in names
        }


def _bring(
    context: Context,
    name: str,
    stage: Stage,
    inputs: dict[str, dict],
    done: dict | None,
    fresh: bool,
) -> dict:
    """Runs a stage, unless it is finished and whole."""
    run, progress = context.run, context.progress
    if done and not fresh and run.is_whole(done):
        return _skip(progress, name, done)
    progress.stage(name)
    damage = run.find_damage(done) if done and not fresh else None
    if damage:
        progress.note(f"{run.path / damage} is damaged; done again")
    # What is kept to go on from may be other names of the files that are damaged.
    anew = fresh or damage is not None
    if anew:
        remove(run.cache(name))
    run.begin(name, inputs[name], fresh=anew or _changes(run, name, inputs) is not None)
    return _run_stage(context, name, stage)


def _read_finished(run: RunDir, hashes: Mapping[str, str]) -> dict[str, dict]:
    """What stages left that have finished on the same inputs, be their files whole or not."""
    done = {name: run.read_done(name) for name in hashes}
    return {name: left for name, left in done.items() if left and left["inputs"] == hashes[name]}


def _skip(progress: Progress, name: str, done: dict) -> dict:
    progress.stage(name)
    progress.note("nothing to do, its inputs are unchanged")
    return {"status": "skipped", "secs": 0.0, **done["summary"]}


def _check_single(
    only: str,
    run: RunDir,
    table: Mapping[str, Stage],
    inputs: dict[str, dict],
    done: dict[str, dict],
    fresh: bool,
) -> None:
    """Refuses to run one stage on unfinished ones, or on a checkpoint of other inputs."""
    if only not in inputs:
        raise BadInput(f"stages is {tuple(inputs)}; it must hold {only!r} for this verb")
    for name in inputs:
        if name not in _upstream(only, table, inputs):
            continue
        damage = run.find_damage(done[name]) if name in done else None
        if damage or name not in done or not run.is_whole(done[name]):
            why = f": {run.path / damage} is damaged" if damage else ""
            raise BadInput(
                f"{run.path}: stage {name!r}, which {only!r} stands on, is not finished for "
                f"this configuration{why}; run `seedbed {name}` or `seedbed run` first"
            )
    change = _changes(run, only, inputs)
    if change and run.checkpoints(only).exists() and not fresh:
        raise BadInput(
            f"{run.checkpoints(only)}: written with {change}; use the same value, another --run "
            "directory, or --fresh to start the stage over"
        )


def _changes(run: RunDir, name: str, inputs: dict[str, dict]) -> str | None:
    """The first key in which the stage's last start differs from what is asked now, or None."""
    started = run.read_started(name)
    if started is None or started["hash"] == digest(inputs[name]):
        return None
    was, now = _flatten(started["inputs"], ""), _flatten(inputs[name], "")
    before, after = ({key: found.get(key, "absent") for key in was | now} for found in (was, now))
    key = next(key for key in before if before[key] != after[key])
    return f"{key} = {before[key]!r}, this configuration has {after[key]!r}"


def _flatten(value: Any, path: str) -> dict[str, Any]:
    """Leaves by dotted path; an empty section is a leaf."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    leaves = {}
    for key, item in value.items():
        leaves |= _flatten(item, f"{path}.{key}" if path else key)
    return leaves


def describe_inputs(settings: Any, table: Mapping[str, Stage]) -> dict[str, dict]:
    """What each stage's result depends on: its sections, and the hashes of those it stands on.

    Files count by their content. The mesh is left out: a run may go on on another one.
    """
    described: dict[str, dict] = {}
    for name in settings.stages:
        stage = table[name]
        inputs = {section: to_dict(_section(settings, section)) for section in stage.sections}
        if name == "curate":
            inputs["files"] = curate.fingerprint(settings.data)
            inputs["evaluation"] = evaluation.fingerprint(settings)
        if name == "tokenizer" and settings.start:
            # A run imported anew at the same place is another origin.
            inputs["origin"] = digest(RunDir(Path(settings.start)).read_config())
        if name == "tokenizer" and settings.tokenizer.path:
            inputs["files"] = files.fingerprint("tokenizer.path", settings.tokenizer.path)
        if name == "sft" and settings.instruct.path:
            inputs["own"] = hash_file(Path(settings.instruct.path))
        upstream = {need: digest(described[need]) for need in stage.needs if need in described}
        described[name] = {"stage": name, **inputs, "upstream": upstream}
    return described


def _section(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = getattr(settings, key)
    return settings


def _upstream(name: str, table: Mapping[str, Stage], present: Collection[str]) -> set[str]:
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
        "products": context.run.products(name),
    }
    write_json(context.run.stage(name) / "done.json", done)
    context.progress.note(f"done in {secs:.1f} s")
    return {"status": "done", "secs": done["secs"], **summary}


def _cpu_secs() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in usage)
