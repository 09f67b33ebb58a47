"""Which columns of the leaderboard a terminal shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenprune.cli.leaderboard import fitting

HEADER = ["#", "pruner", "accuracy %", "vs none", "vs random", "layer average", "prefill ms"]
ROWS = [["1", "iwp-exact", "81.2", "-3.0 [-6.0, -1.0]", "+9.0 [+4.0, +13.0]*", "26", "11.2"]]


def test_a_wide_terminal_shows_everything_in_the_tables_order() -> None:
    assert fitting(HEADER, ROWS, 200) == list(range(len(HEADER)))


def test_a_narrow_one_keeps_what_matters_most() -> None:
    assert [HEADER[place] for place in fitting(HEADER, ROWS, 40)] == ["pruner", "accuracy %", "layer average"]
    assert [HEADER[place] for place in fitting(HEADER, ROWS, 1)] == ["pruner"]


@given(st.integers(30, 200))
def test_what_is_chosen_fits(width: int) -> None:
    places = fitting(HEADER, ROWS, width)
    assert places == sorted(places)
    assert sum(max(len(HEADER[place]), len(ROWS[0][place])) + 2 for place in places) <= width
