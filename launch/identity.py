"""What the result of each stage depends on, and whether the results in a run are up to date.

A stage's identity is the hash of its inputs: its own keys, the content of the files it reads, and
the results of the stages it reads from (`output` in their done.json: parameter hashes, contents of
their files). Stages that keep no checkpoints (curation, evaluation, report) also count their own
code as an input; the log says when other code made a checkpoint.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import curate
from data.engine import hash_code
from data.errors import BadInput
from data.tokens import imported
from launch import decontamination, load, own_sets, shard_plan
from launch.schema import identity, to_dict
from launch.settings import Settings
from launch.stages.stage import STAGES, Stage
from launch.store.rundir import (
    ORIGIN_KEYS,
    ROOT,
    RunDir,
    code_version,
    digest,
    flatten,
    hash_file,
    read_json,
)

# Stands for the result of a stage that has not run yet.
UNFINISHED = "unfinished"


def describe_inputs(settings: Settings) -> dict[str, dict]:
    """What each stage's result depends on, but for the results of the stages it reads from.

    Files count by their content. Keys that cannot change a result are left out: the mesh (a run may
    resume on another one), kernels, logging and the like (`model.config.LAYOUT`).
    """
    return {name: describe(settings, name) for name in settings.stages}


def describe(settings: Settings, name: str) -> dict:
    """As `describe_inputs`, of one stage."""
    stage = STAGES[name]
    inputs = {section: _section(settings, section) for section in stage.reads}
    if not stage.trains:
        inputs["code"] = hash_code(*(ROOT / path for path in stage.code))
    if name in ("tokenizer", "pretrain"):  # curation's result does not depend on them
        inputs["weights"] = shard_plan.source_weights(settings)
    return {"stage": name, **inputs, **describe_files(settings, name)}


def describe_files(settings: Settings, name: str) -> dict:
    """The content of the files that a stage reads from outside of the run."""
    if name == "curate":
        found = {"files": curate.fingerprint(settings.data)}
        return found | {"evaluation": decontamination.fingerprint(settings)}
    if name == "tokenizer" and settings.start:
        run, stage, _ = load.find_start(settings.start)
        found = {"start_tokenizer": imported.fingerprint("start", run.stage("tokenizer"))}
        if stage == load.IMPORTED:
            described = run.read_config()
            found["start_origin"] = {key: described[key] for key in ORIGIN_KEYS}
        return found
    if name == "tokenizer" and (path := settings.tokenizer.path):
        return {"files": imported.fingerprint("tokenizer.path", Path(path))}
    content = own_sets.fingerprint(settings, name)
    function = settings.reward.function if "reward.function" in STAGES[name].reads else ""
    if ":" in function:
        content["reward.function"] = _hash_module(function.partition(":")[0])
    found = {"content": content} if content else {}
    if name == "eval":
        found["task_files"] = decontamination.task_files(settings)
    if reads_start(settings, name):
        found["start_weights"] = load.weights_hash(load.find_start(settings.start))
    return found


def _hash_module(name: str) -> str:
    """The content of a module's file; 'absent' if there is none, which its stage refuses."""
    own_sets.find_modules_beside()
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package that it would be in
        return "absent"
    return hash_file(Path(spec.origin)) if spec and spec.origin else "absent"


def reads_start(settings: Settings, name: str) -> bool:
    """Whether a stage starts from, or measures, the model that `start` names."""
    row = STAGES[name]
    is_first = name == "pretrain" or (row.starts and not row.parent(settings.stages))
    is_measured = name == "eval" and "pretrain" not in settings.stages
    return bool(settings.start and (is_first or is_measured))


def survey(
    run: RunDir,
    described: Mapping[str, dict],
    names: Collection[str],
    discarded: Collection[str],
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The inputs of `names` and what they read from, and the done.json of those finished on them.

    Their files may be whole or not. An unfinished stage has no output: where one that reads from it
    has finished, it was on another one. What `discarded` stages left is about to be deleted and
    is not read: it may be damaged.
    """
    inputs: dict[str, dict] = {}
    done: dict[str, dict] = {}
    wanted = set(names).union(*(upstream(name, described) for name in names))
    for name, own in described.items():
        if name not in wanted:
            continue
        needs = STAGES[name].upstream(described)
        outputs = {need: done[need]["output"] if need in done else UNFINISHED for need in needs}
        if name == "report":  # it shows how long they took, and every line
            outputs = {need: digest(done[need]) for need in needs if need in done}
            lines = run.path / "metrics.jsonl"
            own = own | {"lines": hash_file(lines) if lines.exists() else ""}
        inputs[name] = {**own, "upstream": outputs}
        left = None if name in discarded else run.read_done(name)
        if left and left["inputs"] == digest(inputs[name]):
            done[name] = left
    return inputs, done


def upstream(name: str, named: Collection[str]) -> set[str]:
    """All stages among `named` that a stage's result depends on."""
    found: set[str] = set()
    for need in STAGES[name].upstream(named):
        found |= {need} | upstream(need, named)
    return found


def describe_code(stage: Stage) -> dict:
    """What computes a stage: the checkout's commit, and the hash of the code it runs."""
    return {**code_version(), "hash": hash_code(*(ROOT / path for path in stage.code))}


def find_changes(
    run: RunDir, name: str, inputs: Mapping[str, Any], unseen: Collection[str] = ()
) -> list[str]:
    """How the present inputs differ from those of the stage's last start, sections `unseen` aside.

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
        elif section.startswith("start_"):
            found.append("another model in `start` than there is now")
        elif section == "content":
            found.append(f"other content of {stage} than there is now")
        else:
            found.append(f"{key} = {before!r}, this configuration has {after!r}")
    return found


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


def is_described(run: RunDir, settings: Settings, names: Collection[str]) -> bool:
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
    weights = {f"data.sources.{domain}.weight" for domain in shard_plan.source_weights(settings)}
    free = asked.keys() - flatten(identity(settings)).keys() - weights
    sections = to_dict(settings)
    found = {key: value for key, value in found.items() if key.partition(".")[0] in sections}
    return all(found.get(key, free) == asked.get(key, free) for key in {*found, *asked} - free)


def with_kept_sections(run: RunDir, settings: Settings) -> dict:
    """The settings for config.json, with the sections that only stages read which are not named.

    Their results may still be there, and chat or export read their keys.
    """
    try:
        before = run.read_config()
    except BadInput:
        before = {}
    known = {field.name for field in dataclasses.fields(Settings)}
    return {key: value for key, value in before.items() if key in known} | to_dict(settings)


def _section(settings: Settings, path: str) -> Any:
    """The part of a section that can change a result."""
    found = identity(settings)
    for key in path.split(".") if path else ():
        found = None if found is None else found.get(key)
    return found
