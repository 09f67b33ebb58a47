"""Tables as text with what is said below them, and the marks beside figures that are to be read with care."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenprune.report.data.rows import Row
from tokenprune.report.text import BUSY, NOTHING, UNKNOWN, UNSURE


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence below a table.

    Args:
        text: The sentence.
        columns: It is about these columns, and is left out where none of them is shown; without, about the table.
        mark: It explains this mark, and is left out where no cell that is shown bears it.
    """

    text: str
    columns: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One table.

    Args:
        title: Heading.
        header: Names of the columns.
        rows: One text per column and row.
        names: Columns that hold names; the others hold numbers.
        notes: Sentences below.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] = ("pruner",)
    notes: tuple[Note, ...] = ()


def shown(notes: Iterable[Note], header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The sentences that are about what is shown."""
    cells = [cell for row in rows for cell in row]
    return [
        note.text
        for note in notes
        if (not note.columns or set(note.columns) & set(header))
        and (not note.mark or any(note.mark in cell for cell in cells))
    ]


def busy_mark(row: Row) -> str:
    """A mark where the device had other work while a row's cost was measured, and another where nobody can tell."""
    if row.prefill_ms is None:
        return ""
    return UNKNOWN if row.busy is None else BUSY if row.busy else ""


def marked(text: str, row: Row, name: str) -> str:
    """A measured figure, with the marks of a device that was busy or not known, and of one that is not known well.

    Args:
        text: The figure as text.
        row: Its row.
        name: Its name in `CostSummary.spreads`.
    """
    if text == NOTHING:
        return text
    return text + timing_marks(row, name)


def timing_marks(row: Row, name: str) -> str:
    """The marks beside a figure of a row's cost."""
    return busy_mark(row) + (UNSURE if row.cost is not None and row.cost.unsure(name) else "")


def timing_notes(rows: Sequence[Row]) -> list[Note]:
    """What the marks mean, if one of the rows has them."""
    same = "~1: the 95 % interval holds 1, so neither a speed-up nor a slow-down is known"
    return [Note(same, mark="~1"), *_busy_notes(rows), *_unsure_notes(rows)]


def _unsure_notes(rows: Sequence[Row]) -> list[Note]:
    costs = [row.cost for row in rows if row.cost is not None and row.cost.spreads]
    if not costs:
        return []
    tolerance = max(cost.tolerance for cost in costs)
    text = (
        f"{UNSURE}: not known to within {100.0 * tolerance:g} % (half the width of its 95 % interval), or measured too "
        "few times for an interval"
    )
    return [Note(text, mark=UNSURE)]


def _busy_notes(rows: Sequence[Row]) -> list[Note]:
    """What the marks mean, where one of the rows has them."""
    notes = []
    shares = [row.busy for row in rows if row.busy and busy_mark(row)]
    if shares:
        share = f"{100.0 * max(shares):.0f} %"
        notes.append(Note(f"{BUSY}: other work had up to {share} of the device when this was measured", mark=BUSY))
    unknown = dict.fromkeys(row.cost.unknown for row in rows if row.cost is not None and busy_mark(row) == UNKNOWN)
    if unknown:
        why = "; ".join(filter(None, unknown))
        notes.append(Note(f"{UNKNOWN}: whether other work had the device is not known: {why}", mark=UNKNOWN))
    return notes
