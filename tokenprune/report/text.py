"""Numbers as text, the same in every table, and the notes below tables."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.report.stats.comparisons import Comparison
from tokenprune.report.stats.intervals import Interval
from tokenprune.report.stats.tradeoff import TokenShare

NOTHING = "-"
"""Stands for what was not measured or is not defined."""
BUSY = "\N{DAGGER}"
"""Marks what was measured while the device had other work."""
UNKNOWN = "\N{DOUBLE DAGGER}"
"""Marks what was measured while nothing told whether it had."""
UNSURE = "?"
"""Marks what is known less well than was asked for."""

_BOUNDS = {"between": "", "at most": "\N{LESS-THAN OR EQUAL TO}", "more than": ">"}


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence below a table.

    Args:
        text: The sentence.
        columns: Keys of the columns that it is about; it is left out if none of them is shown. Empty: about the table.
        mark: The mark that it explains; it is left out if no shown cell bears it.
    """

    text: str
    columns: tuple[str, ...] = ()
    mark: str = ""


def counted(number: int, what: str) -> str:
    """A number of things: `1 question`, `2 questions`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def budget_text(budget: str, of: str = "") -> str:
    """A budget in a heading: `25%`, `64 tokens`; of `visual` tokens `25% of the visual tokens`, `64 visual tokens`."""
    if budget.endswith("%"):
        return f"{budget} of the {of} tokens" if of else budget
    return " ".join(filter(None, (budget, of, "token" if budget == "1" else "tokens")))


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return NOTHING if value is None else f"{100.0 * value:.1f}"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed number of digits."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def brackets(bounds: tuple[float, float] | None, digits: int) -> str:
    """Quartiles or the bounds of an interval: `[0.72, 0.77]`."""
    return NOTHING if bounds is None else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def percent_bounds(found: Interval | None) -> str:
    """The bounds of a share's interval, in percent."""
    bounds = None if found is None else found.bounds
    return NOTHING if bounds is None else brackets((100.0 * bounds[0], 100.0 * bounds[1]), 1)


def percentage_points(found: Interval | None) -> str:
    """A difference in percentage points, with its interval if it has one."""
    if found is None:
        return NOTHING
    bounds = "" if found.bounds is None else " [{:+.1f}, {:+.1f}]".format(*(100.0 * bound for bound in found.bounds))
    return f"{100.0 * found.mean:+.1f}{bounds}"


def contrast(found: Comparison | None) -> str:
    """A difference to a baseline in percentage points, with a star if it is significant."""
    return NOTHING if found is None else percentage_points(found.difference) + ("*" if found.significant else "")


def ratio(median: float | None, bounds: tuple[float, float] | None) -> str:
    """A ratio with the interval of its median; `~1` if that holds 1: neither a speed-up nor a slow-down is known."""
    if median is None or bounds is None:
        return number(median, 2)
    return f"{'~1' if bounds[0] <= 1.0 <= bounds[1] else number(median, 2)} {brackets(bounds, 2)}"


def p_value(value: float) -> str:
    """A p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def token_share(found: TokenShare | None) -> str:
    """The share of tokens that a retention takes: `12.3%`, or a bound of it."""
    known = None if found is None else found.ratio if found.ratio is not None else found.low
    return NOTHING if found is None or known is None else f"{_BOUNDS[found.bound]}{100.0 * known:.1f}%"
