"""`tokenprune doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenprune
from tests.cli.commands import Commands


def findings(run: Commands) -> tuple[int, dict[str, dict[str, str]]]:
    ran = run("doctor", "--json")
    return ran.code, {entry["subject"]: entry for entry in ran.json()["findings"]}


def test_versions_devices_models_plugins_and_store_are_examined(run: Commands) -> None:
    _, found = findings(run)
    assert found["tokenprune"]["text"] == tokenprune.__version__
    assert found["torch"]["text"].split("+")[0] == torch.__version__.split("+")[0]  # a build may name its device
    assert "cores" in found["cpu"]["text"]
    assert {"model scenes", "plugin tokenprune.baselines", "tracking store", "mlflow"} <= set(found)


def test_the_code_says_whether_something_is_bad(run: Commands) -> None:
    code, found = findings(run)
    assert code == int(any(entry["verdict"] == "bad" for entry in found.values()))


def test_a_broken_plugin_is_bad(run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "tokenprune_bad-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune-bad\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text("[tokenprune]\nbad = a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, found = findings(run)
    assert code == 1
    assert found["plugin bad"]["verdict"] == "bad"


def test_a_set_tracking_uri_is_noted(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker.invalid")
    assert "http://tracker.invalid" in findings(run)[1]["tracking store"]["text"]


def test_the_table_for_people_fits_80_columns(run: Commands) -> None:
    shown = run("doctor").out
    assert "transformers" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
