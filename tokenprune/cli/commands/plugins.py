"""`tokenprune plugins`: what was loaded, what was blocked, what failed and why."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tokenprune.cli.options import AsJson
from tokenprune.cli.output import invocation_of, table
from tokenprune.plugins import DEFAULT_PLUGINS


def plugins(
    context: typer.Context,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tokenprune's own plugins and tracebacks too.")
    ] = False,
) -> None:
    """List plugins, failures included.

    `TOKENPRUNE_LOAD_PLUGINS` (only these distributions) and `TOKENPRUNE_DISABLE_PLUGINS` (not these) take comma lists.

    Example: tokenprune plugins --verbose
    """
    invocation = invocation_of(context)
    reports = invocation.host.reports
    if as_json:
        invocation.output.json({"plugins": [dataclasses.asdict(report) for report in reports]})
        return
    shown = [
        report for report in reports if verbose or report.name not in DEFAULT_PLUGINS or report.outcome != "loaded"
    ]
    rows = [
        [
            report.name,
            f"{report.distribution} {report.version}".strip(),
            report.outcome,
            report.reason or ", ".join(report.hooks),
        ]
        for report in shown
    ]
    invocation.output.show(table(["plugin", "distribution", "outcome", "hooks, or what is wrong"], rows))
    if verbose:
        for report in shown:
            if report.details:
                invocation.output.text(f"{report.name}:\n{report.details}")
