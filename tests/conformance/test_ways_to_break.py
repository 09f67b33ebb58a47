"""Laws about plans and specs find every way in which a pruner can break them, not one alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.wrong import Lawful
from tokenprune.budget import Budget
from tokenprune.errors import BudgetError
from tokenprune.pruner import ModelFacts, Pruner, Site, Stop
from tokenprune.registry import PrunerSpec, Source
from tokenprune.testing import conformance
from tokenprune.testing.conformance import ConformanceError

LAWS = {check.name: check for check in conformance.checks()}

Plan = Callable[[ModelFacts, Budget, int], Sequence[Stop]]


def planning(plan: Plan, *sites: Any) -> Pruner:
    """A lawful pruner with another plan."""

    @dataclass(frozen=True)
    class Planned(Lawful):
        spec = dataclasses.replace(Lawful.spec, sites=sites or Lawful.spec.sites)

        def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
            return plan(facts, budget, tokens)

    return Planned()


def specified(**changes: Any) -> Pruner:
    """A lawful pruner whose spec says something else."""

    changed: PrunerSpec = dataclasses.replace(Lawful.spec, **changes)

    @dataclass(frozen=True)
    class Specified(Lawful):
        spec = changed

    return Specified()


def one(site: Site, **more: Any) -> Plan:
    return lambda facts, budget, tokens: [Stop(site, Budget(ratio=budget.ratio, tokens=budget.tokens), **more)]


def growing(facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
    few = Budget(tokens=1)
    return [Stop(Site("input"), few), Stop(Site("layer", 2), Budget(ratio=1.0))]


class Restless:
    """Plans otherwise every time."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        self.asked += 1
        return [Stop(Site("layer", self.asked % 2), Budget(ratio=budget.ratio, tokens=budget.tokens))]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        pytest.param(planning(Restless(), "layer"), "two plans", id="another plan each time"),
        pytest.param(planning(one(Site("layer", 1)), "input"), "`layer:1`", id="a site that is not declared"),
        pytest.param(planning(one(Site("layer", 99)), "layer"), "`layer:99`", id="a layer that is not there"),
        pytest.param(planning(one(Site("tower", 99)), "tower"), "`tower:99`", id="an encoder layer that is not there"),
        pytest.param(planning(one(Site("layer", 2), kv_from=3), "layer"), "3", id="a cache of a later layer"),
        pytest.param(planning(growing, "input", "layer"), r"\[1, ", id="counts that grow"),
    ],
)
def test_plans(wrong: Pruner, found: str) -> None:
    with pytest.raises(ConformanceError, match=found):
        LAWS["plan"].run(wrong)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"name": "With Capitals"}, "With Capitals"),
        ({"summary": " "}, "summary"),
        ({"source": Source("")}, "source"),
        ({"needs": ("telepathy",)}, "telepathy"),
        ({"sites": ("cellar",)}, "cellar"),
        ({"target": "tests.conformance.wrong:Good"}, "Good"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_specs(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ConformanceError, match=found):
        LAWS["spec"].run(specified(**changes))


def refusing(message: str, hint: str, *, always: bool = False) -> Pruner:
    """Refuses fewer than four tokens (or anything) with these words."""

    def plan(facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        if always or budget.count(tokens) < 4:
            raise BudgetError(message, hint=hint)
        return [Stop(Site("input"), Budget(ratio=budget.ratio, tokens=budget.tokens))]

    return planning(plan)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        pytest.param(refusing("too few", "give more"), "names the floor", id="no floor is named"),
        pytest.param(refusing("at least 0 tokens", "give more"), "a floor between", id="a floor below what was asked"),
        pytest.param(
            refusing("at least 4 tokens", "", always=True), "expected a hint|another refusal|a floor", id="no hint"
        ),
    ],
)
def test_refusals(wrong: Pruner, found: str) -> None:
    with pytest.raises(ConformanceError, match=found):
        LAWS["floor"].run(wrong)
