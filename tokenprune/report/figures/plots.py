"""Trade-off figures: accuracy against tokens and against cost, as PNG (matplotlib) and as one interactive page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenprune.cell import REFERENCE
from tokenprune.report.data.notes import timing_marks
from tokenprune.report.data.rows import FamilyScore, Row, Table
from tokenprune.report.data.tables import Leaderboard
from tokenprune.report.stats.pareto import Point
from tokenprune.report.stats.statistics import Interval
from tokenprune.report.text import counted, ends, percent


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
        if self is PREFILL and row.pruner == REFERENCE:
            return 1.0
        value = row.counted(self.key) if self is PREFILL else getattr(row, self.key)
        return None if value is None else float(value)


BUDGET = Axis("final", "visual tokens after the last cut")
AVERAGE = Axis("layer_average", "visual tokens, mean over decoder layers")
PREFILL = Axis("over_unpruned", "prefill time, share of the unpruned model's (median)")
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


@dataclass(frozen=True, slots=True, order=True)
class Dot:
    """One row in a figure.

    Args:
        x: Its value on the axis.
        accuracy: Its accuracy.
        low: Lower end of the accuracy's interval, and `high` the upper one; the accuracy where there is none.
        left: Lower end of the value's interval, and `right` the upper one; the value if there is none.
        budget: Label of the budget.
        mark: Says that the value is to be read with care.
        floor: Value of the unpruned model on a prompt of the kept length, where that was measured on this axis.
    """

    x: float
    accuracy: float
    low: float
    high: float
    left: float
    right: float
    budget: str
    mark: str = ""
    floor: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One pruner's points on one subject, in the order of x."""

    label: str
    points: tuple[Dot, ...]


def subjects(board: Leaderboard) -> dict[tuple[str, str], list[Table]]:
    """The tables of each model and task."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in board.tables:
        groups.setdefault((table.model, table.task), []).append(table)
    return groups


def lines_of(tables: Sequence[Table], axis: Axis) -> list[Line]:
    """Every pruner's points on an axis; the unpruned model is one point."""
    points: dict[str, dict[str, Dot]] = {}
    measured = False
    for table in tables:
        for row in table.rows:
            x = axis.of(row)
            if x is None or row.accuracy is None:
                continue
            whole = row.pruner == REFERENCE
            measured |= not whole
            budget = "all" if whole else table.budget
            points.setdefault(row.label, {})[budget] = _dot(row, row.accuracy, axis, x, budget)
    if axis is PREFILL and not measured:  # the unpruned model's share of its own time is no measurement
        return []
    return [Line(label, tuple(sorted(found.values()))) for label, found in points.items()]


def _dot(row: Row, accuracy: Interval, axis: Axis, x: float, budget: str) -> Dot:
    low, high = accuracy.ends or (accuracy.mean, accuracy.mean)
    if axis is not PREFILL or row.pruner == REFERENCE:
        return Dot(x, accuracy.mean, low, high, x, x, budget)
    left, right = row.over_unpruned_interval or (x, x)
    mark = timing_marks(row, axis.key)
    told = "" if x == row.over_unpruned else "~"
    return Dot(x, accuracy.mean, low, high, left, right, budget, told + mark, row.floor_over_unpruned)


