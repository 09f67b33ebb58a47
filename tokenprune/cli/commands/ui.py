"""`tokenprune ui`: the MLflow page of a sweep directory."""

from __future__ import annotations

import shlex
import signal
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.cli.links import link_lines
from tokenprune.cli.options import SweepDirectory
from tokenprune.cli.output import Output, invocation_of
from tokenprune.errors import PrerequisiteError

if TYPE_CHECKING:
    from tokenprune.sweep.store.tracker_notes import Link


def ui(
    context: typer.Context,
    directory: SweepDirectory = Path("runs/default"),
    port: Annotated[
        int | None, typer.Option(help="Port of the page.  [default: 5000, or a free one]", min=1, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open", help="Open the first view in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON.")] = False,
) -> None:
    """Serve the MLflow dashboard of a sweep until Ctrl-C, and print the address of every view.

    Runs on a tracking server need no server here: then only the addresses are printed.

    Example: tokenprune ui runs/default
    """
    from tokenprune.tracking.server import choose_port, find_dashboard, serving

    output = invocation_of(context).output
    dashboard = find_dashboard(directory)
    if dashboard.behind:
        output.warning(
            "the sweep went on without MLflow, so cells that it ran then are missing on this page",
            f"`tokenprune runs replay {shlex.quote(str(dashboard.directory))}` adds them",
        )
    place = dashboard.place
    if place.server:
        _show(output, place.views, place.server, browser=browser, as_json=as_json)
        return
    if dashboard.moved:
        output.warning(
            "the directory was moved or copied, so pictures and tables of its runs are not found",
            f"`tokenprune runs replay {shlex.quote(str(dashboard.directory))}` tells them where they are now",
        )
    chosen = choose_port(port, host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the server too
    output.say(f"starting the MLflow server of {dashboard.directory}")
    with serving(dashboard, chosen, host) as server:
        _show(output, place.views, f"http://{host}:{chosen}", browser=browser, as_json=as_json)
        output.say("Ctrl-C ends it")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            return
    log = dashboard.directory / "logs" / "mlflow-ui.log"
    raise PrerequisiteError(f"the MLflow server ended with code {code}", hint=f"see {log}")


def _show(output: Output, views: Sequence[Link], base: str, *, browser: bool, as_json: bool) -> None:
    from tokenprune.tracking.mlflow_note import main_links

    links = main_links(views, base)
    if as_json:
        output.json({"dashboard": base, "links": {view.label: f"{base}/{view.url}" for view in views}})
    else:
        output.say(f"dashboard: {base}")
        for line in link_lines(links):
            output.text(line)
    if browser:
        webbrowser.open(links[0].url if links else base)
