"""`tokenprune lens` on a tiny random model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Commands, inside
from tests.sweep.tiny import TOKENS
from tokenprune.errors import ExitCode

NAMES = "random,grid,divprune,fastv,avgpool,downsample,refusing,exploding"
WORDS = [
    "--task",
    "toy",
    "--budgets",
    "50%,25%",
    "--limit",
    "6",
    "--batch-size",
    "4",
    "--measured",
    "5",
    "--layer",
    "1",
]


def words(model: Path, *more: str) -> list[str]:
    return ["lens", "--model", str(model), *WORDS, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def study(tiny_model: Path) -> Any:
    ran = inside(*words(tiny_model, "--pruners", NAMES, "--json"))
    assert ran.code == ExitCode.FAILED_CELLS  # `exploding`
    document = ran.json()
    assert list(document) == ["schema", "lens"]
    (found,) = document["lens"]
    return found


def rows_of(study: Any) -> dict[tuple[str, str], Any]:
    return {(row["pruner"], row["budget"]): row for row in study["rows"]}


def test_every_pruner_has_a_row_at_every_budget(study: Any) -> None:
    rows = rows_of(study)
    assert list(rows) == [(name, budget) for name in NAMES.split(",") for budget in ("50%", "25%")]
    assert (study["questions"], study["layer"], study["task"]) == (6, 1, "toy")
    for name in ("random", "grid", "divprune", "fastv"):
        for budget, tokens in (("50%", TOKENS // 2), ("25%", TOKENS // 4)):
            row = rows[name, budget]
            assert row["reason"] == ""
            assert (row["questions"], row["measured"]) == (6, 5)
            assert row["accuracy_lost"] == pytest.approx(study["accuracy"] - row["accuracy"])
            assert row["layer_average"] == pytest.approx(tokens if name != "fastv" else (2 * TOKENS + 2 * tokens) / 4)
            assert row["output_error"] > 0
            assert row["dual_error"] > 0
            assert 0 <= row["duplication"] <= 1
            assert tokens / TOKENS <= row["coverage"] <= 1
            assert row["regret"] >= -1e-6
        assert rows[name, "25%"]["output_error"] > rows[name, "50%"]["output_error"]


def test_what_cannot_be_measured_keeps_its_row_and_says_why(study: Any) -> None:
    rows = rows_of(study)
    for name, reason in (("avgpool", "merged tokens"), ("downsample", "`pixels` are re-encoded")):
        row = rows[name, "25%"]
        assert reason in row["reason"]
        assert (row["output_error"], row["regret"], row["questions"]) == (None, None, 6)
        assert row["accuracy_lost"] is not None  # the questions were asked all the same
    for name, outcome, reason in (
        ("refusing", "refused", "no budget pleases me"),
        ("exploding", "failed", "ZeroDivisionError: boom"),
    ):
        row = rows[name, "50%"]
        assert (row["outcome"], row["reason"], row["accuracy"]) == (outcome, reason, None)


def test_errors_are_those_of_the_sweep(study: Any, toy: None, tiny_model: Path, tmp_path: Path) -> None:
    """The same figures as the sweep's lens, which takes its samples in one batch."""
    from tokenprune.plugins import load_host
    from tokenprune.sweep import SweepStore, plan_cells, run_sweep
    from tokenprune.sweep.config.schema import parse_config
    from tokenprune.sweep.config.yaml_source import Source

    data = {
        "models": [str(tiny_model)],
        "tasks": ["toy"],
        "pruners": ["divprune"],
        "budgets": ["25%"],
        "limit": 6,
        "executor": "inline",
        "device": "cpu",
        "lens": {"samples": 5},
        "efficiency": False,
    }
    host = load_host()
    config = parse_config(Source("test", data), host)
    run_sweep(config, directory=tmp_path / "run", host=host, track=False)
    (cell,) = [cell for cell in plan_cells(config, host) if cell.pruner == "divprune"]
    result = json.loads((SweepStore(tmp_path / "run").cell_directory(cell.id) / "result.json").read_text())
    row = rows_of(study)["divprune", "25%"]
    assert row["output_error"] == pytest.approx(result["lens"]["output_error"], rel=1e-4)
    assert row["dual_error"] == pytest.approx(result["lens"]["dual_error"], rel=1e-4)
    assert row["accuracy"] == pytest.approx(result["quality"]["accuracy"])


def test_correlations_are_there_for_every_figure_and_budget(study: Any) -> None:
    found = {(entry["measure"], entry["budget"]): entry for entry in study["correlations"]}
    measures = ("output_error", "dual_error", "duplication", "coverage", "regret")
    assert list(found) == [(measure, budget) for measure in measures for budget in ("50%", "25%", "all")]
    assert (found["output_error", "25%"]["points"], found["regret", "all"]["points"]) == (4, 8)
    for entry in found.values():
        assert (entry["spearman"] is None) == bool(entry["reason"])


def test_the_table_fits_eighty_columns_and_files_hold_the_same(
    run: Commands, toy: None, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "folder"
    ran = run(*words(tiny_model, "--pruners", "random,grid,avgpool,refusing", "--out", str(out)))
    assert ran.code == 0, ran.err
    assert max(len(line.rstrip()) for line in ran.out.splitlines()) <= 80
    assert "avgpool: merged tokens" in ran.out
    assert "refusing: refused: no budget pleases me" in ran.out
    assert "rank correlation" in ran.out
    document = json.loads((out / "lens.json").read_text())
    with (out / "lens.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["pruner"], line["budget"]) for line in lines] == [
        (row["pruner"], row["budget"]) for row in document["lens"][0]["rows"]
    ]
    assert [line["output_error"] for line in lines if line["pruner"] == "avgpool"] == ["", ""]
    with (out / "correlations.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(document["lens"][0]["correlations"])


def test_a_sweep_file_says_what_runs(run: Commands, toy: None, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"models: ['{tiny_model}']\n"
        "tasks: [{name: toy, options: {size: 4}}]\n"
        "pruners: [none, random, {mine: {magnitude: [norm, cls]}}]\n"
        "budgets: [25%]\ndevice: cpu\n"
    )
    ran = run("lens", str(path), "--csv", "--measured", "2")
    assert ran.code == 0, ran.err
    names = [line["pruner"] for line in csv.DictReader(ran.out.splitlines())]
    assert names == ["random", "mine[magnitude=norm]", "mine[magnitude=cls]"]
    some = run("lens", str(path), "--csv", "--measured", "2", "--pruners", "mine,grid", "--budgets", "4")
    rows = list(csv.DictReader(some.out.splitlines()))
    assert [(row["pruner"], row["budget"]) for row in rows] == [
        ("mine[magnitude=norm]", "4"),
        ("mine[magnitude=cls]", "4"),
        ("grid", "4"),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pruners", "grd"], "unknown pruner `grd`"),
        (["--pruners", "random,,grid"], "--pruners has an empty entry"),
        (["--budgets", "lots"], "not a budget"),
        (["--task", "scnes"], "unknown task `scnes`"),
        (["--model", "scnes"], "unknown model `scnes`"),
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--out", "/proc/nowhere"], "cannot write `/proc/nowhere`"),
        (["nowhere.yaml"], "cannot read `nowhere.yaml`"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Commands, toy: None, more: list[str], message: str) -> None:
    ran = run("lens", *more)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err
