"""Scores over several rows, against the worked examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.errors import ConfigError
from tokenprune.tasks.scoring.groups import (
    AnsweredRow,
    CategoryRow,
    CircularRow,
    HallusionRow,
    MmeRow,
    YesNoRow,
    circular_scores,
    hallusion_scores,
    mean_of_categories,
    mme_scores,
    mvbench_accuracy,
    yes_no_scores,
)
from tokenprune.tasks.scoring.yes_no import YesNo, pope_answer

POPE: list[tuple[str, YesNo]] = [
    ("Yes", "yes"),
    ("yes.", "yes"),
    ("no", "no"),
    ("yes", "no"),
    ("No, there is not", "no"),
]
MLVU = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")


def test_pope() -> None:
    rows = [YesNoRow(reference, pope_answer(text, published=True)) for text, reference in POPE]
    scores = yes_no_scores(rows, published=True)
    assert (scores.accuracy, scores.precision, scores.recall) == (0.4, 0.5, 1.0)
    assert scores.f1 == pytest.approx(0.6667, abs=1e-4)
    assert (scores.reference_yes_ratio, scores.predicted_yes_ratio, scores.unparsed) == (0.4, 0.4, 2)
    assert yes_no_scores(rows).recall == 0.5  # an unreadable answer is a missed yes
    sound = yes_no_scores([YesNoRow(reference, pope_answer(text)) for text, reference in POPE])
    assert (sound.accuracy, sound.recall, sound.unparsed) == (0.8, 1.0, 0)
    assert yes_no_scores([]).f1 == 0


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", None]))))
def test_scores_of_yes_and_no_are_shares(pairs: list[tuple[YesNo, YesNo | None]]) -> None:
    rows = [YesNoRow(reference, answer) for reference, answer in pairs]
    sound, published = yes_no_scores(rows), yes_no_scores(rows, published=True)
    assert 0 <= sound.f1 <= published.f1 <= 1
    assert sound.recall <= published.recall


def test_mme() -> None:
    rows = [
        MmeRow("a", "count", True),
        MmeRow("a", "count", True),
        MmeRow("b", "count", True),
        MmeRow("b", "count", False),
        MmeRow("c", "color", False),
        MmeRow("c", "color", False),
    ]
    scores = mme_scores(rows)
    assert scores.categories == {"count": 125, "color": 0}
    assert (scores.accuracy["count"], scores.accuracy_plus["count"]) == (75, 50)
    assert (scores.perception, scores.cognition) == (125, 0)
    with pytest.raises(ConfigError, match="1 questions"):
        mme_scores(rows[:3])


def test_mmbench() -> None:
    rows = [
        CircularRow(1, "x", True),
        CircularRow(1_000_001, "x", True),
        CircularRow(2, "x", True),
        CircularRow(1_000_002, "x", False),
        CircularRow(3, "y", False),
    ]
    scores = circular_scores(rows)
    assert scores.circular == pytest.approx(1 / 3)
    assert scores.vanilla == pytest.approx(2 / 3)
    assert scores.categories == {"x": 0.5, "y": 0}
    assert scores.questions == 3
    with pytest.raises(ConfigError, match="question 2 of MMBench has no main row"):
        circular_scores(rows[:2] + rows[3:])


def test_hallusionbench() -> None:
    facts = [
        ("VD", "0", "0", True, True),
        ("VD", "0", "1", True, True),
        ("VD", "1", "0", True, True),
        ("VD", "1", "1", False, True),
        ("VS", "0", "0", True, False),
        ("VS", "1", "0", True, True),
    ]
    scores = hallusion_scores([HallusionRow(c, "s", "0", f, q, right, counts) for c, f, q, right, counts in facts])
    assert scores.answers == pytest.approx(5 / 6)
    assert scores.questions == pytest.approx(2 / 3)
    assert scores.figures == pytest.approx(2 / 3)


def test_means_of_categories() -> None:
    assert mean_of_categories([CategoryRow("a", 1), CategoryRow("a", 0), CategoryRow("b", 1)]) == 0.75
    rows = [CategoryRow("ego", 1), CategoryRow("ego", 0), CategoryRow("count", 1)]
    assert 100 * mean_of_categories(rows, MLVU) == pytest.approx(21.43, abs=0.005)
    assert mean_of_categories(rows) == 0.75
    assert mean_of_categories([]) == 0


def test_empty_answers_of_mvbench() -> None:
    rows = [AnsweredRow(True, True), AnsweredRow(True, False), AnsweredRow(False, False)]
    assert mvbench_accuracy(rows, published=True) == 0.5
    assert mvbench_accuracy(rows) == pytest.approx(1 / 3)
