"""Every pruner against every other one on the same questions, and against the baselines in each task family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from tokenprune.report.scores import Scores
from tokenprune.report.statistics import Interval, holm

Key = TypeVar("Key")

CONTROL = "random"
"""The pruner that others must beat."""

LEVEL = 0.05
"""Adjusted p-values below this are marked."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first pruner minus the second one, in score, on the same questions.

    Args:
        questions: How many questions.
        difference: Mean difference with its paired bootstrap interval.
        p: P-value of "equally good" by itself.
        p_adjusted: The same, adjusted for all comparisons made with it (Holm).
    """

    first: str
    second: str
    questions: int
    difference: Interval
    p: float
    p_adjusted: float

    @property
    def significant(self) -> bool:
        """Whether the two differ, all comparisons made together considered."""
        return self.p_adjusted < LEVEL


def compare(first: str, ours: Scores, second: str, theirs: Scores) -> Comparison:
    """One comparison, not adjusted."""
    p = ours.p_against(theirs)
    return Comparison(first, second, len(ours.pictures), ours.minus(theirs), p, p)


def adjusted(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """The same comparisons, adjusted for their number."""
    values = holm([found.p for found in comparisons.values()])
    return {
        key: replace(found, p_adjusted=value) for (key, found), value in zip(comparisons.items(), values, strict=True)
    }


def all_pairs(scores: Mapping[str, Scores]) -> tuple[Comparison, ...]:
    """Every pair of the pruners of one table, adjusted for the number of pairs."""
    found = {
        (first, second): compare(first, scores[first], second, scores[second])
        for first, second in combinations(scores, 2)
    }
    return tuple(adjusted(found).values())


def against_baselines(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str], Comparison]:
    """Every pruner against every baseline, adjusted for all of them together; keys are (pruner, baseline)."""
    return adjusted(
        {
            (label, baseline): compare(label, ours, baseline, theirs)
            for label, ours in scores.items()
            for baseline, theirs in baselines.items()
            if label != baseline
        }
    )


def against_baselines_by_family(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str, str], Comparison]:
    """The same within each task family, adjusted for all families together; keys are (pruner, baseline, family)."""
    theirs = {baseline: found.by_family() for baseline, found in baselines.items()}
    return adjusted(
        {
            (label, baseline, family): compare(label, ours, baseline, families[family])
            for label, found in scores.items()
            for family, ours in found.by_family().items()
            for baseline, families in theirs.items()
            if label != baseline
        }
    )
