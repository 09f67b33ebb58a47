"""Trade-off figures: accuracy against tokens and against cost, as PNG (matplotlib) and as one interactive page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.report.rows import Row, Table
from tokenprune.report.tables import Leaderboard
from tokenprune.sweep.config import REFERENCE


@dataclass(frozen=True, slots=True)
class Axis:
    """What a trade-off is drawn against: key, axis title, and how to read it from a row."""

    key: str
    title: str

    def of(self, row: Row) -> float | None:
        """The row's value on this axis."""
        if self.key == "layer_average":
            return (row.tokens or {}).get("layer_average")
        if self.key == "final":
            return (row.tokens or {}).get("final")
        value = getattr(row, self.key)
        return None if value is None else float(value)


BUDGET = Axis("final", "visual tokens after the last cut")
AVERAGE = Axis("layer_average", "visual tokens, mean over decoder layers")
PREFILL = Axis("prefill_ms", "prefill of one sample, ms (median)")
FLOPS = Axis("prefill_gflops", "prefill of one sample, GFLOPs")
OUTPUT_ERROR = Axis("output_error", "relative error of the attention output")
DUAL_ERROR = Axis("dual_error", "relative error of the implicit weight")

FIGURES: Mapping[str, Axis] = {
    "accuracy-versus-budget": BUDGET,
    "accuracy-versus-average-tokens": AVERAGE,
    "accuracy-versus-cost": PREFILL,
    "accuracy-versus-flops": FLOPS,
    "accuracy-versus-output-error": OUTPUT_ERROR,
    "accuracy-versus-dual-error": DUAL_ERROR,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One pruner's points on one subject, in the order of x; the last value is the label of the budget."""

    label: str
    points: tuple[tuple[float, float, float, float, str], ...]
    """(x, accuracy, low, high, budget)"""


def subjects(board: Leaderboard) -> dict[tuple[str, str], list[Table]]:
    """The tables of each model and task."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in board.tables:
        groups.setdefault((table.model, table.task), []).append(table)
    return groups


def lines_of(tables: Sequence[Table], axis: Axis) -> list[Line]:
    """Every pruner's points on an axis; the unpruned model is one point."""
    points: dict[str, dict[str, tuple[float, float, float, float, str]]] = {}
    for table in tables:
        for row in table.rows:
            x = axis.of(row)
            if x is None or row.accuracy is None:
                continue
            budget = "all" if row.pruner == REFERENCE else table.budget
            point = (x, row.accuracy.mean, row.accuracy.low, row.accuracy.high, budget)
            points.setdefault(row.label, {})[budget] = point
    return [Line(label, tuple(sorted(found.values()))) for label, found in points.items()]


def png(tables: Sequence[Table], axis: Axis, colours: Mapping[str, str]) -> bytes:
    """A static figure, without intervals (a dozen bands hide each other); the interactive one has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in lines_of(tables, axis):
        x, y = (list(values) for values in list(zip(*line.points, strict=True))[:2])
        colour = colours[line.label]
        if len(x) == 1:
            axes.axhline(y[0], color=colour, linestyle=":", linewidth=1)
        axes.plot(x, y, marker="o", markersize=4, linewidth=1.4, color=colour, label=line.label)
    axes.set_xlabel(axis.title)
    axes.set_ylabel("accuracy")
    if axis in (BUDGET, AVERAGE):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    axes.set_title(f"{tables[0].model}, {tables[0].task}", fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def interactive(tables: Sequence[Table], axis: Axis, colours: Mapping[str, str]) -> Any:
    """The same figure for plotly."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for line in lines_of(tables, axis):
        x, y, low, high, budgets = (list(values) for values in zip(*line.points, strict=True))
        figure.add_trace(
            graph_objects.Scatter(
                x=x,
                y=y,
                name=line.label,
                mode="lines+markers",
                text=budgets,
                line={"color": colours[line.label]},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [top - value for top, value in zip(high, y, strict=True)],
                    "arrayminus": [value - bottom for bottom, value in zip(low, y, strict=True)],
                    "thickness": 0.6,
                    "width": 2,
                },
                hovertemplate=f"{line.label} %{{text}}<br>{axis.title}: %{{x:.4g}}<br>accuracy: %{{y:.3f}}",
            )
        )
    figure.update_layout(
        xaxis_title=axis.title,
        yaxis_title="accuracy",
        template="plotly_white",
        height=520,
        margin={"t": 30, "l": 60, "r": 20, "b": 50},
    )
    if axis in (BUDGET, AVERAGE):
        figure.update_xaxes(type="log")
    return figure


def figure_html(figures: Sequence[Any]) -> list[str]:
    """HTML fragments of figures; the first one brings plotly itself along, so that no network is needed."""
    return [
        str(figure.to_html(full_html=False, include_plotlyjs=place == 0, div_id=f"figure-{place}"))
        for place, figure in enumerate(figures)
    ]
