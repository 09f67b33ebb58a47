"""Run a sweep with a display, show its outcome, and end the command with the exit code of that outcome."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tokenprune.cli.display import sweep_display
from tokenprune.cli.leaderboard import leaderboard_json, show_leaderboard
from tokenprune.cli.links import note_lines
from tokenprune.cli.options import ProgressForm
from tokenprune.cli.output import Invocation
from tokenprune.errors import ExitCode

if TYPE_CHECKING:
    from tokenprune.sweep import SweepConfig, SweepOutcome

RETRY = "--retry-failed"


def run_and_show(
    invocation: Invocation,
    config: SweepConfig,
    directory: Path,
    *,
    progress: ProgressForm,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a sweep, or continue it, and show how it ended.

    Args:
        invocation: The command.
        config: The checked sweep file.
        directory: The sweep directory.
        progress: How progress is shown.
        quiet: Show no progress.
        as_json: Print the outcome as JSON.
        options: Further arguments of `run_sweep`.

    Raises:
        typer.Exit: The user interrupted it, or cells failed.
    """
    from tokenprune.sweep import run_sweep

    with _interruptible(invocation), sweep_display(invocation.output, quiet=quiet, form=progress) as display:
        outcome = run_sweep(config, directory=directory, host=invocation.host, display=display, **options)
    for problem in outcome.problems:
        invocation.output.warning(problem)
    _show(invocation, outcome, as_json)
    if outcome.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if outcome.failed:
        raise typer.Exit(ExitCode.FAILED_CELLS)


@contextmanager
def _interruptible(invocation: Invocation) -> Iterator[None]:
    """End the command cleanly if Ctrl-C comes before the sweep begins or while it ends.

    SIGTERM, with which queues and supervisors stop a command, counts as Ctrl-C.

    Raises:
        typer.Exit: Ctrl-C or SIGTERM came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted(invocation)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(invocation: Invocation, outcome: SweepOutcome, as_json: bool) -> None:
    from tokenprune.report.render.page import FOLDER, PAGE

    output = invocation.output
    if as_json:
        output.json({"sweep": outcome.to_json(), **leaderboard_json(outcome.directory)})
    elif outcome.done:
        show_leaderboard(output, outcome.directory)
    counts = f"{outcome.done} done, {outcome.failed} failed, {outcome.refused} refused, {outcome.pending} pending"
    output.say(f"{counts}, {outcome.seconds:.0f} s, in {outcome.directory}")
    lines = [line for note in outcome.tracking.values() for line in note_lines(note)]
    page = outcome.directory / FOLDER / PAGE
    for line in lines or ([f"report: {page}"] if page.is_file() else []):
        output.say(line)
    if outcome.interrupted:
        _say_interrupted(invocation)
    elif outcome.failed:
        again = _typed_command(invocation)
        if RETRY not in invocation.arguments and invocation.arguments[:2] != ("runs", "retry"):
            again += f" {RETRY}"
        output.error(
            f"{outcome.failed} of {outcome.done + outcome.failed + outcome.refused} cells failed",
            f"`tokenprune report {shlex.quote(str(outcome.directory))}` shows why; `{again}` tries again",
        )


def _say_interrupted(invocation: Invocation) -> None:
    invocation.output.error("interrupted; what is finished is kept", f"continue with `{_typed_command(invocation)}`")


def _typed_command(invocation: Invocation) -> str:
    """The command as the user typed it."""
    return shlex.join(["tokenprune", *invocation.arguments])
