"""Trade-off plots by matplotlib: accuracy against tokens, cost and errors, as PNG files and as SVG inside the page."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from tokenprune.cells.cell import REFERENCE
from tokenprune.report.data.rows import BudgetTable, PrunerRow
from tokenprune.report.data.tables import Leaderboard
from tokenprune.report.render.escaping import one_line
from tokenprune.report.stats.intervals import Interval
from tokenprune.report.stats.tradeoff import Point
from tokenprune.report.text import percent, percent_bounds
from tokenprune.sweep.store.sweep_data import SweepData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE_COLOUR = "#444444"
"""Colour of the unpruned model."""

_PALETTE = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#3b4cc0",
    "#b40426", "#006d2c", "#fd8d3c", "#54278f", "#a6761d", "#66a61e", "#e7298a", "#1b9e77", "#7570b3", "#d95f02",
)  # fmt: skip
_GOLDEN = 0.618033988749895
"""Steps of the golden ratio around the circle of hues: each new one falls into the widest gap."""

_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True, slots=True)
class Axis:
    """What accuracy is drawn against.

    Args:
        key: Key of the column.
        name: Name of the PNG file, without its ending.
        title: Title of the axis.
        value: A row's value on it.
        logarithmic: Whether the axis is one of powers of two.
    """

    key: str
    name: str
    title: str
    value: Callable[[PrunerRow], float | None]
    logarithmic: bool = False


def _tokens(account: str) -> Callable[[PrunerRow], float | None]:
    return lambda row: (row.tokens or {}).get(account)


def _prefill(row: PrunerRow) -> float | None:
    return 1.0 if row.pruner == REFERENCE else row.counted("over_unpruned")


BUDGET = Axis(
    "final_tokens", "accuracy-versus-budget", "visual tokens after the last cut", _tokens("final"), logarithmic=True
)
AVERAGE = Axis(
    "layer_average",
    "accuracy-versus-average-tokens",
    "visual tokens, mean over decoder layers",
    _tokens("layer_average"),
    logarithmic=True,
)
PREFILL = Axis(
    "over_unpruned", "accuracy-versus-cost", "prefill time, share of the unpruned model's (median)", _prefill
)
AXES = (
    BUDGET,
    AVERAGE,
    PREFILL,
    Axis("gflops", "accuracy-versus-flops", "prefill of one sample, GFLOPs", lambda row: row.prefill_gflops),
    Axis(
        "output_error",
        "accuracy-versus-output-error",
        "relative error of the attention output",
        lambda row: row.output_error,
    ),
    Axis(
        "dual_error", "accuracy-versus-dual-error", "relative error of the implicit weight", lambda row: row.dual_error
    ),
)


def sweep_colours(data: SweepData) -> dict[str, str]:
    """One colour per pruner label, in the order of the plan, the unpruned model in grey."""
    colours = pruner_colours(entry.cell.label for entry in data.cells if entry.cell.pruner != REFERENCE)
    reference = {entry.cell.label: REFERENCE_COLOUR for entry in data.cells if entry.cell.pruner == REFERENCE}
    return {**reference, **colours}


def pruner_colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour per label in their order, no two alike: chosen ones first, then hues that keep apart."""
    colours: dict[str, str] = {}
    taken = {REFERENCE_COLOUR}
    candidates = (_colour(place) for place in range(1 << 24))
    for label in dict.fromkeys(labels):
        colours[label] = next(colour for colour in candidates if colour not in taken)
        taken.add(colours[label])
    return colours


def _colour(place: int) -> str:
    if place < len(_PALETTE):
        return _PALETTE[place]
    lightness = (0.38, 0.55, 0.68)[place % 3]
    return "#" + "".join(
        f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(place * _GOLDEN % 1, lightness, 0.75)
    )


