"""`budget` on a tiny random model: what it runs, what it finds, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import Commands, Ran, inside
from tokenprune.report import leaderboard
from tokenprune.sweep import SweepStore

QUESTIONS = ("--task", "toy", "--limit", "8", "--precision", "12.5", "--device", "cpu")


@pytest.fixture(scope="module")
def searched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A finished search and what the command printed."""
    directory = tmp_path_factory.mktemp("budget") / "run"
    return directory, inside("budget", "first", "--model", str(tiny_model), *QUESTIONS, "--out", directory, "--json")


def test_what_was_found_is_what_was_run(searched: tuple[Path, Ran]) -> None:
    ran = searched[1]
    assert ran.code == 0, ran.err
    found = ran.json()["budget"]
    assert (found["pruner"], found["task"], found["questions"], found["account"]) == ("first", "toy", 8, "kept")
    assert [target["target"] for target in found["targets"]] == [0.99, 0.95, 0.9]
    trials = {trial["ratio"]: trial for trial in found["trials"]}
    assert 1 <= len(trials) <= 7
    assert found["runs"] == len(trials) + 1  # and the unpruned model
    for target in found["targets"]:
        below = 0.0 if target["below"] is None else target["below"]
        assert target["reached"] == (target["ratio"] is not None)
        assert (target["ratio"] or 1.0) - below == pytest.approx(1 / 8)
        if target["reached"]:
            assert trials[target["ratio"]]["retention"] >= target["target"]
            assert target["retention"]["mean"] == pytest.approx(trials[target["ratio"]]["retention"])
        if target["below"] is not None:
            assert trials[target["below"]]["retention"] < target["target"]
    assert "does not fall" in found["assumption"]


def test_the_runs_are_a_sweep_directory(searched: tuple[Path, Ran]) -> None:
    directory, ran = searched
    found = ran.json()["budget"]
    board = leaderboard(directory)
    assert len(board.tables) == len(found["trials"])
    for table in board.tables:
        (row,) = [row for row in table.rows if row.label == "first"]
        assert row.accuracy is not None
        (trial,) = [
            trial for trial in found["trials"] if 100 * trial["ratio"] == pytest.approx(float(table.budget[:-1]))
        ]
        assert trial["accuracy"]["mean"] == pytest.approx(row.accuracy.mean)


def test_the_same_command_again_runs_nothing(
    run: Commands, toy: None, searched: tuple[Path, Ran], tiny_model: Path
) -> None:
    directory, before = searched
    again = run("budget", "first", "--model", str(tiny_model), *QUESTIONS, "--out", str(directory))
    assert again.code == 0, again.err
    assert "0 runs now" in " ".join(again.out.split())
    for trial in before.json()["budget"]["trials"]:
        assert f"{100 * trial['ratio']:.3g}%" in again.out
    assert max(len(line.rstrip()) for line in again.out.splitlines() if str(tiny_model) not in line) <= 80
    assert "retains" in again.err


def test_a_pruner_that_refuses_never_gets_there_and_its_floor_is_told(
    run: Commands, toy: None, tiny_model: Path, tmp_path: Path
) -> None:
    ran = run("budget", "refusing", "--model", str(tiny_model), *QUESTIONS, "--out", str(tmp_path / "run"))
    assert ran.code == 0, ran.err
    assert "never" in ran.out
    assert "floor: no budget pleases me" in ran.out


