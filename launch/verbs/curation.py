"""Modes of `seedbed curate` besides curating: its JSON, one document's history, fitting models."""

import json
from pathlib import Path

from data import documents, sources
from data.curate import CurateConfig
from data.errors import BadInput
from data.gates import chain, classifier, repair, toxicity
from launch.console import Progress
from launch.store.rundir import RunDir, read_json

# Fields of a document's history that are printed first.
FIRST_FIELDS = ("outcome", "why", "reason", "detail", "duplicate_of")


def headline(run: RunDir) -> dict:
    """What `curate --json` prints of a finished curation.

    Returns:
      read, kept: documents. dropped: {gate: {reason: documents}}. broken: the first records
      skipped in each part, {file, record, why}, and num_broken of all.
    """
    counted = read_json(run.stage("curate") / "funnel.json")
    dropped: dict[str, dict[str, int]] = {}
    for gate, found in counted["dropped"].items():
        family, _, rule = gate.partition("_")
        if family in chain.FAMILIES:  # the rest of its name is the reason
            dropped.setdefault(family, {})[rule] = found["documents"]
        else:
            dropped[gate] = {reason or gate: count for reason, count in found["reasons"].items()}
    return {
        **{
            key: sum(domain["documents"] for domain in counted[key].values())
            for key in ("read", "kept", "heldout")
        },
        "dropped": dropped,
        "broken": counted["broken"],
        "num_broken": counted["num_broken"],
    }


def explain(run: RunDir, key: str) -> dict:
    """The history of one document of a finished curation."""
    if run.read_done("curate") is None:
        raise BadInput(f"{run.path}: curation is not finished; `seedbed curate` first")
    found = documents.explain(run.stage("curate"), key)
    for row in (found, found.get("stays", {})):
        row |= {name: None for name, x in row.items() if x != x}  # nan: no gate measured it
    for name in ("meta", "edits"):
        found[name] = json.loads(found[name]) if found[name] else {}
    # What became of it and why, where one looks first; a text may be longer than the screen.
    first = {name: found[name] for name in FIRST_FIELDS if name in found}
    if "stays" in found:
        found["stays"]["text"] = found["stays"].pop("text")
    text = {"text": found.pop("text")}
    return {**first, **found, **text}


def fit(kind: str, config: CurateConfig, progress: Progress) -> dict:
    """Fits the quality or the toxicity model from the examples that the configuration names.

    Args:
      kind: quality or toxicity.
      config: the section `data`; `chain.KIND.model` says where the model goes.
      progress: takes lines.

    Returns:
      {model, examples of each class}.
    """
    section = getattr(config.gates, kind)
    if not section.model:
        raise BadInput(f"data.gates.{kind}.model: '' is no path; it says where the model goes")
    if kind == "toxicity":
        model = toxicity.fit(section, config.gates.classifier)
    else:
        good = _texts("good", section.good, config.max_document_bytes)
        bad = _texts("bad", section.bad, config.max_document_bytes)
        progress.log(f"{len(good)} good and {len(bad)} bad texts")
        labels = [True] * len(good) + [False] * len(bad)
        model = classifier.train(good + bad, labels, config.gates.classifier, section.l2)
    model.save(Path(section.model))
    return {
        "model": section.model,
        "positive": model.num_positive,
        "negative": model.num_negative,
    }


def _texts(key: str, path: str, max_bytes: int) -> list[str]:
    """Every text of the files at a path, repaired as gates see it."""
    if not path:
        raise BadInput(f"data.gates.quality.{key}: '' is no path; texts to learn from are needed")
    found = sources.survey(path)
    return [
        repair.repair(row["text"])
        for unit in found.units
        for row in sources.read(unit, found.sources[unit.domain], max_bytes, [])
    ]
