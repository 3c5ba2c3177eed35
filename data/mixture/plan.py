"""The mixture: how much of each domain and language a training run reads, and when.

A group is a domain in one language. Stages follow one another, each with weights of its own: a
curriculum, or the end of a run on the best data (annealing; Grattafiori et al. 2024, section
3.1.3). No group is read more often than its cap: what that leaves free goes to the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.errors import BadInput

Group = tuple[str, str]

# Its product with any number of tokens is a float.
MAX_WEIGHT = 1e30

# The shares of the stages in a budget are told in decimals.
FRACTION_TOLERANCE = 1e-6
# Relative to the budget of a stage. The search below halves an interval, so these are its digits.
TOLERANCE = 1e-9
MAX_SWEEPS = 200
NUM_HALVINGS = 80
# By how much a stage's share of a group may rise, more than any plan needs that can be kept.
MAX_RISE = 1e18


@dataclass(frozen=True)
class StageConfig:
    """A part of the run.

    Attributes:
        name: as it is to be called in the report.
        fraction: of the budget, above 0; those of all stages add up to 1.
        weights: of domains, in place of their sources' own; a domain that is not named keeps its
            own, and 0 leaves it out.
    """

    name: str
    fraction: float
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"stage {self.name!r}: fraction={self.fraction}: must be in (0, 1]")
        _check_weights(f"stage {self.name!r}: weights", self.weights)


@dataclass(frozen=True)
class MixtureConfig:
    """What pretraining reads: how much of which domain, and when.

    Attributes:
        by_language: whether the languages of a domain are groups of their own; else they are read
            as they come, and the group is of language ''.
        alpha: a domain's share follows its weight times its size to this power, in [0, 1]: 0 is
            the weights alone, 1 takes domains by their size. 1 / alpha is called temperature.
        language_alpha: inside a domain, a language's share follows its size to this power, in
            [0, 1]: 1 as they come, 0 all alike. 0.3 is XLM-R's.
        budget_tokens: to be read in the whole run; 0 for as many as pretraining reads.
        max_epochs: how often a group may be read in the whole run, above 0; 4 cost little against
            new text (Muennighoff et al. 2023). inf is no cap.
        domain_max_epochs: the same for the domains named.
        stages: in the order in which they are read; () is one stage with the sources' weights.

    Source: Conneau et al. 2020, section 3 (alpha).
    """

    by_language: bool = False
    alpha: float = 0.0
    language_alpha: float = 1.0
    budget_tokens: int = 0
    max_epochs: float = float("inf")
    domain_max_epochs: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self):
        for key in ("alpha", "language_alpha"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be in [0, 1]")
        if not 0 <= self.budget_tokens < 2**62:  # rows are counted in int64
            raise ValueError(
                f"budget_tokens={self.budget_tokens}: must be at least 0, and below 2^62"
            )
        for name, epochs in {"max_epochs": self.max_epochs, **self.domain_max_epochs}.items():
            if not epochs > 0:
                raise ValueError(f"{name}={epochs}: must be above 0; inf is no cap")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages={names}: each must have a name of its own")
        total = sum(stage.fraction for stage in self.stages)
        if self.stages and abs(total - 1) > FRACTION_TOLERANCE:
            raise ValueError(f"stages: their fractions add up to {total}, must be 1")


@dataclass(frozen=True)
class PlannedStage:
    """What is read in a stage, in tokens of each group.

    Attributes:
        name: of the stage.
        asked: as the weights have it; adds up to the stage's share of the budget.
        tokens: under the caps; adds up to the same unless too little is left.
    """

    name: str
    asked: Mapping[Group, float]
    tokens: Mapping[Group, float]

    def short_tokens(self) -> float:
        """What the caps leave the stage short of, in tokens; 0 where it has its budget."""
        asked, planned = math.fsum(self.asked.values()), math.fsum(self.tokens.values())
        return asked - planned if asked - planned > 10 * TOLERANCE * asked else 0.0


def plan(
    config: MixtureConfig,
    weights: Mapping[str, float],
    sizes: Mapping[Group, int],
    budget_tokens: int,
) -> tuple[PlannedStage, ...]:
    """Divides a budget among the groups.

    Where a group would be read more often than its cap allows, the plan is the one nearest to what
    was asked, in Kullback and Leibler's divergence, that keeps every cap and gives every stage its
    budget. In one stage that leaves the groups below their caps in the proportion asked for; a
    group that several stages share goes first to the one that has least else to read. Where no
    plan does both, the caps are kept, and a stage may be short.

    Args:
        config: the section `mixture`.
        weights: of the domains, as their sources have it; relative, at least 0.
        sizes: unique tokens of each group, (domain, language); of 0 nothing is asked.
        budget_tokens: of the whole run, above 0; looked at where the section's own is 0.

    Returns:
        The stages, in their order.

    Raises:
        BadInput: a domain without a weight, a weight of no domain, a stage without any.

    Source: Conneau et al. 2020, section 3 (shares by size to a power).
    """
    groups, budget = sorted(sizes), config.budget_tokens or budget_tokens
    stages = config.stages or (StageConfig("all", 1.0, {}),)
    _check_domains(config, weights, sizes)
    shares = [_shares({**weights, **stage.weights}, sizes, config, stage.name) for stage in stages]
    asked = np.array(
        [
            [stage.fraction * budget * share[group] for group in groups]
            for stage, share in zip(stages, shares, strict=True)
        ]
    )
    caps = np.array(
        [
            sizes[group]
            and config.domain_max_epochs.get(group[0], config.max_epochs) * sizes[group]
            for group in groups
        ]
    )
    return tuple(
        PlannedStage(
            stage.name,
            dict(zip(groups, asked_s.tolist(), strict=True)),
            dict(zip(groups, tokens_s.tolist(), strict=True)),
        )
        for stage, asked_s, tokens_s in zip(stages, asked, _fit(asked, caps), strict=True)
    )


def _check_domains(
    config: MixtureConfig, weights: Mapping[str, float], sizes: Mapping[Group, int]
) -> None:
    _check_weights("weights of the domains", weights)
    named = {"mixture.domain_max_epochs": config.domain_max_epochs}
    named |= {f"mixture.stages: {stage.name!r}": stage.weights for stage in config.stages}
    for path, section in named.items():
        for domain in section:
            if domain not in weights:
                raise BadInput(f"{path} names {domain!r}; must be one of {', '.join(weights)}")
    there = {group[0] for group, size in sizes.items() if size}
    for domain in sorted(there - weights.keys()):
        raise BadInput(f"domain {domain!r} has no weight; must be one of {', '.join(weights)}")
    for section in (weights, *(stage.weights for stage in config.stages)):
        for domain, weight in section.items():
            if weight and domain not in there:
                raise BadInput(f"domain {domain!r} has weight {weight}, and no tokens")


def _check_weights(name: str, weights: Mapping[str, float]) -> None:
    for domain, weight in weights.items():
        if not 0 <= weight < MAX_WEIGHT:
            raise BadInput(f"{name}: {domain!r} has {weight}; must be in [0, {MAX_WEIGHT})")


def _shares(
    weights: Mapping[str, float], sizes: Mapping[Group, int], config: MixtureConfig, stage: str
) -> dict[Group, float]:
    """Each group's share of a stage."""
    domains: dict[str, int] = {}
    for (domain, _), size in sizes.items():
        domains[domain] = domains.get(domain, 0) + size
    mass = {d: size and weights[d] * size**config.alpha for d, size in domains.items()}
    total = math.fsum(mass.values())
    if total <= 0:
        raise BadInput(f"mixture: stage {stage!r} has no domain of a weight above 0")
    within = {g: size and size**config.language_alpha for g, size in sizes.items()}
    sums = {
        domain: math.fsum(power for group, power in within.items() if group[0] == domain) or 1.0
        for domain in domains
    }
    return {
        group: mass[group[0]] / total * power / sums[group[0]] for group, power in within.items()
    }


