"""Every law finds the pruner that breaks it, and lets a lawful one pass."""

from __future__ import annotations

import dataclasses
import unittest

import pytest

from tests.conformance.wrong import WRONG, Lawful
from tokenprune.testing import conformance
from tokenprune.testing.conformance import ConformanceError, Subject

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
    result = LAWS[law].look(Subject.of(WRONG[law]))
    assert result.status == "failed", result.line()
    assert result.what
    assert result.expected
    assert result.found
    with pytest.raises(ConformanceError):
        LAWS[law].run(WRONG[law])


@pytest.mark.parametrize("law", LAWS)
def test_a_lawful_pruner_passes(law: str) -> None:
    result = LAWS[law].look(Subject.of(Lawful()))
    assert result.status in ("ok", "skipped"), result.line()
    assert (result.status == "skipped") == (law == "floor"), result.line()


def test_a_law_that_does_not_apply_skips_the_test() -> None:
    with pytest.raises(unittest.SkipTest, match="no budget that was tried is refused"):
        LAWS["floor"].run(Lawful())


def test_an_idle_need_is_a_warning() -> None:
    with pytest.warns(conformance.ConformanceWarning, match="not used under these options: geometry"):
        LAWS["needs"].run(_Idle())
