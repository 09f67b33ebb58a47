"""`sweep` and `report` on a tiny random model: what is printed, written, tracked and returned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.commands import Commands, Ran, inside

CELLS = 5  # none, and four pruners at one budget


def test_a_failed_cell_gives_code_three_a_reason_and_the_command_that_tries_again(swept: tuple[Path, Ran]) -> None:
    directory, ran = swept
    assert ran.code == 3, ran.err
    assert "3 done, 1 failed, 1 refused, 0 pending" in ran.err
    assert "error: 1 of 5 cells failed" in ran.err
    assert f"{directory} --retry-failed` tries again" in ran.err
    assert "exploding: failed: boom" in ran.out
    assert "refusing: refused: no budget pleases me" in ran.out


@pytest.mark.thorough
def test_one_line_is_said_for_each_finished_cell_when_nobody_looks_at_a_terminal(swept: tuple[Path, Ran]) -> None:
    lines = [line for line in swept[1].err.splitlines() if re.match(r"\[ *\d+/", line)]
    assert [line.split()[0] for line in lines] == [f"[{number}/{CELLS}]" for number in range(1, CELLS + 1)]
    said = {line.split()[2]: line for line in lines}
    outcomes = {name.partition("/")[0]: line.split()[1] for name, line in said.items()}
    assert outcomes == {"none": "ok", "random": "ok", "first": "ok", "exploding": "failed", "refusing": "refused"}
    assert "tokens 8.0" in said["first/toy@50%"]
    assert "ZeroDivisionError: boom" in said["exploding/toy@50%"]


def test_the_leaderboard_fits_80_columns_and_names_every_pruner(swept: tuple[Path, Ran]) -> None:
    shown = swept[1].out
    for label in ("none", "random", "first", "exploding", "refusing"):
        assert re.search(rf"^(\S+ +)?{label} ", shown, flags=re.MULTILINE), label
    assert "accuracy %" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines() if "/tiny" not in line and "toy (" not in line) <= 80


def test_the_command_of_the_dashboard_opens_a_store_with_a_run_per_cell(swept: tuple[Path, Ran]) -> None:
    from mlflow import MlflowClient

    directory, ran = swept
    (line,) = [line for line in ran.err.splitlines() if line.startswith("dashboard: ")]
    assert line == f"dashboard: tokenprune ui {directory}"
    views = [line.split()[0] for line in ran.err.splitlines() if "  http://127.0.0.1:5000/#/" in line]
    assert views == ["Trade-off", "Per", "All", "Compare", "Kept", "Compare", "Report"]
    client = MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    pruners = sorted(run.data.params["pruner"] for run in runs if "pruner" in run.data.params)
    assert pruners == ["exploding", "first", "none", "random", "refusing"]


def test_every_metric_is_explained_in_the_page_about_the_dashboard(swept: tuple[Path, Ran]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{swept[0] / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    names = {name for run in runs if run.data.tags.get("tokenprune.kind") == "cell" for name in run.data.metrics}
    assert {"quality/accuracy", "cost/prefill_ms", "lens/output_error"} <= names
    page = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    explained = {f"`{name.removesuffix('_q1').removesuffix('_q3')}`" for name in names if "/family/" not in name}
    assert {name for name in explained if name not in page} == set()


@pytest.mark.thorough
def test_the_same_command_again_runs_nothing_and_says_the_same(swept: tuple[Path, Ran], sweep_file: Path) -> None:
    directory, before = swept
    again = inside("sweep", sweep_file, "--out", directory, "--json")
    document = json.loads(again.out)
    assert again.code == 3
    assert (document["sweep"]["skipped"], document["sweep"]["done"]) == (CELLS, 3)
    assert document["leaderboard"]["tables"][0]["rows"][0]["label"] == "none"
    assert "[" not in {line[:1] for line in again.err.splitlines()}
    assert "5 finished before, 0 to run" in again.err
    assert "5 to run" in before.err


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    run: Commands, toy: None, sweep_file: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "never"
    ran = run("sweep", str(sweep_file), "--out", str(directory), "--dry-run", "--limit", "2")
    assert ran.code == 0
    assert "5 cells, 5 to run" in ran.err
    assert "first/toy@50%" in ran.out
    document = run("sweep", str(sweep_file), "--out", str(directory), "--dry-run", "--limit", "2", "--json").json()
    assert [cell["samples"] for cell in document["cells"]] == [2] * CELLS
    assert {cell["state"] for cell in document["cells"]} == {"pending"}
    assert not directory.exists()


def test_the_options_replace_what_the_file_says(run: Commands, toy: None, sweep_file: Path, tmp_path: Path) -> None:
    document = run(
        *("sweep", str(sweep_file), "--out", str(tmp_path / "never"), "--dry-run", "--json"),
        *("--pruners", "grid, first", "--budgets", "25%,3,0.5"),
    ).json()
    planned = [(cell["label"], cell["budget_ratio"], cell["budget_tokens"]) for cell in document["cells"]]
    assert planned == [
        ("none", None, None),
        *(("grid", ratio, tokens) for ratio, tokens in ((0.25, None), (None, 3), (0.5, None))),
        *(("first", ratio, tokens) for ratio, tokens in ((0.25, None), (None, 3), (0.5, None))),
    ]


def test_a_chosen_pruner_keeps_the_options_of_the_file(
    run: Commands, toy: None, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(
        f"models: [{tiny_model}]\ntasks: [toy]\nbudgets: [50%]\n"
        "pruners: [{name: first, options: {pause: 0.5}, label: slow}, random]\n"
    )
    document = run("sweep", str(path), "--dry-run", "--json", "--pruners", "slow").json()
    assert [(cell["label"], cell["options"].get("pause")) for cell in document["cells"]] == [
        ("none", None),
        ("slow", 0.5),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pruners", "randon"], "unknown pruner `randon`; did you mean `random`"),
        (["--pruners", "none,,random"], "--pruners has an empty entry"),
        (["--budgets", "half"], "budgets.0: not a budget: 'half'; a whole number is tokens (`64`)"),
        (["--budgets", "150%"], "keep ratio must lie in (0, 1], got 1.5"),
    ],
)
def test_wrong_options_are_told_like_wrong_files(
    run: Commands, toy: None, sweep_file: Path, words: list[str], message: str
) -> None:
    ran = run("sweep", str(sweep_file), *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pruners: [none]\nbudgets: [50%]\nlimmit: 3\n", "wrong.yaml:3:1: limmit: unknown key, did you mean `limit`?"),
        ("pruners: [none, iwq]\nbudgets: [50%]\n", "wrong.yaml:1:17: pruners.1.name: unknown pruner `iwq`"),
        ("pruners: [none\n", "wrong.yaml:2:1: "),
        ("", "pruners: this key is missing"),
    ],
)
def test_a_wrong_file_is_told_with_line_and_column(run: Commands, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    ran = run("sweep", str(path))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_file_that_is_not_there_is_an_error(run: Commands, tmp_path: Path) -> None:
    ran = run("sweep", str(tmp_path / "nothing.yaml"))
    assert ran.code == 2
    assert ran.err.startswith("error: cannot read")


def test_report_prints_what_the_sweep_printed(run: Commands, toy: None, swept: tuple[Path, Ran]) -> None:
    directory, ran = swept
    assert run("report", str(directory)).out == ran.out


def test_report_json_and_markdown_hold_every_row(run: Commands, toy: None, swept: tuple[Path, Ran]) -> None:
    directory, _ = swept
    document = run("report", str(directory), "--json").json()
    (table,) = document["leaderboard"]["tables"]
    assert {row["label"]: row["outcome"] for row in table["rows"]} == {
        "none": "done",
        "random": "done",
        "first": "done",
        "exploding": "failed",
        "refusing": "refused",
    }
    markdown = run("report", str(directory), "--markdown").out
    assert all(f"| {row['label']} |" in markdown for row in table["rows"])


@pytest.mark.thorough
def test_report_writes_the_page_again(run: Commands, toy: None, swept: tuple[Path, Ran]) -> None:
    directory, _ = swept
    page = directory / "report" / "report.html"
    page.unlink(missing_ok=True)
    ran = run("report", str(directory), "--html")
    assert ran.code == 0, ran.err
    assert page.stat().st_size > 1000


def test_report_of_something_else_is_an_error(run: Commands, tmp_path: Path) -> None:
    ran = run("report", str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert f"`{tmp_path}` is not a sweep directory" in ran.err


def test_json_and_markdown_exclude_each_other(run: Commands, tmp_path: Path) -> None:
    ran = run("report", str(tmp_path), "--json", "--markdown")
    assert ran.code == 2
    assert "exclude each other" in ran.err
