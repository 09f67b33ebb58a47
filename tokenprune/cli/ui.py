"""`tokenprune ui`: the MLflow page of a sweep directory."""

from __future__ import annotations

import shlex
import signal
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.cli.output import Output, session_of
from tokenprune.errors import PrerequisiteError


def ui(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Sweep directory.")] = Path("runs/default"),
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

    output = session_of(context).output
    dashboard = find_dashboard(directory)
    if dashboard.behind:
        output.warning(
            "the sweep went on without MLflow, so cells that it ran then are missing on this page",
            f"`tokenprune runs replay {shlex.quote(str(dashboard.directory))}` adds them",
        )
    if dashboard.server:
        _show(output, dashboard.links, dashboard.server, browser=browser, as_json=as_json)
        return
    if dashboard.moved:
        output.warning(
            "the directory was moved or copied, so pictures and tables of its runs are not found",
            f"`tokenprune runs replay {shlex.quote(str(dashboard.directory))}` tells them where they are now",
        )
    chosen = choose_port(port, host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended in any way, it takes its server along
    output.say(f"starting the MLflow server of {dashboard.directory}")
    with serving(dashboard, chosen, host) as server:
        _show(output, dashboard.links, f"http://{host}:{chosen}", browser=browser, as_json=as_json)
        output.say("Ctrl-C ends it")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            return
    log = dashboard.directory / "logs" / "mlflow-ui.log"
    raise PrerequisiteError(f"the MLflow server ended with code {code}", hint=f"see {log}")


def dashboard_lines(tracking: Mapping[str, Any], directory: Path) -> list[str]:
    """What a sweep says at its end about its runs: how to open them, and where each view is.

    Args:
        tracking: What the tracker wrote about the sweep; empty where there is none.
        directory: The sweep directory.
    """
    from tokenprune.tracking.server import HOST, PORT, main_links

    uri = str(tracking.get("uri", ""))
    if not uri:
        return []
    served = uri.startswith(("http://", "https://"))
    links = {entry["name"]: entry["address"] for entry in tracking["links"]}
    lines = [f"dashboard: {uri}"] if served else []
    if tracking.get("own"):
        lines = [f"dashboard: tokenprune ui {shlex.quote(str(directory))}"]
    elif not served:
        lines = [f"dashboard: mlflow ui --workers 1 --backend-store-uri {shlex.quote(uri)}"]
    return [*lines, *_lines(main_links(links, uri if served else f"http://{HOST}:{PORT}"))]


def _show(output: Output, links: Mapping[str, str], base: str, *, browser: bool, as_json: bool) -> None:
    from tokenprune.tracking.server import main_links

    found = main_links(links, base)
    if as_json:
        output.json({"dashboard": base, "links": {name: f"{base}/{address}" for name, address in links.items()}})
    else:
        output.say(f"dashboard: {base}")
        for line in _lines(found):
            output.text(line)
    if browser:
        webbrowser.open(found[0][1] if found else base)


def _lines(found: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in found), default=0)
    return [f"  {name:<{width}}  {address}" for name, address in found]
