"""Which columns of the leaderboard a terminal shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenprune.cli.leaderboard import fitting
from tokenprune.report.render.columns import COLUMNS, Section

HEADER = ("#", "pruner", "accuracy %", "vs none", "vs random", "layer average", "prefill ms")
ROW = ("1", "iwp-exact", "81.2", "-3.0 [-6.0, -1.0]", "+9.0 [+4.0, +13.0]*", "26", "11.2")
BY_HEADING = {column.heading: column for column in COLUMNS}
TABLE = Section("a table", tuple(BY_HEADING[heading] for heading in HEADER), (ROW,))


def test_a_wide_terminal_shows_everything_in_the_tables_order() -> None:
    assert fitting(TABLE, 200).header == HEADER


def test_a_narrow_one_keeps_what_matters_most() -> None:
    assert fitting(TABLE, 40).header == ("pruner", "accuracy %", "layer average")
    assert fitting(TABLE, 1).header == ("pruner",)


@given(st.integers(30, 200))
def test_what_is_chosen_fits(width: int) -> None:
    shown = fitting(TABLE, width)
    places = [HEADER.index(heading) for heading in shown.header]
    assert places == sorted(places)
    assert sum(max(len(HEADER[place]), len(ROW[place])) + 2 for place in places) <= width
