"""The columns of the leaderboard and of the cost tables: each is one row of `COLUMNS`, and nothing else spells it.

Tables know a column by its key: terminal, Markdown, HTML page and the trackers read the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenprune.report.data.costs import CostSummary, Quartiles
from tokenprune.report.data.rows import PrunerRow
from tokenprune.report.text import (
    NOTHING,
    UNSURE,
    Note,
    brackets,
    contrast,
    number,
    percent,
    percent_bounds,
    percentage_points,
    ratio,
)

Where = Literal["leaderboard", "page", "cost"]
"""Where a column stands: in the leaderboard, at once in the page (of 1,480 pixels) without a click, in cost tables."""

LEADERBOARD: frozenset[Where] = frozenset({"leaderboard"})
PAGE: frozenset[Where] = frozenset({"leaderboard", "page"})
COST: frozenset[Where] = frozenset({"cost"})


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        key: What the program calls it.
        heading: What people read above it.
        render: The text of one item, a `PrunerRow` in `COLUMNS`; `-` if there is nothing.
        note: What is said of it below a table, after its heading.
        importance: A narrow terminal shows the columns with the smallest numbers.
        where: The tables that it stands in.
        words: Whether it holds words and not numbers.
    """

    key: str
    heading: str
    render: Callable[[Any], str] = str
    note: str = ""
    importance: int = 99
    where: frozenset[Where] = frozenset()
    words: bool = False

    def of(self, render: Callable[[Any], str]) -> Column:
        """The same column over other items."""
        return replace(self, render=render)


def _share(name: str) -> Callable[[PrunerRow], str]:
    def render(row: PrunerRow) -> str:
        found = getattr(row, name)
        return percent(None if found is None else found.mean)

    return render


def _tokens(account: str) -> Callable[[PrunerRow], str]:
    return lambda row: number((row.tokens or {}).get(account), 0)


def _timed(key: str, text: Callable[[PrunerRow], str]) -> Callable[[PrunerRow], str]:
    """A measured value with the marks of a busy device, and of a value that is not known well."""

    def render(row: PrunerRow) -> str:
        found = text(row)
        return found if found == NOTHING or row.cost is None else found + row.cost.marks(key)

    return render


def _median(
    key: str, digits: int, spreads: Callable[[CostSummary], Mapping[str, Quartiles]] = lambda cost: cost.spreads
) -> Callable[[PrunerRow], str]:
    """A measured median, with a mark if it is not known well."""

    def render(row: PrunerRow) -> str:
        found = {} if row.cost is None else spreads(row.cost)
        if row.cost is None or key not in found:
            return NOTHING
        return number(found[key].median, digits) + (UNSURE if row.cost.unsure(key, found) else "")

    return render


def _floor_gflops(row: PrunerRow) -> str:
    tera = None if row.cost is None else row.cost.floor_figures.get("prefill_tflops")
    return number(None if tera is None else 1000.0 * tera, 2)


def _repeats(row: PrunerRow) -> str:
    return NOTHING if row.cost is None else f"{row.cost.repeats}{'' if row.cost.precise is not False else UNSURE}"