def png(tables: Sequence[Table], axis: Axis, colours: Mapping[str, str]) -> bytes:
    """A static figure, without intervals (a dozen bands hide each other); the interactive one has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in lines_of(tables, axis):
        x, y = [dot.x for dot in line.points], [dot.accuracy for dot in line.points]
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


def interactive(tables: Sequence[Table], axis: Axis, colours: Mapping[str, str], front: Sequence[Point] = ()) -> Any:
    """The same figure for plotly, with intervals.

    Args:
        tables: The tables of one model and task.
        axis: What accuracy is drawn against.
        colours: Colour of each pruner by its label.
        front: The Pareto front over the same axis, drawn below the points.
    """
    from plotly import graph_objects

    figure = graph_objects.Figure()
    if front:
        figure.add_trace(
            graph_objects.Scatter(
                x=[point.cost for point in front],
                y=[point.accuracy for point in front],
                name="Pareto front",
                mode="lines",
                line={"color": "#222222", "width": 7, "shape": "hv"},
                opacity=0.18,
                hoverinfo="skip",
            )
        )
    lines = lines_of(tables, axis)
    for line in lines:
        dots = line.points
        figure.add_trace(
            graph_objects.Scatter(
                x=[dot.x for dot in dots],
                y=[dot.accuracy for dot in dots],
                name=line.label,
                mode="lines+markers+text" if any(dot.mark for dot in dots) else "lines+markers",
                text=[dot.mark for dot in dots],
                textposition="top right",
                customdata=[f"{dot.budget} {dot.mark}".strip() for dot in dots],
                line={"color": colours[line.label], "width": 1.5},
                marker={"size": 8 if len(dots) > 1 else 12, "symbol": "circle" if len(dots) > 1 else "diamond"},
                error_x=_bars([(dot.x, dot.left, dot.right) for dot in dots]) if axis is PREFILL else None,
                error_y=_bars([(dot.accuracy, dot.low, dot.high) for dot in dots]),
                hovertemplate=(
                    f"<b>{line.label}</b> %{{customdata}}<br>{axis.title}: %{{x:.4g}}<br>accuracy: %{{y:.3f}}"
                    "<extra></extra>"
                ),
            )
        )
    floors = [(line.label, dot, dot.floor) for line in lines for dot in line.points if dot.floor is not None]
    if floors:
        figure.add_trace(
            graph_objects.Scatter(
                x=[floor for _, _, floor in floors],
                y=[dot.accuracy for _, dot, _ in floors],
                name="floor: were choosing free",
                mode="markers",
                customdata=[f"{label} {dot.budget}" for label, dot, _ in floors],
                marker={
                    "symbol": "line-ns-open",
                    "size": 12,
                    "color": [colours[label] for label, _, _ in floors],
                    "line": {"width": 2},
                },
                hovertemplate="floor of <b>%{customdata}</b><br>%{x:.4g}<extra></extra>",
            )
        )
    _dress(figure, f"accuracy and {axis.title}")
    figure.update_layout(xaxis_title=axis.title, yaxis_title="accuracy", yaxis_tickformat=".0%", height=520)
    if axis in (BUDGET, AVERAGE):
        values = [dot.x for line in lines for dot in line.points]
        figure.update_xaxes(type="log", tickvals=_powers_of_two(values))
    return figure


def _bars(found: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars from (value, lower end, upper end)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in found],
        "arrayminus": [value - low for value, low, _ in found],
        "thickness": 0.6,
        "width": 2,
    }


def _powers_of_two(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis of tokens; a cut to no token at all has no place on it."""
    found = [value for value in values if value > 0.0]
    if not found:
        return []
    return [2.0**power for power in range(math.floor(math.log2(min(found))), math.ceil(math.log2(max(found))) + 1)]


def heat_map(tables: Sequence[Table]) -> Any | None:
    """Accuracy of every pruner in every family of questions, one budget at a time, chosen in the figure.

    Returns:
        A plotly figure, or `None` where no pruner has a result.
    """
    from plotly import graph_objects

    families = list(dict.fromkeys(name for table in tables for row in table.rows for name in (row.families or {})))
    if not families:
        return None
    figure = graph_objects.Figure()
    most = max(sum(bool(row.families) for row in table.rows) for table in tables)
    for place, table in enumerate(tables):
        rows = [row for row in table.rows if row.families]
        found = [[(row.families or {}).get(name) for name in families] for row in rows]
        figure.add_trace(
            graph_objects.Heatmap(
                x=families,
                y=[row.label for row in rows],
                z=[[None if score is None else score.accuracy.mean for score in line] for line in found],
                text=[
                    ["" if score is None else f"{100 * score.accuracy.mean:.0f}" for score in line] for line in found
                ],
                customdata=[["" if score is None else _interval(score) for score in line] for line in found],
                texttemplate="%{text}",
                zmin=0.0,
                zmax=1.0,
                colorscale="RdYlBu",
                xgap=1,
                ygap=1,
                visible=place == len(tables) - 1,
                colorbar={"title": "accuracy", "tickformat": ".0%"},
                hovertemplate="<b>%{y}</b>, %{x}<br>%{customdata}<extra></extra>",
            )
        )
    buttons = [
        {"label": table.budget, "method": "restyle", "args": ["visible", [it == place for it in range(len(tables))]]}
        for place, table in enumerate(tables)
    ]
    menu = {"buttons": buttons, "active": len(tables) - 1, "x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}
    _dress(figure, "accuracy per pruner and family of questions, %")
    figure.update_layout(
        updatemenus=[{**menu, "type": "buttons", "direction": "right", "pad": {"b": 8}}],
        height=170 + 26 * most,
        margin={"t": 90, "l": 150},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    return figure


def _interval(score: FamilyScore) -> str:
    return f"{percent(score.accuracy.mean)} % {ends(score.accuracy)}, {counted(score.questions, 'question')}"


def _dress(figure: Any, title: str) -> None:
    """The look that all figures share; plotly's own template would add seven kilobytes to each."""
    line = {"gridcolor": "#e8ebee", "zeroline": False, "linecolor": "#9aa4ae", "ticks": "outside", "automargin": True}
    figure.update_layout(
        template="none",
        title={"text": title, "font": {"size": 14}, "x": 0.0, "xref": "paper", "xanchor": "left"},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#1f2328"},
        margin={"t": 50, "l": 60, "r": 20, "b": 50},
        hovermode="closest",
        legend={"itemsizing": "constant"},
        xaxis=line,
        yaxis=line,
    )
