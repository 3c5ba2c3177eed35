"""The report: one self-contained HTML file that says what a run did and what each stage gained.

It reads the files of a run directory and nothing else, so a report can be made again at any time:
`seedbed report --run=runs/quickstart`. A section whose files are absent is left out.
"""

import base64
import contextlib
import datetime
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from data.errors import BadInput
from launch.identity import find_faults
from launch.report import evaluation, forms, plot
from launch.report import funnel as funnel_rows
from launch.schema import to_dataclass
from launch.settings import CostConfig
from launch.stages.stage import STAGES, TRAINED
from launch.store import rundir
from launch.store.metrics import read_metrics
from model import flop
from model.config import TransformerConfig

TEMPLATE = Path(__file__).with_name("page.html.jinja")
STYLE = Path(__file__).with_name("page.css")
# Everything is refused but the one style sheet, and the style attributes of bars and plots: their
# values differ in every page. Texts of models and corpora are shown, so a slip in escaping must not
# run a script or fetch anything.
POLICY = (
    "default-src 'none'; style-src-elem 'sha256-{}'; style-src-attr 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

SHOWN = tuple(name for name in STAGES if name != "report")
# What the template reads; for messages.
FILES = ("config.json", "curate/funnel.json", "tokenizer/shards.json")
FILES += ("eval/results.json",)
# What code and template raise on values of another kind than they were written for.
SHAPE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHAPE_ERRORS += (jinja2.TemplateError,)
FUNNEL_KEYS = (
    *("read", "stages", "kept", "heldout", "dropped", "languages"),
    *("broken", "num_broken", "samples", "largest_cluster"),
)
REGULARISERS = ("z_loss", "moe_balance", "moe_z", "moe_dropped")  # no results: curves alone
PER_TOKEN = ("pretrain", "sft")  # stages whose loss is in nats a token
# What is drawn of each stage, in this order, where it was measured.
PANELS = {
    "loss": "loss",
    "z_loss": "z-loss of the logits",
    "moe_balance": "load balance of experts, 1 if even",
    "moe_z": "z-loss of the routers",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "accuracy": "accuracy on pairs",
    "margin": "reward margin",
    "chosen_logprob": "log-probability of chosen, nats",
    "reward": "reward",
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
        <stage>/done.json, curate/funnel.json, tokenizer/shards.json and
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
    parts = _of_data(run_dir, done) | _of_training(run_dir, identity, metrics, done)
    with _made_of(run_dir / "config.json"):
        title = _title(run_dir, identity, metrics, missing)
    with _made_of(*(run_dir / name for name in FILES)):
        page = _render(identity=identity, title=title, **parts)
    path = run_dir / "report.html"
    rundir.write_text(path, page)
    return path


def _of_data(run_dir: Path, done: Mapping[str, dict]) -> dict:
    """The sections on curation, tokens and the mixture."""
    funnel_file, shards_file = run_dir / "curate/funnel.json", run_dir / "tokenizer/shards.json"
    funnel = rundir.read_json(funnel_file, FUNNEL_KEYS)
    shards = rundir.read_json(shards_file, ("groups", "fertility"))
    with _made_of(shards_file):
        tokens = funnel_rows.tokens(shards) if shards else None
        plan = _plan(shards, done.get("pretrain"))
    with _made_of(funnel_file):
        curation = funnel_rows.curation(funnel, shards) if funnel else None
    return {"curation": curation, "tokens": tokens, "plan": plan}


def _of_training(run_dir: Path, identity: Mapping, metrics: Mapping, done: Mapping) -> dict:
    """The sections on training, evaluation and cost, and the summary of them."""
    results = rundir.read_json(run_dir / "eval/results.json") or {}
    with _made_of(run_dir / "config.json"):
        num_params = _num_params(identity["config"]) if metrics or results else None
        costs = _costs(done, CostConfig(**identity["config"]["cost"])) if done else None
    with _made_of(run_dir / "metrics.jsonl"):
        trained = [_trained(name, metrics[name], results) for name in TRAINED if name in metrics]
        curves = [_curves(stage, metrics[stage]) for stage in SHOWN if stage in metrics]
    with _made_of(run_dir / "eval/results.json"):
        measured = evaluation.sections(results)
        summary = _summary(num_params, trained, results)
    return {"summary": summary, "curves": curves, "costs": costs, **measured}


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
    for _, row in read_metrics(path) if path.exists() else ():
        metrics.setdefault(row["stage"], {}).setdefault(row["step"], {}).update(row)
    return metrics


def _title(run_dir: Path, identity: Mapping, metrics: Mapping, missing: Sequence[str]) -> dict:
    rows = [row for found in metrics.values() for row in found.values()]
    times = [row["time"] for row in rows if row.get("time") is not None]
    seconds = max(times) if times else (run_dir / "config.json").stat().st_mtime
    date = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    machine = filter(None, (identity.get("platform"), identity.get("devices")))
    return {
        "name": run_dir.resolve().name,
        "date": date.strftime("%Y-%m-%d %H:%M UTC"),
        "missing": ", ".join(missing),
        "machine": ", ".join(machine),
    }


def _num_params(config: Mapping) -> int | None:
    """Of the language model; None if the run has none."""
    if not config.get("model"):
        return None
    try:
        return flop.num_params(to_dataclass(TransformerConfig, config["model"], "model"))
    except BadInput as error:  # which does not name the file
        raise ValueError(str(error)) from error


def _trained(stage: str, rows: Mapping[int, Mapping], results: Mapping) -> dict:
    """The last figures of a training stage: its own loss, and all that it measured held out.

    Bits per byte are left to the evaluation, if there is one: it reads more documents.
    """
    skipped = "heldout_bits_per_byte" if "text_by_stage" in results else None
    last: dict[str, Any] = {}
    for step in sorted(rows):
        last |= {name: x for name, x in rows[step].items() if x is not None}
    heldout = []
    for metric in sorted(name for name in last if "/" in name):
        if metric.endswith(REGULARISERS) or metric.split("/")[0] == skipped:
            continue
        heldout.append((_metric_title(metric).replace(", held out", ""), f"{last[metric]:.4g}"))
        if stage in PER_TOKEN and metric.endswith("/loss"):
            heldout.append(("perplexity", f"{math.exp(last[metric]):.4g}"))
    unit = " nats a token" if stage in PER_TOKEN else ""
    return {
        "stage": stage,
        "steps": max(rows),
        "tokens": last.get("tokens"),
        "loss": f"{last['loss']:.4g}{unit}" if "loss" in last else "",
        "heldout": heldout,
    }


def _summary(num_params: int | None, trained: Sequence[Mapping], results: Mapping) -> dict | None:
    """The figures at the top: size, tokens trained, last losses, and scores of the evaluation."""
    tiles = []

    def add(title: str, value: str) -> None:
        tiles.append({"title": title, "value": value})

    if num_params:
        add("parameters", forms.short(num_params))
    if num_tokens := sum(row["tokens"] or 0 for row in trained):
        add("tokens trained on, over all stages", forms.short(num_tokens))
    models = evaluation.titles(results)
    for stage, bits in list(results.get("text_by_stage", {}).items())[:1]:
        add(f"bits per byte of held-out text, {models[stage]}", f"{bits:.3f}")
    if found := results.get("reward_model"):
        for name, part in found["by_set"].items():
            value = forms.percent(part["mean"]) + forms.interval(part["stderr"])
            title = f"reward model: accuracy on {part['count']:,} held-out pairs"
            add(title if len(found["by_set"]) == 1 else f"{title} of {name}", value)
    for name, by_model in results.get("tasks", {}).items():
        for model in list(by_model)[-1:]:
            found = by_model[model]
            value = forms.percent(found["mean"]) + forms.interval(found["stderr"])
            add(f"{name}, {models[model]}", value)
    return {"tiles": tiles, "rows": trained} if tiles or trained else None


def _plan(shards: Mapping | None, pretrained: Mapping | None) -> dict | None:
    """What pretraining has read, or before that what the tokenizer stage has planned."""
    rows = (pretrained or {}).get("summary", {}).get("mixture") or (shards or {}).get("mixture")
    return funnel_rows.mixture(rows) if rows else None


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

    Rates are over the stage: what was done in all intervals over their seconds. What was measured
    once is a figure, not a plot.
    """
    steps = sorted(rows)
    evaluated = sorted({metric for row in rows.values() for metric in row if "/" in metric})
    plots, figures = [], []
    for metric in (*PANELS, *evaluated):
        values = [(step, rows[step].get(metric)) for step in steps]
        points = [(step, value) for step, value in values if isinstance(value, (int, float))]
        if len(points) == 1:
            figures.append({"title": _metric_title(metric), "value": f"{points[0][1]:.4g}"})
        elif points:
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
        ("mfu", "MFU (share of peak FLOP/s)", "{:.1%}"),
    ):
        timed = [row for row in rows.values() if None not in map(row.get, (metric, "train_secs"))]
        if timed:
            secs = sum(row["train_secs"] for row in timed)
            mean = sum(row[metric] * row["train_secs"] for row in timed) / secs
            rates.append({"title": title, "value": form.format(mean)})
    found = {"stage": stage, "steps": steps[-1], "rates": rates}
    return found | {"plots": plots, "figures": figures}


def _metric_title(metric: str) -> str:
    kind, _, domain = metric.partition("/")
    if kind == "heldout_bits_per_byte":
        return f"bits per byte, held out ({domain})"
    found = re.fullmatch(r"heldout(?:_(\w+))?/(\w+)", metric)
    if not found:
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
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    style = markupsafe.Markup(style)
    return template.render(style=style, policy=POLICY.format(digest), **sections)
