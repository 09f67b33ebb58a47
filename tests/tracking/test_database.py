"""The store in the directory survives kills, full disks, other versions and moves; a named store is never replaced."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from tests.cli.commands import Commands, environment
from tests.processes import wait_for
from tests.sweep.fixtures import FinishedSweep, Workshop
from tests.tracking.places import place_of
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep import SweepOutcome, SweepStore, run_sweep
from tokenprune.tracking.database import state_of
from tokenprune.tracking.mlflow_tracker import replay

STEP = "451aebb31d03"
"""An early version of MLflow's database; going on from there adds a column that is there already."""


def client_of(directory: Path) -> Any:
    return MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")


def cells_of(client: Any) -> Counter[str]:
    """How often each cell is in a store."""
    found = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(found, "tags.`tokenprune.kind` = 'cell'", max_results=1000)
    return Counter(run.data.tags["tokenprune.cell_id"] for run in runs)


def each_once(directory: Path, client: Any) -> bool:
    return cells_of(client) == Counter(cell.id for cell in SweepStore(directory).plan())


def tear(database: Path) -> None:
    """Leave a database as a process does that is killed while it makes it."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (STEP,))


def garble(database: Path) -> None:
    database.write_bytes(b"this is no database " * 500)


def empty_out(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DROP TABLE alembic_version")


@pytest.fixture
def small(workshop: Workshop, directory: Path) -> Callable[[], SweepOutcome]:
    """Run a small sweep in the directory, or continue it."""
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False, lens=False)
    return lambda: run_sweep(config, directory=directory, host=workshop.host)


@pytest.fixture
def filled(finished: FinishedSweep, migrated_store: Path, tmp_path: Path) -> Path:
    """A finished sweep with its store and artifacts, which the test may change."""
    folder = finished.copy(tmp_path / "filled")
    shutil.copyfile(migrated_store, folder / "mlflow.db")
    assert replay(folder).logged == 15
    return folder


# --- made as a whole ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_a_kill_while_the_store_is_made_leaves_none(finished: FinishedSweep, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "copy")
    command = [sys.executable, "-m", "tokenprune", "runs", "replay", str(copy)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(path.stat().st_size for path in copy.glob(".mlflow-new-*/*.db")), "half a store")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (copy / "mlflow.db").exists()
    assert replay(copy).repaired == ""
    assert each_once(copy, client_of(copy))
    assert list(copy.glob(".mlflow-new-*")) == []


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_a_full_disk_while_the_store_is_made_leaves_none(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tokenprune.tracking.mlflow_runs import client_class; "
        "from tokenprune.tracking.database import prepare; prepare(Path(sys.argv[1]), client_class())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(command, env=environment(), capture_output=True, check=False, preexec_fn=no_room)
    assert full.returncode != 0
    assert list(tmp_path.iterdir()) == []
    subprocess.run(command, env=environment(), capture_output=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert state_of(tmp_path / "mlflow.db") == "sound"


@pytest.mark.thorough
def test_files_of_a_deleted_store_are_not_applied_to_the_new_one(filled: Path) -> None:
    with closing(sqlite3.connect(filled / "mlflow.db")) as writer:
        writer.execute("PRAGMA cache_size = 1")  # so that the journal is on disk before the end of the change
        writer.execute("UPDATE metrics SET value = value + 1")
        writer.execute("UPDATE params SET value = value || '!'")
        shutil.copyfile(filled / "mlflow.db-journal", filled / "journal")
        writer.rollback()
    (filled / "journal").rename(filled / "mlflow.db-journal")
    (filled / "mlflow.db").unlink()
    done = replay(filled)
    assert (done.logged, done.repaired) == (15, "")
    assert each_once(filled, client_of(filled))


# --- broken, or of another version ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [garble, *(pytest.param(way, marks=pytest.mark.thorough) for way in (tear, empty_out))]
)
def test_a_store_that_does_not_open_is_set_aside_and_filled_again(
    small: Callable[[], SweepOutcome], directory: Path, damage: Callable[[Path], None]
) -> None:
    assert small().problems == ()
    damage(directory / "mlflow.db")
    broken = (directory / "mlflow.db").read_bytes()
    again = small()
    (problem,) = again.problems
    assert "mlflow.db does not open, and is mlflow.db.broken-1 now" in problem
    assert "filled from the directory, nothing is lost" in problem
    assert (directory / "mlflow.db.broken-1").read_bytes() == broken
    assert each_once(directory, client_of(directory))
    assert place_of(again).own is True
    assert small().problems == ()
    garble(directory / "mlflow.db")
    assert "mlflow.db.broken-2" in small().problems[0]


@pytest.mark.thorough
def test_replay_warns_of_a_store_that_it_set_aside(
    filled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    garble(filled / "mlflow.db")
    ran = Commands(capsys)("runs", "replay", str(filled))
    assert ran.code == 0
    assert "warning: mlflow.db does not open, and is mlflow.db.broken-1 now" in ran.err
    assert "15 cells logged now" in ran.err


@pytest.mark.thorough
def test_a_store_that_somebody_holds_is_not_broken(filled: Path) -> None:
    with closing(sqlite3.connect(filled / "mlflow.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PrerequisiteError, match="database is locked") as caught:
            replay(filled)
        holder.rollback()
    assert "another program" in caught.value.hint
    assert list(filled.glob("mlflow.db.broken*")) == []


@pytest.mark.thorough
@pytest.mark.parametrize("damage", [tear, garble])
def test_a_named_store_is_never_replaced(
    finished: FinishedSweep,
    migrated_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    copy = finished.copy(tmp_path / "copy")
    named = tmp_path / "named" / "mlflow.db"
    named.parent.mkdir()
    shutil.copyfile(migrated_store, named)
    damage(named)
    before = named.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{named}")
    with pytest.raises(PrerequisiteError, match="does not take the runs"):
        replay(copy)
    assert named.read_bytes() == before
    assert [path.name for path in named.parent.iterdir()] == ["mlflow.db"]


def older_store(database: Path) -> None:
    """A database as the MLflow before the last change of its tables made it, with an experiment in it."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    uri = f"sqlite:///{database}"
    config = _get_alembic_config(uri)
    before = list(ScriptDirectory.from_config(config).walk_revisions())[1].revision
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            " VALUES (7, 'mine', 'file:///somewhere', 'active')"
        )
    engine.dispose()


