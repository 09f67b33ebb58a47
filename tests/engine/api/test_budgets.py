"""How a session is told its budget: one way to write it, and no pruner keeps everything without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.models import TOKENS, batch, prompt, random_llava
from tokenprune import Budget, load_host
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError

SAMPLES = [prompt(1)]
HOST = load_host()
#: Options under which pruners of the zoo read no budget.
WITHOUT: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("none", {"mass_correction": True}),
    ("vtw", {"layer": 16}),
    ("sparsevlm", {"kept": [8, 4, 2]}),
    ("sparsevlm", {"rank_scale": 1.0}),
    ("feather", {"published": True}),
    ("mustdrop", {"published": True, "vision": False, "layers": [11, 15]}),
    ("prunevid", {"published": True}),
    ("dycoke", {"published": True}),
    ("prumerge", {"adaptive": True}),
    ("prumerge", {"adaptive": True, "mass_correction": True}),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava()


@pytest.mark.parametrize("name", [name for name in HOST.pruners.names() if name != "none"])
def test_every_pruner_requires_a_budget(name: str) -> None:
    with pytest.raises(BudgetError, match=f"`{name}` needs a budget") as caught, pruned(torch.nn.Linear(1, 1), name):
        pass
    assert "`100%` to keep all" in caught.value.hint


def test_without_a_budget_the_model_stays_as_it_is(model: Any) -> None:
    before = dict(vars(model))
    with pytest.raises(BudgetError, match="needs a budget"), pruned(model, "random"):
        pass
    assert vars(model) == before


@pytest.mark.parametrize("pruner", [None, "none"])
@pytest.mark.parametrize("budget", [None, 3])
def test_no_pruning_keeps_all_with_and_without_a_budget(model: Any, pruner: str | None, budget: int | None) -> None:
    with torch.no_grad(), pruned(model, pruner, budget) as session:
        model(**batch(SAMPLES))
    assert session.last.final() == (TOKENS,)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (1, 1),
        (3, 3),
        ("3", 3),
        (TOKENS + 1, TOKENS),
        (0.25, TOKENS // 4),
        ("0.25", TOKENS // 4),
        ("25%", TOKENS // 4),
        (Budget(ratio=0.25), TOKENS // 4),
        (1.0, TOKENS),
        ("100%", TOKENS),
    ],
)
def test_a_session_reads_budgets_as_files_and_commands_do(model: Any, budget: Any, kept: int) -> None:
    with torch.no_grad(), pruned(model, "grid", budget) as session:
        model(**batch(SAMPLES))
    assert session.last.final() == (kept,)


@pytest.mark.parametrize(("named", "kept"), [({"ratio": 1}, TOKENS), ({"ratio": 0.5}, 8), ({"tokens": 1}, 1)])
def test_a_named_figure_is_what_its_name_says(model: Any, named: dict[str, Any], kept: int) -> None:
    with torch.no_grad(), pruned(model, "grid", **named) as session:
        model(**batch(SAMPLES))
    assert session.last.final() == (kept,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "keep tokens must be a whole number >= 1, got 0"),
        ({"budget": 0.0}, "keep ratio must lie in"),
        ({"budget": -1}, "keep tokens must be a whole number >= 1, got -1"),
        ({"budget": True}, "not a budget: True"),
        ({"budget": float("nan")}, "not a budget: nan"),
        ({"budget": "many"}, "not a budget: 'many'"),
        ({"tokens": 0.5}, "keep tokens must be a whole number >= 1, got 0.5"),
        ({"ratio": 64}, "keep ratio must lie in"),
        ({"budget": 3, "tokens": 3}, "give one of `budget`, `ratio` and `tokens`"),
    ],
)
def test_what_is_no_budget_is_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message), pruned(model, "grid", **arguments):
        pass


@pytest.mark.parametrize(("name", "options"), WITHOUT)
def test_what_reads_no_budget_needs_none_and_keeps_the_same_under_all(
    model: Any, name: str, options: dict[str, Any]
) -> None:
    frames = [prompt(1, images=4)]

    def kept(*budget: Any) -> list[Any]:
        pruner = HOST.pruners.get(name).build(options)
        with torch.no_grad(), pruned(model, pruner, *budget, frames=True) as session:
            model(**batch(frames))
        return [(unit.site, unit.kept, unit.indices) for unit in session.last.units]

    assert kept() == kept(1) == kept("75%")
