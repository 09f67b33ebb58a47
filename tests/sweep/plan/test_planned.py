"""What a worker finds must be what was planned: nothing is filed under the id of something else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import TOY, Workshop
from tests.sweep.tiny import save_tiny_model
from tokenprune.cells.events import SweepStarted
from tokenprune.checkpoints import load_model
from tokenprune.evaluation import model_cache
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep

SMALL: dict[str, Any] = {"budgets": [4, 2], "efficiency": False, "lens": False, "overlays": 0}


@pytest.fixture
def go(workshop: Workshop, tmp_path: Path) -> Callable[..., SweepOutcome]:
    """A sweep of a few cells; something happens between its plan and its first cell."""

    def run(
        happens: Callable[[], object] | None = None, pruners: tuple[str, ...] = ("first",), **changes: Any
    ) -> SweepOutcome:
        def display(event: Any) -> None:
            if isinstance(event, SweepStarted) and happens is not None:
                happens()

        config = workshop.config(**{**SMALL, "pruners": pruners, **changes})
        return run_sweep(
            config, directory=tmp_path / "run", host=workshop.host, display=display, retry_failed=True, track=False
        )

    return run


def errors(outcome: SweepOutcome) -> list[dict[str, Any]]:
    store = SweepStore(outcome.directory)
    return [error for cell in store.plan() if (error := store.error(cell.id)) is not None]


def test_a_model_that_changed_after_the_plan(
    go: Callable[..., SweepOutcome], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = load_model

    def counted(name: str, **options: Any) -> Any:
        loads.append(name)
        return load(name, **options)

    monkeypatch.setattr(model_cache, "load_model", counted)
    model = Path(shutil.copytree(workshop.model, tmp_path / "model"))
    assert go(pruners=("none",), models=[str(model)]).done == 1
    loads.clear()
    changed = go(lambda: save_tiny_model(model, seed=1), models=[str(model)])
    assert (changed.done, changed.failed) == (1, 2)
    for error in errors(changed):
        assert error["type"] == "PlanChangedError"
        assert error["message"].startswith(f"the files of model `{model}` changed since the plan was made (")
        assert error["hint"].startswith("run the sweep again: it plans anew")
    assert loads == [str(model)]  # once, not once for every cell
    again = go(models=[str(model)])
    assert (again.done, again.failed, again.skipped) == (3, 0, 0)


def test_a_cost_of_another_model_is_none(go: Callable[..., SweepOutcome], workshop: Workshop, tmp_path: Path) -> None:
    model = Path(shutil.copytree(workshop.model, tmp_path / "model"))
    quick = {"repeats": 1, "max_repeats": 1, "warmup": 0, "new_tokens": 1}
    assert go(pruners=("none",), models=[str(model)], efficiency=quick).done == 1
    slower = {**quick, "new_tokens": 2}
    outcome = go(lambda: save_tiny_model(model, seed=1), pruners=("none",), models=[str(model)], efficiency=slower)
    store = SweepStore(outcome.directory)
    cost = (store.result(store.plan()[0].id) or {})["cost"]
    assert cost["error"].startswith(f"the files of model `{model}` changed since the plan was made")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("version", "2", "the version of task `toy`"), ("digest", lambda self: "toy-other", "the data of task `toy`")],
)
def test_a_task_that_changed_after_the_plan(
    go: Callable[..., SweepOutcome], monkeypatch: pytest.MonkeyPatch, name: str, value: Any, what: str
) -> None:
    def change() -> None:
        monkeypatch.setattr(sys.modules["tokenprune_toy"].ToyTask, name, value)

    outcome = go(change, pruners=("none",))
    (error,) = errors(outcome)
    assert error["message"].startswith(f"{what} changed since the plan was made (")
    assert go(pruners=("none",)).done == 1


def test_a_plugin_that_changed_after_the_plan(
    go: Callable[..., SweepOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade() -> None:
        information = tmp_path / "upgraded" / "tokenprune_toy-2.0.dist-info"
        shutil.copytree(TOY / "tokenprune_toy-1.0.dist-info", information)
        metadata = information / "METADATA"
        metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.0", "2.0"), encoding="utf-8")
        monkeypatch.syspath_prepend(information.parent)

    outcome = go(upgrade, pruners=("first", "grid"))
    assert (outcome.done, outcome.failed) == (3, 2)  # `none` and `grid` come from another distribution
    for error in errors(outcome):
        assert error["message"] == "the version of `tokenprune-toy` changed since the plan was made (1.0 to 2.0)"
    assert go(pruners=("first", "grid")).done == 5


def test_a_hub_name_is_loaded_at_the_commit_of_the_plan(
    go: Callable[..., SweepOutcome], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, loads = ["aaaa"], []
    shutil.copytree(workshop.model, tmp_path / "aaaa")
    save_tiny_model(tmp_path / "bbbb", seed=1)

    def snapshot_download(name: str, revision: str | None = None) -> str:
        assert name == "someone/tiny"
        return str(tmp_path / (revision or current[0]))

    def counted(name: str, **options: Any) -> Any:
        loads.append(name)
        return load(name, **options)

    load = load_model
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(model_cache, "load_model", counted)
    outcome = go(lambda: current.__setitem__(0, "bbbb"), pruners=("none",), models=["someone/tiny"])
    assert outcome.done == 1
    assert loads == [str(tmp_path / "aaaa")]
    assert [cell.model_digest for cell in SweepStore(outcome.directory).plan()] == ["aaaa"]
