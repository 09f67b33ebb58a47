"""`tokenprune sweep`: run a sweep file, or the default comparison, and print the leaderboard."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.output import ProgressForm, Session, session_of, table
from tokenprune.cli.report import leaderboard_json, show_leaderboard
from tokenprune.cli.ui import dashboard_lines
from tokenprune.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from tokenprune.sweep import SweepConfig, SweepOutcome

_RUNS = Path("runs")
_RETRY = "--retry-failed"

RERUN = typer.Option("--rerun", help="Run cells again that were run with other versions of torch, a plugin, ...")
TRACKER = typer.Option("--tracker", help="Where the sweep is logged: `tokenprune list trackers`; repeatable.")
NO_TRACKERS = typer.Option("--no-tracker", help="Log it nowhere, like `--tracker none`; the report is written.")


def sweep(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="Sweep file (YAML); without one, the default sweep.")] = None,
    out: Annotated[Path | None, typer.Option(help="Sweep directory.  [default: runs/NAME-OF-THE-FILE]")] = None,
    pruners: Annotated[str, typer.Option(help="Only these pruners, a comma list.")] = "",
    budgets: Annotated[str, typer.Option(help="These budgets, a comma list: `25%`, `0.25`, `64`.")] = "",
    limit: Annotated[int | None, typer.Option(help="Samples per cell.", min=1)] = None,
    device: Annotated[str, typer.Option(help="Devices, a comma list: `cpu`, `cuda:0,cuda:1`.")] = "",
    executor: Annotated[str, typer.Option(help="How cells are run: `tokenprune list executors`.")] = "",
    executor_option: Annotated[
        list[str] | None, typer.Option(help="`NAME=VALUE` for the executor, for example `address=auto`; repeatable.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes of this machine, in place of one per device.", min=1),
    ] = None,
    tracker: Annotated[list[str] | None, TRACKER] = None,
    no_tracker: Annotated[bool, NO_TRACKERS] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option(_RETRY, help="Run failed cells again.")] = False,
    rerun: Annotated[bool, RERUN] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    progress: Annotated[ProgressForm, typer.Option(help="How progress is told, on stderr.")] = ProgressForm.AUTO,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compare pruners: one cell per model, task, pruner, budget and seed, each one tracked in MLflow by default.

    The same command again continues where it stopped. Exit codes: 3 where cells failed, 130 after Ctrl-C.

    Example: tokenprune sweep --pruners none,random,iwp --budgets 25%,5.6% --limit 64
    """
    # imported here, so that other commands start without pydantic
    from tokenprune.cli.display import sweep_display
    from tokenprune.sweep import default_config, load_config, run_sweep, with_changes

    session = session_of(context)
    chosen = default_config(session.host) if config is None else load_config(config, session.host)
    changes = _changes(chosen, pruners=pruners, budgets=budgets, limit=limit, device=device)
    changes |= tracker_change(tracker, no_tracker)
    if changes:
        chosen = with_changes(chosen, changes, session.host)
    directory = out or (Path(chosen.out) if chosen.out else _RUNS / (config.stem if config else "default"))
    if dry_run:
        _show_plan(session, chosen, directory, as_json, rerun=rerun)
        return
    options = executor_options(executor_option or [], workers)
    with interruptible(session), sweep_display(session.output, quiet=quiet, form=progress) as display:
        outcome = run_sweep(
            chosen,
            directory=directory,
            host=session.host,
            display=display,
            executor=executor or None,
            executor_options=options,
            retry_failed=retry_failed,
            rerun=rerun,
        )
    finish(session, outcome, as_json)


def finish(session: Session, outcome: SweepOutcome, as_json: bool) -> None:
    """Show how a sweep ended, and end the command with the code that says so.

    Raises:
        typer.Exit: It was interrupted, or cells failed.
    """
    for problem in outcome.problems:
        session.output.warning(problem)
    _show_outcome(session, outcome, as_json)
    if outcome.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.failed:
        raise typer.Exit(ExitCode.FAILED_CELLS)


@contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """End the command well where Ctrl-C comes before the sweep could begin, or while it was ending.

    SIGTERM, with which queues and supervisors stop a command, is taken for Ctrl-C.

    Raises:
        typer.Exit: It came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted(session)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def executor_options(words: Sequence[str], workers: int | None = None) -> dict[str, str | int]:
    """`NAME=VALUE` words as keywords of an executor, and `workers` where their number was given.

    Raises:
        ConfigError: A word has another form.
    """
    options: dict[str, str | int] = {} if workers is None else {"workers": workers}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name):
            raise ConfigError(
                f"--executor-option must be `NAME=VALUE`, got `{word}`", hint="for example `address=auto`"
            )
        options[name.replace("-", "_")] = value
    return options


def tracker_change(names: Sequence[str] | None, none: bool) -> dict[str, Any]:
    """What `--tracker` and `--no-tracker` say, as a key of a sweep file; empty where they say nothing.

    Raises:
        ConfigError: Both were given.
    """
    if names and none:
        raise ConfigError("--tracker and --no-tracker exclude each other", hint="leave one of them out")
    return {"trackers": list(names or ())} if names or none else {}


def _changes(config: SweepConfig, *, pruners: str, budgets: str, limit: int | None, device: str) -> dict[str, Any]:
    """What the options say, as top-level keys of a sweep file."""
    changes: dict[str, Any] = {}
    if pruners:
        changes["pruners"] = _chosen_pruners(config, _comma_list("--pruners", pruners))
    if budgets:
        changes["budgets"] = _comma_list("--budgets", budgets)
    if limit is not None:
        changes["limit"] = limit
    if device:
        changes["device"] = _comma_list("--device", device)
    return changes


def _chosen_pruners(config: SweepConfig, names: Sequence[str]) -> list[dict[str, Any]]:
    """The file's own entries of these names or labels (they carry options); other names with their defaults."""
    chosen = []
    for name in names:
        listed = [entry.model_dump() for entry in config.pruners if name in (entry.title, entry.name)]
        chosen += listed or [{"name": name}]
    return chosen


def _comma_list(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{option} has an empty entry: `{text}`", hint=f"for example `{option} first,second`")
    return parts


def _show_plan(session: Session, config: SweepConfig, directory: Path, as_json: bool, *, rerun: bool) -> None:
    from tokenprune.sweep import SweepStore, plan_cells
    from tokenprune.sweep.plan.plan_diff import survey

    store = SweepStore(directory)
    cells = plan_cells(config, session.host)
    found = survey(store, cells, rerun=rerun)
    if as_json:
        planned = [{**cell.to_json(), "state": found.states[cell.id]} for cell in cells]
        changes = list(found.changes)
        session.output.json({"directory": str(store.directory), "cells": planned, "changes": changes})
        return
    rows = [[cell.name, cell.model, str(cell.samples), found.states[cell.id]] for cell in cells]
    session.output.show(table(["cell", "model", "samples", "state"], rows, numbers=["samples"]))
    for change in found.changes:
        session.output.say(change)
    waiting = sum(1 for state in found.states.values() if state == "pending")
    session.output.say(f"{len(cells)} cells, {waiting} to run, in {directory}")


def _show_outcome(session: Session, outcome: SweepOutcome, as_json: bool) -> None:
    from tokenprune.report.render.page import FOLDER, PAGE

    output = session.output
    if as_json:
        output.json({"sweep": outcome.to_json(), **leaderboard_json(outcome.directory)})
    else:
        if outcome.done:
            show_leaderboard(output, outcome.directory)
    counts = f"{outcome.done} done, {outcome.failed} failed, {outcome.refused} refused, {outcome.pending} pending"
    output.say(f"{counts}, {outcome.seconds:.0f} s, in {outcome.directory}")
    lines = dashboard_lines(outcome.tracking, outcome.directory)
    page = outcome.directory / FOLDER / PAGE
    for line in lines or ([f"report: {page}"] if page.is_file() else []):
        output.say(line)
    place = shlex.quote(str(outcome.directory))
    if outcome.interrupted:
        _say_interrupted(session)
    elif outcome.failed:
        again = _again(session)
        retries = _RETRY in session.arguments or session.arguments[:2] == ("runs", "retry")
        output.error(
            f"{outcome.failed} of {outcome.done + outcome.failed + outcome.refused} cells failed",
            f"`tokenprune report {place}` shows why; `{again if retries else f'{again} {_RETRY}'}` tries again",
        )


def _say_interrupted(session: Session) -> None:
    session.output.error("interrupted; what is finished is kept", f"continue with `{_again(session)}`")


def _again(session: Session) -> str:
    """The command that was given."""
    return shlex.join(["tokenprune", *session.arguments])
