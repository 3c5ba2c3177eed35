"""What a run reads of its shards: the planned mixture, and the realised one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import BadInput
from data.mixture import plan as mixtures
from data.mixture.plan import PlannedStage
from data.tokens import shards
from launch.settings import Settings
from launch.store.rundir import RunDir, read_json

# In tokenizer/: what the shards hold, by group.
SHARDS = "shards.json"


@dataclass(frozen=True)
class Plan:
    """A planned mixture over the groups of a run's shards."""

    stages: tuple[PlannedStage, ...]  # as data.mixture.plan plans them
    groups: Mapping[str, Mapping[str, Any]]  # by group, as data.tokens.packing makes them

    def sources(self, run: RunDir) -> dict[str, tuple[shards.Shards, list[float]]]:
        """Shards of each group that is read, with its share in each stage."""
        folder = run.stage("tokenizer") / "shards"
        weights = {
            name: [stage.tokens[_key(group)] for stage in self.stages]
            for name, group in self.groups.items()
        }
        return {
            name: (shards.Shards(folder / name), shares)
            for name, shares in weights.items()
            if any(shares)
        }

    def stage_rows(self, seq_len: int, num_rows: int) -> list[int]:
        """Rows of each stage; of a single one none, for it has no end.

        Raises:
          BadInput: caps or budget leave less than `num_rows`, and the run would exceed them.
        """
        rows = mixtures.count_rows(self.stages, seq_len)
        if sum(rows) < num_rows:
            raise BadInput(
                f"mixture: max_epochs and budget_tokens leave {sum(rows)} rows of the {num_rows} "
                "that pretraining reads; allowed: fewer pretrain.loop.num_steps, or more of them"
            )
        return rows if len(self.stages) > 1 else []

    def table(self, realised: Sequence[Mapping[str, int]] = ()) -> list[dict]:
        """Asked, planned and, from rows by stage and group, realised shares."""
        found = [
            {_key(self.groups[name]): rows for name, rows in stage.items()} for stage in realised
        ]
        return mixtures.tabulate(self.stages, _sizes(self.groups), found)


def _key(group: Mapping[str, Any]) -> mixtures.Group:
    return group["domain"], group["language"]


def _sizes(groups: Mapping[str, Mapping[str, Any]]) -> dict[mixtures.Group, int]:
    return {_key(group): group["tokens"] for group in groups.values()}


def plan(
    settings: Settings,
    groups: Mapping[str, Mapping[str, Any]],
    budget_tokens: int,
    note: Callable[[str], None],
) -> Plan:
    """Plans what is read of each group; says where caps leave a stage short of its budget."""
    domains = {group["domain"] for group in groups.values()}
    weights = source_weights(settings) or dict.fromkeys(domains, 1.0)
    stages = mixtures.plan(settings.mixture, weights, _sizes(groups), budget_tokens)
    for stage in stages:
        if short := stage.short_tokens():
            note(f"mixture: stage {stage.name!r} is {short:,.0f} tokens short, by max_epochs")
    return Plan(stages, groups)


def source_weights(settings: Settings) -> dict[str, float]:
    """Weight of each domain that the configuration names; {} where they follow from a path."""
    sources = settings.data.sources if settings.data else ""
    if isinstance(sources, str):
        return {}
    return {domain: source.weight for domain, source in sources.items()}


def of_run(
    settings: Settings, run: RunDir, budget_tokens: int, note: Callable[[str], None]
) -> Plan:
    """Plans the mixture of a run whose shards are there."""
    path = run.stage("tokenizer") / SHARDS
    made = read_json(path, ("groups",))
    if made is None:
        raise BadInput(f"{path}: absent; `seedbed tokenizer` writes it")
    return plan(settings, made["groups"], budget_tokens, note)
