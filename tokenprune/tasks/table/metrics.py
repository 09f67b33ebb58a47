"""The metrics of a table: a prediction against all accepted answers, of which the best one counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenprune.tasks.scoring import anls as documents
from tokenprune.tasks.scoring import relaxed as charts
from tokenprune.tasks.scoring import text, vqa

HUMANS = 10
"""Answers of people that the soft accuracy is made for."""


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if it equals one of the answers, without regard to case and punctuation."""
    return _best(text.exact_match, prediction, answers)


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if it contains one of the answers as whole words."""
    return _best(text.contains, prediction, answers)


def number(prediction: str, answers: Sequence[str]) -> float:
    """1 if its number equals one of the answers."""
    return _best(text.number_match, prediction, answers)


def relaxed(prediction: str, answers: Sequence[str]) -> float:
    """1 if its number is within 5 % of one of the answers, as in ChartQA."""
    return charts.best_relaxed_accuracy(prediction, answers)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Closeness to the nearest answer, letter by letter; 0 below one half."""
    return documents.anls(prediction, answers)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The share of ten answers, as in VQAv2; with another number of answers, whether one of them is given.

    The published rule compares the prediction with every nine of ten answers. It has no meaning for one answer.
    """
    if len(answers) == HUMANS:
        return vqa.soft_accuracy(prediction, answers)
    return _best(lambda one, other: float(vqa.normalise(one) == vqa.normalise(other)), prediction, answers)


def _best(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max(score(prediction, answer) for answer in answers)
