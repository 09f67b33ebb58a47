from __future__ import annotations

import json
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.tracking.places import place_of
from tokenprune.report.render.columns import legend
from tokenprune.sweep import SweepStore, run_sweep
from tokenprune.tracking.mlflow_store import open_store
from tokenprune.tracking.mlflow_tracker import replay
from tokenprune.tracking.views import summary_note


class Dashboard:
    """What an MLflow store holds about one sweep."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(tracking_uri=uri)
        (self.experiment,) = [
            found for found in self.client.search_experiments() if found.name.startswith("tokenprune ")
        ]
        self.runs = self.client.search_runs([self.experiment.experiment_id])

    def cells(self) -> dict[str, Any]:
        return {run.info.run_name: run for run in self.runs if run.data.tags["tokenprune.kind"] == "cell"}

    def summary(self) -> Any:
        (run,) = [run for run in self.runs if run.data.tags["tokenprune.kind"] == "summary"]
        return run

    def files(self, run: Any) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id)}

    def facts(self) -> dict[str, tuple[Any, ...]]:
        return {
            run.data.tags["tokenprune.cell_id"]: (
                name,
                run.info.status,
                run.data.params,
                run.data.metrics,
                run.data.tags["mlflow.runColor"],
            )
            for name, run in self.cells().items()
        }


@pytest.fixture(scope="module")
def dashboard(finished: FinishedSweep) -> Dashboard:
    return Dashboard(place_of(finished.outcome).uri)


def test_every_cell_is_one_flat_run(finished: FinishedSweep, dashboard: Dashboard) -> None:
    store = SweepStore(finished.directory)
    assert sorted(dashboard.cells()) == sorted(cell.name for cell in store.plan())
    assert place_of(finished.outcome).experiment_id == dashboard.experiment.experiment_id
    assert not any("mlflow.parentRunId" in run.data.tags for run in dashboard.runs)
    for cell in store.plan():
        run = dashboard.cells()[cell.name]
        assert run.data.tags["tokenprune.cell_id"] == cell.id
        assert run.data.tags["tokenprune.outcome"] == store.state(cell.id)
        assert run.info.status == ("FINISHED" if store.state(cell.id) == "done" else "FAILED")


def test_names_are_stable(dashboard: Dashboard) -> None:
    run = dashboard.cells()["random/toy@50% seed 1"]
    names = {"pruner", "task", "model", "budget", "layer", "seed", "budget_label", "account", "dtype", "attention"}
    assert names <= set(run.data.params)
    assert (run.data.params["budget"], run.data.params["seed"]) == ("0.5", "1")
    assert {
        "quality/accuracy",
        "quality/accuracy_macro",
        "quality/retention",
        "quality/agreement",
        "quality/kl",
        "quality/family/colour",
        "quality/family/shape",
        "cost/tokens_entering",
        "cost/tokens_layer_average",
        "cost/tokens_kv",
        "cost/tokens_final",
        "cost/prefill_ms",
        "cost/prefill_ms_q1",
        "cost/prefill_ms_q3",
        "cost/decode_ms_per_token",
        "cost/total_ms",
        "cost/overhead_ms",
        "cost/peak_mem_mib",
        "cost/kv_mib",
        "cost/prefill_gflops",
        "lens/dual_error",
        "lens/output_error",
        "lens/output_error_by_layer",
    } <= set(run.data.metrics)


def test_metrics_are_the_files_numbers(finished: FinishedSweep, dashboard: Dashboard) -> None:
    store = SweepStore(finished.directory)
    for cell in store.plan():
        result = store.result(cell.id)
        if result is not None:
            metrics = dashboard.cells()[cell.name].data.metrics
            assert metrics["quality/accuracy"] == result["quality"]["accuracy"]
            assert metrics["cost/prefill_ms"] == result["cost"]["prefill_ms"]["median"]


def test_errors_per_layer_are_a_curve_over_layers(finished: FinishedSweep, dashboard: Dashboard) -> None:
    cell = next(cell for cell in SweepStore(finished.directory).plan() if cell.name == "first/toy@4")
    result = SweepStore(finished.directory).result(cell.id)
    assert result is not None
    run = dashboard.cells()[cell.name]
    history = dashboard.client.get_metric_history(run.info.run_id, "lens/output_error_by_layer")
    assert [(point.step, point.value) for point in history] == list(enumerate(result["lens"]["output_error_per_layer"]))


def test_one_colour_per_pruner(dashboard: Dashboard) -> None:
    colours: dict[str, set[str]] = {}
    for run in dashboard.cells().values():
        colours.setdefault(run.data.params["pruner"], set()).add(run.data.tags["mlflow.runColor"])
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


def test_artifacts(finished: FinishedSweep, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run = dashboard.cells()["first/toy@4"]
    assert dashboard.files(run) == {"cell.json", "samples.json", "kept-0.png", "kept-1.png", "images"}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place_of(finished.outcome).uri)
    mlflow.set_tracking_uri(place_of(finished.outcome).uri)
    mlflow.set_experiment(experiment_id=dashboard.experiment.experiment_id)
    table = mlflow.load_table("samples.json", run_ids=[run.info.run_id])
    assert list(table.columns[:2]) == ["sample", "prediction"]
    assert len(table) == 8
    assert dashboard.files(dashboard.cells()["exploding/toy@4"]) == {"cell.json"}
    for name in ("first/toy@4", "exploding/toy@4"):
        tags = dashboard.cells()[name].data.tags
        assert tags["tokenprune.env.torch"] == metadata.version("torch")
        assert tags["tokenprune.env.tokenprune-toy"].startswith("1.0")


def test_summary_run(finished: FinishedSweep, dashboard: Dashboard) -> None:
    run = dashboard.summary()
    assert {
        "report.html",
        "leaderboard.md",
        "leaderboard.json",
        "accuracy-versus-budget.png",
        "accuracy-versus-cost.png",
        "sweep.json",
    } <= dashboard.files(run)
    counts = {name: run.data.metrics[f"sweep/{name}"] for name in ("done", "failed", "refused", "pending")}
    assert counts == {"done": 11, "failed": 2, "refused": 2, "pending": 0}
    assert "| 1 |" in run.data.tags["mlflow.note.content"]
    assert place_of(finished.outcome).summary_run_id == run.info.run_id


@pytest.mark.parametrize(("rows", "held"), [(1, ("| 7 |", legend())), (900, ("| 7 |",)), (9000, ("`leaderboard.md`",))])
def test_a_summary_note_holds_as_much_as_fits(rows: int, held: tuple[str, ...]) -> None:
    text = summary_note(rows * "| 7 |" + f"\n\n{legend()}\n")
    assert all(part in text for part in held)
    assert (legend() in text) == (legend() in held)
    assert len(text) < 5000


def test_the_questions_are_the_data_set_of_a_run(finished: FinishedSweep, dashboard: Dashboard) -> None:
    cell = next(cell for cell in SweepStore(finished.directory).plan() if cell.name == "first/toy@4")
    for name in ("first/toy@4", "none/toy@all", "exploding/toy@4"):
        (used,) = dashboard.cells()[name].inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("toy", cell.task_digest[:16])
        assert json.loads(used.dataset.profile) == {"num_rows": 8}
        assert json.loads(used.dataset.source)["options"] == {"size": 8}


def test_preset_views(finished: FinishedSweep, dashboard: Dashboard) -> None:
    tags = dashboard.experiment.tags
    views = {key: json.loads(value) for key, value in tags.items() if key.startswith("mlflow.sharedViewState.")}
    assert {view["name"] for view in views.values()} == {
        "Trade-off",
        "Per task: toy",
        "All axes",
        "Compare answers: 50%",
        "Compare answers: 4",
        "Kept tokens: 50%",
        "Kept tokens: 4",
        "Error and accuracy",
        "Table",
    }
    logged = set().union(*(run.data.metrics for run in dashboard.cells().values()))
    for view in views.values():
        state = json.loads(view["state"])
        found = dashboard.client.search_runs([dashboard.experiment.experiment_id], state["searchFilter"])
        assert {run.data.tags["tokenprune.kind"] for run in found} == {"cell"}
        assert "none" in {run.data.params["pruner"] for run in found}
        for chart in state.get("compareRunCharts", []):
            axes = [chart[name]["key"] for name in ("xaxis", "yaxis") if name in chart]
            assert set(axes + chart.get("selectedMetrics", [])) <= logged  # a chart of an unknown metric stays empty
    per_task = next(json.loads(view["state"]) for view in views.values() if view["name"].startswith("Per task"))
    shown = {chart["yaxis"]["key"] for chart in per_task["compareRunCharts"]}
    assert {"quality/family/colour", "quality/family/shape"} <= shown
    links = {view.label: view.url for view in place_of(finished.outcome).views}
    shares = {address.partition("viewStateShareKey=")[2] for address in links.values()} - {""}
    assert {f"mlflow.sharedViewState.{share}" for share in shares} == set(views)
    assert f"/runs/{place_of(finished.outcome).summary_run_id}/artifacts/report.html" in links["Report"]
    for kind in ("Trade-off", "Per task", "All axes", "Compare answers", "Compare runs", "Report"):
        assert f"[{kind}](/#/" in tags["mlflow.note.content"].splitlines()[0]


def test_a_parallel_chart_has_axes_that_every_run_has(dashboard: Dashboard) -> None:
    """A run without one of the axes is left out of such a chart, and so would be every encoder-side pruner."""
    view = next(json.loads(value) for value in dashboard.experiment.tags.values() if '"All axes"' in value)
    (chart,) = json.loads(view["state"])["compareRunCharts"]
    done = [run for run in dashboard.cells().values() if run.info.status == "FINISHED"]
    assert "quality/accuracy" in chart["selectedMetrics"]
    assert all(set(chart["selectedMetrics"]) <= set(run.data.metrics) for run in done)


def test_logging_twice_changes_nothing(finished: FinishedSweep, dashboard: Dashboard) -> None:
    before = {run.info.run_id for run in dashboard.cells().values()}
    assert open_store(finished.directory).reconcile() == []
    assert {run.info.run_id for run in Dashboard(place_of(finished.outcome).uri).cells().values()} == before


@pytest.mark.thorough
def test_everything_can_be_rebuilt_from_the_directory(
    finished: FinishedSweep,
    dashboard: Dashboard,
    migrated_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = finished.copy(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)  # a store of the user's own keeps artifacts where it likes
    shutil.copyfile(migrated_store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert replay(copy).logged == 15
    assert not (copy / "mlflow.db").exists()
    other = Dashboard(f"sqlite:///{tmp_path}/other.db")
    assert other.facts() == dashboard.facts()
    assert other.files(other.summary()) == dashboard.files(dashboard.summary())
    assert replay(copy).logged == 0
    assert Counter(run.data.tags["tokenprune.kind"] for run in Dashboard(f"sqlite:///{tmp_path}/other.db").runs) == {
        "cell": 15,
        "summary": 1,
    }


@pytest.mark.thorough
def test_a_half_logged_run_is_replaced(workshop: Workshop, directory: Path) -> None:
    config = workshop.config(pruners=["first"], budgets=[4])
    outcome = run_sweep(config, directory=directory, host=workshop.host)
    board = Dashboard(place_of(outcome).uri)
    victim = board.cells()["first/toy@4"]
    board.client.update_run(victim.info.run_id, status="RUNNING")  # as a killed process leaves it
    again = run_sweep(config, directory=directory, host=workshop.host)
    assert again.problems == ()
    board = Dashboard(place_of(outcome).uri)
    assert sorted(board.cells()) == ["first/toy@4", "none/toy@all"]
    assert len(board.runs) == 3
    assert board.cells()["first/toy@4"].info.status == "FINISHED"
    assert board.cells()["first/toy@4"].info.run_id != victim.info.run_id


def test_runs_follow_the_plan(workshop: Workshop, directory: Path) -> None:
    """Another plan in the same directory: its cells are the dashboard's, and the old ones come back without work."""
    first = run_sweep(workshop.config(pruners=["first"], budgets=[4]), directory=directory, host=workshop.host)
    run_sweep(workshop.config(pruners=["grid"], budgets=[4]), directory=directory, host=workshop.host)
    assert sorted(Dashboard(place_of(first).uri).cells()) == ["grid/toy@4", "none/toy@all"]
    both = workshop.config(pruners=["first", "grid"], budgets=[4])
    again = run_sweep(both, directory=directory, host=workshop.host)
    assert (again.done, again.skipped) == (3, 3)
    board = Dashboard(place_of(first).uri)
    assert sorted(board.cells()) == ["first/toy@4", "grid/toy@4", "none/toy@all"]
    # the first pruner of each plan had the same colour; in one plan they have two
    assert len({run.data.tags["mlflow.runColor"] for run in board.cells().values()}) == 3


