from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.sweep.tiny import TOKENS
from tokenprune import hookimpl
from tokenprune.cells.events import CellEnded, CellEvaluated, CellFailed, CellStarted, SweepEnded, SweepStarted
from tokenprune.plugins import load_host
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep

Run = Callable[..., SweepOutcome]


def results(directory: Path) -> dict[str, dict[str, Any]]:
    store = SweepStore(directory)
    return {cell.name: store.result(cell.id) or {} for cell in store.plan()}


def test_a_whole_sweep(finished: FinishedSweep) -> None:
    outcome = finished.outcome
    # none + (random x 2 seeds + grid + downsample + exploding + refusing + first) x 2 budgets
    assert (outcome.done, outcome.failed, outcome.refused, outcome.pending) == (11, 2, 2, 0)
    assert outcome.status == "failures"
    assert outcome.problems == ()
    kinds = Counter(type(event) for event in finished.events)
    assert kinds == {SweepStarted: 1, CellStarted: 26, CellEvaluated: 11, CellEnded: 11, CellFailed: 4, SweepEnded: 1}
    parts = Counter(event.phase for event in finished.events if isinstance(event, CellStarted))
    assert parts == {"answers": 15, "cost": 11}
    assert [event.done for event in finished.events if isinstance(event, CellEnded | CellFailed)] == list(range(1, 16))


def test_a_result_says_what_happened(finished: FinishedSweep) -> None:
    found = results(finished.directory)
    none, half = found["none/toy@all"], found["first/toy@50%"]
    assert none["tokens"]["layer_average"] == TOKENS
    assert half["tokens"] == {
        "original": TOKENS,
        "entering": TOKENS / 2,
        "layer_average": TOKENS / 2,
        "layer_average_ratio": 0.5,
        "kv": TOKENS / 2,
        "final": TOKENS / 2,
    }
    assert none["against_none"] is None
    assert set(half["against_none"]) == {"retention", "retention_macro", "agreement", "kl"}
    assert half["against_none"]["kl"] > 0
    assert half["quality"]["questions"] == 8
    assert set(half["quality"]["families"]) == {"colour", "shape"}
    assert half["cost"]["kv_mib"] < none["cost"]["kv_mib"]
    assert half["cost"]["prefill_tflops"] < none["cost"]["prefill_tflops"]
    assert 0 < half["lens"]["output_error"] < found["first/toy@4"]["lens"]["output_error"]
    assert found["downsample/toy@4"]["lens"]["reason"]


def test_the_same_answers_however_often(finished: FinishedSweep, sweep: Run) -> None:
    outcome = sweep(pruners=["first"], budgets=[4], batch_size=8)
    again = SweepStore(outcome.directory)
    first = {
        cell.name: SweepStore(finished.directory).samples(cell.id) for cell in SweepStore(finished.directory).plan()
    }
    for cell in again.plan():  # another batch size is another cell with the same answers
        rows = [row["prediction"] for row in again.samples(cell.id)]
        assert rows == [row["prediction"] for row in first[cell.name]]


def test_failures_are_on_disk_with_their_cause(finished: FinishedSweep) -> None:
    store = SweepStore(finished.directory)
    errors = {cell.name: store.error(cell.id) for cell in store.plan() if store.error(cell.id)}
    assert set(errors) == {f"{name}/toy@{budget}" for name in ("exploding", "refusing") for budget in ("50%", "4")}
    exploding, refusing = errors["exploding/toy@4"], errors["refusing/toy@4"]
    assert exploding is not None
    assert refusing is not None
    assert (exploding["outcome"], exploding["type"], exploding["message"]) == ("failed", "ZeroDivisionError", "boom")
    assert "tokenprune_toy.py" in exploding["traceback"]
    assert (refusing["outcome"], refusing["message"]) == ("refused", "no budget pleases me")
    assert refusing["hint"] == "try another pruner"


def test_the_same_command_again_does_nothing(sweep: Run) -> None:
    changes: dict[str, Any] = {"pruners": ["first", "exploding"], "budgets": [4]}
    first = sweep(**changes)
    assert (first.done, first.failed, first.skipped) == (2, 1, 0)
    before = {path: path.stat().st_mtime_ns for path in first.directory.glob("cells/*/*")}
    started: list[Any] = []
    second = sweep(display=started.append, **changes)
    assert (second.done, second.failed, second.skipped, second.status) == (2, 1, 3, "failures")
    assert [type(event) for event in started] == [SweepStarted, SweepEnded]
    assert {path: path.stat().st_mtime_ns for path in first.directory.glob("cells/*/*")} == before
    assert second.sweep_id == first.sweep_id


def test_failed_cells_are_retried_when_asked(sweep: Run) -> None:
    changes: dict[str, Any] = {"pruners": ["first", "exploding", "refusing"], "budgets": [4]}
    sweep(**changes)
    events: list[Any] = []
    sweep(display=events.append, retry_failed=True, **changes)
    assert [event.cell.pruner for event in events if isinstance(event, CellStarted)] == ["exploding"]


