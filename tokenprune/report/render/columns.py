"""The columns of the leaderboard: heading, text of a row, and what is said of it, each in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenprune.report.data.notes import marked
from tokenprune.report.data.rows import Row
from tokenprune.report.text import (
    NOTHING,
    contrast,
    ends,
    number,
    percent,
    points,
    quartiles,
    ratio,
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the leaderboard.

    Args:
        heading: Its name, in every form of the table.
        render: The text of a row; `-` if there is nothing.
        importance: A narrow terminal shows the columns with the smallest numbers.
        in_page: Whether the page shows it without a click: a window of 1,480 pixels holds them without scrolling.
        legend: What is to be said of it.
    """

    heading: str
    render: Callable[[Row], str]
    importance: int
    in_page: bool = False
    legend: str = ""


COLUMNS = (
    Column("#", lambda row: NOTHING if row.rank is None else str(row.rank), 13, in_page=True),
    Column("pruner", lambda row: row.label, 0, in_page=True),
    Column("accuracy %", lambda row: percent(row.accuracy.mean if row.accuracy else None), 1, in_page=True),
    Column("interval", lambda row: ends(row.accuracy), 8, in_page=True),
    Column(
        "retention %",
        lambda row: percent(row.retention.mean if row.retention else None),
        9,
        in_page=True,
        legend="Retention: accuracy divided by the unpruned accuracy.",
    ),
    Column("vs none", lambda row: points(row.against_none), 21),
    Column("vs random", lambda row: contrast(row.against_random), 5, in_page=True),
    Column("vs downsample", lambda row: contrast(row.against_downsample), 15, in_page=True),
    Column(
        "hard %",
        lambda row: percent(row.hard.mean if row.hard else None),
        10,
        in_page=True,
        legend="Hard: accuracy on the questions that the unpruned model answers and `downsample`, at this budget, does "
        "not.",
    ),
    Column(
        "same answer %",
        lambda row: percent(row.agreement),
        14,
        in_page=True,
        legend="Same answer (loyalty): equal to the unpruned answer.",
    ),
    Column(
        "KL",
        lambda row: number(row.kl, 2),
        20,
        legend="KL (nats): first answer token against the unpruned model.",
    ),
    Column(
        "output error",
        lambda row: number(row.output_error, 3),
        16,
        legend="Errors: relative norms, mean over layers, of the attention output and of the implicit weight.",
    ),
    Column("dual error", lambda row: number(row.dual_error, 3), 22),
    Column("final tokens", lambda row: number((row.tokens or {}).get("final"), 0), 17),
    Column("layer average", lambda row: number((row.tokens or {}).get("layer_average"), 0), 7, in_page=True),
    Column(
        "prefill ms",
        lambda row: marked(number(row.prefill_ms, 1), row, "prefill_ms"),
        12,
        in_page=True,
        legend="Prefill: median of one sample with vision encoder and pruner, and its quartiles; rows were measured at "
        "different times, so compare the ratios.",
    ),
    Column("quartiles", lambda row: quartiles(row.prefill_ms_quartiles, 1), 23),
    Column(
        "x none",
        lambda row: marked(ratio(row.over_unpruned, row.over_unpruned_interval), row, "over_unpruned"),
        6,
        in_page=True,
        legend="x none: prefill divided by the unpruned model's, in turns whose order rotates: the median with its "
        "95 % interval by order statistics. Below 1 is a speed-up; `~1`: the interval holds 1.",
    ),
    Column(
        "x floor",
        lambda row: marked(ratio(row.over_floor, row.over_floor_interval), row, "over_floor"),
        11,
        in_page=True,
        legend="x floor: the same over the unpruned model on a prompt of the kept length (as many visual tokens as the "
        "layer average).",
    ),
    Column(
        "pruner %",
        lambda row: marked(percent(row.overhead_share), row, "overhead_share"),
        19,
        legend="Pruner: share of the prefill in the pruner's own views and decisions.",
    ),
    Column("GFLOPs", lambda row: number(row.prefill_gflops, 2), 18),
)

LEGEND = " ".join(
    [
        "Figures in brackets are 95 % intervals over the questions, with pictures as the unit: Wilson's for an "
        "accuracy, a smoothed paired bootstrap for differences, which are percentage points on the same questions. "
        "They hold for the seeds that ran: what other seeds would give is not in them. `*`: differs from that "
        "baseline with p < 0.05 after Holm's correction for all such comparisons of the table (paired permutation "
        "test; McNemar's exact test for right or wrong). A sample or a cell that failed counts as wrong; of the "
        "unpruned model, `random` and `downsample`, where others are measured against them, it is left out.",
        *(column.legend for column in COLUMNS if column.legend),
        f"{NOTHING}: not measured or not defined.",
    ]
)