def test_views_follow_the_plan(workshop: Workshop, directory: Path) -> None:
    def names(uri: str) -> set[str]:
        tags = Dashboard(uri).experiment.tags.items()
        return {json.loads(value)["name"] for key, value in tags if key.startswith("mlflow.sharedViewState.")}

    one = workshop.config(pruners=["first"], budgets=[4], efficiency=False, lens=False)
    outcome = run_sweep(one, directory=directory, host=workshop.host)
    assert "Compare answers: 4" in names(place_of(outcome).uri)
    client = MlflowClient(tracking_uri=place_of(outcome).uri)
    saved = ("mlflow.sharedViewState.mine", '{"name": "mine", "state": "{}"}')
    client.set_experiment_tag(place_of(outcome).experiment_id, *saved)
    other = workshop.config(pruners=["first"], budgets=["50%"], efficiency=False, lens=False)
    run_sweep(other, directory=directory, host=workshop.host)
    found = names(place_of(outcome).uri)
    assert "Compare answers: 50%" in found
    assert "Compare answers: 4" not in found
    assert "mine" in found  # a view that a person saved stays


def test_a_store_that_cannot_be_opened_costs_no_cell(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/below-a-file.db")
    outcome = run_sweep(workshop.config(pruners=["grid"], budgets=[4]), directory=tmp_path / "run", host=workshop.host)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert len(outcome.problems) == 2  # at the start and at the end; not once more for every cell
    assert all("mlflow_tracker" in problem for problem in outcome.problems)
    assert "runs are missing" in outcome.problems[1]
    assert outcome.tracking == {}
