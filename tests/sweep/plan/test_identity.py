from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweep.a_cell import CELL
from tokenprune.cells.cell import CELL_ID_VERSION, Cell, canonical, cell_id
from tokenprune.checkpoints.digest import directory_digest
from tokenprune.errors import ConfigError

#: Never edit a line: a new `CELL_ID_VERSION` gets lines of its own.
GOLDEN = {
    1: [
        ({}, "5f92197e236cadb7"),
        ({"a": 1}, "6ed7da7b32d8c1fa"),
        ({"b": [1, 2.5, None, True, "é"], "a": {"y": 0.1, "x": -0.0}}, "e175450745930602"),
        (CELL, "daad1113bed1220b"),
    ],
    # how costs are measured is no part of it any more
    2: [
        ({}, "7947c7282bc309d4"),
        ({"a": 1}, "7f894503198d2665"),
        ({"b": [1, 2.5, None, True, "é"], "a": {"y": 0.1, "x": -0.0}}, "ed6af363ff355cb2"),
        (CELL, "9076d6c7a0432e43"),
    ],
}


@pytest.mark.parametrize(("facts", "expected"), GOLDEN[CELL_ID_VERSION])
def test_golden_ids(facts: object, expected: str) -> None:
    assert (facts.id if isinstance(facts, Cell) else cell_id(facts)) == expected  # type: ignore[arg-type]


def test_order_of_keys_does_not_matter() -> None:
    assert cell_id({"a": 1, "b": {"x": 1, "y": 2}}) == cell_id({"b": {"y": 2, "x": 1}, "a": 1})
    assert canonical({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "ffff"},
        {"task": "other"},
        {"task_version": "2"},
        {"task_digest": "0"},
        {"task_options": {"split": "train"}},
        {"samples": 104},
        {"pruner": "random"},
        {"options": {"layer": 3, "weight": 0.5}},
        {"distribution": "someone-else"},
        {"distribution_version": "0.1.1"},
        {"budget_ratio": 0.5},
        {"budget_ratio": None, "budget_tokens": 64},
        {"account": "average"},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"attention": "eager"},
        {"positions": "compact"},
        {"batch_size": 16},
        {"max_new_tokens": 5},
        {"lens": {}},
    ],
)
def test_what_changes_a_result_changes_the_id(change: dict[str, object]) -> None:
    assert replace(CELL, **change).id != CELL.id  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"model": "/elsewhere"}, {"label": "ours"}, {"reference": None}, {"efficiency": {"repeats": 9}}]
)
def test_what_does_not_keeps_it(change: dict[str, object]) -> None:
    assert replace(CELL, **change).id == CELL.id  # type: ignore[arg-type]


def test_cells_survive_json() -> None:
    assert Cell.from_json(CELL.to_json()) == CELL


def test_a_cell_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="written by another version"):
        Cell.from_json({**CELL.to_json(), "id": "0" * 16})
    with pytest.raises(ConfigError, match="not a cell of this version"):
        Cell.from_json({**CELL.to_json(), "colour": "red"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_without_a_json_word_raise(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        cell_id({"a": value})


def test_directory_digest(tmp_path: Path) -> None:
    def make(name: str, files: dict[str, bytes]) -> Path:
        for path, data in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        return tmp_path / name

    files = {"config.json": b"{}", "model.safetensors": b"weights", "clip/model.safetensors": b"clip"}
    first = directory_digest(make("a", files))
    assert directory_digest(make("b", {**files, "README.md": b"notes"})) == first
    assert directory_digest(make("c", {**files, "model.safetensors": b"Weights"})) != first
    swapped = {**files, "model.safetensors": b"clip", "clip/model.safetensors": b"weights"}
    assert directory_digest(make("d", swapped)) != first
