"""The mixture: shares by hand, water poured into cups by hand, the best plan by its conditions."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from data.errors import BadInput
from data.mixture.plan import MixtureConfig, StageConfig, count_rows, plan, tabulate

NEAR = 1e-7


def config(**changes):
    values = {
        "by_language": True,
        "alpha": 0.0,
        "language_alpha": 1.0,
        "budget_tokens": 0,
        "max_epochs": math.inf,
        "domain_max_epochs": {},
        "stages": (),
    }
    return MixtureConfig(**(values | changes))


def totals(stages):
    groups = stages[0].tokens
    return {group: math.fsum(stage.tokens[group] for stage in stages) for group in groups}


def test_weights_alone_divide_the_budget_whatever_the_sizes():
    sizes = {("web", "en"): 900, ("code", "py"): 10, ("books", "en"): 90}
    (stage,) = plan(config(), {"web": 2, "code": 1, "books": 1}, sizes, 1000)
    assert stage.tokens == pytest.approx(
        {("web", "en"): 500, ("code", "py"): 250, ("books", "en"): 250}, rel=NEAR
    )
    assert stage.tokens == pytest.approx(stage.asked, rel=NEAR)
    assert stage.short_tokens() == 0


def test_alpha_of_domains_and_languages_by_hand():
    """alpha 1/2: domains as weight * sqrt(size), 1 * 10 to 2 * 20; languages as 3 * 4 to 4 * 4."""
    sizes = {("a", "x"): 36, ("a", "y"): 64, ("b", "x"): 400}
    halves = config(alpha=0.5, language_alpha=0.5)
    (stage,) = plan(halves, {"a": 1, "b": 2}, sizes, 700)
    wanted = {("a", "x"): 140 * 6 / 14, ("a", "y"): 140 * 8 / 14, ("b", "x"): 560}
    assert stage.tokens == pytest.approx(wanted, rel=NEAR)
    (alike,) = plan(config(language_alpha=0.0), {"a": 1, "b": 0}, sizes, 100)
    assert alike.tokens == pytest.approx({("a", "x"): 50, ("a", "y"): 50, ("b", "x"): 0}, rel=NEAR)
    (natural,) = plan(config(alpha=1.0), {"a": 1, "b": 1}, sizes, 500)
    assert natural.tokens == pytest.approx(sizes, rel=NEAR), "one epoch of all"


def test_of_an_empty_group_nothing_is_asked():
    sizes = {("a", "x"): 10, ("a", "y"): 0, ("b", "x"): 10}
    (stage,) = plan(config(language_alpha=0.0), {"a": 1, "b": 1}, sizes, 100)
    wanted = {("a", "x"): 50, ("a", "y"): 0, ("b", "x"): 50}
    assert stage.tokens == pytest.approx(wanted, rel=NEAR)
    assert ("", "a", "y") not in [tuple(row.values())[:3] for row in tabulate((stage,), sizes)]
    with pytest.raises(BadInput, match="domain 'b' has weight 1, and no tokens"):
        plan(config(), {"a": 1, "b": 1}, {**sizes, ("b", "x"): 0}, 100)


def pour(weights, caps, budget):
    """Water into cups: the level rises, a full cup takes no more; in exact fractions."""
    amounts, open_cups, left = [Fraction(0)] * len(caps), set(range(len(caps))), Fraction(budget)
    while open_cups and left > 0:
        weight = sum(weights[i] for i in open_cups)
        step = min((caps[i] - amounts[i]) / weights[i] for i in open_cups)
        step = min(step, left / weight)
        for i in open_cups:
            amounts[i] += step * weights[i]
        left -= step * weight
        open_cups -= {i for i in open_cups if amounts[i] == caps[i]}
    return amounts


def test_one_stage_under_caps_is_water_poured_into_cups():
    rng = random.Random(0)
    for _ in range(60):
        num = rng.randrange(1, 8)
        weights = [Fraction(rng.randrange(1, 50)) for _ in range(num)]
        sizes = [rng.randrange(1, 200) for _ in range(num)]
        budget = rng.randrange(1, 8 * sum(sizes))
        names = [f"d{i}" for i in range(num)]
        (stage,) = plan(
            config(max_epochs=4.0),
            dict(zip(names, map(float, weights), strict=True)),
            {(name, ""): size for name, size in zip(names, sizes, strict=True)},
            budget,
        )
        wanted = pour(weights, [4 * Fraction(size) for size in sizes], budget)
        found = [stage.tokens[name, ""] for name in names]
        assert found == pytest.approx([float(x) for x in wanted], rel=NEAR)
        short = max(0, budget - 4 * sum(sizes))
        assert stage.short_tokens() == pytest.approx(short, rel=NEAR)


def test_caps_of_domains_stand_before_the_cap_of_all():
    sizes = {("a", ""): 100, ("b", ""): 100}
    (stage,) = plan(
        config(max_epochs=3.0, domain_max_epochs={"b": 0.5}), {"a": 1, "b": 1}, sizes, 300
    )
    assert totals([stage]) == pytest.approx({("a", ""): 250, ("b", ""): 50}, rel=NEAR)
    (short,) = plan(
        config(max_epochs=2.0, domain_max_epochs={"b": 0.5}), {"a": 1, "b": 1}, sizes, 300
    )
    assert short.tokens == pytest.approx({("a", ""): 200, ("b", ""): 50}, rel=NEAR)
    assert short.short_tokens() == pytest.approx(50)


def anneal(fraction, weights, **changes):
    stages = (StageConfig("main", 1 - fraction, {}), StageConfig("end", fraction, weights))
    return config(stages=stages, **changes)


def test_stages_have_weights_of_their_own_over_those_of_the_sources():
    sizes = {("web", ""): 10**6, ("maths", ""): 10**6, ("code", ""): 10**6}
    main, end = plan(
        anneal(0.2, {"maths": 4.0, "web": 0.0}), {"web": 3, "maths": 0, "code": 1}, sizes, 1000
    )
    assert main.tokens == pytest.approx({("web", ""): 600, ("maths", ""): 0, ("code", ""): 200})
    assert end.tokens == pytest.approx({("web", ""): 0, ("maths", ""): 160, ("code", ""): 40})
    assert (main.name, end.name) == ("main", "end")


def test_what_a_later_stage_alone_can_read_is_left_to_it():
    """The end reads maths only, 200 of 200; so that the main stage must do with web."""
    sizes = {("web", ""): 10**6, ("maths", ""): 100}
    main, end = plan(anneal(0.2, {"web": 0.0}, max_epochs=2.0), {"web": 1, "maths": 1}, sizes, 1000)
    assert end.tokens["maths", ""] == pytest.approx(200, rel=1e-3)
    assert main.tokens["web", ""] == pytest.approx(800, rel=1e-3)
    assert totals([main, end])["maths", ""] <= 200 * (1 + NEAR)


def random_case(rng):
    num_groups, num_stages = rng.randrange(2, 7), rng.randrange(2, 5)
    sizes = {(f"d{i % 4}", f"l{i}"): rng.randrange(1, 300) for i in range(num_groups)}
    domains = sorted({domain for domain, _ in sizes})
    parts = [rng.random() + 0.1 for _ in range(num_stages)]
    stages = [
        StageConfig(
            f"s{i}", part / sum(parts), {d: rng.choice((0.0, 1.0, 5.0)) for d in domains[1:]}
        )
        for i, part in enumerate(parts)
    ]
    weights = {domain: 0.2 + rng.random() for domain in domains}
    total = sum(sizes.values())
    return (
        config(stages=tuple(stages), max_epochs=2.0),
        weights,
        sizes,
        int(total * rng.random() * 2.2) + 1,
    )


def test_plans_of_several_stages_are_the_nearest_that_keep_the_caps():
    """Karush, Kuhn and Tucker: tokens = asked * rise of the stage * cut of the group, where the cut
    is 1 for a group below its cap; and every sum is kept, or the stage's groups are at their caps.
    """
    rng, num_cut, num_short = random.Random(1), 0, 0
    for _ in range(40):
        case = random_case(rng)
        stages, caps = plan(*case), {group: 2.0 * size for group, size in case[2].items()}
        read = totals(stages)
        assert all(read[group] <= caps[group] * (1 + NEAR) for group in caps)
        full = {group for group in caps if read[group] > caps[group] * (1 - 1e-6)}
        num_cut += bool(full)
        if any(stage.short_tokens() for stage in stages):
            num_short += 1
            for stage in stages:
                if stage.short_tokens():
                    assert {g for g, asked in stage.asked.items() if asked} <= full
            continue
        ratios = [{g: s.tokens[g] / a for g, a in s.asked.items() if a} for s in stages]
        rises = []
        for ratio, stage in zip(ratios, stages, strict=True):
            assert math.fsum(stage.tokens.values()) == pytest.approx(
                math.fsum(stage.asked.values()), rel=1e-6
            )
            free = [ratio[group] for group in ratio if group not in full]
            assert free == pytest.approx(free[:1] * len(free), rel=1e-5)
            rises.append(free[0] if free else None)
        for group in full:
            cuts = [
                ratio[group] / rise
                for ratio, rise in zip(ratios, rises, strict=True)
                if rise is not None and group in ratio
            ]
            assert cuts == pytest.approx(cuts[:1] * len(cuts), rel=1e-5)
            assert all(cut <= 1 + 1e-6 for cut in cuts)
    assert num_cut > 10 and num_short > 3, "the cases must try caps and shortage"


def test_rows_of_the_stages_add_up():
    sizes = {("a", ""): 10**9}
    thirds = tuple(StageConfig(f"s{i}", 1 / 3, {}) for i in range(3))
    for num_rows in (1, 2, 100, 1001):
        stages = plan(config(stages=thirds), {"a": 1}, sizes, num_rows * 256)
        rows = count_rows(stages, 256)
        assert sum(rows) == num_rows and max(rows) - min(rows) <= 1


def test_table_worked_example():
    sizes = {("web", "de"): 100, ("web", "en"): 300, ("maths", "en"): 50}
    stages = plan(
        anneal(0.5, {"maths": 1.0, "web": 0.0}, max_epochs=2.0), {"web": 1, "maths": 0}, sizes, 400
    )
    realised = [{("web", "de"): 30, ("web", "en"): 90}, {("maths", "en"): 100}]
    rows = tabulate(stages, sizes, realised)
    keys = ("stage", "domain", "language", "asked", "planned", "tokens", "epochs", "realised")
    assert all(tuple(row) == keys for row in rows)
    wanted = [
        ("main", "web", "de", 0.25, 0.25, 50, 0.5, 0.25),
        ("main", "web", "en", 0.75, 0.75, 150, 0.5, 0.75),
        ("end", "maths", "en", 1.0, 1.0, 100, 2.0, 1.0),
        ("", "maths", "en", 0.5, 1 / 3, 100, 2.0, 100 / 220),
        ("", "web", "de", 0.125, 1 / 6, 50, 0.5, 30 / 220),
        ("", "web", "en", 0.375, 0.5, 150, 0.5, 90 / 220),
    ]
    for row, values in zip(rows, wanted, strict=True):
        assert list(row.values())[:3] == list(values[:3])
        assert list(row.values())[3:] == pytest.approx(list(values[3:]), rel=1e-6)
    assert stages[1].short_tokens() == pytest.approx(100)
    assert "realised" not in tabulate(stages, sizes)[0]


def test_section_budget_goes_before_the_one_of_pretraining():
    (stage,) = plan(config(budget_tokens=70), {"a": 1}, {("a", ""): 9}, 10**6)
    assert sum(stage.tokens.values()) == pytest.approx(70)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.1}, "alpha=1.1: must be in"),
        ({"language_alpha": -0.1}, "language_alpha=-0.1"),
        ({"budget_tokens": -1}, "budget_tokens=-1"),
        ({"max_epochs": 0.0}, "max_epochs=0.0: must be above 0"),
        ({"domain_max_epochs": {"web": -1.0}}, "web=-1.0: must be above 0"),
        ({"max_epochs": math.nan}, "max_epochs=nan"),
        ({"stages": (StageConfig("a", 0.5, {}),)}, "add up to 0.5, must be 1"),
        ({"stages": (StageConfig("a", 0.5, {}),) * 2}, r"stages=\['a', 'a'\]"),
    ],
)
def test_bad_keys_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_bad_stages_are_named():
    with pytest.raises(ValueError, match="stage 'a': fraction=0.0"):
        StageConfig("a", 0.0, {})
    with pytest.raises(ValueError, match="stage 'a': weights: 'web' has -1.0"):
        StageConfig("a", 1.0, {"web": -1.0})


@pytest.mark.parametrize(
    ("given", "weights", "message"),
    [
        ({"domain_max_epochs": {"wob": 1.0}}, {"web": 1}, "domain_max_epochs names 'wob'"),
        ({"stages": (StageConfig("s", 1.0, {"wob": 1}),)}, {"web": 1}, "'s' names 'wob'"),
        ({}, {"code": 1}, "domain 'web' has no weight"),
        ({}, {"web": 1, "code": 1}, "domain 'code' has weight 1, and no tokens"),
        ({}, {"web": 0}, "stage 'all' has no domain of a weight above 0"),
        ({"stages": (StageConfig("s", 1.0, {"web": 0}),)}, {"web": 1}, "stage 's' has no domain"),
        ({}, {"web": float("inf")}, "weights of the domains: 'web' has inf"),
    ],
)
def test_domains_that_do_not_fit_are_named(given, weights, message):
    with pytest.raises(BadInput, match=message):
        plan(config(**given), weights, {("web", "en"): 5}, 100)


def test_plan_does_not_depend_on_the_order_of_what_is_given():
    rng = random.Random(2)
    for _ in range(5):
        given, weights, sizes, budget = random_case(rng)
        turned = [dict(reversed(mapping.items())) for mapping in (weights, sizes)]
        assert plan(given, weights, sizes, budget) == plan(given, *turned, budget)
    assert np.isfinite(list(totals(plan(given, weights, sizes, budget)).values())).all()
