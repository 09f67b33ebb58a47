"""Figures as text: one way to write a share, an interval, a difference, for every table."""

from __future__ import annotations

from tokenprune.report.stats.paired import Comparison
from tokenprune.report.stats.retention import Needed
from tokenprune.report.stats.statistics import Interval

NOTHING = "-"
BUSY = "\N{DAGGER}"
"""Stands beside what was measured while the device had other work."""
UNKNOWN = "\N{DOUBLE DAGGER}"
"""Stands beside what was measured while nobody could tell whether it had."""
UNSURE = "?"
"""Stands beside what is known less well than was asked for."""

_BOUNDS = {"between": "", "at most": "\N{LESS-THAN OR EQUAL TO}", "more than": ">"}


def counted(number: int, what: str) -> str:
    """A number of things: `1 question`, `2 questions`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def subject_at(budget: str) -> str:
    """A budget as it is said in a heading."""
    return budget if budget.endswith("%") else f"{budget} {'token' if budget == '1' else 'tokens'}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return NOTHING if value is None else f"{100.0 * value:.1f}"


def number(value: float | None, digits: int) -> str:
    """A figure with a fixed number of digits."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def ends(found: Interval | None) -> str:
    """The ends of a share's interval, in percent."""
    both = None if found is None else found.ends
    return NOTHING if both is None else f"[{100.0 * both[0]:.1f}, {100.0 * both[1]:.1f}]"


def interval(found: Interval | None) -> str:
    """A share with its interval, in percent."""
    return NOTHING if found is None else f"{percent(found.mean)} {ends(found)}"


def points(found: Interval | None) -> str:
    """A difference, in percentage points, with its interval where it has one."""
    if found is None:
        return NOTHING
    both = found.ends
    shown = "" if both is None else f" [{100.0 * both[0]:+.1f}, {100.0 * both[1]:+.1f}]"
    return f"{100.0 * found.mean:+.1f}{shown}"


def contrast(found: Comparison | None) -> str:
    """A difference to a baseline, with a star where it is significant."""
    if found is None:
        return NOTHING
    return points(found.difference) + ("*" if found.significant else "")


def quartiles(found: tuple[float, float] | None, digits: int) -> str:
    """The quartiles, or the ends of the interval, beside a median."""
    return NOTHING if found is None else f"[{found[0]:.{digits}f}, {found[1]:.{digits}f}]"


def ratio(median: float | None, interval: tuple[float, float] | None) -> str:
    """A ratio with the interval of its median; `~1` if that holds 1: neither a speed-up nor a slow-down is known."""
    if median is None or interval is None:
        return number(median, 2)
    low, high = interval
    shown = "~1" if low <= 1.0 <= high else number(median, 2)
    return f"{shown} {quartiles(interval, 2)}"


def p_value(value: float) -> str:
    """A p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def share(found: Needed | None) -> str:
    """A budget that a retention needs: `12.3%`, or a bound where the measured budgets give no more."""
    if found is None:
        return NOTHING
    known = found.ratio if found.ratio is not None else found.low
    return NOTHING if known is None else f"{_BOUNDS[found.bound]}{100.0 * known:.1f}%"
