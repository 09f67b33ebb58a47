"""Whether a worker finds what was planned: the same weights, the same task, the same pruner."""

from __future__ import annotations

from pathlib import Path

from tokenprune.cells.cell import Cell
from tokenprune.checkpoints.digest import files_digest, snapshot
from tokenprune.checkpoints.loading import model_path
from tokenprune.errors import TokenPruneError
from tokenprune.evaluation.environment import version_of
from tokenprune.plugins import Host
from tokenprune.tasks.base import Task


class PlanChangedError(TokenPruneError):
    """A worker finds something else than what was planned, and must not file what it gives under the planned id."""


def planned_model(cell: Cell, host: Host) -> str:
    """What to load a cell's model from: a hub name stands for the commit of the plan, whatever it stands for by now.

    Raises:
        UnknownNameError: The name is neither registered nor a directory nor a hub name.
        PrerequisiteError: The hub cannot be reached.
    """
    path = model_path(cell.model, host)
    if Path(path).is_dir() or Path(path).is_absolute() or path.startswith("."):
        return cell.model
    return str(snapshot(path, cell.model_digest))


def check_model(cell: Cell, host: Host) -> None:
    """Make sure that the files of a cell's model are those of the plan; asked after they were loaded.

    Raises:
        PlanChangedError: They are not.
    """
    path = Path(model_path(cell.model, host))
    if path.is_dir():  # a commit of a hub does not change
        _must_be(f"the files of model `{cell.model}`", files_digest(str(path), host), cell.model_digest)


def check_task(cell: Cell, task: Task) -> None:
    """Make sure that a cell's task is that of the plan.

    Raises:
        PlanChangedError: It is not.
    """
    _must_be(f"the version of task `{cell.task}`", str(task.version), cell.task_version)
    _must_be(f"the data of task `{cell.task}`", str(task.digest()), cell.task_digest)


def check_pruner(cell: Cell, host: Host) -> None:
    """Make sure that a cell's pruner is that of the plan.

    Raises:
        PlanChangedError: Another plugin, or another version, has it here.
    """
    found = host.pruners.owner(cell.pruner)
    _must_be(f"the plugin of pruner `{cell.pruner}`", found, cell.distribution)
    _must_be(f"the version of `{found}`", version_of(found), cell.distribution_version)


def _must_be(what: str, found: str, planned: str) -> None:
    if found != planned:
        raise PlanChangedError(
            f"{what} changed since the plan was made ({planned or 'none'} to {found or 'none'})",
            hint="run the sweep again: it plans anew, with what is there now; machines that share it need the same",
        )