@pytest.mark.thorough
def test_a_newer_mlflow_upgrades_the_store(small: Callable[[], SweepOutcome], directory: Path) -> None:
    (directory / "mlflow.db").unlink()
    older_store(directory / "mlflow.db")
    assert state_of(directory / "mlflow.db") == "outdated"
    assert small().problems == ()
    assert state_of(directory / "mlflow.db") == "sound"
    assert list(directory.glob("mlflow.db.broken*")) == []
    client = client_of(directory)
    assert client.get_experiment_by_name("mine").artifact_location == "file:///somewhere"
    assert each_once(directory, client)


# --- deleted, moved, copied -----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_an_experiment_that_was_deleted_on_the_page_comes_back(filled: Path) -> None:
    assert replay(filled).logged == 0
    client = client_of(filled)
    (experiment,) = [found for found in client.search_experiments() if found.name.startswith("tokenprune ")]
    client.delete_experiment(experiment.experiment_id)
    assert replay(filled).logged == 0
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "active"
    assert each_once(filled, client)


def test_a_moved_directory_keeps_one_experiment_and_its_artifacts(
    workshop: Workshop, directory: Path, tmp_path: Path
) -> None:
    config = workshop.config(pruners=["first"], budgets=[4], efficiency=False, lens=False)
    run_sweep(config, directory=directory, host=workshop.host)
    moved = directory.rename(tmp_path / "moved with a space")
    outcome = run_sweep(config, directory=moved, host=workshop.host)
    assert outcome.problems == ()
    assert not directory.exists()  # the old folder is not made again
    client = client_of(moved)
    (experiment,) = [one for one in client.search_experiments(ViewType.ALL) if one.name != "Default"]
    assert experiment.name == place_of(outcome).experiment == "tokenprune moved with a space"
    assert experiment.artifact_location == (moved / "mlflow-artifacts").as_uri()
    assert each_once(moved, client)
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.artifact_uri.startswith(f"{experiment.artifact_location}/")
        assert client.list_artifacts(run.info.run_id)


@pytest.mark.thorough
def test_a_second_experiment_that_an_earlier_version_made_is_deleted(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "tokenprune other")
        assert replay(filled).logged == 15
    client = client_of(filled)
    assert set(cells_of(client).values()) == {2}
    replay(filled)
    assert each_once(filled, client)


@pytest.mark.thorough
def test_a_shared_store_keeps_one_experiment_of_a_moved_sweep_and_another_of_a_copy(
    finished: FinishedSweep, migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where such a store puts its artifacts
    shutil.copyfile(migrated_store, tmp_path / "shared.db")
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri)

    def named(directory: Path) -> Path:
        """As the next command names it."""
        header = directory / "sweep.json"
        text = header.read_text(encoding="utf-8").replace('"name": "demo"', f'"name": "{directory.name}"')
        header.write_text(text, encoding="utf-8")
        return directory

    def experiments() -> set[str]:
        return {found.name for found in client.search_experiments() if found.name != "Default"}

    first = finished.copy(tmp_path / "first")
    assert replay(first).logged == 15
    (name,) = experiments()
    shutil.copytree(first, tmp_path / "copied")
    moved = named(first.rename(tmp_path / "moved"))
    assert replay(moved).logged == 0
    assert experiments() == {name}
    copied = named(tmp_path / "copied")
    assert replay(copied).logged == 15
    assert experiments() == {name, "tokenprune copied"}
    assert replay(moved).logged == 0
    assert set(cells_of(client).values()) == {2}


# --- made of what the directory says now ----------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_cell_that_ended_in_another_way_gets_another_run(filled: Path) -> None:
    """Failed again with another reason, and done again with another answer; each is there once."""
    assert replay(filled).logged == 0
    store = SweepStore(filled)
    states = {cell.id: (cell, store.state(cell.id)) for cell in store.plan()}
    failed = next(cell for cell, state in states.values() if state == "failed")
    done = next(cell for cell, state in states.values() if state == "done")
    error, result = store.error(failed.id) or {}, store.result(done.id) or {}
    store.write_error(failed, {**error, "message": "another reason"})
    store.write_result(done, {**result, "quality": {**result["quality"], "accuracy": 0.125}})
    assert replay(filled).logged == 2
    client = client_of(filled)
    assert each_once(filled, client)
    found = [one.experiment_id for one in client.search_experiments()]
    runs = {run.data.tags.get("tokenprune.cell_id"): run for run in client.search_runs(found)}
    assert runs[done.id].data.metrics["quality/accuracy"] == 0.125
    file = client.download_artifacts(runs[failed.id].info.run_id, "cell.json")
    assert "another reason" in Path(file).read_text(encoding="utf-8")
    assert replay(filled).logged == 0
