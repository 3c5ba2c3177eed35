"""The order of stages, what the result of each depends on, and what makes one finished.

A stage's identity is the hash of its inputs: its own keys, the content of the files it reads, and
the results of the stages it stands on (`output` in their done.json: parameter hashes, contents of
their files). So a stage is done again exactly when something that it reads has changed. Stages
that keep no checkpoints (curation, evaluation, the report) also count their own code as an input.
Training is not thrown away for an edit of the code; the log says that other code made it.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import curate, files
from data.engine import Runner, hash_code
from data.errors import BadInput
from data.tokenizers import tokenizer_source
from launch import evaluation, mixing
from launch.console import Progress
from launch.rundir import (
    ORIGIN_KEYS,
    ROOT,
    SCORE,
    RunDir,
    code_version,
    digest,
    flatten,
    hash_file,
    read_json,
    remove,
    write_json,
)
from launch.settings import STAGES, TRAINED, identity, to_dict

# In place of the result of a stage that is to be done first.
UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage is given; `inputs` are those of the stage that runs."""

    settings: Any
    run: RunDir
    progress: Progress
    runner: Runner
    inputs: Mapping[str, Any]

    def refuse_changed_files(self) -> None:
        """Checks the stage's input files again; to be called once they are read, before any work.

        Raises:
          BadInput: one has changed since the stage began, so that its recorded hash is wrong.
        """
        name = self.inputs["stage"]
        now = _describe_files(self.settings, name)
        changed = [key for key in now if now[key] != self.inputs.get(key)]
        if changed:
            remove(self.run.stage(name) / "started.json")
            raise BadInput(
                f"{name}: files that it reads changed meanwhile ({', '.join(changed)}); run again"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: the keys it reads, the stages it stands on, the code that computes it, and its body.

    `body(context) -> summary` may be called again after a kill and goes on from its checkpoint.
    `sections` are dotted paths of the configuration, "" for all of it; `code` lists files and
    packages.
    """

    sections: tuple[str, ...]
    needs: tuple[str, ...]
    code: tuple[str, ...]
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
    described = describe_inputs(settings, table)
    if only is not None:
        _check_single(only, run, table, described)
    discarded = names if fresh else ()
    inputs, done = _survey(run, table, described, names, discarded)
    for name in names:
        if not fresh and set(table[name].needs) & described.keys() <= done.keys():
            _refuse_to_discard(run, name, inputs[name], done.get(name))
        if not fresh and name not in done:
            _refuse_to_strand(run, name, inputs[name], described, table)
    is_done = not fresh and all(name in done and run.is_whole(done[name]) for name in names)
    if is_done and _is_described(run, settings, names):
        return {name: _skip(progress, name, table[name], done[name]) for name in names}
    context = Context(settings, run, progress, runner, {})
    results = {}
    with run.lock(progress.note):
        run.write_config(to_dict(settings), devices)
        for place, name in enumerate(names):
            if place:  # files may have changed while the stages before it ran
                described[name] = _describe(settings, name, table[name])
            # What other stages, or another process, have left until now.
            inputs, done = _survey(run, table, described, names, discarded[place:])
            stage_context = dataclasses.replace(context, inputs=inputs[name])
            results[name] = _bring(stage_context, name, table[name], done.get(name), fresh)
    return results


def _bring(context: Context, name: str, stage: Stage, done: dict | None, fresh: bool) -> dict:
    """Runs a stage, unless it is finished and whole."""
    run, progress, inputs = context.run, context.progress, context.inputs
    if done and not fresh and run.is_whole(done):
        return _skip(progress, name, stage, done)
    progress.stage(name)
    if not fresh:
        _refuse_to_discard(run, name, inputs, done)
    damage = run.find_damage(done) if done and not fresh else None
    if damage:
        progress.note(f"{run.path / damage} is damaged; done again")
    # What is kept to go on from may be other names of the files that are damaged.
    anew = fresh or damage is not None
    if anew:
        remove(run.cache(name))
    started = None if anew else run.read_started(name)
    if started and run.checkpoints(name).exists():
        _note_code(progress, name, stage, started)
    code = _describe_code(stage)
    if not anew and done is None and run.stage(name).is_dir():
        anew = bool(_changes(run, name, inputs))
    run.begin(name, inputs, code, fresh=anew)
    return _run_stage(context, name, stage, code)


def _survey(
    run: RunDir,
    table: Mapping[str, Stage],
    described: Mapping[str, dict],
    names: Collection[str],
    discarded: Collection[str],
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The inputs of `names` and what they stand on, and the done.json of those finished on them.

    Their files may be whole or not. An unfinished stage has no output: where one that stands on it
    has finished, it was on another one. What `discarded` stages left is about to be thrown away and
    is not read: it may be damaged.
    """
    inputs: dict[str, dict] = {}
    done: dict[str, dict] = {}
    wanted = set(names).union(*(_upstream(name, table, described) for name in names))
    for name, own in described.items():
        if name not in wanted:
            continue
        needs = [need for need in table[name].needs if need in described]
        upstream = {need: done[need]["output"] if need in done else UNFINISHED for need in needs}
        if name == "report":  # it shows how long they took, and every line
            upstream = {need: digest(done[need]) for need in needs if need in done}
            shown = {"lines": run.path / "metrics.jsonl", "score": run.stage("curate") / SCORE}
            own = own | {k: hash_file(path) if path.exists() else "" for k, path in shown.items()}
        inputs[name] = {**own, "upstream": upstream}
        left = None if name in discarded else run.read_done(name)
        if left and left["inputs"] == digest(inputs[name]):
            done[name] = left
    return inputs, done


def _skip(progress: Progress, name: str, stage: Stage, done: dict) -> dict:
    progress.stage(name)
    _note_code(progress, name, stage, done)
    progress.note("nothing to do, its inputs are unchanged")
    return {"status": "skipped", "secs": 0.0, **done["summary"]}


def _describe_code(stage: Stage) -> dict:
    """What computes a stage: the checkout's commit, and the hash of the code it runs."""
    return {**code_version(), "hash": hash_code(*(ROOT / path for path in stage.code))}


def _note_code(progress: Progress, name: str, stage: Stage, made: dict) -> None:
    """Says that a stage's checkpoints are of other code than what would compute them now."""
    code, now = made["code"], _describe_code(stage)
    if name in TRAINED and code["hash"] != now["hash"]:
        was, is_ = (
            f"commit {(x['commit'] or 'unknown')[:10]}{' with changes' * bool(x['dirty'])}"
            for x in (code, now)
        )
        progress.note(
            f"its checkpoints were made by other code ({was}; this is {is_}); they are kept, "
            "--fresh makes them anew"
        )


def _check_single(
    only: str, run: RunDir, table: Mapping[str, Stage], described: dict[str, dict]
) -> None:
    """Refuses to run one stage on unfinished ones."""
    if only not in described:
        raise BadInput(f"stages is {tuple(described)}; it must hold {only!r} for this verb")
    _, done = _survey(run, table, described, (only,), (only,))
    for name in described:
        if name not in _upstream(only, table, described):
            continue
        damage = run.find_damage(done[name]) if name in done else None
        if damage or name not in done or not run.is_whole(done[name]):
            why = f": {run.path / damage} is damaged" if damage else ""
            raise BadInput(
                f"{run.path}: stage {name!r}, which {only!r} stands on, is not finished for "
                f"this configuration{why}; run `seedbed {name}` or `seedbed run` first"
            )


def _refuse_to_discard(run: RunDir, name: str, inputs: Mapping, done: dict | None) -> None:
    """Raises BadInput where a stage could go on only without the checkpoints that it has."""
    if not run.checkpoints(name).exists():
        return
    if not run.checkpoints(name).is_dir():
        raise BadInput(f"{run.checkpoints(name)}: is no folder; remove it, or give --fresh")
    changes = [] if done else _changes(run, name, inputs)
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


def _refuse_to_strand(
    run: RunDir, name: str, inputs: Mapping, described: Mapping, table: Mapping[str, Stage]
) -> None:
    """Raises BadInput where a stage with other keys would replace what checkpoints stand on.

    A tokenizer trained anew, say, in the place of the one that a kept model was trained with. Other
    code alone may give the same result: the stage is done again, and the checkpoints checked then.
    """
    if name in TRAINED:
        return
    changes = _changes(run, name, inputs, ("code",))
    for other in described if changes else ():
        if name in _upstream(other, table, described) and run.checkpoints(other).exists():
            raise BadInput(
                f"{run.checkpoints(other)}: stands on stage {name!r}, which was last made with "
                f"{changes[0]}; use the same value or another --run directory, or `seedbed {name} "
                "--fresh`, and the same for each stage after it whose start is another then"
            )


def _changes(
    run: RunDir, name: str, inputs: Mapping[str, Any], unseen: Collection[str] = ()
) -> list[str]:
    """What the stage's last start and what is asked now differ in, sections `unseen` aside.

    An unfinished stage upstream is no difference: it may have the same result again.
    """
    started = run.read_started(name)
    if started is None:
        return [f"keys that are not known, as {run.stage(name) / 'started.json'} is gone"]
    if started["hash"] == digest(inputs):
        return []
    was, now = flatten(started["inputs"]), flatten(inputs)
    found = []
    for key in was | now:
        before, after = was.get(key, "absent"), now.get(key, "absent")
        section, _, stage = key.partition(".")
        if before == after or section in unseen or after == UNFINISHED:
            continue
        if section == "upstream":
            found.append(f"another result of stage {stage!r} than there is now")
        else:
            found.append(f"{key} = {before!r}, this configuration has {after!r}")
    return found


def describe_inputs(settings: Any, table: Mapping[str, Stage]) -> dict[str, dict]:
    """What each stage's result depends on, but for the results of the stages it stands on.

    Files count by their content. Keys that cannot change a result are left out: the mesh (a run may
    go on on another one), kernels, logging and the like (`model.config.LAYOUT`).
    """
    return {name: _describe(settings, name, table[name]) for name in settings.stages}


def _describe(settings: Any, name: str, stage: Stage) -> dict:
    inputs = {section: _section(settings, section) for section in stage.sections}
    if name not in TRAINED:
        inputs["code"] = hash_code(*(ROOT / path for path in stage.code))
    if name in ("tokenizer", "pretrain"):  # curation's result does not hang on them
        inputs["weights"] = mixing.source_weights(settings)
    return {"stage": name, **inputs, **_describe_files(settings, name)}


def _describe_files(settings: Any, name: str) -> dict:
    """The content of the files that a stage reads from outside of the run."""
    if name == "curate":
        found = {"files": curate.fingerprint(settings.data)}
        return found | {"evaluation": evaluation.fingerprint(settings)}
    if name in ("tokenizer", "pretrain") and settings.start:
        return _describe_start(RunDir(Path(settings.start), "start"), name)
    if name == "tokenizer" and (path := settings.tokenizer.path):
        return {"files": tokenizer_source.fingerprint("tokenizer.path", Path(path))}
    if name == "sft" and (path := settings.instruct.path):
        return {"own": files.fingerprint("instruct.path", path)}
    return {}


def _describe_start(start: RunDir, name: str) -> dict:
    """What the tokenizer stage or pretraining takes of an imported run."""
    origin = start.read_config()
    if missing := {*ORIGIN_KEYS, "weights_sha256"} - origin.keys():
        raise BadInput(
            f"start={start.path}: config.json has no {min(missing)!r}; it must be a run that "
            "`seedbed import` made, with this version"
        )
    if name == "pretrain":
        return {"start_weights": origin["weights_sha256"]}
    taken = tokenizer_source.fingerprint("start", start.stage("tokenizer"))
    return {"start_tokenizer": taken, "start_origin": {key: origin[key] for key in ORIGIN_KEYS}}


def find_faults(run: RunDir) -> list[str]:
    """Stages that have not finished, and those whose result is out of date, with the reason.

    The report is not checked, and a stage that config.json does not name need not be there.
    """
    names = [name for name in STAGES if name != "report"]
    described = read_json(run.path / "config.json", ("config",)) or {"config": {}}
    asked = described["config"].get("stages", ())  # an imported run has none
    ended = [name for name in names if (run.stage(name) / "done.json").exists()]
    found = []
    for name in names:
        if name in ended:
            fault = _find_fault(run, name, ended, flatten(described["config"]))
            found += [f"{name} ({fault})"] if fault else []
        elif name in asked:
            found.append(name)
    return found


def _find_fault(run: RunDir, name: str, ended: Sequence[str], config: Mapping) -> str | None:
    """Why a finished stage's result is out of date; None if it is not."""
    inputs = (run.read_started(name) or {"inputs": {}})["inputs"]
    sections = {key.partition(".")[0] for key in config}
    if need := run.find_replaced(name):
        return f"of an earlier {need}"
    for key, value in flatten(inputs).items():
        section, _, rest = key.partition(".")
        asked = f"data.sources.{rest}.weight" if section == "weights" else key
        is_asked = section in sections or (section == "weights" and rest)
        if is_asked and config.get(asked, "absent") != value:
            return f"of another {asked}"
    for need in ended if name == "eval" else ():  # it takes what there is
        if need != name and need not in inputs.get("upstream", ended):
            return f"without {need}"
    return None


def _is_described(run: RunDir, settings: Any, names: Collection[str]) -> bool:
    """Whether config.json may stay: it has these values, but for those that cannot change a result.

    It also stays if stages other than `names` have finished: it has the keys they were made with.
    """
    try:
        found = flatten(run.read_config())
    except BadInput:
        return False
    if any((run.stage(name) / "done.json").exists() for name in STAGES if name not in names):
        return True
    asked = flatten(json.loads(json.dumps(to_dict(settings))))
    weights = {f"data.sources.{domain}.weight" for domain in mixing.source_weights(settings)}
    free = asked.keys() - flatten(identity(settings)).keys() - weights
    return all(found.get(key, free) == asked.get(key, free) for key in {*found, *asked} - free)


def _section(settings: Any, path: str) -> Any:
    """The part of a section that can change a result."""
    *parents, last = path.split(".")
    for key in parents:
        settings = getattr(settings, key)
    return identity(settings)[last] if last else identity(settings)


def _upstream(name: str, table: Mapping[str, Stage], present: Collection[str]) -> set[str]:
    found: set[str] = set()
    for need in table[name].needs:
        if need in present:
            found |= {need} | _upstream(need, table, present)
    return found


def _run_stage(context: Context, name: str, stage: Stage, code: dict) -> dict:
    start, cpu_start = time.perf_counter(), _cpu_secs()
    summary = stage.body(context)
    secs = time.perf_counter() - start
    done = {
        "stage": name,
        "inputs": digest(context.inputs),
        "output": digest([summary, context.run.hash_files(name)]),
        "code": code,
        "secs": round(secs, 2),
        "cpu_secs": round(_cpu_secs() - cpu_start, 2),
        "summary": summary,
        "products": context.run.products(name),
    }
    write_json(context.run.stage(name) / "done.json", done)
    context.progress.note(f"done in {secs:.1f} s")
    return {"status": "done", "secs": done["secs"], **summary}


def _cpu_secs() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in usage)
