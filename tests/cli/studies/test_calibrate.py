"""`tokenprune calibrate` on a tiny random model, and sweep files that read what it wrote."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.commands import Commands, inside
from tests.sweep.tiny import TOKENS
from tokenprune.budget import Budget
from tokenprune.checkpoints import load_model
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.evaluation.batches import prepare
from tokenprune.evaluation.calibration import PromptCalibrator
from tokenprune.plugins import load_host
from tokenprune.sweep import load_config, plan_cells
from tokenprune.sweep.config.yaml_source import read_yaml


def words(name: str, model: Path, out: Path, *more: str) -> list[str]:
    return ["calibrate", name, "--model", str(model), "--task", "toy", "--limit", "2", "--out", str(out), *more]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """A file that the command wrote, for two budgets, and what it printed."""
    out = tmp_path_factory.mktemp("tables") / "tables.yaml"
    ran = inside(*words("fitprune", tiny_model, out, "--budget", "4", "--budget", "50%"))
    assert ran.code == 0, ran.err
    assert str(out) in ran.err
    return out, ran.out


def test_the_file_holds_what_was_printed_and_pastes_into_a_sweep_file(tables: tuple[Path, str]) -> None:
    out, printed = tables
    comment, _, rest = out.read_text().partition("\n")
    assert rest == printed
    assert comment.startswith("# tokenprune calibrate fitprune --model ")
    out.with_name("pasted.yaml").write_text(f"{printed}budgets: [4, 50%]\n")
    (entry,) = load_config(out.with_name("pasted.yaml"), load_host()).pruners
    assert entry.title == "fitprune (calibrated)"
    assert set(entry.options["tables"]) == {"4", "50%"}
    for label, left in (("4", 4), ("50%", TOKENS // 2)):
        table = entry.options["tables"][label]
        assert len(table) == 4
        assert TOKENS - sum(table) <= left


@pytest.mark.thorough
def test_each_budget_gets_the_table_that_meets_its_account(run: Commands, toy: None, tiny_model: Path) -> None:
    def found(*more: str) -> list[int]:
        out = tiny_model.parent / "found.yaml"
        ran = run(*words("fitprune", tiny_model, out, "--json", "--budget", "8", *more))
        assert ran.code == 0, ran.err
        document = ran.json()
        assert document["file"] == str(out)
        assert read_yaml(out).data["pruners"] == document["pruners"]
        table: list[int] = document["pruners"][0]["options"]["tables"]["8"]
        return table

    kept, average = found(), found("--account", "average")
    assert TOKENS - sum(kept) <= 8
    sizes = [TOKENS - sum(average[:layer]) for layer in range(5)]
    assert sum(before + after for before, after in itertools.pairwise(sizes)) / 8 <= 8.0
    assert sum(average) > sum(kept)


def test_other_options_are_taken_and_written(run: Commands, toy: None, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "vtw.yaml"
    ran = run(*words("vtw", tiny_model, out, "--option", "eta=1e9", "--json"))
    assert ran.code == 0, ran.err
    (entry,) = ran.json()["pruners"]
    assert entry["options"] == {"eta": 1e9, "layer": 5}  # of 32: the first that is tried
    ran = run(*words("vtw", tiny_model, out, "--option", "eta=1e-12"))
    assert (ran.code, ran.out) == (2, "")
    assert "raise its option `eta`" in ran.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["fitprun"], "unknown pruner `fitprun`"),
        (["divprune"], "`divprune` has no options to calibrate"),
        (["fitprune", "--task", "scnes"], "unknown task `scnes`"),
        (["fitprune", "--budget", "lots"], "not a budget: 'lots'"),
        (["fitprune", "--budget", "1", "--account", "average"], "its floor is"),
        (["fitprune", "--account", "all"], "invalid value for '--account'"),
        (["fitprune", "--option", "tables"], "--option must be `NAME=VALUE`, got `tables`"),
        (["fitprune", "--option", "tabels={}"], "unknown option of pruner `fitprune` `tabels`"),
        (["vtw", "--option", "eta=-1"], "option `eta` of `vtw` must be > 0"),
        (["fitprune", "--out", "nowhere/tables.yaml"], "cannot write `nowhere/tables.yaml`"),
        (["fitprune", "--out", "."], "cannot write `.`"),
        (["fitprune", "--model", "scnes"], "unknown model `scnes`"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Commands, toy: None, tiny_model: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    name, *rest = more
    ran = run(*words(name, tiny_model, tmp_path / "tables.yaml", *rest))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "hint:" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "tables.yaml").exists()


# --- sweep files ------------------------------------------------------------------------------------------------------

SWEEP = """
pruners:
  - none
  - fitprune
  - {{name: fitprune, from: {file}}}
