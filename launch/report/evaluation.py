"""What the report says of the evaluation: a row a model, each beside the one it started from.

Figures come from eval/results.json; the template only lays them out.
"""

import math
from collections.abc import Collection, Mapping

from data.quickstart.instruct import FACT_KINDS
from launch.report import plot
from launch.stages.stage import MODELS, STAGES, START

LABELS = {START: "Start"} | {name: STAGES[name].model for name in MODELS}
SYSTEMS = {"ngram": "byte n-gram", "xz": "xz", "gzip": "gzip"}
LENGTH = "response_tokens"
DOCS = "docs"  # all FACT_KINDS together
# The rates of a stage's answers: key of eval/results.json, title, is more of it better.
RATES = (
    ("verifiable", "Exact match, verifiable tasks", True),
    (DOCS, "Documentation questions", True),
    ("refusal", "Refuses unsafe", True),
    ("over_refusal", "Refuses harmless", False),
    ("does_not_know", "Says it does not know unknown names", True),
    ("false_unknown", "Denies knowing real names", False),
)


def sections(results: Mapping) -> dict:
    """Rows of the sections on evaluation.

    Args:
      results: eval/results.json; {} before that stage.

    Returns:
      models, titles by key; headline, kinds, tasks and text, each None where nothing of it was
      measured; samples.
    """
    return {
        "models": titles(results),
        "headline": _headline(results),
        "tasks": _tasks(results),
        "kinds": _kinds(results),
        "text": _text(results),
        "samples": results.get("samples", []),
    }


def titles(results: Mapping) -> dict[str, str]:
    """Keys and titles of the models that were measured, in the order in which they were made."""
    found = {*results.get("dialog", {}), *results.get("text_by_stage", {})}
    found |= {stage for by_model in results.get("tasks", {}).values() for stage in by_model}
    found |= {stage for sample in results.get("samples", []) for stage in sample["answers"]}
    order = [*LABELS, *sorted(found - set(LABELS))]
    return {stage: LABELS.get(stage, stage) for stage in order if stage in found}


def _dialog(results: Mapping) -> dict[str, dict]:
    """Rates and kinds of each model together; all documentation questions as one more."""
    dialog = {}
    for stage, table in results.get("dialog", {}).items():
        found = {**table, **table.get("kinds", {})}
        found.pop("kinds", None)
        facts = [found[kind] for kind in FACT_KINDS if kind in found]
        if count := sum(fact["count"] for fact in facts):
            mean = sum(fact["mean"] * fact["count"] for fact in facts) / count
            errors = (fact["stderr"] * fact["count"] for fact in facts)
            found[DOCS] = {"mean": mean, "stderr": math.hypot(*errors) / count, "count": count}
        dialog[stage] = found
    return dialog


def _headline(results: Mapping) -> dict | None:
    """What each stage gained: a row a model; every cell beside the model that it started from."""
    text = results.get("text_by_stage", {})
    dialog = _dialog(results)
    models = titles({"dialog": dialog, "text_by_stage": text})
    rates = [rate for rate in RATES if any(rate[0] in dialog.get(stage, {}) for stage in models)]
    columns = [f"{title}\u00a0{'↑' if upward else '↓'}" for _, title, upward in rates]
    cells = {
        stage: [_rate_cell(dialog, stage, key, upward) for key, _, upward in rates]
        for stage in models
    }
    lengths = {stage: dialog[stage][LENGTH]["mean"] for stage in dialog if LENGTH in dialog[stage]}
    if lengths:
        columns.append("Answer length, tokens")
        for stage in models:
            cells[stage].append(_cell(lengths, stage, "{:.0f}", "{:+.0f}", 0))
    if text:
        columns.append("Bits per byte, held-out text\u00a0↓")
        for stage in models:
            cells[stage].append(_cell(text, stage, "{:.3f}", "{:+.3f}", -1))
    preference = results.get("preference", {})
    parents = {stage: parent for stage in models if (parent := _parent(stage, models))}
    rows = [
        {
            "title": models[stage],
            "cells": cells[stage],
            "preference": preference.get(stage),
            "parent": models.get(parents.get(stage), "its start"),
        }
        for stage in models
    ]
    found = {
        "columns": columns,
        "rows": rows,
        "preference": preference,
        "changes": ", ".join(f"{models[s]} from {models[p]}" for s, p in parents.items()),
        "measured": " and ".join(["questions"] * bool(dialog) + ["text"] * bool(text)),
    }
    return found if models else None


