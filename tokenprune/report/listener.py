"""The default plugin that writes the report of every sweep when it ends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.events import SweepEnded, SweepStarted

TOKENPRUNE_TRACKER = ""
"""It is no tracker: the report is written whichever trackers were chosen."""

_HEAVY = ("scipy.stats", "matplotlib.figure", "jinja2")
"""What the report is made with; a second or two to import."""


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Import beside the work what the report needs, so that nobody waits for it at the end."""
    for module in _HEAVY:
        importlib.import_module(module)


@hookimpl
def write_report(event: SweepEnded) -> None:
    """Write the folder `report` of the sweep."""
    from tokenprune.report.render.page import write_report as write

    write(event.directory)
