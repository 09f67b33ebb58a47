"""The hard subset: questions that need the tokens, because down-sampling gets them wrong and the full model does not.

Most benchmark questions survive a smaller picture, so pruners that throw detail away look as good as those that keep
it; on the rest they differ (VTC-Bench, arXiv 2510.07143).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenprune.report.stats.scores import Scores

DOWNSAMPLE = "downsample"
"""The pruner whose wrong answers make the subset; its own accuracy there is below one half by definition."""


@dataclass(frozen=True, slots=True)
class HardSubset:
    """Size of the subset at one budget, and why it is empty or not defined."""

    questions: int
    reason: str = ""


def hard_questions(unpruned: Scores | None, downsampled: Scores | None) -> tuple[NDArray[np.bool_] | None, HardSubset]:
    """Which questions the unpruned model answers right and down-sampling, at the same budget, wrong.

    Returns:
        A mask of shape (questions,), or `None` where the subset is empty or not defined; and what to say about it.
    """
    if unpruned is None:
        return None, HardSubset(0, "the unpruned model has no result")
    if not unpruned.right().any():
        return None, HardSubset(0, "the unpruned model answers nothing right")
    if downsampled is None:
        return None, HardSubset(0, f"`{DOWNSAMPLE}` has no result at this budget")
    chosen = downsampled.known()  # a question that raised an error says nothing about what a smaller picture loses
    mask = unpruned.right() & chosen
    mask[chosen] &= ~unpruned.beside(downsampled)[1].right()
    count = int(mask.sum())
    if not count:
        return None, HardSubset(0, f"`{DOWNSAMPLE}` answers everything that the unpruned model does")
    return np.asarray(mask), HardSubset(count)
