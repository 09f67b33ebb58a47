"""Tables, statistics and pictures of a sweep, made from its directory and nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.report.data.rows import Row
    from tokenprune.report.data.tables import Leaderboard, leaderboard, pair_tables
    from tokenprune.report.figures.overlays import draw_kept, side_by_side
    from tokenprune.report.render.markdown import markdown_report, markdown_table
    from tokenprune.report.render.page import html_page, write_report

__all__ = [
    "Leaderboard",
    "Row",
    "draw_kept",
    "html_page",
    "leaderboard",
    "markdown_report",
    "markdown_table",
    "pair_tables",
    "side_by_side",
    "write_report",
]

_LAZY = {
    "Leaderboard": "data.tables",
    "Row": "data.rows",
    "draw_kept": "figures.overlays",
    "html_page": "render.page",
    "leaderboard": "data.tables",
    "markdown_report": "render.markdown",
    "markdown_table": "render.markdown",
    "pair_tables": "data.tables",
    "side_by_side": "figures.overlays",
    "write_report": "render.page",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tokenprune.report.{_LAZY[name]}"), name)
    raise AttributeError(f"module `tokenprune.report` has no attribute `{name}`")
