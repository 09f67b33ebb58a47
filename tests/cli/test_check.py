"""`tokenprune check`: one line per law, exit code 4 if one is broken."""

from __future__ import annotations

from tests.cli.commands import Commands
from tokenprune.errors import ExitCode
from tokenprune.testing import conformance


def test_one_line_for_each_law(run: Commands) -> None:
    ran = run("check", "divprune", "--group", "spec", "--group", "plan", "--budget", "25%")
    assert ran.code == 0, ran.err
    names = [check.name for check in conformance.checks("spec", "plan")]
    assert [line.split(":")[0] for line in ran.out.splitlines()] == names
    assert "floor: skipped (no budget that was tried is refused)" in ran.out
    assert "none broken" in ran.err


def test_a_broken_law_is_told_with_what_was_expected_and_exits_with_one(run: Commands) -> None:
    # with everything kept, the published form still moves its contextual rows behind the dominant ones
    ran = run("check", "visionzip", "--option", "published=true", "--group", "choice", "--budget", "25%", "--json")
    assert ran.code == ExitCode.VERDICT
    document = ran.json()
    broken = {entry["check"]: entry for entry in document["checks"] if entry["status"] == "failed"}
    assert document["failed"] == len(broken)
    assert broken["identity"]["expected"] == "all rows, in order, as they are"


def test_options_reach_the_pruner(run: Commands) -> None:
    ran = run("check", "grid", "--option", "spacing=raster", "--group", "spec", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["options"] == {"spacing": "raster"}


def test_mistakes_are_told_in_one_line(run: Commands) -> None:
    for words, message in (
        (["gird"], "unknown pruner `gird`"),
        (["grid", "--option", "spacng=raster"], "unknown option of pruner `grid` `spacng`"),
        (["grid", "--budget", "lots"], "not a budget: 'lots'"),
        (["grid", "--model", "scnes"], "unknown model `scnes`"),
    ):
        ran = run("check", *words)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
        assert "Traceback" not in ran.err
