from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.a_cell import CELL
from tests.sweep.fixtures import TOY, Workshop
from tokenprune.cells.events import SweepStarted
from tokenprune.errors import ConfigError
from tokenprune.sweep import SweepOutcome, run_sweep
from tokenprune.sweep.plan.plan_diff import explain_changes


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"distribution_version": "0.2.0"}, "`tokenprune-iwp` went from version 0.1.0 to 0.2.0"),
        ({"distribution": "fork"}, "pruner `iwp` comes from `fork` instead of `tokenprune-iwp`"),
        ({"model_digest": "ffff"}, "the files of model `scenes` changed (0123456789abcdef to ffff)"),
        ({"task_version": "2"}, "task `scenes` went from version 1 to 2"),
        ({"task_digest": "ffff"}, "the data of task `scenes` changed (feedbeef to ffff)"),
        ({"batch_size": 5}, "`batch_size` changed from 15 to 5"),
        ({"options": {"layer": 3}}, '`options` changed from {"layer": 2, "weight": 0.5} to {"layer": 3}'),
    ],
)
def test_the_cause_is_named(change: dict[str, Any], cause: str) -> None:
    assert explain_changes([CELL.to_json()], [replace(CELL, **change)]) == (f"1 cell is new: {cause}",)


def test_cells_of_one_cause_are_counted() -> None:
    before = [replace(CELL, seed=seed).to_json() for seed in range(3)]
    after = [replace(CELL, seed=seed, distribution_version="0.2.0") for seed in range(4)]
    assert explain_changes(before, after) == ("3 cells are new: `tokenprune-iwp` went from version 0.1.0 to 0.2.0",)


def test_nothing_is_said_of_what_stayed_or_was_not_there() -> None:
    assert explain_changes([CELL.to_json()], [CELL, replace(CELL, label="another")]) == ()
    assert explain_changes([], [CELL]) == ()


def test_one_task_listed_twice_is_no_change_of_it() -> None:
    """Its cells have one name and differ in the options of the task."""
    cells = [
        replace(CELL, task_options={"split": split}, task_digest=digest, seed=seed)
        for split, digest in (("dev", "aaaa"), ("test", "bbbb"))
        for seed in range(2)
    ]
    before = [cell.to_json() for cell in cells]
    assert explain_changes(before, cells) == ()
    third = replace(CELL, task_options={"split": "third"}, task_digest="cccc")
    assert explain_changes(before, [*cells, third]) == ()
    changed = [replace(cell, task_digest="cccc") if cell.task_digest == "bbbb" else cell for cell in cells]
    assert explain_changes(before, changed) == ("2 cells are new: the data of task `scenes` changed (bbbb to cccc)",)
    both = [replace(cell, batch_size=5) for cell in cells]
    assert explain_changes(before, both) == ("4 cells are new: `batch_size` changed from 15 to 5",)


def test_an_executor_that_cannot_be_made_costs_no_reason(workshop: Workshop, tmp_path: Path) -> None:
    """The old plan stays until the new one can be run."""

    def go(batch_size: int, executor: str, **options: Any) -> SweepOutcome:
        return run_sweep(
            workshop.config(pruners=["none"], batch_size=batch_size, efficiency=False, lens=False),
            directory=tmp_path / "run",
            host=workshop.host,
            executor=executor,
            executor_options=options,
            track=False,
        )

    go(3, "inline")
    with pytest.raises(ConfigError, match="`workers` must be"):
        go(4, "local", workers="0")
    assert go(4, "inline").changes == ("1 cell is new: `batch_size` changed from 3 to 4",)


def test_another_way_to_tell_cells_apart() -> None:
    assert explain_changes([{**CELL.to_json(), "id": "0" * 16}], [CELL]) == (
        "1 cell is new: this version of tokenprune tells cells apart in another way",
    )


@pytest.mark.thorough
def test_a_changed_model_gives_new_cells_and_says_why(workshop: Workshop, tmp_path: Path) -> None:
    model = Path(shutil.copytree(workshop.model, tmp_path / "model"))
    config = workshop.config(models=[str(model)], pruners=["first"], budgets=[4])
    events: list[Any] = []

    def go(display: Callable[[Any], None] | None = None) -> SweepOutcome:
        return run_sweep(config, directory=tmp_path / "run", host=workshop.host, display=display, track=False)

    assert go().changes == ()
    assert go().skipped == 2
    (model / "notes.txt").write_text("retrained", encoding="utf-8")
    changed = go(events.append)
    assert (changed.skipped, changed.done) == (0, 2)
    assert len(changed.changes) == 1
    assert changed.changes[0].startswith(f"2 cells are new: the files of model `{model}` changed (")
    assert isinstance(events[0], SweepStarted)
    assert events[0].changes == changed.changes
    assert go().changes == ()


def test_an_upgraded_plugin_gives_new_cells_of_its_pruners_and_says_why(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.config(pruners=["first", "random"], budgets=[4, 2], efficiency=False, lens=False)

    def go() -> SweepOutcome:
        return run_sweep(config, directory=tmp_path / "run", host=workshop.host, track=False)

    assert go().done == 5
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("cells/*/result.json")}
    information = tmp_path / "upgraded" / "tokenprune_toy-2.0.dist-info"
    shutil.copytree(TOY / "tokenprune_toy-1.0.dist-info", information)
    metadata = information / "METADATA"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.0", "2.0"), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(information.parent)
        upgraded = go()
    assert upgraded.changes == ("2 cells are new: `tokenprune-toy` went from version 1.0 to 2.0",)
    assert (upgraded.skipped, upgraded.done) == (3, 5)  # what `random` and `none` did still holds
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((tmp_path / "run").glob("cells/*/result.json"))) == 7
    back = go()
    assert back.changes == ("2 cells are new: `tokenprune-toy` went from version 2.0 to 1.0",)
    assert back.skipped == 5  # and their results are still there
