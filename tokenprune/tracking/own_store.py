"""The MLflow database in a sweep directory: made as a whole, moved with its directory, and replaced where it is broken.

MLflow makes and upgrades a database in place, in dozens of steps that no transaction holds together: whoever is killed
in between leaves one that never opens again. So both happen to a file in a folder of its own here, which is synced and
renamed. A database that does not open is set aside, because the sweep directory can fill another one.

Nothing here touches a store that somebody named by `MLFLOW_TRACKING_URI`. The caller holds the directory's lock.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.store.atomic_io import storage_error, sync_folder

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
WORKSHOP = ".mlflow-new-"
"""How the names of folders begin in which a database is made; a killed process leaves its own."""

State = Literal["absent", "sound", "outdated", "broken"]

_BESIDE = ("-journal", "-wal", "-shm")
"""Files that SQLite keeps beside a database, and would apply to any other one of that name."""


def own_uri(directory: Path) -> str:
    """Address of the store in a sweep directory."""
    return f"sqlite:///{directory / DATABASE}"


def state_of(database: Path) -> State:
    """Look at a database as SQLite sees it; `outdated` is one that the installed MLflow would have to upgrade.

    Raises:
        PrerequisiteError: It cannot be looked at now: another program holds it, or the disk refuses.
    """
    if not database.is_file() or not database.stat().st_size:
        return "absent"
    try:
        with closing(sqlite3.connect(database)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return "broken"
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not {"alembic_version", "experiments", "runs"} <= tables:
                return "broken"
            versions = [version for (version,) in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.OperationalError as error:
        raise PrerequisiteError(
            f"cannot read {database}: {error}", hint="if another program holds it, end that; then try again"
        ) from error
    except sqlite3.DatabaseError:
        return "broken"
    return "sound" if versions == [_newest_version()] else "outdated"


def prepare(directory: Path, make_client: Callable[..., Any]) -> str:
    """Make the store of a sweep directory one that opens, and that knows where it lies.

    Args:
        directory: The sweep directory.
        make_client: The class `MlflowClient`.

    Returns:
        What was wrong with the one that was there, a sentence; empty where nothing was.

    Raises:
        PrerequisiteError: The database cannot be looked at now.
        StorageError: The disk does not take a new one; the old one is as it was.
    """
    for left in directory.glob(f"{WORKSHOP}*"):
        shutil.rmtree(left, ignore_errors=True)
    database = directory / DATABASE
    state = state_of(database)
    if state == "sound":
        _follow(database)
        return ""
    with _workshop(directory) as folder:
        if state == "outdated" and _upgraded(database, folder / "upgraded.db", make_client):
            _put(folder / "upgraded.db", database)
            _follow(database)
            return ""
        fresh = folder / "fresh.db"
        make_client(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)  # the first use makes it
        aside = "" if state == "absent" else _set_aside(database)
        _put(fresh, database)
    if not aside:
        return ""
    return f"{DATABASE} does not open, and is {aside} now; a new one was filled from the directory, nothing is lost"


def _upgraded(database: Path, copy: Path, make_client: Callable[..., Any]) -> bool:
    """Make an upgraded copy of a database; false where the installed MLflow cannot: a torn one, or a newer one."""
    from alembic.util import CommandError
    from mlflow import db
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    uri = f"sqlite:///{copy}"
    try:
        db.commands.main(["upgrade", uri], standalone_mode=False)
        make_client(tracking_uri=uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, CommandError):
        return False
    return state_of(copy) == "sound"


def _follow(database: Path) -> None:
    """Tell a store that lies elsewhere now where its artifacts are.

    Its own addresses are absolute, and no call of MLflow's changes those of runs that are there: what is logged next
    would make the old folder again. The directory, and so the folder of artifacts in it, moves as a whole.
    """
    here = (database.parent / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        places = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (place,) in places:
            if place and place != here and place.endswith(f"/{ARTIFACTS}"):
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, place)
                )
                connection.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                    (here, len(place) + 1, len(place) + 1, f"{place}/"),
                )


def _set_aside(database: Path) -> str:
    """Rename a database, with the files that belong to it; returns the new name."""
    number = 1
    while database.with_name(f"{database.name}.broken-{number}").exists():
        number += 1
    name = f"{database.name}.broken-{number}"
    try:
        for suffix in ("", *_BESIDE):
            path = database.with_name(database.name + suffix)
            if path.exists():
                path.rename(database.with_name(name + suffix))
    except OSError as error:
        raise storage_error(error, database.parent) from error
    return name


def _put(made: Path, database: Path) -> None:
    """Rename a complete database into its place."""
    try:
        with made.open("rb+") as stream:
            os.fsync(stream.fileno())
        for suffix in _BESIDE:  # of a database that was deleted or set aside
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        made.replace(database)
        sync_folder(database.parent)
    except OSError as error:
        raise storage_error(error, database) from error
    _forget_connections(f"sqlite:///{database}")


def _forget_connections(uri: str) -> None:
    """Close what this process has open at an address: MLflow keeps it for good, and it would be the file before."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(uri)
    if engine is not None:
        engine.dispose()


@contextmanager
def _workshop(directory: Path) -> Iterator[Path]:
    """A folder on the same disk; its name is new each time, because MLflow remembers every address that it opened."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=WORKSHOP, dir=directory))
    except OSError as error:
        raise storage_error(error, directory) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _newest_version() -> str:
    """The version that the installed MLflow gives to a database."""
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return str(ScriptDirectory(str(migrations)).get_current_head())
