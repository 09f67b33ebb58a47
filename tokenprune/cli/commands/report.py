"""`tokenprune report`: the tables of a sweep directory, finished or not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tokenprune.cli.leaderboard import show_leaderboard, show_section
from tokenprune.cli.options import AsJson, SweepDirectory
from tokenprune.cli.output import invocation_of
from tokenprune.errors import ConfigError


def report(
    context: typer.Context,
    directory: SweepDirectory,
    families: Annotated[bool, typer.Option("--families", help="Also every task family, with intervals.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Also every pair of pruners.")] = False,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, with every column.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write the folder `report` of the sweep again: HTML page, plots, tables.")
    ] = False,
) -> None:
    """Print the leaderboard of a sweep, what follows from its budgets together, and what failed in it.

    Intervals are 95 % ones, those of differences paired; `*` marks those that are significant after Holm's correction.

    Example: tokenprune report runs/default --markdown
    """
    from tokenprune.report import leaderboard, markdown_report, pair_tables, write_report
    from tokenprune.report.render.markdown import markdown_section
    from tokenprune.report.render.sections import pair_section
    from tokenprune.sweep.store.sweep_data import read_sweep

    output = invocation_of(context).output
    if as_json and markdown:
        raise ConfigError("--json and --markdown exclude each other", hint="choose one")
    data = read_sweep(directory)
    board = leaderboard(data)
    paired = pair_tables(data) if pairs else ()
    if as_json:
        more = {"pairs": [asdict(found) for found in paired]} if pairs else {}
        output.json({"leaderboard": board.to_json(), **more})
    elif markdown:
        parts = [markdown_report(board).rstrip(), *(markdown_section(pair_section(found)) for found in paired)]
        output.text("\n\n".join(parts))
    else:
        show_leaderboard(output, board, families=families)
        for section in map(pair_section, paired):
            show_section(output, section)
    if html:
        output.say(f"report: {write_report(directory)}")
