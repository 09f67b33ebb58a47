from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.commands import TOY, Commands, Ran, inside

SWEEP_FILE = """
models: [{model}]
tasks: [{{name: toy, options: {{size: 4}}}}]
pruners: [none, random, first, exploding, refusing]
budgets: [50%]
executor: inline
batch_size: 4
efficiency: {{repeats: 2, max_repeats: 2, warmup: 0, new_tokens: 2}}
lens: {{samples: 1}}
device: cpu
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in this process, 80 columns wide, without colours or the environment of whoever runs the tests."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for variable in ("TOKENPRUNE_DISABLE_PLUGINS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return Commands(capsys)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in plugin `toy`, for commands in this process."""
    monkeypatch.syspath_prepend(TOY)


@pytest.fixture(scope="session")
def sweep_file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A sweep over the toy task with one pruner that fails and one that refuses."""
    path = tmp_path_factory.mktemp("sweep") / "toy.yaml"
    path.write_text(SWEEP_FILE.format(model=tiny_model), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def swept(sweep_file: Path, migrated_store: Path) -> tuple[Path, Ran]:
    """A finished sweep and what the command said."""
    directory = sweep_file.parent / "run"
    directory.mkdir()
    shutil.copyfile(migrated_store, directory / "mlflow.db")
    return directory, inside("sweep", sweep_file, "--out", directory)