budgets: [4]
"""


@pytest.fixture
def sweep(tables: tuple[Path, str], tmp_path: Path) -> Path:
    """A sweep file beside a folder with the tables."""
    (tmp_path / "calibrated").mkdir()
    (tmp_path / "calibrated" / "tables.yaml").write_text(tables[0].read_text())
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(file="calibrated/tables.yaml"))
    return path


def cell_ids(path: Path) -> dict[str, str]:
    return {cell.label: cell.id for cell in plan_cells(load_config(path, load_host()), load_host())}


def test_a_sweep_file_reads_tables_beside_it(sweep: Path, tables: tuple[Path, str]) -> None:
    _, plain, read = load_config(sweep, load_host()).pruners
    assert plain.options == {}
    assert read.title == "fitprune (calibrated)"
    assert read.options == read_yaml(tables[0]).data["pruners"][0]["options"]
    resolved = load_config(sweep).to_json()
    assert "from" not in str(resolved["pruners"])  # a copy of the resolved file needs no other file


@pytest.mark.thorough
def test_what_the_entry_says_itself_comes_first(sweep: Path) -> None:
    sweep.write_text(
        "pruners: [{name: fitprune, from: calibrated/tables.yaml, label: mine, options: {mass_correction: true}}]\n"
        "budgets: [4]\n"
    )
    (entry,) = load_config(sweep, load_host()).pruners
    assert entry.title == "mine"
    assert entry.options["mass_correction"] is True
    assert set(entry.options["tables"]) == {"4", "50%"}


def test_the_identity_of_a_cell_sees_the_tables_and_not_their_file(sweep: Path) -> None:
    first = cell_ids(sweep)
    file = sweep.parent / "calibrated" / "tables.yaml"
    (sweep.parent / "other.yaml").write_text(file.read_text())
    sweep.write_text(SWEEP.format(file="other.yaml"))
    assert cell_ids(sweep) == first
    (sweep.parent / "other.yaml").write_text("pruners: [{name: fitprune, options: {tables: {'4': [0, 12]}}, label: x}]")
    changed = cell_ids(sweep)
    assert changed["fitprune"] == first["fitprune"]
    assert changed["x"] not in first.values()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: fitprune, from: nowhere.yaml}", "cannot read `"),
        ("{name: fitprune, from: 3}", "an entry that reads a file says `name` and `from: FILE`"),
        ("{from: calibrated/tables.yaml}", "an entry that reads a file says `name` and `from: FILE`"),
        ("{name: vtw, from: calibrated/tables.yaml}", "has 0 entries for `vtw`, not one (it lists `fitprune`)"),
        ("{name: fitprune, from: empty.yaml}", "has 0 entries for `fitprune`, not one (it lists none)"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_place(sweep: Path, line: str, message: str) -> None:
    (sweep.parent / "empty.yaml").write_text("")
    sweep.write_text(f"pruners:\n  - none\n  - {line}\nbudgets: [4]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(sweep, load_host())
    assert caught.value.message.startswith(f"{sweep}:3:")
    assert "pruners.1.from: " in caught.value.message
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert "tokenprune calibrate" in caught.value.hint


def test_a_wrong_option_in_the_file_is_told(sweep: Path) -> None:
    (sweep.parent / "wrong.yaml").write_text("pruners: [{name: fitprune, options: {tabels: {}}}]")
    sweep.write_text(SWEEP.format(file="wrong.yaml"))
    with pytest.raises(ConfigError, match="tabels"):
        load_config(sweep, load_host())


# --- the calibrator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    return load_model(str(tiny_model))


def test_a_calibrator_runs_prompts_one_by_one_in_order(loaded: Any) -> None:
    host = load_host()
    task = host.tasks.get("scenes").build()
    given = [prepare(loaded, task, [index]).inputs for index in range(2)]
    calibrator = PromptCalibrator.of(loaded, task, range(2), host)
    assert calibrator.tokens == TOKENS
    assert calibrator.facts == loaded.facts
    prefills = calibrator.run(host.pruners.get("divprune").build(), Budget(tokens=3))
    assert [prefill.record.final() for prefill in prefills] == [(3,), (3,)]
    everything = calibrator.run(host.pruners.get("none").build(), Budget(ratio=1.0))
    for prefill, inputs in zip(everything, given, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(prefill.logits, loaded.model(**inputs).logits[0, -1])


def test_a_calibrator_needs_images_of_one_size(loaded: Any) -> None:
    with pytest.raises(IncompatibleError, match="images of no visual tokens"):
        PromptCalibrator.of(loaded, load_host().tasks.get("scenes").build(), [], load_host())
