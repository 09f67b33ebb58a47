"""Every law finds the pruner that breaks it, and lets a lawful one pass."""

from __future__ import annotations

import dataclasses
import re
import unittest
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.conformance.wrong import WRONG, Lawful
from tokenprune.budget import Budget
from tokenprune.pruner import Decision, Site, State, Stop, View
from tokenprune.testing import conformance
from tokenprune.testing.conformance import BUDGETS, ConformanceError, PrunerUnderTest
from tokenprune.testing.conformance.plan_run import copied, pictures
from tokenprune.testing.recorded_view import RecordedView

LAWS = {check.name: check for check in conformance.checks()}


class _Idle(Lawful):
    @property
    def needs(self) -> tuple[str, ...]:
        return ("projected", "geometry")

    spec = dataclasses.replace(Lawful.spec, needs=("projected", "geometry"))


def test_every_law_has_a_pruner_that_breaks_it() -> None:
    assert set(WRONG) == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_finds_the_pruner_that_breaks_it(law: str) -> None:
    result = LAWS[law].evaluate(PrunerUnderTest.of(WRONG[law]))
    assert result.status == "failed", result.line()
    assert result.what
    assert result.expected
    assert result.found
    with pytest.raises(ConformanceError):
        LAWS[law].run(WRONG[law])


@pytest.mark.parametrize("law", LAWS)
def test_a_lawful_pruner_passes(law: str) -> None:
    result = LAWS[law].evaluate(PrunerUnderTest.of(Lawful()))
    assert result.status in ("ok", "skipped"), result.line()
    assert (result.status == "skipped") == (law == "floor"), result.line()


def test_a_law_that_does_not_apply_skips_the_test() -> None:
    with pytest.raises(unittest.SkipTest, match="no budget that was tried is refused"):
        LAWS["floor"].run(Lawful())


def test_an_idle_need_is_a_warning() -> None:
    with pytest.warns(conformance.ConformanceWarning, match="not used under these options: geometry"):
        LAWS["needs"].run(_Idle())


@dataclass(frozen=True)
class _Ragged(Lawful):
    """Scores that the last bits tell apart by place, as matrix products of some libraries do."""

    def score(self, view: View) -> Tensor:
        bits = torch.randint(-2, 3, (view.tokens,), generator=torch.Generator().manual_seed(view.tokens))
        return super().score(view) * (1.0 + bits * torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class _Coarse(Lawful):
    """Scores in steps far above rounding, of which the highest index goes first."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        order = self.score(view).div(1e-2).round().flip(-1).sort(dim=-1, descending=True, stable=True).indices
        return Decision.keep(view.tokens - 1 - order[:, : view.keep])


def test_rounding_may_decide_between_copies() -> None:
    views = [RecordedView(copied(pictures(5)), keep, ("projected",)) for keep in range(1, 24, 2)]
    kept = [_Ragged().decide(view, Stop(Site("input"), Budget(tokens=view.keep)), {}) for view in views]
    stayed = [set(unit.anchors.tolist()) for decision in kept for unit in decision.units]
    assert any(index >= 24 and index - 24 not in unit for unit in stayed for index in unit)
    assert LAWS["ties"].evaluate(PrunerUnderTest.of(_Ragged(), budgets=BUDGETS)).status == "ok"


def test_a_higher_index_that_is_preferred_is_found_whatever_the_rounding() -> None:
    result = LAWS["ties"].evaluate(PrunerUnderTest.of(_Coarse(), budgets=BUDGETS))
    assert result.status == "failed", result.line()
    assert re.fullmatch(r"token \d+ before its copy \d+", result.expected)
