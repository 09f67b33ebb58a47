"""Every hook of tokenprune, in the order in which they are called.

An implementation may take any subset of the arguments. Each plugin is called on its own, so that one which
raises is reported by name and the others still run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from tokenprune.cells.events import CellEnded, CellFailed, CellStarted, SweepEnded, SweepStarted
    from tokenprune.registry import ExecutorSpec, FamilySpec, ModelSpec, PrunerSpec, TaskSpec

PROJECT = "tokenprune"
#: Version of the hooks below. It grows when a hook or an argument is added; a plugin that relies on one may say so
#: with a module attribute `TOKENPRUNE_API = <version>`, and is then refused by name where the host is too old.
API_VERSION = 2
#: The oldest version that still works; it grows only when a hook or an argument is taken away.
OLDEST_API_VERSION = 1
#: What is called once in each plugin, when the host loads it.
REGISTRATION_HOOKS = (
    "register_pruners",
    "register_families",
    "register_models",
    "register_tasks",
    "register_executors",
)
#: What tells of a sweep: a plugin that implements one of them is a tracker.
LIFE_HOOKS = ("on_sweep_start", "on_cell_start", "on_cell_end", "on_cell_error", "on_sweep_end")
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- registration: called once, when the host loads -------------------------------------------------------------


@hookspec
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Add pruners: call `register(MyPruner.spec)` once for each."""


@hookspec
def register_families(register: Callable[[FamilySpec], None]) -> None:
    """Add descriptions of vision-language model families."""


@hookspec
def register_models(register: Callable[[ModelSpec], None]) -> None:
    """Add models that ship with a distribution, under a short name."""


@hookspec
def register_tasks(register: Callable[[TaskSpec], None]) -> None:
    """Add tasks (data, questions and a scorer)."""


@hookspec
def register_executors(register: Callable[[ExecutorSpec], None]) -> None:
    """Add ways to run the cells of a sweep."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Add commands to the command line (`app` is a Typer application, not a Click group)."""


# --- the life of a sweep: each hook takes one frozen event, which must not be changed ----------------------------


@hookspec
def on_sweep_start(event: SweepStarted) -> None:
    """A sweep begins or continues; called in the parent while the first workers start."""


@hookspec
def on_cell_start(event: CellStarted) -> None:
    """A cell begins."""


@hookspec
def on_cell_end(event: CellEnded) -> None:
    """A cell is complete and its result is on disk."""


@hookspec
def on_cell_error(event: CellFailed) -> None:
    """A cell failed; its error is on disk."""


@hookspec
def write_report(event: SweepEnded) -> None:
    """No cell is running any more: write what is made of the results into `event.directory / "report"`.

    Called before `on_sweep_end`, so that trackers find the files; new in version 2.
    """


@hookspec
def on_sweep_end(event: SweepEnded) -> None:
    """The sweep ended: complete, with failures, or interrupted."""
