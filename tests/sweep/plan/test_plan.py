from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.errors import ConfigError, PrerequisiteError, TokenPruneError
from tokenprune.sweep import plan_cells, run_sweep


def test_grid_with_the_unpruned_cell_first(workshop: Workshop) -> None:
    cells = plan_cells(workshop.config(pruners=["grid", "first"], budgets=["50%", 4]), workshop.host)
    assert [cell.name for cell in cells] == [
        "none/toy@all",
        "grid/toy@50%",
        "grid/toy@4",
        "first/toy@50%",
        "first/toy@4",
    ]
    assert cells[0].reference is None
    assert {cell.reference for cell in cells[1:]} == {cells[0].id}
    assert len({cell.id for cell in cells}) == len(cells)
    assert cells[0].budget.ratio == 1.0


def test_seeds_only_where_chance_is(workshop: Workshop) -> None:
    config = workshop.config(pruners=["random", "grid"], budgets=[4], seeds=[0, 1, 2])
    cells = plan_cells(config, workshop.host)
    assert [(cell.pruner, cell.seed, cell.options.get("seed")) for cell in cells] == [
        ("none", 0, None),
        ("random", 0, 0),
        ("random", 1, 1),
        ("random", 2, 2),
        ("grid", 0, None),
    ]


def test_a_fixed_seed_is_not_swept(workshop: Workshop) -> None:
    pruners = [{"name": "random", "options": {"seed": 7}}]
    cells = plan_cells(workshop.config(pruners=pruners, budgets=[4], seeds=[0, 1]), workshop.host)
    assert [cell.options.get("seed") for cell in cells] == [None, 7]


def test_a_cell_knows_where_its_pruner_comes_from(workshop: Workshop) -> None:
    cells = plan_cells(workshop.config(pruners=["first"], budgets=[4]), workshop.host)
    assert (cells[1].distribution, cells[1].distribution_version) == ("tokenprune-toy", "1.0")
    assert cells[1].options == {"pause": 0.0, "gate": ""}


def test_limit(workshop: Workshop) -> None:
    for limit, expected in ((3, 3), (100, 8), (None, 8)):
        assert plan_cells(workshop.config(limit=limit), workshop.host)[0].samples == expected


def test_default_options_spelt_out_give_the_same_cell(workshop: Workshop) -> None:
    short = plan_cells(workshop.config(pruners=["first"]), workshop.host)
    long = plan_cells(workshop.config(pruners=[{"name": "first", "options": {"pause": 0.0}}]), workshop.host)
    assert [cell.id for cell in short] == [cell.id for cell in long]


def test_an_empty_model_directory_is_said_so(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="holds no weights"):
        plan_cells(workshop.config(models=[str(tmp_path)]), workshop.host)


@pytest.mark.parametrize(
    "changes",
    [{"models": ["/no/model/here"]}, {"tasks": [{"name": "toy", "options": {"size": 0}}]}],
)
def test_what_cannot_be_planned_makes_no_directory(workshop: Workshop, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenPruneError) as caught:
        run_sweep(workshop.config(**changes), directory=tmp_path / "run", host=workshop.host, track=False)
    assert caught.value.hint
    with pytest.raises(TokenPruneError):
        run_sweep(
            workshop.config(),
            directory=tmp_path / "run",
            host=workshop.host,
            executor_options={"workers": 2},  # `inline` has no such option
            track=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_a_task_finds_has_a_hint(workshop: Workshop) -> None:
    config = workshop.config(tasks=[{"name": "scenes", "options": {"split": "val"}}], models=["scenes"])
    with pytest.raises(ConfigError, match="task `scenes`: unknown split 'val'") as caught:
        plan_cells(config, workshop.host)
    assert caught.value.hint.startswith("its options: ")


def test_a_wrong_task_option_is_said_so(workshop: Workshop) -> None:
    with pytest.raises(ConfigError, match=r"unknown option of task `toy` `sise`"):
        plan_cells(workshop.config(tasks=[{"name": "toy", "options": {"sise": 3}}]), workshop.host)
    with pytest.raises(ConfigError, match="has no samples"):
        plan_cells(workshop.config(tasks=[{"name": "toy", "options": {"size": 0}}]), workshop.host)
