"""Runs the stages of a configuration in order: what is finished is skipped, nothing is lost."""

import importlib
import resource
import time
from collections.abc import Callable, Mapping

from data.engine import Runner
from data.errors import BadInput
from launch.console import Progress
from launch.identity import (
    describe,
    describe_code,
    describe_inputs,
    find_changes,
    is_described,
    survey,
    upstream,
    with_kept_sections,
)
from launch.job import Job
from launch.settings import Settings
from launch.stages.stage import STAGES, Stage
from launch.store import shared
from launch.store.rundir import RunDir, digest, remove, write_json

Body = Callable[[Job], dict]


def find_body(stage: Stage) -> Body:
    """The function that does a stage's work; it may be called again after a kill."""
    return importlib.import_module(stage.body).run


def run_stages(
    settings: Settings,
    run: RunDir,
    progress: Progress,
    devices: str,
    runner: Runner,
    store: shared.Store | None,
    *,
    only: str | None,
    fresh: bool,
    bodies: Callable[[Stage], Body] | None = None,
) -> dict[str, dict]:
    """Runs the pipeline's stages in order, or one of them.

    A finished stage is skipped while its inputs have the hash they had and its files are all there.
    With `only`, the stages it reads from must be finished, and nothing else runs. Nothing is
    written before all is checked, and then only under the lock of the run.

    Args:
      settings, run: from `settings.parse`; the run directory.
      progress: where lines go.
      devices: what the stages run on, for config.json.
      runner: where data is worked on.
      store: where runs share what stages make; None if they do not.
      only: one stage's name, or None for the whole pipeline.
      fresh: delete earlier output of the stages to run.
      bodies: gives the body of a stage; `find_body` unless given.

    Returns:
      {stage: {"status": "done" or "skipped", "secs", **summary}}.

    Raises:
      BadInput: `only` reads from a stage that is not finished, or has a checkpoint of other inputs;
        or another process writes the run.
    """
    names = settings.stages if only is None else (only,)
    described = describe_inputs(settings)
    if only is not None:
        _check_single(only, run, described)
    discarded = names if fresh else ()
    inputs, done = survey(run, described, names, discarded)
    for name in names:
        if not fresh and set(STAGES[name].upstream(described)) <= done.keys():
            _refuse_to_discard(run, name, inputs[name], done.get(name))
        if not fresh and name not in done:
            _refuse_to_strand(run, name, inputs[name], described)
    is_done = not fresh and all(name in done and run.is_whole(done[name]) for name in names)
    if is_done and is_described(run, settings, names):
        return {name: _skip(progress, STAGES[name], done[name]) for name in names}
    results = {}
    with run.lock(progress.note):
        run.write_config(with_kept_sections(run, settings), devices)
        for place, name in enumerate(names):
            if place:  # files may have changed while the stages before it ran
                described[name] = describe(settings, name)
            # What other stages, or another process, have left until now.
            inputs, done = survey(run, described, names, discarded[place:])
            job = Job(settings, run, progress, runner, name, inputs[name])
            results[name] = _bring(job, bodies or find_body, done.get(name), fresh, store)
    return results


def _bring(
    job: Job, bodies: Callable, done: dict | None, fresh: bool, store: shared.Store | None
) -> dict:
    """Runs a stage, unless it is finished and whole; what it had stays if it is refused."""
    with job.run.replacing(job.stage):
        return _replace(job, bodies, done, fresh, store)


def _replace(
    job: Job, bodies: Callable, done: dict | None, fresh: bool, store: shared.Store | None
) -> dict:
    stage, run, progress, inputs = STAGES[job.stage], job.run, job.progress, job.inputs
    name = stage.name
    if done and not fresh and run.is_whole(done):
        return _skip(progress, stage, done)
    progress.stage(name)
    if not fresh:
        _refuse_to_discard(run, name, inputs, done)
    damage = run.find_damage(done) if done and not fresh else None
    if damage:
        progress.note(f"{run.path / damage} is damaged; made again")
    # Files in the cache may be hard links to those that are damaged.
    restart = fresh or damage is not None
    if restart:
        remove(run.cache(name))
    started = None if restart else run.read_started(name)
    if started and run.checkpoints(name).exists():
        _note_code(progress, stage, started)
    code = describe_code(stage)
    if not restart and done is None and run.stage(name).is_dir():
        restart = bool(find_changes(run, name, inputs))
    if store is None or not stage.shared:
        run.begin(name, inputs, code, fresh=restart)
        return _run_stage(job, bodies(stage), code)
    with store.hold(name, inputs, progress.note) as place:
        if not fresh and (place / "done.json").exists():
            run.begin(name, inputs, code, fresh=True)
            if taken := shared.take(place, run, name):
                progress.note(f"made by another run; linked from {place}")
                return {"status": "linked", "secs": 0.0, **taken["summary"]}
            progress.note(f"{place} is damaged; made again")
            restart = True
        run.begin(name, inputs, code, fresh=restart)
        result = _run_stage(job, bodies(stage), code)
        shared.put(place, run, name)
        return result


