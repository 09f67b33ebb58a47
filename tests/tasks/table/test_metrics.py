"""A table's answers under the real metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenprune.tasks.table.task import METRICS, TableTask


def task(folder: Path, row: dict[str, Any], **options: Any) -> TableTask:
    path = folder / "table.jsonl"
    path.write_text(json.dumps({"question": "which one?", **row}) + "\n", encoding="utf-8")
    return TableTask(path, **options)


SCORES = [
    ("exact", "A red ball.", "a red ball", 1.0),
    ("exact", "red", ["blue", "red"], 1.0),
    ("exact", "reddish", "red", 0.0),
    ("contains", "It is a red ball", "red", 1.0),
    ("contains", "It is reddish", "red", 0.0),
    ("number", "$1,000", "1000", 1.0),
    ("number", "5 kg", "5", 1.0),
    ("number", "about five", "5", 0.0),
    ("relaxed", " 10.4", "10", 1.0),
    ("relaxed", "10.6", "10", 0.0),
    ("anls", "colour", ["color"], 0.8333),
    ("anls", "cat", "dog", 0.0),
    ("vqa", "Coke", ["coke"] * 3 + ["pepsi"] * 7, 0.9),
    ("vqa", "the coke", ["coke", "pepsi"], 1.0),
]


@pytest.mark.parametrize(("metric", "prediction", "answer", "expected"), SCORES)
def test_scores(tmp_path: Path, metric: str, prediction: str, answer: Any, expected: float) -> None:
    made = task(tmp_path, {"answer": answer}, metric=metric)
    assert made.score(prediction, made[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("B", 1.0), ("(b)", 1.0), ("The answer is B.", 1.0), ("blue bus", 1.0), ("A", 0.0), ("A or B", 0.0), ("", 0.0)],
)
def test_a_choice_is_right_by_its_letter_or_its_text(tmp_path: Path, prediction: str, expected: float) -> None:
    made = task(tmp_path, {"answer": "B", "options": ["red car", "blue bus"]}, choices="options")
    assert made.score(prediction, made[0]) == expected


def test_every_metric_is_tried() -> None:
    assert {metric for metric, *_ in SCORES} | {"choice"} == set(METRICS)
