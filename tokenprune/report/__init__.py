"""Tables, statistics and pictures of a sweep, made from its directory and nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.report.markdown import markdown_report, markdown_table
    from tokenprune.report.overlays import draw_kept, side_by_side
    from tokenprune.report.page import html_page, write_report
    from tokenprune.report.rows import Row
    from tokenprune.report.tables import Leaderboard, leaderboard, pair_tables

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
    "Leaderboard": "tables",
    "Row": "rows",
    "draw_kept": "overlays",
    "html_page": "page",
    "leaderboard": "tables",
    "markdown_report": "markdown",
    "markdown_table": "markdown",
    "pair_tables": "tables",
    "side_by_side": "overlays",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tokenprune.report.{_LAZY[name]}"), name)
    raise AttributeError(f"module `tokenprune.report` has no attribute `{name}`")
