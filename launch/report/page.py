"""The page to look at: one self-contained HTML file that says what a run did and what it bought.

It reads the files of a run directory and nothing else, so a report can be made again at any time:
`seedbed report --run=runs/quickstart`. A section whose files are absent is left out.
"""

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jinja2

from data.errors import BadInput
from data.instruct import FACT_KINDS
from launch.identity import find_faults
from launch.report import forms, plot
from launch.report import funnel as funnel_rows
from launch.settings import CostConfig
from launch.stages.stage import MODELS, STAGES, START
from launch.store import rundir

TEMPLATE = Path(__file__).with_name("page.html.jinja")

SHOWN = tuple(name for name in STAGES if name != "report")
LABELS = {START: "Start"} | {name: STAGES[name].model for name in MODELS}
SYSTEMS = {"model": "the first model", "ngram": "byte n-gram", "xz": "xz", "gzip": "gzip"}
# What code and template raise on values of another kind than they were written for.
SHAPE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHAPE_ERRORS += (jinja2.TemplateError,)
LENGTH = "response_tokens"
DOCS = "docs"  # all FACT_KINDS together
FUNNEL_KEYS = (
    *("read", "stages", "kept", "heldout", "dropped", "languages"),
    *("broken", "num_broken", "samples", "largest_cluster"),
)
# What a stage's answers are judged by: key of eval/results.json, title, is more of it better.
RATES = (
    ("verifiable", "Exact match, verifiable tasks", True),
    (DOCS, "Documentation questions", True),
    ("refusal", "Refuses unsafe", True),
    ("over_refusal", "Refuses harmless", False),
    ("does_not_know", "Says it does not know unknown names", True),
    ("false_unknown", "Denies knowing real names", False),
)
# What is drawn of each stage, in this order, where it was measured.
PANELS = {
    "loss": "loss",
    "z_loss": "squared log-normaliser of the logits",
    "moe_balance": "load balance of experts, 1 if even",
    "moe_z": "squared log-normaliser of the routers",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "accuracy": "accuracy on pairs",
    "margin": "reward margin",
    "reward": "reward, learned",
    "gold": "reward, gold rater",
    "kl": "KL to the reference, nats",
    "entropy": "entropy, nats",
    "clip_fraction": "clipped fraction",
    "value_loss": "value loss",
    "value_grad_norm": "gradient norm of the critic",
    "explained_variance": "explained variance of the critic",
    "even_groups": "share of prompts whose answers all score alike",
    "answer_tokens": "answer length, tokens",
    "finished": "share of finished answers",
}
LOGARITHMIC = {"grad_norm", "value_grad_norm"}
EXACT = {"lr"}  # known without noise: never smoothed


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of a run directory, whole or not at all.

    Args:
      run_dir: a directory with config.json and, as far as the run went, metrics.jsonl,
        <stage>/done.json, curate/funnel.json, curate/score.json, tokenizer/shards.json and
        eval/results.json.

    Returns:
      The path of the page.

    Raises:
      BadInput: config.json is absent, no stage of it is finished, or a file is not what the stages
        write; names file and line.
    """
    identity = rundir.read_json(run_dir / "config.json", ("config", "code", "packages", "python"))
    if identity is None:
        raise BadInput(f"{run_dir / 'config.json'}: absent; a run directory holds one")
    metrics = _read_metrics(run_dir / "metrics.jsonl")
    done = _read_done(run_dir)
    with _made_of(run_dir / "config.json", *run_dir.glob("*/started.json")):
        missing = find_faults(rundir.RunDir(run_dir))
    if missing and not done:
        raise BadInput(f"{run_dir}: no stage is finished yet, of {', '.join(missing)}")
    funnel_file, shards_file = run_dir / "curate/funnel.json", run_dir / "tokenizer/shards.json"
    score_file, results_file = run_dir / "curate" / rundir.SCORE, run_dir / "eval/results.json"
    funnel = rundir.read_json(funnel_file, FUNNEL_KEYS)
    score = rundir.read_json(score_file, ("rows",))
    shards = rundir.read_json(shards_file, ("groups", "fertility"))
    results = rundir.read_json(results_file) or {}
    with _made_of(run_dir / "config.json"):
        title = _title(run_dir, identity, metrics, missing)
        costs = _costs(done, CostConfig(**identity["config"]["cost"])) if done else None
    with _made_of(shards_file):
        tokens = funnel_rows.tokens(shards) if shards else None
        plan = _plan(shards, done.get("pretrain"))
    with _made_of(funnel_file):
        curation = funnel_rows.curation(funnel, shards) if funnel else None
    with _made_of(run_dir / "metrics.jsonl"):
        curves = [_curves(stage, metrics[stage]) for stage in SHOWN if stage in metrics]
    with _made_of(results_file):
        measured = _measured(results)
    with _made_of(run_dir / "config.json", results_file, score_file, funnel_file, shards_file):
        page = _render(
            identity=identity,
            title=title,
            curation=curation,
            tokens=tokens,
            plan=plan,
            score=score["rows"] if score else None,
            curves=curves,
            costs=costs,
            **measured,
        )
    path = run_dir / "report.html"
    rundir.write_text(path, page)
    return path


def _read_done(run_dir: Path) -> dict[str, dict]:
    """What each finished stage left."""
    done = {}
    for stage in SHOWN:
        path = run_dir / stage / "done.json"
        if found := rundir.read_json(path, ("secs", "cpu_secs")):
            with _made_of(path):  # by itself, so that the file at fault is named
                _costs({stage: found}, CostConfig(1.0))
            done[stage] = found
    return done


def _measured(results: Mapping) -> dict:
    """The sections that evaluation fills."""
    return {
        "models": _models(results),
        "headline": _headline(results),
        "tasks": _tasks(results),
        "kinds": _kinds(results),
        "reward_model": results.get("reward_model"),
        "mixture": _mixture(results.get("mixture")),
        "text": _text(results.get("text")),
        "samples": results.get("samples", []),
    }


@contextlib.contextmanager
def _made_of(*paths: Path) -> Iterator[None]:
    """Names the files where a part of the page does not find in them what the stages write."""
    try:
        yield
    except BadInput:
        raise
    except SHAPE_ERRORS as error:
        names = ", ".join(str(path) for path in paths if path.exists())
        raise BadInput(
            f"{names}: not what the stages write ({type(error).__name__}: {error}); remove and run "
            "again"
        ) from error


def _read_metrics(path: Path) -> dict[str, dict[int, dict]]:
    """Metrics by stage and step; of a metric written twice for a step, the later one counts."""
    metrics: dict[str, dict[int, dict]] = {}
    for _, row in rundir.read_metrics(path) if path.exists() else ():
        metrics.setdefault(row["stage"], {}).setdefault(row["step"], {}).update(row)
    return metrics


def _title(run_dir: Path, identity: Mapping, metrics: Mapping, missing: Sequence[str]) -> dict:
    rows = [row for found in metrics.values() for row in found.values()]
    times = [row["time"] for row in rows if row.get("time") is not None]
    seconds = max(times) if times else (run_dir / "config.json").stat().st_mtime
    date = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    devices = identity.get("devices", [])
    machine = [identity.get("platform", ""), *([devices] if isinstance(devices, str) else devices)]
    return {
        "name": run_dir.resolve().name,
        "date": date.strftime("%Y-%m-%d %H:%M UTC"),
        "missing": ", ".join(missing),
        "machine": ", ".join(_counted(str(part) for part in machine if part)),
    }


def _counted(parts: Iterable[str]) -> list[str]:
    """Each part once, with the number of times it came: eight equal devices are one phrase."""
    counts: dict[str, int] = {}
    for part in parts:
        counts[part] = counts.get(part, 0) + 1
    return [part if count == 1 else f"{count} x {part}" for part, count in counts.items()]


def _models(results: Mapping) -> dict[str, str]:
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
            found[DOCS] = {"mean": mean, "count": count}
        dialog[stage] = found
    return dialog


def _headline(results: Mapping) -> dict | None:
    """What each stage bought: a row a model; every cell beside the model that it grew from."""
    text = results.get("text_by_stage", {})
    dialog = _dialog(results)
    models = _models({"dialog": dialog, "text_by_stage": text})
    rates = [rate for rate in RATES if any(rate[0] in dialog.get(stage, {}) for stage in models)]
    columns = [title for _, title, _ in rates]
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
        columns.append("Bits per byte, held-out text")
        for stage in models:
            cells[stage].append(_cell(text, stage, "{:.3f}", "{:+.3f}", -1))
    preference = results.get("preference", {})
    rows = [
        {"title": models[stage], "cells": cells[stage], "preference": preference.get(stage)}
        for stage in models
    ]
    return {"columns": columns, "rows": rows, "preference": preference} if models else None


def _rate_cell(dialog: Mapping, stage: str, key: str, upward: bool) -> dict:
    means = {name: found[key]["mean"] for name, found in dialog.items() if key in found}
    percents = {name: 100 * mean for name, mean in means.items()}
    return _cell(percents, stage, "{:.1f}%", "{:+.1f}", 1 if upward else -1)


def _cell(values: Mapping[str, float], stage: str, form: str, change_form: str, good: int) -> dict:
    """A figure and its change from the parent's; good is the sign of a change for the better."""
    if stage not in values:
        return {"value": "", "change": "", "tone": ""}
    cell = {"value": form.format(values[stage]), "change": "", "tone": ""}
    parent = STAGES[stage].parent(values) or START if stage in STAGES else None
    if parent in values:
        change = values[stage] - values[parent]
        cell["change"] = change_form.format(change)
        if float(cell["change"]):
            cell["tone"] = {1: "better", -1: "worse", 0: ""}[good * (1 if change > 0 else -1)]
    return cell


