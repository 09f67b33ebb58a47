"""Every pruner against every other one on the same questions, and against the baselines in each task family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from tokenprune.report.stats.scores import Scores
from tokenprune.report.stats.statistics import Interval, holm

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
    """Every pair of the pruners of one table, adjusted for the number of pairs; without those that never answered."""
    ran = {label: found for label, found in scores.items() if found.known().any()}
    found = {(first, second): compare(first, ran[first], second, ran[second]) for first, second in combinations(ran, 2)}
    return tuple(adjusted(found).values())


def against_baselines(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str], Comparison]:
    """Every pruner against every baseline, adjusted for all of them together; keys are (pruner, baseline).

    Two baselines are compared with each other once, a pruner none of whose cells ran is not compared, and each
    comparison is on the questions that the baseline answered.
    """
    made: dict[tuple[str, str], Comparison] = {}
    for label, ours in scores.items():
        for baseline, theirs in baselines.items():
            if label != baseline and ours.known().any() and (baseline, label) not in made:
                first, second = ours.beside(theirs)
                if len(second.pictures):
                    made[label, baseline] = compare(label, first, baseline, second)
    found = adjusted(made)
    return found | {(second, first): turned(found[first, second]) for first, second in found if first in baselines}


def against_baselines_by_family(
    scores: Mapping[str, Scores], baselines: Mapping[str, Scores]
) -> dict[tuple[str, str, str], Comparison]:
    """The same within each task family, adjusted for all families together; keys are (pruner, baseline, family)."""
    made: dict[tuple[str, str, str], Comparison] = {}
    for label, ours in scores.items():
        for baseline, theirs in baselines.items():
            if label == baseline or not ours.known().any():
                continue
            first, second = (found.by_family() for found in ours.beside(theirs))
            for family, part in first.items():
                if (baseline, label, family) not in made:
                    made[label, baseline, family] = compare(label, part, baseline, second[family])
    found = adjusted(made)
    return found | {
        (second, first, family): turned(found[first, second, family])
        for first, second, family in found
        if first in baselines
    }


def turned(found: Comparison) -> Comparison:
    """The same comparison, the other way round."""
    mean, low, high = found.difference.mean, found.difference.low, found.difference.high
    # 0 minus 0 is 0, where minus 0 would be shown with its sign
    back = Interval(0.0 - mean, None if high is None else 0.0 - high, None if low is None else 0.0 - low)
    return replace(found, first=found.second, second=found.first, difference=back)
