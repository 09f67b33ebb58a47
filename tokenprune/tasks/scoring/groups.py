"""Scores that need several rows: POPE, MME, MMBench, HallusionBench, means of categories, MVBench.

Source: lmms-eval 0.7.3. All scores are shares in [0, 1], unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tokenprune.errors import ConfigError
from tokenprune.tasks.scoring.yes_no import YesNo

ROTATION: Final = 1_000_000
"""MMBench: rows whose index is equal modulo this number are one question."""
PERCEPTION: Final = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return _ratio(sum(values), len(values))


def _all_right(pairs: Iterable[tuple[Hashable, bool]]) -> dict[Hashable, bool]:
    """Whether all rows of each group are right."""
    groups: dict[Hashable, bool] = {}
    for key, correct in pairs:
        groups[key] = groups.get(key, True) and correct
    return groups


@dataclass(frozen=True)
class YesNoRow:
    """One yes-or-no question: the reference, and what was read from the answer."""

    reference: YesNo
    answer: YesNo | None


@dataclass(frozen=True)
class YesNoScores:
    """Scores of POPE, with yes as the positive class.

    Attributes:
        accuracy: Share of right answers.
        precision: TP / (TP + FP).
        recall: TP / (TP + FN).
        f1: Harmonic mean of precision and recall.
        reference_yes_ratio: Share of yes in the references; the published `yes_ratio`.
        predicted_yes_ratio: Share of yes in the answers.
        unparsed: Number of answers that could not be read.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    reference_yes_ratio: float
    predicted_yes_ratio: float
    unparsed: int


def yes_no_scores(rows: Sequence[YesNoRow], *, published: bool = False) -> YesNoScores:
    """Accuracy, precision, recall, F1 and yes ratios (POPE); 0 / 0 is 0.

    The published recall leaves out an unreadable answer to a question with the reference yes. The sound form counts
    it as missed.
    """
    pairs = [(row.reference, row.answer) for row in rows]
    hits, false_alarms = pairs.count(("yes", "yes")), pairs.count(("no", "yes"))
    missed = pairs.count(("yes", "no")) + (0 if published else pairs.count(("yes", None)))
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + missed)
    return YesNoScores(
        accuracy=_mean([float(reference == answer) for reference, answer in pairs]),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        reference_yes_ratio=_mean([float(reference == "yes") for reference, _ in pairs]),
        predicted_yes_ratio=_mean([float(answer == "yes") for _, answer in pairs]),
        unparsed=sum(answer is None for _, answer in pairs),
    )


@dataclass(frozen=True)
class MmeRow:
    """One question of MME; `image` is its `question_id`, which both questions of an image share."""

    image: str
    category: str
    correct: bool


@dataclass(frozen=True)
class MmeScores:
    """Scores of MME: a category has 0 to 200 points, perception up to 2000, cognition up to 800.

    Attributes:
        accuracy: Per category, 100 times the share of right answers.
        accuracy_plus: Per category, 100 times the share of images with both answers right.
        categories: Per category, the sum of both.
        perception: Sum over the categories of perception.
        cognition: Sum over the categories of cognition.
    """

    accuracy: dict[str, float]
    accuracy_plus: dict[str, float]
    categories: dict[str, float]
    perception: float
    cognition: float


def mme_scores(rows: Sequence[MmeRow]) -> MmeScores:
    """Accuracy and accuracy+ per category, and their sums. A category without rows adds nothing to a sum.

    Raises:
        ConfigError: An image does not have exactly two questions.
    """
    images: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        images.setdefault((row.category, row.image), []).append(row.correct)
    plain: dict[str, list[float]] = {}
    plus: dict[str, list[float]] = {}
    for (category, image), answers in images.items():
        if len(answers) != 2:
            raise ConfigError(
                f"image {image!r} of MME has {len(answers)} questions, it must have 2", hint="sample whole images"
            )
        plain.setdefault(category, []).append(50.0 * sum(answers))
        plus.setdefault(category, []).append(100.0 * all(answers))
    accuracy = {category: _mean(values) for category, values in plain.items()}
    accuracy_plus = {category: _mean(values) for category, values in plus.items()}
    categories = {category: accuracy[category] + accuracy_plus[category] for category in accuracy}
    return MmeScores(
        accuracy=accuracy,
        accuracy_plus=accuracy_plus,
        categories=categories,
        perception=sum(categories.get(category, 0.0) for category in PERCEPTION),
        cognition=sum(categories.get(category, 0.0) for category in COGNITION),
    )