def test_a_pruner_that_fails_retains_nothing(run: Commands, toy: None, tiny_model: Path, tmp_path: Path) -> None:
    words = ["budget", "exploding", "--model", str(tiny_model), *QUESTIONS, "--retention", "90"]
    ran = run(*words, "--out", str(tmp_path / "run"), "--json")
    assert ran.code == 3
    found = json.loads(ran.out)["budget"]
    assert {(trial["outcome"], trial["retention"]) for trial in found["trials"]} == {("failed", 0.0)}
    assert [target["reached"] for target in found["targets"]] == [False]
    assert "error: a run failed" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first", "--limit", "7"], "holds another search: limit 8, not 7"),
        (["first", "--option", "pause=0.001"], "holds another search: pruners first, not first[pause=0.001]"),
        (["refusing"], "holds another search: pruners first, not refusing"),
        (["random", "--seed", "3"], "holds another search: pruners first, not random, seeds 0, not 3"),
    ],
)
def test_a_directory_of_another_search_keeps_its_plan(
    run: Commands, toy: None, searched: tuple[Path, Ran], tiny_model: Path, words: list[str], message: str
) -> None:
    directory = searched[0]
    before = (directory / "plan.jsonl").read_text()
    ran = run("budget", *words[:1], "--model", str(tiny_model), *QUESTIONS, *words[1:], "--out", str(directory))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: `{directory}` {message}")
    assert f"hint: name another directory, for example `--out {directory}-2`" in ran.err
    assert (directory / "plan.jsonl").read_text() == before


def test_a_directory_of_another_sweep_keeps_its_plan(
    run: Commands, toy: None, searched: tuple[Path, Ran], tiny_model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(searched[0], tmp_path / "copy"))
    header = json.loads((copy / "sweep.json").read_text())
    header["config"]["budgets"] = [{"ratio": 0.5, "tokens": None}, {"ratio": None, "tokens": 4}]
    (copy / "sweep.json").write_text(json.dumps(header))
    before = (copy / "plan.jsonl").read_text()
    ran = run("budget", "first", "--model", str(tiny_model), *QUESTIONS, "--out", str(copy))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: `{copy}` holds a sweep that is no search for a budget")
    assert (copy / "plan.jsonl").read_text() == before


def test_another_precision_adds_to_the_plan(
    run: Commands, toy: None, searched: tuple[Path, Ran], tiny_model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(searched[0], tmp_path / "copy"))
    before = {cell.id for cell in SweepStore(copy).plan()}
    finer = [*QUESTIONS[:-3], "6.25", *QUESTIONS[-2:]]
    ran = run("budget", "first", "--model", str(tiny_model), *finer, "--out", str(copy), "--json")
    assert ran.code == 0, ran.err
    assert before < {cell.id for cell in SweepStore(copy).plan()}


def test_options_and_seed_are_those_of_the_cells(run: Commands, toy: None, tiny_model: Path, tmp_path: Path) -> None:
    words = ["--model", str(tiny_model), *QUESTIONS, "--retention", "50", "--json"]
    ran = run("budget", "first", "--option", "pause=0.001", *words, "--out", str(tmp_path / "first"))
    assert ran.code == 0, ran.err
    assert ran.json()["budget"]["options"] == {"pause": 0.001}
    assert {cell.label for cell in SweepStore(tmp_path / "first").plan()} == {"none", "first[pause=0.001]"}
    ran = run("budget", "random", "--seed", "3", *words, "--out", str(tmp_path / "random"))
    assert ran.code == 0, ran.err
    assert {cell.options.get("seed") for cell in SweepStore(tmp_path / "random").plan()} == {None, 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget", "fastw"], "unknown pruner `fastw`"),
        (["budget", "first", "--task", "toi"], "unknown task `toi`"),
        (["budget", "first", "--retention", "99,many"], "--retention must be percentages"),
        (["budget", "first", "--retention", "0"], "--retention must be percentages"),
        (["budget", "first", "--option", "speed=1"], "unknown option of pruner `first` `speed`"),
        (["budget", "first", "--option", "pause"], "--option must be `name=value`, got `pause`"),
        (["budget", "first", "--seed", "1"], "`first` draws nothing at random"),
        (["budget", "random", "--seed", "1", "--option", "seed=2"], "--seed and --option seed=... exclude each other"),
        (["budget", "none"], "`none` keeps everything"),
        (["budget", "first", "--precision", "0"], "invalid value for '--precision'"),
    ],
)
def test_mistakes(run: Commands, toy: None, words: list[str], message: str) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.lower().startswith(f"error: {message}")
    assert "hint:" in ran.err
