"""The default plugin that writes the report of every sweep when it ends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.cells.events import SweepEnded, SweepStarted

TOKENPRUNE_TRACKER = ""
"""Empty: the report is written whichever trackers were chosen."""

_HEAVY = ("scipy.stats", "matplotlib.figure", "jinja2")
"""What the report is made with; importing it takes a second or two."""


@hookimpl
def on_sweep_start(event: SweepStarted) -> None:
    """Import what the report needs while the cells run, so that the end of the sweep does not wait for it."""
    for module in _HEAVY:
        importlib.import_module(module)


@hookimpl
def write_report(event: SweepEnded) -> None:
    """Write the folder `report` of the sweep."""
    from tokenprune.report.render.page import write_report as write

    write(event.directory)