def test_cells_can_be_added(sweep: Run) -> None:
    sweep(pruners=["first"], budgets=[4])
    second = sweep(pruners=["first", "grid"], budgets=[4, 2])
    assert (second.done, second.skipped) == (5, 2)


def test_a_run_that_pruned_nothing_fails(sweep: Run) -> None:
    outcome = sweep(pruners=["lazy"], budgets=[4])
    store = SweepStore(outcome.directory)
    error = store.error(store.plan()[1].id)
    assert outcome.failed == 1
    assert error is not None
    assert error["type"] == "NothingPrunedError"
    assert f"was asked to keep 4 of {TOKENS} visual tokens" in error["message"]


def test_a_bad_sample_counts_as_wrong(sweep: Run) -> None:
    outcome = sweep(pruners=["first"], budgets=[4], tasks=[{"name": "toy", "options": {"size": 8, "bad": 4}}])
    assert (outcome.done, outcome.failed) == (2, 0)
    for name, result in results(outcome.directory).items():
        assert result["quality"]["questions"] == 8, name
        assert result["quality"]["errors"] == 1
    store = SweepStore(outcome.directory)
    for cell in store.plan():
        rows = store.samples(cell.id)
        assert [row["index"] for row in rows] == list(range(8))
        assert rows[4]["score"] == 0.0
        assert rows[4]["error"] == "ValueError: this sample cannot be scored"


def test_without_its_reference_a_cell_fails(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenprune.evaluation.evaluate import Evaluation
    from tokenprune.evaluation.predictions import Predictions

    whole = Evaluation.finished

    def break_reference(self: Evaluation) -> Predictions:
        if self.unpruned:
            raise RuntimeError("no reference today")
        return whole(self)

    monkeypatch.setattr(Evaluation, "finished", break_reference)
    outcome = sweep(pruners=["first"], budgets=[4])
    assert (outcome.done, outcome.failed) == (0, 2)
    store = SweepStore(outcome.directory)
    error = store.error(store.plan()[1].id)
    assert error is not None
    assert "there is nothing to compare with" in error["message"]


def test_ctrl_c_ends_well_and_continues(sweep: Run) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, CellEnded) and event.cell.pruner == "none":
            raise KeyboardInterrupt

    first = sweep(pruners=["first"], budgets=[4, 2], display=stop)
    assert (first.status, first.done, first.pending, first.interrupted) == ("interrupted", 1, 2, True)
    second = sweep(pruners=["first"], budgets=[4, 2])
    assert (second.status, second.done, second.skipped) == ("complete", 3, 1)


def test_a_broken_tracker_is_reported_and_survived(workshop: Workshop, tmp_path: Path) -> None:
    class Tracker:
        @hookimpl
        def on_cell_end(self, event: CellEnded) -> None:
            raise OSError("the server is away")

    host = load_host(
        defaults=(
            "tokenprune.baselines",
            "tokenprune.families",
            "tokenprune.checkpoints",
            "tokenprune.sweep.executors.executor",
        )
    )
    host.add(Tracker(), "away")
    config = workshop.config(pruners=["grid"], budgets=[4])
    outcome = run_sweep(config, directory=tmp_path / "run", host=host)
    assert outcome.done == 2
    assert outcome.problems == ("plugin `away` failed in `on_cell_end`: OSError: the server is away",)


@pytest.mark.thorough
def test_worker_processes(workshop: Workshop, tmp_path: Path) -> None:
    """The same answers as in this process, and a pruner that kills its worker costs its own cells only."""
    config = workshop.config(executor="local", pruners=["dying", "first", "random"], budgets=[4], seeds=[0, 1])
    outcome = run_sweep(config, directory=tmp_path / "pool", host=workshop.host, track=False)
    assert (outcome.done, outcome.failed) == (4, 1)
    store = SweepStore(outcome.directory)
    dead = next(cell for cell in store.plan() if cell.pruner == "dying")
    error = store.error(dead.id)
    assert error is not None
    assert error["type"] == "WorkerDied"
    assert error["message"] == "3 workers died in this cell, the last with signal SIGKILL"
    pids = {result["worker"]["pid"] for result in results(outcome.directory).values() if result}
    assert len(pids) > 1  # one before the deaths, one after
    inline = run_sweep(
        workshop.config(pruners=["first", "random"], budgets=[4], seeds=[0, 1]),
        directory=tmp_path / "inline",
        host=workshop.host,
        track=False,
    )
    here = SweepStore(inline.directory)
    for cell in here.plan():
        ours = [(row["prediction"], row["score"]) for row in here.samples(cell.id)]
        assert ours == [(row["prediction"], row["score"]) for row in store.samples(cell.id)]
