"""`tokenprune runs`: the state of a sweep directory, retries, MLflow filled from it, its numbers as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli import options as opt
from tokenprune.cli.output import error_line, invocation_of, table
from tokenprune.cli.sweep_run import run_and_show
from tokenprune.errors import ConfigError
from tokenprune.report.render.escaping import csv_text

if TYPE_CHECKING:
    from tokenprune.sweep.store.result_store import CellState
    from tokenprune.sweep.store.sweep_data import CellRecord, SweepData

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
)

_STATES: tuple[CellState, ...] = ("done", "failed", "refused", "pending")


class Format(StrEnum):
    """What `export` writes."""

    CSV = "csv"
    JSONL = "jsonl"


@app.callback()
def runs(context: typer.Context) -> None:
    """Show the state of a sweep directory, retry what failed, fill MLflow from it, export its numbers."""
    if context.invoked_subcommand is None:
        invocation_of(context).output.text(context.get_help())


@app.command()
def status(context: typer.Context, directory: opt.SweepDirectory, as_json: opt.AsJson = False) -> None:
    """Show how far a sweep is, who runs it, and which cells have no result and why.

    Example: tokenprune runs status runs/default
    """
    from tokenprune.sweep.store.sweep_data import read_sweep

    output = invocation_of(context).output
    data = read_sweep(directory)
    counts = Counter(entry.state for entry in data.cells)
    owner = data.store.owner()
    without = [entry for entry in data.cells if entry.error is not None]
    again = [entry for entry in data.cells if entry.result is not None and _attempts(entry) > 1]
    if as_json:
        output.json(
            {
                "directory": str(data.store.directory),
                "sweep_id": data.header.sweep_id,
                "name": data.header.name,
                "owner": owner,
                "cells": len(data.cells),
                **{state: counts[state] for state in _STATES},
                "without_result": [_without_result(entry) for entry in without],
                "tried_again": [
                    {"id": entry.cell.id, "name": entry.cell.name, **_attempt_facts(entry.result or {})}
                    for entry in again
                ],
            }
        )
        return
    output.show(", ".join(f"{counts[state]} {state}" for state in _STATES) + f" of {len(data.cells)} cells")
    output.show(f"{owner} runs it now" if owner else "nobody runs it now")
    rows = [[entry.cell.name, entry.state, str(_attempts(entry)), error_line(entry.error or {})] for entry in without]
    rows += [[entry.cell.name, "done", str(_attempts(entry)), _retry_reason(entry)] for entry in again]
    if rows:
        output.show(table(["cell", "state", "attempts", "why"], rows, numbers=["attempts"], names=["state"]))


@app.command()
def retry(
    context: typer.Context,
    directory: opt.SweepDirectory,
    refused: Annotated[bool, typer.Option("--refused", help="Also what its pruner refused.")] = False,
    executor: opt.ExecutorName = "",
    executor_option: opt.ExecutorOptions = None,
    workers: opt.Workers = None,
    tracker: opt.Trackers = None,
    no_tracker: opt.NoTracker = False,
    rerun: opt.Rerun = False,
    as_json: opt.AsJson = False,
    progress: opt.Progress = opt.ProgressForm.AUTO,
    quiet: opt.Quiet = False,
) -> None:
    """Run what failed and what is still pending, with the sweep file that the directory holds.

    Example: tokenprune runs retry runs/default --refused
    """
    from tokenprune.sweep import SweepStore
    from tokenprune.sweep.config.schema import parse_config
    from tokenprune.sweep.config.yaml_source import Source

    invocation = invocation_of(context)
    header = SweepStore(directory).header()
    data = {**header.config, **opt.tracker_change(tracker, no_tracker)}
    config = parse_config(Source(str(directory / "sweep.json"), data), invocation.host)
    run_and_show(
        invocation,
        config,
        directory,
        progress=progress,
        quiet=quiet,
        as_json=as_json,
        executor=executor or None,
        executor_options=opt.executor_options(executor_option, workers),
        retry_failed=True,
        retry_refused=refused,
        rerun=rerun,
    )


@app.command()
def replay(context: typer.Context, directory: opt.SweepDirectory, as_json: opt.AsJson = False) -> None:
    """Fill an MLflow store with everything that a sweep directory holds; what is there already stays.

    The store is that of MLFLOW_TRACKING_URI, else `mlflow.db` in the directory.

    Example: MLFLOW_TRACKING_URI=http://server:5000 tokenprune runs replay runs/default
    """
    from tokenprune.sweep import SweepStore
    from tokenprune.tracking.mlflow_tracker import replay as fill

    output = invocation_of(context).output
    store = SweepStore(directory)
    store.header()  # a directory without a sweep must not get a lock file
    with store.lock():
        filled = fill(store.directory)
    if filled.repaired:
        output.warning(filled.repaired)
    place = filled.place
    if as_json:
        found = {"uri": place.uri, "experiment_id": place.experiment_id, "experiment": place.experiment}
        output.json({"directory": str(store.directory), "logged": filled.logged, **found})
    else:
        output.say(f"{filled.logged} cells logged now, in experiment `{place.experiment}` of {place.uri}")


@app.command()
def export(
    context: typer.Context,
    directory: opt.SweepDirectory,
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: standard output]")] = None,
    form: Annotated[Format, typer.Option("--format", help="One row per line.")] = Format.CSV,
    samples: Annotated[bool, typer.Option("--samples", help="One row per question instead of one per cell.")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Print every number of every cell, under the names that MLflow shows, for a spreadsheet or a data frame.

    Example: tokenprune runs export runs/default --out figures.csv
    """
    from tokenprune.sweep.store.atomic_io import storage_error
    from tokenprune.sweep.store.sweep_data import read_sweep

    output = invocation_of(context).output
    data = read_sweep(directory)
    rows = _sample_rows(data) if samples else [_cell_row(entry) for entry in data.cells]
    if as_json:
        if out is not None:
            raise ConfigError(
                "--json and --out exclude each other", hint="`--format jsonl --out FILE` writes JSON lines"
            )
        output.json({"directory": str(data.store.directory), "rows": rows})
        return
    text = _csv(rows) if form is Format.CSV else "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    if out is None:
        output.text(text.rstrip("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, out) from error
    output.say(f"{len(rows)} rows in {out}")


def _attempts(entry: CellRecord) -> int:
    return int((entry.result or entry.error or {}).get("attempts", 1))


def _attempt_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("attempts", "batch_size") if name in facts}


def _retry_reason(entry: CellRecord) -> str:
    size = (entry.result or {}).get("batch_size", entry.cell.batch_size)
    return f"out of memory, {size} samples a batch" if size != entry.cell.batch_size else "its worker died"


def _without_result(entry: CellRecord) -> dict[str, Any]:
    error = entry.error or {}
    facts = {name: error.get(name, "") for name in ("type", "message", "hint")}
    return {"id": entry.cell.id, "name": entry.cell.name, "outcome": entry.state, **facts, **_attempt_facts(error)}


def _cell_row(entry: CellRecord) -> dict[str, Any]:
    from tokenprune.tracking.run_data import environment_of, metrics_of, params_of

    metrics = metrics_of(entry.result) if entry.result is not None else {}
    error = error_line(entry.error) if entry.error is not None else ""
    facts = entry.result or entry.error or {}
    ran = {f"env.{name}": value for name, value in environment_of(facts).items()}
    return {"id": entry.cell.id, "state": entry.state, **params_of(entry.cell), **metrics, **ran, "error": error}


def _sample_rows(data: SweepData) -> list[dict[str, Any]]:
    rows = []
    for entry in data.cells:
        cell = entry.cell
        what = {"cell": cell.id, "model": cell.model, "task": cell.task, "pruner": cell.label}
        what |= {"budget": cell.budget_label, "seed": str(cell.seed)}
        rows += [{**what, **row} for row in data.samples(cell) if entry.state == "done"]
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """All columns that any row has, in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(columns, [[row.get(name, "") for name in columns] for row in rows])
