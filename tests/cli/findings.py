"""What `doctor` found, by subject."""

from __future__ import annotations

from tests.cli.commands import Commands


def findings(run: Commands) -> tuple[int, dict[str, dict[str, str]]]:
    ran = run("doctor", "--json")
    assert ran.out, ran.err
    return ran.code, {entry["subject"]: entry for entry in ran.json()["findings"]}
