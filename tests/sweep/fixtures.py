"""Fixtures of everything that needs a sweep: a tiny model, a stranger's plugin, a finished sweep directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tokenprune.plugins import Host, load_host
from tokenprune.sweep.config.schema import SweepConfig, parse_config
from tokenprune.sweep.config.yaml_source import Source
from tokenprune.sweep.runner import SweepOutcome, run_sweep

TOY = Path(__file__).parent / "toy"
PRUNERS = ["none", "random", "grid", "downsample", "exploding", "refusing", "first"]


@dataclass(frozen=True)
class Workshop:
    """A host with the toy plugin, a tiny model, and a way to make configs."""

    host: Host
    model: Path

    def data(self, **changes: Any) -> dict[str, Any]:
        """A small sweep as plain data."""
        return {
            "models": [str(self.model)],
            "tasks": [{"name": "toy", "options": {"size": 8}}],
            "pruners": PRUNERS,
            "budgets": ["50%", 4],
            "batch_size": 3,
            "executor": "inline",
            "device": "cpu",
            "efficiency": {"repeats": 2, "max_repeats": 2, "warmup": 0, "new_tokens": 2},
            **changes,
        }

    def config(self, **changes: Any) -> SweepConfig:
        """A small sweep."""
        return parse_config(Source("test", self.data(**changes)), self.host)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model on disk."""
    from tests.sweep.tiny import save_tiny_model  # with transformers, which few tests need

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def workshop(tiny_model: Path) -> Iterator[Workshop]:
    """The toy plugin on the path, found by its entry point like any installed distribution."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(TOY)
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield Workshop(load_host(), tiny_model)
    patch.undo()


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database for all processes of the tests: making one takes seconds, copying it does not."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / "empty-mlflow.db"
    with FileLock(folder / "empty-mlflow.lock"):
        if not path.exists():
            made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
            MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments()
            shutil.copyfile(made, path)
    return path


@pytest.fixture
def directory(tmp_path: Path, migrated_store: Path) -> Path:
    """A sweep directory with nothing but an empty MLflow database."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    shutil.copyfile(migrated_store, folder / "mlflow.db")
    return folder


@dataclass(frozen=True)
class FinishedSweep:
    """A tracked sweep that ran once for all tests; copy it before changing anything."""

    directory: Path
    outcome: SweepOutcome
    events: tuple[Any, ...]

    def copy(self, target: Path) -> Path:
        """The directory's files without its MLflow store, elsewhere."""
        return Path(shutil.copytree(self.directory, target, ignore=shutil.ignore_patterns("mlflow*", "tracking.json")))


@pytest.fixture(scope="session")
def finished(workshop: Workshop, migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    """All toy pruners at two budgets, tracked."""
    folder = tmp_path_factory.mktemp("finished") / "demo"
    folder.mkdir()
    shutil.copyfile(migrated_store, folder / "mlflow.db")
    events: list[Any] = []
    outcome = run_sweep(workshop.config(seeds=[0, 1]), directory=folder, host=workshop.host, display=events.append)
    return FinishedSweep(folder, outcome, tuple(events))


@pytest.fixture
def sweep(workshop: Workshop, tmp_path: Path) -> Callable[..., SweepOutcome]:
    """Run an untracked sweep in a folder of its own (the same folder within a test)."""

    def run(*, track: bool = False, retry_failed: bool = False, display: Any = None, **changes: Any) -> SweepOutcome:
        return run_sweep(
            workshop.config(**changes),
            directory=tmp_path / "run",
            host=workshop.host,
            display=display,
            retry_failed=retry_failed,
            track=track,
        )

    return run