def _parent(stage: str, models: Collection[str]) -> str | None:
    """The model among those measured that a stage started from."""
    parent = STAGES[stage].parent(models) or START if stage in STAGES else None
    return parent if parent in models else None


def _rate_cell(dialog: Mapping, stage: str, key: str, upward: bool) -> dict:
    means = {name: found[key]["mean"] for name, found in dialog.items() if key in found}
    percents = {name: 100 * mean for name, mean in means.items()}
    cell = _cell(percents, stage, "{:.1f}%", "{:+.1f}", 1 if upward else -1)
    if parent := _parent(stage, means):
        errors = (dialog[name][key]["stderr"] for name in (stage, parent))
        if abs(means[stage] - means[parent]) < 1.96 * math.hypot(*errors):
            cell["tone"] = ""
    return cell


def _cell(values: Mapping[str, float], stage: str, form: str, change_form: str, good: int) -> dict:
    """A figure and its change from the parent's; good is the sign of a change for the better."""
    if stage not in values:
        return {"value": "", "change": "", "tone": ""}
    cell = {"value": form.format(values[stage]), "change": "", "tone": ""}
    if parent := _parent(stage, values):
        change = values[stage] - values[parent]
        cell["change"] = change_form.format(change)
        if not float(cell["change"]):
            cell["change"] = "0"
        else:
            cell["tone"] = {1: "better", -1: "worse", 0: ""}[good * (1 if change > 0 else -1)]
    return cell


def _kinds(results: Mapping) -> dict | None:
    """Accuracy of each kind of question under each model; the headline has the rates."""
    dialog = _dialog(results)
    models = titles({"dialog": dialog})
    others = {*(key for key, _, _ in RATES), LENGTH, "finished"}
    kinds = sorted({kind for found in dialog.values() for kind in found} - others)
    if not kinds:
        return None
    asked = results.get("questions", {})
    rows = [
        {"kind": kind, "asked": asked.get(kind), "cells": [dialog[s].get(kind) for s in models]}
        for kind in kinds
    ]
    return {"titles": list(models.values()), "rows": rows}


def _tasks(results: Mapping) -> dict | None:
    """The mean of each benchmark under each model; how it was asked is the same for all."""
    tasks = results.get("tasks", {})
    models = titles({"tasks": tasks})
    rows = [
        {"name": name, "about": next(iter(found.values())), "cells": [found.get(m) for m in models]}
        for name, found in tasks.items()
    ]
    return {"titles": list(models.values()), "rows": rows} if rows else None


def _text(results: Mapping) -> dict | None:
    """Bits per byte by domain, last that of several together, and the same as a plot."""
    text, models = results.get("text"), results.get("text_by_stage", {})
    if not text:
        return None
    first = next(iter(titles({"text_by_stage": models}).values()), "model")
    titled = {"model": first} | SYSTEMS
    domains = sorted(set(text) - {"all"}) or ["all"]
    if len(domains) > 1 and "all" in text:
        domains.append("all")
    systems = {key: title for key, title in titled.items() if any(key in text[d] for d in domains)}
    rows = [{"domain": domain, **text[domain]} for domain in domains]
    values = {title: [row.get(key, math.nan) for row in rows] for key, title in systems.items()}
    return {
        "systems": systems,
        "rows": rows,
        "plot": plot.bars(domains, values, "bits per byte (less is better)"),
    }
