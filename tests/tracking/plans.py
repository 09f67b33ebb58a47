"""Plans of any size."""

from __future__ import annotations

from dataclasses import replace

from tests.sweep.a_cell import CELL
from tokenprune.cells.cell import Cell

BUDGETS = (0.5, 0.25, 0.111, 0.056, 0.01)


def cell(
    pruner: str = "none",
    budget: float | int | None = None,
    *,
    model: str = "hub/model-7b",
    task: str = "toy",
    options: dict[str, str] | None = None,
    seed: int = 0,
) -> Cell:
    ratio, tokens = (budget, None) if isinstance(budget, float) else (None, budget)
    facts = {
        "model": model,
        "task": task,
        "task_options": options or {},
        "pruner": pruner,
        "label": pruner,
        "seed": seed,
    }
    return replace(CELL, **facts, budget_ratio=ratio, budget_tokens=tokens, options={}, reference=None)


def plan(pruners: int, budgets: int, tasks: int, models: int, seeds: int) -> list[Cell]:
    cells = []
    for model in range(models):
        for task in range(tasks):
            place = {"model": f"hub/model-{model}", "task": f"task-{task}"}
            cells.append(cell(**place))
            cells += [
                cell(f"pruner-{pruner:03}", budget, seed=seed, **place)
                for pruner in range(pruners)
                for budget in BUDGETS[:budgets]
                for seed in range(seeds)
            ]
    return cells