COLUMNS = (
    Column("rank", "#", lambda row: NOTHING if row.rank is None else str(row.rank), "", 13, PAGE),
    Column("pruner", "pruner", lambda row: row.label, "", 0, PAGE | COST, words=True),
    Column("accuracy", "accuracy %", _share("accuracy"), "", 1, PAGE),
    Column("interval", "interval", lambda row: percent_bounds(row.accuracy), "", 8, PAGE),
    Column("retention", "retention %", _share("retention"), "accuracy divided by the unpruned accuracy", 9, PAGE),
    Column("against_none", "vs none", lambda row: percentage_points(row.against_none), "", 21, LEADERBOARD),
    Column("against_random", "vs random", lambda row: contrast(row.against_random), "", 5, PAGE),
    Column("against_downsample", "vs downsample", lambda row: contrast(row.against_downsample), "", 15, PAGE),
    Column(
        "hard",
        "hard %",
        _share("hard"),
        "accuracy on the questions that the unpruned model answers and `downsample`, at this budget, does not",
        10,
        PAGE,
    ),
    Column(
        "agreement",
        "same answer %",
        lambda row: percent(row.agreement),
        "equal to the unpruned answer (loyalty)",
        14,
        PAGE,
    ),
    Column(
        "kl",
        "KL",
        lambda row: number(row.kl, 2),
        "divergence of the first answer token from the unpruned model, in nats",
        20,
        LEADERBOARD,
    ),
    Column(
        "output_error",
        "output error",
        lambda row: number(row.output_error, 3),
        "relative norm of the error of the attention output, mean over the layers",
        16,
        LEADERBOARD,
    ),
    Column(
        "dual_error",
        "dual error",
        lambda row: number(row.dual_error, 3),
        "the same of the implicit weight",
        22,
        LEADERBOARD,
    ),
    Column("final_tokens", "final tokens", _tokens("final"), "", 17, LEADERBOARD),
    Column("layer_average", "layer average", _tokens("layer_average"), "", 7, PAGE),
    Column(
        "prefill_ms",
        "prefill ms",
        _timed("prefill_ms", lambda row: number(row.prefill_ms, 1)),
        "median of one sample with vision encoder and pruner, and its quartiles; rows were measured at different "
        "times, so compare the ratios",
        12,
        PAGE | COST,
    ),
    Column("quartiles", "quartiles", lambda row: brackets(row.prefill_ms_quartiles, 1), "", 23, LEADERBOARD | COST),
    Column("unpruned_ms", "unpruned ms", _median("prefill_ms", 1, lambda cost: cost.unpruned), where=COST),
    Column(
        "over_unpruned",
        "x none",
        _timed("over_unpruned", lambda row: ratio(row.over_unpruned, row.over_unpruned_interval)),
        "prefill divided by the unpruned model's in turns whose order rotates: the median with its 95 % interval by "
        "order statistics; below 1 is a speed-up, and `~1` says that the interval holds 1",
        6,
        PAGE | COST,
    ),
    Column("floor_ms", "floor ms", _median("prefill_ms", 1, lambda cost: cost.floor), where=COST),
    Column(
        "over_floor",
        "x floor",
        _timed("over_floor", lambda row: ratio(row.over_floor, row.over_floor_interval)),
        "prefill divided by that of the floor, in the same way: the unpruned model on a prompt that already has the "
        "kept length, as many visual tokens as the layer average",
        11,
        PAGE | COST,
    ),
    Column("overhead_ms", "pruner ms", _median("overhead_ms", 1), where=COST),
    Column(
        "overhead_share",
        "pruner %",
        _timed("overhead_share", lambda row: percent(row.overhead_share)),
        "share of the prefill in the pruner's own views and decisions",
        19,
        LEADERBOARD | COST,
    ),
    Column("encoder_ms", "encoder ms", _median("encoder_ms", 1), where=COST),
    Column("first_token_ms", "first token ms", _median("first_token_ms", 1), where=COST),
    Column("decode_ms", "decode ms", _median("decode_ms_per_token", 2), where=COST),
    Column(
        "floor_decode_ms", "floor decode ms", _median("decode_ms_per_token", 2, lambda cost: cost.floor), where=COST
    ),
    Column("peak_mib", "peak MiB", lambda row: number(row.peak_mem_mib, 1), where=COST),
    Column("kv_mib", "KV MiB", lambda row: number(row.kv_mib, 2), where=COST),
    Column("gflops", "GFLOPs", lambda row: number(row.prefill_gflops, 2), "", 18, LEADERBOARD | COST),
    Column("floor_gflops", "floor GFLOPs", _floor_gflops, where=COST),
    Column("energy_j", "energy J", _median("energy_j", 2), where=COST),
    Column("repeats", "repeats", _repeats, where=COST),
)


def columns_of(where: Where) -> tuple[Column, ...]:
    """The columns of one kind of table, in their order."""
    return tuple(column for column in COLUMNS if where in column.where)


def column(key: str) -> Column:
    """The column of a key."""
    return next(column for column in COLUMNS if column.key == key)


def legend() -> str:
    """What is to be said of the leaderboard's numbers, once below all its tables."""
    notes = [f"{column.heading}: {column.note}." for column in columns_of("leaderboard") if column.note]
    return " ".join([_INTERVALS, *notes, f"{NOTHING}: not measured or not defined."])


_INTERVALS = (
    "Numbers in brackets are 95 % intervals over the questions, with pictures as the sampling unit: Wilson's for an "
    "accuracy, Agresti and Min's with clustered standard errors for differences, which are percentage points on the "
    "same questions. They hold for the seeds that ran; what other seeds would give is not in them. `*`: differs from "
    "that baseline with p < 0.05 after Holm's correction for all such comparisons of the table (paired randomisation "
    "test; McNemar's exact test for right or wrong). A sample or a cell that failed counts as wrong for a pruner; "
    "questions on which the unpruned model, `random` or `downsample` failed are left out of comparisons with it."
)


@dataclass(frozen=True, slots=True)
class Section:
    """One table as text, with the notes below it.

    Args:
        title: Heading.
        columns: Its columns.
        rows: One text per column and row.
        notes: Notes below.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(
        cls, title: str, columns: Iterable[Column], items: Iterable[Any], notes: Iterable[Note] = (), keep: int = 99
    ) -> Section:
        """The table of some items; of the columns after the first `keep` those that no item fills are left out."""
        columns = tuple(columns)
        rows = tuple(tuple(column.render(item) for column in columns) for item in items)
        whole = cls(title, columns, rows, tuple(notes))
        return whole.only(
            place for place in range(len(columns)) if place < keep or any(row[place] != NOTHING for row in rows)
        )

    @property
    def header(self) -> tuple[str, ...]:
        """The headings."""
        return tuple(column.heading for column in self.columns)

    def only(self, places: Iterable[int]) -> Section:
        """The same table with some of its columns."""
        places = tuple(places)
        columns = tuple(self.columns[place] for place in places)
        return replace(self, columns=columns, rows=tuple(tuple(row[place] for place in places) for row in self.rows))

    def without_notes(self) -> Section:
        """The same table alone."""
        return replace(self, notes=())

    def shown_notes(self) -> list[str]:
        """The notes about what is shown."""
        keys = {column.key for column in self.columns}
        return [
            note.text
            for note in self.notes
            if (not note.columns or keys & set(note.columns))
            and (not note.mark or any(note.mark in cell for row in self.rows for cell in row))
        ]


def column_notes(columns: Sequence[Column]) -> list[Note]:
    """What is said of some columns, each with its heading."""
    return [Note(f"{column.heading}: {column.note}", (column.key,)) for column in columns if column.note]
