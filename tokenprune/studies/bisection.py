"""Find the smallest keep ratios that retain shares of the accuracy, with few runs.

Bisection assumes that retention does not fall as the ratio grows. It need not be so (few questions, or a pruner that is
lucky at one ratio), so what was run is handed back, with the runs that contradict the assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenprune.cells.cell import Outcome
from tokenprune.report.stats.intervals import rounded


@dataclass(frozen=True, slots=True)
class Trial:
    """One run.

    Args:
        step: Keep ratio, in steps.
        retention: Share of the unpruned accuracy; 0 for a run that failed, `None` for one that was refused (the ratio
            lies below the pruner's floor).
        reason: Why it was refused or failed.
    """

    step: int
    retention: float | None
    outcome: Outcome = "done"
    reason: str = ""

    def reaches(self, target: float) -> bool:
        """Whether this run retains the target."""
        return self.retention is not None and rounded(self.retention) >= rounded(target)


@dataclass(frozen=True, slots=True)
class Found:
    """What the search says about one target.

    Args:
        target: Retention asked for.
        high: The smallest step found to reach it; `None` where no step below the full picture does.
        low: The next lower step that was run and does not reach it; `None` where the smallest step reaches it.
        at_floor: `low` was refused: the pruner can go no lower, whatever it would retain there.
    """

    target: float
    high: Trial | None
    low: Trial | None
    at_floor: bool


@dataclass(frozen=True, slots=True)
class Search:
    """All targets with all runs, by growing ratio.

    Args:
        found: One per target, in the order they were given.
        trials: What was run.
        contradictions: Runs that miss a target which a run at a smaller ratio reaches, each with the nearest such run
            before it: there the assumption of the bisection does not hold.
    """

    found: tuple[Found, ...]
    trials: tuple[Trial, ...]
    contradictions: tuple[tuple[Trial, Trial], ...]


def bisect(run: Callable[[int], Trial], targets: Sequence[float], steps: int) -> Search:
    """Bracket every target between two neighbouring steps, sharing runs between the targets.

    Nothing (step 0) counts as not reaching and the full picture (`steps`) as reaching every target; neither is run.
    Each target takes at most `ceil(log2(steps))` runs.

    Args:
        run: Runs one step from 1 to `steps - 1`.
        targets: Retentions, each in (0, 1].
        steps: Steps from nothing to the full picture, at least 2.

    Raises:
        ValueError: A target or the number of steps is out of range.
    """
    if steps < 2 or not all(0.0 < target <= 1.0 for target in targets):
        raise ValueError(f"cannot bisect {steps} steps for targets {list(targets)}")
    trials: dict[int, Trial] = {}
    found = []
    for target in targets:
        low, high = _bracket(trials, target, steps)
        while high - low > 1:
            middle = (low + high) // 2
            trials[middle] = run(middle)
            if trials[middle].reaches(target):
                high = middle
            else:
                low = middle
        missed = trials.get(low)
        at_floor = missed is not None and missed.outcome == "refused"
        found.append(Found(target, trials.get(high), missed, at_floor))
    ordered = tuple(trial for _, trial in sorted(trials.items()))
    return Search(tuple(found), ordered, tuple(_contradictions(ordered, targets)))


def _bracket(trials: dict[int, Trial], target: float, steps: int) -> tuple[int, int]:
    """The last step known to miss the target, and the first one after it known to reach it."""
    low = max((step for step, trial in trials.items() if not trial.reaches(target)), default=0)
    high = min((step for step, trial in trials.items() if step > low and trial.reaches(target)), default=steps)
    return low, high


def _contradictions(trials: Sequence[Trial], targets: Sequence[float]) -> list[tuple[Trial, Trial]]:
    """Per larger ratio the nearest smaller one that reaches a target which the larger one misses."""
    found = []
    for place, larger in enumerate(trials):
        for smaller in reversed(trials[:place]):
            if any(smaller.reaches(target) and not larger.reaches(target) for target in targets):
                found.append((smaller, larger))
                break
    return found
