"""`tokenprune sweep`: run a sweep file, or the default comparison, and print the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.options import (
    AsJson,
    ExecutorName,
    ExecutorOptions,
    NoTracker,
    Progress,
    ProgressForm,
    Quiet,
    Rerun,
    Trackers,
    Workers,
    chosen_pruners,
    comma_list,
    executor_options,
    tracker_change,
)
from tokenprune.cli.output import Invocation, invocation_of, table
from tokenprune.cli.sweep_run import RETRY, run_and_show

if TYPE_CHECKING:
    from tokenprune.sweep import SweepConfig

_RUNS = Path("runs")


def sweep(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="Sweep file (YAML); without one, the default sweep.")] = None,
    out: Annotated[Path | None, typer.Option(help="Sweep directory.  [default: runs/NAME-OF-THE-FILE]")] = None,
    pruners: Annotated[str, typer.Option(help="Only these pruners, a comma list.")] = "",
    budgets: Annotated[str, typer.Option(help="These budgets, a comma list: `25%`, `0.25`, `64`.")] = "",
    limit: Annotated[int | None, typer.Option(help="Samples per cell.", min=1)] = None,
    device: Annotated[str, typer.Option(help="Devices, a comma list: `cpu`, `cuda:0,cuda:1`.")] = "",
    executor: ExecutorName = "",
    executor_option: ExecutorOptions = None,
    workers: Workers = None,
    tracker: Trackers = None,
    no_tracker: NoTracker = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option(RETRY, help="Run failed cells again.")] = False,
    rerun: Rerun = False,
    as_json: AsJson = False,
    progress: Progress = ProgressForm.AUTO,
    quiet: Quiet = False,
) -> None:
    """Compare pruners: one cell per model, task, pruner, budget and seed, each one tracked in MLflow by default.

    The same command again continues where it stopped. Exit codes: 3 where cells failed, 130 after Ctrl-C.

    Example: tokenprune sweep --pruners none,random,iwp --budgets 25%,5.6% --limit 64
    """
    # imported here, so that other commands start without pydantic
    from tokenprune.sweep import default_config, load_config, with_changes

    invocation = invocation_of(context)
    chosen = default_config(invocation.host) if config is None else load_config(config, invocation.host)
    changes = _changes(chosen, pruners=pruners, budgets=budgets, limit=limit, device=device)
    changes |= tracker_change(tracker, no_tracker)
    if changes:
        chosen = with_changes(chosen, changes, invocation.host)
    directory = out or (Path(chosen.out) if chosen.out else _RUNS / (config.stem if config else "default"))
    if dry_run:
        _show_plan(invocation, chosen, directory, as_json, rerun=rerun)
        return
    run_and_show(
        invocation,
        chosen,
        directory,
        progress=progress,
        quiet=quiet,
        as_json=as_json,
        executor=executor or None,
        executor_options=executor_options(executor_option, workers),
        retry_failed=retry_failed,
        rerun=rerun,
    )


def _changes(config: SweepConfig, *, pruners: str, budgets: str, limit: int | None, device: str) -> dict[str, Any]:
    """What the options say, as top-level keys of a sweep file."""
    changes: dict[str, Any] = {}
    if pruners:
        changes["pruners"] = chosen_pruners(config, pruners)
    if budgets:
        changes["budgets"] = comma_list("--budgets", budgets)
    if limit is not None:
        changes["limit"] = limit
    if device:
        changes["device"] = comma_list("--device", device)
    return changes


def _show_plan(invocation: Invocation, config: SweepConfig, directory: Path, as_json: bool, *, rerun: bool) -> None:
    from tokenprune.sweep import SweepStore, plan_cells
    from tokenprune.sweep.plan.plan_diff import survey

    store = SweepStore(directory)
    cells = plan_cells(config, invocation.host)
    found = survey(store, cells, rerun=rerun)
    if as_json:
        planned = [{**cell.to_json(), "state": found.states[cell.id]} for cell in cells]
        changes = list(found.changes)
        invocation.output.json({"directory": str(store.directory), "cells": planned, "changes": changes})
        return
    rows = [[cell.name, cell.model, str(cell.samples), found.states[cell.id]] for cell in cells]
    invocation.output.show(table(["cell", "model", "samples", "state"], rows, numbers=["samples"]))
    for change in found.changes:
        invocation.output.say(change)
    waiting = sum(1 for state in found.states.values() if state == "pending")
    invocation.output.say(f"{len(cells)} cells, {waiting} to run, in {directory}")