@dataclass(frozen=True, slots=True, order=True)
class Dot:
    """One row in a plot.

    Args:
        x: Its value on the axis.
        accuracy: Its accuracy.
        low: Lower bound of the accuracy's interval, and `high` the upper one; the accuracy if there is none.
        left: Lower bound of the value's interval, and `right` the upper one; the value if there is none.
        budget: Label of the budget.
        mark: Says that the value is to be read with care.
        floor: Value of the unpruned model on a prompt of the kept length, if that was measured on this axis.
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
    """One pruner's points on one model and task, in the order of x."""

    label: str
    points: tuple[Dot, ...]


def subjects(board: Leaderboard) -> dict[tuple[str, str], list[BudgetTable]]:
    """The tables of each model and task."""
    groups: dict[tuple[str, str], list[BudgetTable]] = {}
    for table in board.tables:
        groups.setdefault((table.model, table.task), []).append(table)
    return groups


def lines_of(tables: Sequence[BudgetTable], axis: Axis) -> list[Line]:
    """Every pruner's points on an axis; the unpruned model is one point."""
    points: dict[str, dict[str, Dot]] = {}
    measured = False
    for table in tables:
        for row in table.rows:
            x = axis.value(row)
            if x is not None and row.accuracy is not None:
                measured |= row.pruner != REFERENCE
                budget = "all" if row.pruner == REFERENCE else table.budget
                points.setdefault(row.label, {})[budget] = _dot(row, row.accuracy, axis, x, budget)
    if axis is PREFILL and not measured:  # the unpruned model's share of its own time is no measurement
        return []
    return [Line(label, tuple(sorted(found.values()))) for label, found in points.items()]


def _dot(row: PrunerRow, accuracy: Interval, axis: Axis, x: float, budget: str) -> Dot:
    low, high = accuracy.bounds or (accuracy.mean, accuracy.mean)
    if axis is not PREFILL or row.pruner == REFERENCE or row.cost is None:
        return Dot(x, accuracy.mean, low, high, x, x, budget)
    left, right = row.over_unpruned_interval or (x, x)
    mark = ("" if x == row.over_unpruned else "~") + row.cost.marks(axis.key)
    return Dot(x, accuracy.mean, low, high, left, right, budget, mark, row.floor_over_unpruned)


@dataclass(frozen=True)
class Plot:
    """One drawn trade-off.

    Args:
        title: What it shows.
        figure: The matplotlib figure; artists of the n-th line have the id `series-n`, dots `series-n-m`.
        hovers: Text of each dot, by its id.
    """

    title: str
    figure: Figure
    hovers: Mapping[str, str]

    def png(self) -> bytes:
        """The plot as a PNG file."""
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png", dpi=120)
        return stream.getvalue()

    def svg(self) -> str:
        """The plot as an SVG element, whose dots tell what they are, and whose legend hides lines by a script."""
        from matplotlib import rc_context

        stream = io.StringIO()
        salt = f"{self.title}: {self.figure.axes[0].get_title(loc='left')}"  # ids are unique in a page
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(stream, format="svg", metadata=nothing)
        used = set(re.findall(r"#([\w-]+)", stream.getvalue()))
        root = ElementTree.fromstring(stream.getvalue())
        for element in root.iter():
            name = element.get("id", "")
            kind, _, rest = name.partition("-")
            if kind in ("series", "legend"):
                element.set(f"data-{kind}", rest.partition("-")[0])
            if name in self.hovers:
                element.insert(0, ElementTree.Element(f"{{{_SVG}}}title"))
                element[0].text = self.hovers[name]
            if name not in used:
                element.attrib.pop("id", None)
        root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": self.title}
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
        return ElementTree.tostring(root, encoding="unicode")