def _skip(progress: Progress, stage: Stage, done: dict) -> dict:
    progress.stage(stage.name)
    _note_code(progress, stage, done)
    progress.note("skipped: configuration and inputs unchanged")
    return {"status": "skipped", "secs": 0.0, **done["summary"]}


def _note_code(progress: Progress, stage: Stage, made: dict) -> None:
    """Says that a stage's checkpoints are of other code than what would compute them now."""
    code, now = made["code"], describe_code(stage)
    if stage.trains and code["hash"] != now["hash"]:
        was, is_ = (
            f"commit {(x['commit'] or 'unknown')[:10]}{' with changes' * bool(x['dirty'])}"
            for x in (code, now)
        )
        progress.note(
            f"its checkpoints were made by other code ({was}; this is {is_}); they are kept, "
            "--fresh trains again"
        )


def _check_single(only: str, run: RunDir, described: dict[str, dict]) -> None:
    """Refuses to run one stage on unfinished ones."""
    if only not in described:
        raise BadInput(f"stages is {tuple(described)}; it must hold {only!r} for this verb")
    _, done = survey(run, described, (only,), (only,))
    for name in described:
        if name not in upstream(only, described):
            continue
        damage = run.find_damage(done[name]) if name in done else None
        if damage or name not in done or not run.is_whole(done[name]):
            why = f": {run.path / damage} is damaged" if damage else ""
            raise BadInput(
                f"{run.path}: stage {name!r}, which {only!r} reads from, is not finished for "
                f"this configuration{why}; run `seedbed {name}` or `seedbed run` first"
            )


def _refuse_to_discard(run: RunDir, name: str, inputs: Mapping, done: dict | None) -> None:
    """Raises BadInput where a stage could run only by discarding the checkpoints that it has."""
    if not run.checkpoints(name).exists():
        return
    if not run.checkpoints(name).is_dir():
        raise BadInput(f"{run.checkpoints(name)}: is not a directory; remove it, or give --fresh")
    changes = [] if done else find_changes(run, name, inputs)
    damage = run.find_damage(done) if done else None
    if changes or damage:
        what = (
            f"{run.checkpoints(name)}: written with {changes[0]}; use the same value,"
            if changes
            else f"{run.path / damage} is damaged; use"
        )
        raise BadInput(
            f"{what} another --run directory, or `seedbed {name} --fresh` to start the stage over"
        )


def _refuse_to_strand(run: RunDir, name: str, inputs: Mapping, described: Mapping) -> None:
    """Raises BadInput where a stage with other keys would replace what checkpoints depend on.

    For example a new tokenizer in place of the one that a kept model was trained with. Other code
    alone may give the same result: the stage runs again, and the checkpoints are checked then.
    """
    if STAGES[name].trains:
        return
    changes = find_changes(run, name, inputs, ("code",))
    for other in described if changes else ():
        if name in upstream(other, described) and run.checkpoints(other).exists():
            raise BadInput(
                f"{run.checkpoints(other)}: depends on stage {name!r}, which was last run with "
                f"{changes[0]}; use the same value or another --run directory, or `seedbed {name} "
                "--fresh`, and the same for each later stage that starts from its result"
            )


def _run_stage(job: Job, body: Body, code: dict) -> dict:
    start, cpu_start = time.perf_counter(), _cpu_secs()
    with job.on_mesh():
        summary = body(job)
    secs = time.perf_counter() - start
    done = {
        "stage": job.stage,
        "inputs": digest(job.inputs),
        "output": digest([summary, job.run.hash_files(job.stage)]),
        "code": code,
        "secs": round(secs, 2),
        "cpu_secs": round(_cpu_secs() - cpu_start, 2),
        "summary": summary,
        "products": job.run.products(job.stage),
    }
    write_json(job.run.stage(job.stage) / "done.json", done)
    job.progress.note(f"done in {secs:.1f} s")
    return {"status": "done", "secs": done["secs"], **summary}


def _cpu_secs() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in usage)
