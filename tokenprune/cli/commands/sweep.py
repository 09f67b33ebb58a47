"""`tokenprune sweep`: run a sweep file, or the default comparison, and print the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.cli import options as opt
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
    executor: opt.ExecutorName = "",
    executor_option: opt.ExecutorOptions = None,
    workers: opt.Workers = None,
    tracker: opt.Trackers = None,
    no_tracker: opt.NoTracker = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option(RETRY, help="Run failed cells again.")] = False,
    rerun: opt.Rerun = False,
    as_json: opt.AsJson = False,
    progress: opt.Progress = opt.ProgressForm.AUTO,
    quiet: opt.Quiet = False,
) -> None:
    """Compare pruners: one cell per model, task, pruner, budget and seed, each one tracked in MLflow by default.

    The same command again continues where it stopped. Exit codes: 3 if cells failed, 130 after Ctrl-C.

    Example: tokenprune sweep --pruners none,random,iwp --budgets 25%,5.6% --limit 64
    """
    # imported here, so that other commands start without pydantic
    from tokenprune.sweep import default_config, load_config, with_changes

    invocation = invocation_of(context)
    chosen = default_config(invocation.host) if config is None else load_config(config, invocation.host)
    changes = opt.sweep_changes(budgets=budgets, limit=limit, device=device) | opt.tracker_change(tracker, no_tracker)
    if pruners:
        changes["pruners"] = opt.chosen_pruners(chosen, pruners)
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
        executor_options=opt.executor_options(executor_option, workers),
        retry_failed=retry_failed,
        rerun=rerun,
    )


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
