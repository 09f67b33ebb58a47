"""The pruner of the guide: twenty lines, installed with pip from a folder of its own, found everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import TOY, Commands
from tests.plugins import ALLOWED, LOAD

WITH_IT = f"{ALLOWED},tokenprune-loudest"
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "third-party-pruner"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a copy of the example."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, timeout=240)
    return folder / "site"


def test_it_has_twenty_lines() -> None:
    code = (EXAMPLE / "tokenprune_loudest.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) <= 22


def test_it_is_listed_and_shown(
    installed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setenv(LOAD, WITH_IT)
    run = Commands(capsys)
    (entry,) = [entry for entry in run("list", "--json").json()["pruners"] if entry["name"] == "loudest"]
    assert entry["distribution"] == "tokenprune-loudest"
    shown = run("show", "loudest")
    assert shown.code == 0, shown.err
    assert "norm(x)^power" in shown.out
    assert "power" in shown.out
    plugins = run("plugins", "--json").json()["plugins"]
    (report,) = [report for report in plugins if report["name"] == "loudest"]
    assert (report["outcome"], report["version"]) == ("loaded", "0.1.0")


@pytest.mark.thorough
def test_it_is_swept_and_tracked(
    installed: Path,
    directory: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    monkeypatch.syspath_prepend(installed)
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.setenv(LOAD, WITH_IT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = directory.parent / "sweep.yaml"
    path.write_text(
        f"models: [{tiny_model}]\ntasks: [{{name: toy, options: {{size: 4}}}}]\nexecutor: inline\n"
        "pruners: [none, {name: loudest, options: {power: 2.0}}]\nbudgets: [25%]\n"
        "efficiency: {repeats: 1, warmup: 0, new_tokens: 2}\nlens: {samples: 1}\ndevice: cpu\n"
    )
    ran = Commands(capsys)("sweep", str(path), "--out", str(directory), "--json")
    assert ran.code == 0, ran.err
    (table,) = json.loads(ran.out)["leaderboard"]["tables"]
    row = table["rows"][1]
    assert (row["label"], row["outcome"], row["distribution"]) == ("loudest[power=2.0]", "done", "tokenprune-loudest")
    assert row["tokens"]["final"] == 4
    client = MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (tracked,) = [run for run in runs if run.data.tags.get("tokenprune.pruner") == "loudest"]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["quality/accuracy"] == pytest.approx(row["accuracy"]["mean"])
