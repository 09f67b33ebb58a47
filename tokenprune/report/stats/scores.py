"""Scores of a pruner at a budget, question by question, and the questions that are hard.

An answer that failed is a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokenprune.errors import ConfigError
from tokenprune.report.stats.intervals import Interval, paired_difference, paired_ratio, score_interval
from tokenprune.sweep.store.sweep_data import CellRecord, SweepData

RIGHT = 0.5
"""An answer with at least this score counts as right if a figure needs right or wrong."""

DOWNSAMPLE = "downsample"
"""The pruner whose wrong answers make the hard subset; its own accuracy there is below one half by definition."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of the same questions over the seeds of a pruner.

    Args:
        by_seed: Scores, shape (seeds, questions), in task order.
        seeds: The seed of each row.
        pictures: Picture of each question, numbered.
        families: Family of each question.
        answered: Which questions were answered, right or wrong, shape (seeds, questions). For the others the sample or
            the whole cell failed.
    """

    by_seed: NDArray[np.float64]
    seeds: tuple[int, ...]
    pictures: NDArray[np.intp]
    families: NDArray[np.str_]
    answered: NDArray[np.bool_]

    @property
    def values(self) -> NDArray[np.float64]:
        """Mean over the seeds, one per question."""
        return np.asarray(self.by_seed.mean(axis=0))

    def only(self, chosen: NDArray[np.bool_]) -> Scores:
        """The same for some of the questions."""
        return replace(
            self,
            by_seed=self.by_seed[:, chosen],
            pictures=self.pictures[chosen],
            families=self.families[chosen],
            answered=self.answered[:, chosen],
        )

    def by_family(self) -> dict[str, Scores]:
        """The scores of each task family, families in alphabetical order."""
        return {str(family): self.only(self.families == family) for family in np.unique(self.families)}

    def right(self) -> NDArray[np.bool_]:
        """Which questions are answered right; with several seeds, right on average."""
        return np.asarray(self.values >= RIGHT)

    def ever_answered(self) -> NDArray[np.bool_]:
        """Which questions were answered under at least one seed."""
        return np.asarray(self.answered.any(axis=0))

    def paired_with(self, baseline: Scores) -> tuple[Scores, Scores]:
        """Both on the questions that the baseline answered, and the baseline over the seeds that answered them.

        A failed sample counts as wrong for a pruner, and is left out if it is the baseline's: a baseline that fails
        would be easy to beat.
        """
        chosen = baseline.ever_answered()
        theirs = baseline.only(chosen)
        given = theirs.answered
        means = np.where(given, theirs.by_seed, 0.0).sum(axis=0) / given.sum(axis=0)
        alone = replace(theirs, by_seed=means[None], seeds=theirs.seeds[:1], answered=theirs.ever_answered()[None])
        return self.only(chosen), alone

    def accuracy(self) -> Interval:
        """Mean score with its interval."""
        return score_interval(self.values, self.pictures)

    def minus(self, other: Scores) -> Interval:
        """Mean difference to another pruner on the same questions, paired."""
        return paired_difference(self.values, other.values, self.pictures)

    def divided_by(self, other: Scores) -> Interval | None:
        """Accuracy divided by another one on the same questions; `None` if that is 0."""
        return paired_ratio(self.values, other.values, self.pictures) if other.values.sum() > 0.0 else None


@dataclass(frozen=True, slots=True)
class HardSubset:
    """Number of hard questions at one budget, and why there are none."""

    questions: int
    reason: str = ""


def hard_questions(unpruned: Scores | None, downsampled: Scores | None) -> tuple[NDArray[np.bool_] | None, HardSubset]:
    """Which questions the unpruned model answers right and down-sampling, at the same budget, wrong.

    Most benchmark questions survive a smaller picture, so pruners that throw detail away look as good as those that
    keep it; on the hard ones they differ (VTC-Bench, arXiv 2510.07143).

    Returns:
        A mask of shape (questions,), or `None` if the subset is empty or not defined; and what to say about it.
    """
    if unpruned is None:
        return None, HardSubset(0, "the unpruned model has no result")
    if not unpruned.right().any():
        return None, HardSubset(0, "the unpruned model answers nothing right")
    if downsampled is None:
        return None, HardSubset(0, f"`{DOWNSAMPLE}` has no result at this budget")
    mask = unpruned.right() & downsampled.ever_answered()  # an error says nothing about what a smaller picture loses
    mask[downsampled.ever_answered()] &= ~unpruned.paired_with(downsampled)[1].right()
    if not mask.any():
        return None, HardSubset(0, f"`{DOWNSAMPLE}` answers everything that the unpruned model does")
    return np.asarray(mask), HardSubset(int(mask.sum()))


def read_scores(data: SweepData, entries: Sequence[CellRecord], questions: Scores | None) -> Scores | None:
    """Scores of the cells of one pruner at one budget, or `None` if there is nothing to score.

    A failed cell answers every question wrong: it stays in the mean over the seeds. Refused and pending cells are left
    out.

    Args:
        data: The sweep.
        entries: The cells, one per seed.
        questions: Scores of the unpruned model, for the questions of a failed cell; with `None` failed cells are
            left out.

    Raises:
        ConfigError: The samples of a finished cell are not those of its plan.
    """
    rows: list[NDArray[np.float64]] = []
    answered: list[NDArray[np.bool_]] = []
    seeds: list[int] = []
    found = questions
    for entry in entries:
        if entry.state == "done":
            scores = _of_cell(data, entry)
            found = found or scores
            rows.append(scores.by_seed[0])
            answered.append(scores.answered[0])
        elif entry.state == "failed" and questions is not None:
            rows.append(np.zeros(len(questions.pictures)))
            answered.append(np.zeros(len(questions.pictures), dtype=np.bool_))
        else:
            continue
        seeds.append(entry.cell.seed)
    if found is None or not rows:
        return None
    return replace(found, by_seed=np.stack(rows), seeds=tuple(seeds), answered=np.stack(answered))


def _of_cell(data: SweepData, entry: CellRecord) -> Scores:
    rows = data.samples(entry.cell)
    if len(rows) != entry.cell.samples:
        raise ConfigError(
            f"cell `{entry.cell.name}` holds {len(rows)} of {entry.cell.samples} samples",
            hint="run the sweep again: the cell is asked anew",
        )
    return Scores(
        by_seed=np.array([[float(row["score"]) for row in rows]]),
        seeds=(entry.cell.seed,),
        pictures=np.unique([str(row["pictures"]) for row in rows], return_inverse=True)[1],
        families=np.array([str(row["family"]) for row in rows]),
        answered=np.array([[not row["error"] for row in rows]]),
    )
