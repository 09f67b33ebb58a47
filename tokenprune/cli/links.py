"""The lines that say where a sweep can be looked at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    return [*lines, *link_lines(main_links(links, uri if served else f"http://{HOST}:{PORT}"))]


def link_lines(found: list[tuple[str, str]]) -> list[str]:
    """One line per link: its name and its address."""
    width = max((len(name) for name, _ in found), default=0)
    return [f"  {name:<{width}}  {address}" for name, address in found]