def _kinds(results: Mapping) -> dict | None:
    """Accuracy of each kind of question under each model; the headline has the rates."""
    dialog = _dialog(results)
    models = _models({"dialog": dialog})
    others = {*(key for key, _, _ in RATES), LENGTH, "finished"}
    kinds = sorted({kind for found in dialog.values() for kind in found} - others)
    if not kinds:
        return None
    rows = [
        {"kind": kind, "cells": [dialog[stage].get(kind) for stage in models]} for kind in kinds
    ]
    return {"titles": list(models.values()), "rows": rows}


def _tasks(results: Mapping) -> dict | None:
    """The mean of each benchmark under each model; how it was asked is the same for all."""
    tasks = results.get("tasks", {})
    models = _models({"tasks": tasks})
    rows = [
        {"name": name, "about": next(iter(found.values())), "cells": [found.get(m) for m in models]}
        for name, found in tasks.items()
    ]
    return {"titles": list(models.values()), "rows": rows} if rows else None


def _plan(shards: Mapping | None, pretrained: Mapping | None) -> dict | None:
    """What pretraining has read, or before that what the tokenizer stage has planned."""
    rows = (pretrained or {}).get("summary", {}).get("mixture") or (shards or {}).get("mixture")
    return funnel_rows.mixture(rows) if rows else None


