"""`tokenprune report`: the tables of a sweep directory, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.output import GAP, Output, session_of, table
from tokenprune.errors import ConfigError

if TYPE_CHECKING:
    from tokenprune.report.tables import Table

#: Columns that a narrow terminal loses first stand last.
_IMPORTANCE = (
    "pruner",
    "accuracy %",
    "layer average",
    "vs random",
    "prefill ms",
    "output error",
    "same answer %",
    "#",
    "final tokens",
    "GFLOPs",
    "pruner ms",
    "KL",
    "vs none",
    "dual error",
)


def report(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Sweep directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, with every column.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write the folder `report` of the sweep again: HTML page, plots, tables.")
    ] = False,
) -> None:
    """Print the leaderboard of a sweep, and what failed in it.

    Example: tokenprune report runs/default --markdown
    """
    output = session_of(context).output
    if as_json and markdown:
        raise ConfigError("--json and --markdown exclude each other", hint="choose one")
    if as_json:
        output.json(leaderboard_json(directory))
    elif markdown:
        from tokenprune.report import markdown_table

        output.text(markdown_table(directory).rstrip())
    else:
        show_leaderboard(output, directory)
    if html:
        from tokenprune.report import write_report

        output.say(f"report: {write_report(directory)}")


def leaderboard_json(directory: Path) -> dict[str, Any]:
    """The leaderboard as a part of a JSON document."""
    from tokenprune.report.tables import leaderboard

    return {"leaderboard": leaderboard(directory).to_json()}


def show_leaderboard(output: Output, directory: Path) -> None:
    """Print one table per model, task and budget, as wide as the terminal allows."""
    from tokenprune.report.markdown import cells_of, title_of
    from tokenprune.report.tables import leaderboard

    for entry in leaderboard(directory).tables:
        header, rows = cells_of(entry)
        places = fitting(header, rows, output.data.width)
        columns = [header[place] for place in places]
        output.show(title_of(entry))
        output.show(
            table(
                columns,
                [[row[place] for place in places] for row in rows],
                numbers=[column for column in columns if column != "pruner"],
                names=["pruner"],
            )
        )
        for line in _without_result(entry):
            output.show(line)
        output.show("")


def fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Places of the columns that fit into a width, the most important ones first to be taken, in the table's order."""
    order = sorted(
        range(len(header)),
        key=lambda place: _IMPORTANCE.index(header[place]) if header[place] in _IMPORTANCE else len(_IMPORTANCE),
    )
    chosen: list[int] = []
    used = 0
    for place in order:
        needed = max(len(text) for text in (header[place], *(row[place] for row in rows))) + GAP
        if chosen and used + needed > width:
            continue
        chosen.append(place)
        used += needed
    return sorted(chosen)


def _without_result(entry: Table) -> list[str]:
    return [f"{row.label}: {row.outcome}: {row.reason}".rstrip(": ") for row in entry.rows if row.outcome != "done"]