def draw(
    tables: Sequence[BudgetTable], axis: Axis, colours: Mapping[str, str], front: Sequence[Point] = ()
) -> Plot | None:
    """Accuracy of every pruner against an axis, with 95 % intervals; `None` if nothing was measured on it.

    Args:
        tables: The tables of one model and task.
        axis: What accuracy is drawn against.
        colours: Colour of each pruner by its label.
        front: The Pareto front over the same axis, drawn below the points.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    lines = lines_of(tables, axis)
    if not lines:
        return None
    hovers: dict[str, str] = {}
    with rc_context({"text.parse_math": False}):  # a label may hold dollar signs
        figure = Figure(figsize=(10.5, 5.4), layout="constrained")
        axes = figure.add_subplot()
        handles = [_draw_line(axes, place, line, axis, colours[line.label], hovers) for place, line in enumerate(lines)]
        if any(dot.floor is not None for line in lines for dot in line.points):
            handles += axes.plot([], [], "|", color="#222222", markersize=9, label="floor: were choosing free")
        if front:
            x, y = [point.cost for point in front], [point.accuracy for point in front]
            style: dict[str, Any] = {"color": "#222222", "linewidth": 6, "alpha": 0.18, "zorder": 1}
            handles[:0] = axes.step(x, y, where="post", label="Pareto front", **style)
        axes.set(xlabel=axis.title, ylabel="accuracy")
        axes.set_title(one_line(f"{tables[0].model}, {tables[0].task}"), fontsize=10, loc="left")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if axis.logarithmic:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _add_legend(axes, handles)
    return Plot(f"accuracy and {axis.title}", figure, hovers)


def _draw_line(axes: Axes, place: int, line: Line, axis: Axis, colour: str, hovers: dict[str, str]) -> Any:
    """Draw one pruner; its handle for the legend."""
    dots, series, label = line.points, f"series-{place}", one_line(line.label)
    style: dict[str, Any] = {"color": colour, "gid": series}
    shape: dict[str, Any] = {"marker": "o", "markersize": 4.5} if len(dots) > 1 else {"marker": "D", "markersize": 6}
    if len(dots) == 1:
        axes.axhline(dots[0].accuracy, linestyle=":", linewidth=1, **style)
    axes.plot([dot.x for dot in dots], [dot.accuracy for dot in dots], linewidth=1.4, **style)
    bars = {"linewidth": 0.7, "alpha": 0.55, "zorder": 1.5, **style}
    axes.vlines([dot.x for dot in dots], [dot.low for dot in dots], [dot.high for dot in dots], **bars)
    for number, dot in enumerate(dots):
        name = f"{series}-{number}"
        if dot.left < dot.right:
            axes.hlines(dot.accuracy, dot.left, dot.right, **bars)
        if dot.floor is not None:
            axes.plot([dot.floor], [dot.accuracy], "|", markersize=9, **{**style, "gid": f"{name}-floor"})
            hovers[f"{name}-floor"] = f"floor of {label} {dot.budget}\n{dot.floor:.4g}"
        if dot.mark:
            axes.annotate(dot.mark, (dot.x, dot.accuracy), (4, 3), textcoords="offset points", fontsize=8, **style)
        axes.plot([dot.x], [dot.accuracy], linestyle="", **shape, **{**style, "gid": name})
        bounds = percent_bounds(Interval(dot.accuracy, dot.low, dot.high)) if dot.low < dot.high else ""
        hovers[name] = (
            f"{label} {dot.budget} {dot.mark}".rstrip()
            + f"\n{axis.title}: {dot.x:.4g}\naccuracy: {percent(dot.accuracy)} % {bounds}".rstrip()
        )
    (handle,) = axes.plot([], [], color=colour, linewidth=1.4, label=label, **shape)
    handle.set_gid(f"legend-{place}")
    return handle


def _add_legend(axes: Axes, handles: Sequence[Any]) -> None:
    names = [handle.get_label() for handle in handles]
    legend = axes.legend(handles, names, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for handle, drawn, text in zip(handles, legend.legend_handles, legend.get_texts(), strict=True):
        for artist in (drawn, text):
            if artist is not None and handle.get_gid():
                artist.set_gid(handle.get_gid())