def _fit(asked_SG: np.ndarray, caps_G: np.ndarray) -> np.ndarray:
    """The amounts nearest to those asked that keep the caps, stages by groups.

    They are asked_sg * rise_s * cut_g: a stage's rise makes up its budget, and a group's cut, at
    most 1, keeps its cap, at every moment. Each rise in turn is found by halving, for the stage's
    sum grows with it, until none moves.
    """
    budgets_S = asked_SG.sum(1)
    rises_S = np.ones(len(asked_SG))

    def amounts(rises_S: np.ndarray) -> np.ndarray:
        raised_SG = asked_SG * rises_S[:, None]
        sums_G = raised_SG.sum(0)
        return raised_SG * np.minimum(1.0, caps_G / np.where(sums_G > 0, sums_G, 1.0))

    for _ in range(MAX_SWEEPS):
        before_S = rises_S.copy()
        for s, budget in enumerate(budgets_S):
            low, high = 0.0, math.log(MAX_RISE)
            for _ in range(NUM_HALVINGS):
                rises_S[s] = math.exp((low + high) / 2)
                is_enough = amounts(rises_S)[s].sum() >= budget
                low, high = (low, (low + high) / 2) if is_enough else ((low + high) / 2, high)
        if np.all(np.abs(np.log(rises_S / before_S)) < TOLERANCE):
            break
    return amounts(rises_S)


def count_rows(stages: Sequence[PlannedStage], row_tokens: int) -> list[int]:
    """Rows of each stage; together they are the plan's tokens to the nearest row.

    Args:
        stages: as `plan` gave them.
        row_tokens: targets in a row.
    """
    ends = np.cumsum([math.fsum(stage.tokens.values()) for stage in stages]) / row_tokens
    return np.diff(np.rint(ends).astype(np.int64), prepend=0).tolist()


def tabulate(
    stages: Sequence[PlannedStage],
    sizes: Mapping[Group, int],
    realised: Sequence[Mapping[Group, int]] = (),
) -> list[dict[str, str | float]]:
    """The plan as a table, beside what was read of it.

    Args:
        stages: as `plan` gave them.
        sizes: unique tokens of each group.
        realised: tokens read of each group, by stage; () before the run.

    Returns:
        {stage, domain, language, asked, planned, tokens, epochs} of each group that was asked
        for, and realised where it is given. Asked, planned and realised are shares of the stage;
        epochs are those of the stage alone. Last come the groups over all stages, of stage ''.
    """

    def add(parts: Sequence[Mapping[Group, float]]) -> dict[Group, float]:
        return {group: math.fsum(part.get(group, 0) for part in parts) for group in sizes}

    asked, tokens = [stage.asked for stage in stages], [stage.tokens for stage in stages]
    names = [stage.name for stage in stages] + [""]
    read = [*realised, add(realised)] if realised else [None] * len(names)
    rows = []
    for name, wanted, planned, found in zip(
        names, [*asked, add(asked)], [*tokens, add(tokens)], read, strict=True
    ):
        for group in sorted(group for group in wanted if wanted[group] > 0):
            row = {"stage": name, "domain": group[0], "language": group[1]}
            row |= {"asked": _share(wanted, group), "planned": _share(planned, group)}
            row |= {"tokens": planned[group], "epochs": planned[group] / sizes[group]}
            row |= {} if found is None else {"realised": _share(found, group)}
            rows.append(row)
    return rows


def _share(amounts: Mapping[Group, float], group: Group) -> float:
    return amounts.get(group, 0) / (math.fsum(amounts.values()) or 1)