def _mixture(mixture: Mapping | None) -> list[dict]:
    if not mixture:
        return []
    asked, realised = mixture["asked"], mixture["realised"]
    return [
        {"domain": domain, "asked": asked.get(domain, 0.0), "realised": realised.get(domain, 0.0)}
        for domain in sorted({*asked, *realised})
    ]


def _text(text: Mapping | None) -> dict | None:
    """Bits per byte by domain, the whole last, and the same as a plot."""
    if not text:
        return None
    domains = [*sorted(set(text) - {"all"}), *(["all"] if "all" in text else [])]
    systems = {key: title for key, title in SYSTEMS.items() if any(key in text[d] for d in domains)}
    rows = [{"domain": domain, **text[domain]} for domain in domains]
    values = {title: [row.get(key, math.nan) for row in rows] for key, title in systems.items()}
    return {
        "systems": systems,
        "rows": rows,
        "plot": plot.bars(domains, values, "bits per byte (less is better)"),
    }


def _costs(done: Mapping[str, Mapping], cost: CostConfig) -> dict:
    """Time and energy of each stage, and of all."""
    rows = [
        {**found, "colour": SHOWN.index(stage), "energy_wh": cost.energy_wh(found["secs"])}
        for stage, found in done.items()
    ]
    keys = ("secs", "cpu_secs", "energy_wh")
    return {"rows": rows, "totals": {key: sum(row[key] for row in rows) for key in keys}}


def _curves(stage: str, rows: Mapping[int, Mapping]) -> dict:
    """Every plot of one stage, what its evaluators measured (evaluator/name) too, and its rates.

    Rates are over the stage: what was done in all intervals over their seconds.
    """
    steps = sorted(rows)
    evaluated = sorted({metric for row in rows.values() for metric in row if "/" in metric})
    plots = []
    for metric in (*PANELS, *evaluated):
        values = [(step, rows[step].get(metric)) for step in steps]
        points = [(step, value) for step, value in values if isinstance(value, (int, float))]
        if points:
            plots.append(
                plot.line(
                    _metric_title(metric),
                    points,
                    logarithmic=metric in LOGARITHMIC,
                    noisy=metric not in EXACT,
                )
            )
    rates = []
    for metric, title, form in (
        ("tokens_per_sec", "tokens/s", "{:,.0f}"),
        ("mfu", "MFU", "{:.1%}"),
    ):
        timed = [row for row in rows.values() if None not in map(row.get, (metric, "train_secs"))]
        if timed:
            secs = sum(row["train_secs"] for row in timed)
            mean = sum(row[metric] * row["train_secs"] for row in timed) / secs
            rates.append({"title": title, "value": form.format(mean)})
    return {"stage": stage, "steps": steps[-1], "plots": plots, "rates": rates}


def _metric_title(metric: str) -> str:
    found = re.fullmatch(r"heldout(?:_(\w+))?/(\w+)", metric)
    if not found or metric.startswith("heldout_bits_per_byte/"):
        return PANELS.get(metric, metric)
    of_set = f" ({found[1]})" if found[1] else ""
    return f"{PANELS.get(found[2], found[2])}, held out{of_set}"


def _render(**sections) -> str:
    """The template over the sections; everything that is not markup of ours is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({form.__name__: form for form in forms.FORMS})
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**sections)