@dataclass(frozen=True)
class CircularRow:
    """One row of MMBench: a question with its options in one order."""

    index: int
    category: str
    correct: bool


@dataclass(frozen=True)
class CircularScores:
    """Scores of MMBench.

    Attributes:
        circular: Share of questions with every rotation right.
        vanilla: Share of questions with the main row right.
        categories: Circular score per category of the main row.
        questions: Number of questions.
    """

    circular: float
    vanilla: float
    categories: dict[str, float]
    questions: int


def circular_scores(rows: Sequence[CircularRow]) -> CircularScores:
    """A question is right only if it is right in every rotation of its options.

    Raises:
        ConfigError: A question has no main row (index below one million).
    """
    groups = _all_right((row.index % ROTATION, row.correct) for row in rows)
    main = [row for row in rows if row.index < ROTATION]
    lost = sorted({row.index % ROTATION for row in rows} - {row.index for row in main})
    if lost:
        raise ConfigError(f"question {lost[0]} of MMBench has no main row", hint="sample whole groups")
    return CircularScores(
        circular=_mean([float(groups[row.index]) for row in main]),
        vanilla=_mean([float(row.correct) for row in main]),
        categories=category_means([CategoryRow(row.category, float(groups[row.index])) for row in main]),
        questions=len(main),
    )


@dataclass(frozen=True)
class HallusionRow:
    """One question of HallusionBench.

    Attributes:
        category: `VD` or `VS`.
        subcategory: As in the data.
        set_id: As in the data.
        figure_id: As in the data.
        question_id: As in the data.
        correct: Whether the answer is right.
        counts_for_figures: False leaves the row out of fAcc, as the published judge does for `VS` with figure 0.
    """

    category: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str
    correct: bool
    counts_for_figures: bool = True


@dataclass(frozen=True)
class HallusionScores:
    """Scores of HallusionBench.

    Attributes:
        answers: aAcc, the share of right answers.
        questions: qAcc, the share of questions that are right for every figure.
        figures: fAcc, the share of figures with every question right.
    """

    answers: float
    questions: float
    figures: float


def hallusion_scores(rows: Sequence[HallusionRow]) -> HallusionScores:
    """Answers, questions and figures that are right (aAcc, qAcc, fAcc)."""
    questions = _all_right(((r.category, r.subcategory, r.set_id, r.question_id), r.correct) for r in rows)
    figures = _all_right(
        ((r.category, r.subcategory, r.set_id, r.figure_id), r.correct) for r in rows if r.counts_for_figures
    )
    return HallusionScores(
        answers=_mean([float(row.correct) for row in rows]),
        questions=_mean([float(right) for right in questions.values()]),
        figures=_mean([float(right) for right in figures.values()]),
    )


@dataclass(frozen=True)
class CategoryRow:
    """The score of one row and its category."""

    category: str
    score: float


def category_means(rows: Sequence[CategoryRow]) -> dict[str, float]:
    """The mean score of each category that has rows."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.category, []).append(row.score)
    return {category: _mean(values) for category, values in scores.items()}


def mean_of_categories(rows: Sequence[CategoryRow], expected: Sequence[str] = ()) -> float:
    """The plain mean of the means of the categories (MMStar: 18 `l2_category`; MLVU: 7 task types).

    Args:
        rows: The scores.
        expected: The categories of the published mean of MLVU; one without rows counts 0, so a run over a part of
            the data scores too low. Empty for the sound form: the mean of the categories that have rows.
    """
    means = category_means(rows)
    return _mean([means.get(category, 0.0) for category in expected] if expected else list(means.values()))


@dataclass(frozen=True)
class AnsweredRow:
    """Whether the model wrote anything, and whether it is right."""

    answered: bool
    correct: bool


def mvbench_accuracy(rows: Sequence[AnsweredRow], *, published: bool = False) -> float:
    """Share of right answers in one task of MVBench.

    The published rule leaves empty answers out of the denominator. The sound form counts them as wrong.
    """
    counted = [row for row in rows if row.answered or not published]
    return _mean([float(row.correct and row.answered) for row in counted])
