"""The MLflow database in a sweep directory: whole or not there; if it is unsound, a new one is filled from the files.

MLflow makes and upgrades a database in many steps that no transaction holds together: a kill in between leaves one that
never opens again. So both happen to another file, whose content then takes the place of the old one in a single
transaction of SQLite. Processes that have the database open see the new content. This is the directory's own database
alone: a store that `MLFLOW_TRACKING_URI` names is never touched here. The caller holds the directory's lock.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from tokenprune.errors import PrerequisiteError
from tokenprune.sweep.store.atomic_io import StorageError, storage_error

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
WORK_FOLDER = ".mlflow-new-"
"""Prefix of the folders in which databases are made; a killed process leaves its own."""

State = Literal["absent", "sound", "outdated", "broken"]

_BESIDE = ("-journal", "-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside a database, and would apply to any other one of that name."""

_POOL = "MLFLOW_SQLALCHEMYSTORE_"
"""Prefix of the variables by which MLflow's database connections are set; those of the user stay as they are."""


def database_uri(directory: Path) -> str:
    """Address of the store in a sweep directory."""
    return f"sqlite:///{directory / DATABASE}"


def state_of(database: Path) -> State:
    """What a database is to the installed MLflow; an `outdated` one was written by another version of MLflow.

    Raises:
        PrerequisiteError: It cannot be read now: another program holds it, or the disk fails.
    """
    if not database.is_file() or not database.stat().st_size:
        return "absent"
    try:
        with closing(sqlite3.connect(database)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return "broken"
    except sqlite3.OperationalError as error:
        raise PrerequisiteError(
            f"cannot read {database}: {error}", hint="if another program holds it, end that; then try again"
        ) from error
    except sqlite3.DatabaseError:
        return "broken"
    found, newest = _versions(database)
    return "broken" if found is None else "sound" if found == newest else "outdated"


def prepare(directory: Path, make_client: Callable[..., Any]) -> str:
    """Give a sweep directory a store that opens and whose artifacts lie in the directory.

    A database that does not open, or that came from another place, is kept under another name, and a new one is made.

    Args:
        directory: The sweep directory.
        make_client: The class `MlflowClient`.

    Returns:
        What was wrong with the database, a sentence; empty if nothing was.

    Raises:
        PrerequisiteError: The database cannot be read now.
        StorageError: The disk does not take a new one; the old one is as it was.
    """
    if not any(name.startswith(_POOL) for name in os.environ):
        os.environ[f"{_POOL}POOLCLASS"] = "NullPool"  # a connection that stays open misses that its file was deleted
    for left in directory.glob(f"{WORK_FOLDER}*"):
        shutil.rmtree(left, ignore_errors=True)
    database = directory / DATABASE
    state = state_of(database)
    with tempfile.TemporaryDirectory(prefix=WORK_FOLDER, dir=directory, ignore_cleanup_errors=True) as name:
        folder = Path(name)  # a new one each time: MLflow remembers every address that a process opened
        if state == "outdated":
            upgraded = _upgraded(database, folder / "upgraded.db")
            state = "sound" if upgraded else "broken"
            if upgraded:
                _copy(folder / "upgraded.db", database)
        if state == "sound" and _lies_in(directory, make_client):
            return ""
        fresh = folder / "fresh.db"
        make_client(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)  # the first use makes it
        kept = "" if state == "absent" else _keep(database, "moved" if state == "sound" else "broken")
        _copy(fresh, database)
    if state != "broken":
        return ""
    return f"{DATABASE} does not open, and is {kept} now; a new one was filled from the directory, nothing is lost"


def _versions(database: Path) -> tuple[str | None, str | None]:
    """The version of a database, as MLflow's migrations count it, and that of the installed MLflow."""
    import mlflow
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    engine = sqlalchemy.create_engine(f"sqlite:///{database}", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found, ScriptDirectory(str(migrations)).get_current_head()


def _lies_in(directory: Path, make_client: Callable[..., Any]) -> bool:
    """Whether the artifacts of a store are in its directory: MLflow keeps absolute addresses for good."""
    from mlflow.entities import ViewType

    experiments = make_client(tracking_uri=database_uri(directory)).search_experiments(ViewType.ALL)
    ours = {found.artifact_location for found in experiments if found.artifact_location.endswith(f"/{ARTIFACTS}")}
    return ours <= {(directory / ARTIFACTS).as_uri()}


def _upgraded(database: Path, copy: Path) -> bool:
    """Make an upgraded copy of a database; false if the installed MLflow cannot: it is torn, or newer."""
    from alembic.util import CommandError
    from mlflow import db
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    _copy(database, copy)
    try:
        db.commands.main(["upgrade", f"sqlite:///{copy}"], standalone_mode=False)
    except (MlflowException, SQLAlchemyError, CommandError):
        return False
    return state_of(copy) == "sound"


def _copy(source: Path, target: Path) -> None:
    """Give a database the content of another one, in one transaction."""
    try:
        if not target.exists() or not target.stat().st_size:
            for suffix in _BESIDE:  # of a database that was deleted, or that is kept under another name now
                target.with_name(target.name + suffix).unlink(missing_ok=True)
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except OSError as error:
        raise storage_error(error, target) from error
    except sqlite3.Error as error:
        raise StorageError(f"cannot write `{target}`: {error}", hint="make room, then try again") from error


def _keep(database: Path, why: str) -> str:
    """Copy a database, and the files that belong to it, to a free name, and empty it; returns the name."""
    number = 1
    while database.with_name(f"{DATABASE}.{why}-{number}").exists():
        number += 1
    try:
        for suffix in ("", *_BESIDE):
            path = database.with_name(DATABASE + suffix)
            if path.exists():
                shutil.copyfile(path, database.with_name(f"{DATABASE}.{why}-{number}{suffix}"))
        database.write_bytes(b"")  # the same file, for those who have it open
        artifacts = database.with_name(ARTIFACTS)
        if artifacts.exists():
            artifacts.rename(database.with_name(f"{ARTIFACTS}.{why}-{number}"))
    except OSError as error:
        raise storage_error(error, database.parent) from error
    return f"{DATABASE}.{why}-{number}"
