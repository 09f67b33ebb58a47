"""`budget` on a tiny random model: what it runs, what it finds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import Commands, Ran, process
from tokenprune.report import leaderboard

QUESTIONS = ("--task", "toy", "--limit", "8", "--precision", "12.5", "--device", "cpu")


@pytest.fixture(scope="module")
def searched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A finished search and what the command printed."""
    directory = tmp_path_factory.mktemp("budget") / "run"
    return directory, process("budget", "first", "--model", str(tiny_model), *QUESTIONS, "--out", directory, "--json")


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
        (["budget", "fastw"], "unknown pruner `fastw`"),
        (["budget", "first", "--task", "toi"], "unknown task `toi`"),
        (["budget", "first", "--retention", "99,many"], "--retention must be percentages"),
        (["budget", "first", "--retention", "0"], "--retention must be percentages"),
        (["budget", "none"], "`none` keeps everything"),
        (["budget", "first", "--precision", "0"], "invalid value for '--precision'"),
    ],
)
def test_mistakes(run: Commands, toy: None, words: list[str], message: str) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.lower().startswith(f"error: {message}")
    assert "hint:" in ran.err
