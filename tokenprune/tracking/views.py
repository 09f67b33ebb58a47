"""Preset views of the MLflow page, and the note with their links.

The tags are the page's own storage, not a documented interface: their form was read from MLflow 3.17 and tried on it.
A version that changes the form ignores the tags; nothing else depends on them.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tokenprune.report.render.columns import legend
from tokenprune.report.render.escaping import markdown_text
from tokenprune.tracking.run_data import PICTURES, PREFIX
from tokenprune.tracking.subsets import RunSubset, SweepSubsets

VIEW_TAG = "mlflow.sharedViewState."
_TAG_LIMIT = 20_000
_NOTE_LIMIT = 5_000
"""Characters of a note: a tag holds no more, and PostgreSQL, unlike SQLite, refuses them."""

_WORKFLOW = "workflowType=machine_learning"
"""Opens the page for runs; without it, the menus are those for traces and prompts."""

_GENERATED = ("quality", "quality/family", "cost", "lens")
"""Sections that the page adds for metrics that no chart shows; those named here are folded."""

_HEIGHTS = {"kept tokens": 640}
"""Pixels of the charts in a section; the page chooses the height of others."""

_COLUMNS = (
    "params.`pruner`",
    "params.`budget_label`",
    "params.`task`",
    "params.`model`",
    "metrics.`quality/accuracy`",
    "metrics.`quality/retention`",
    "metrics.`quality/agreement`",
    "metrics.`quality/kl`",
    "metrics.`lens/output_error`",
    "metrics.`lens/dual_error`",
    "metrics.`cost/tokens_layer_average`",
    "metrics.`cost/tokens_final`",
    "metrics.`cost/over_unpruned_counted`",
    "metrics.`cost/over_unpruned_low`",
    "metrics.`cost/over_unpruned_high`",
    "metrics.`cost/precision_met`",
    "metrics.`cost/prefill_ms`",
    "metrics.`cost/overhead_ms`",
    "metrics.`cost/prefill_gflops`",
)


Charts = Mapping[str, Sequence[Mapping[str, Any]]]
"""Charts of a view by the name of their section."""


@dataclass(frozen=True, slots=True)
class DashboardView:
    """One preset view.

    Args:
        name: As the menu *Views* shows it; the part before a colon is its kind.
        key: Name of its tag.
        mode: `CHART`, `TABLE` or `ARTIFACT` (tables of several runs side by side).
        subset: The runs that it shows.
        charts: Sections of charts by name.
        order: Metric that sorts the runs, best first.
    """

    name: str
    key: str
    mode: str
    subset: RunSubset
    charts: Charts
    order: str = "quality/accuracy"

    @property
    def kind(self) -> str:
        """The name before the colon."""
        return self.name.partition(":")[0]


def views_of(
    sweep_id: str, subsets: SweepSubsets, everywhere: Collection[str] | None = None, families: Collection[str] = ()
) -> list[DashboardView]:
    """The preset views of a sweep, the most useful ones first.

    Args:
        sweep_id: Several sweeps may share an experiment; each has views of its own.
        subsets: The subsets that they show.
        everywhere: Metrics that every run with a result has; `None` while there is no result. A parallel chart leaves
            out a run that lacks one of its metrics, so only these metrics are its axes.
        families: Families of questions, as they stand in metric names.
    """

    def view(kind: str, mode: str, subset: RunSubset, charts: Charts) -> DashboardView:
        key = f"{PREFIX}-{sweep_id[:8]}-{kind.lower().replace(' ', '-')}-{subset.key}"
        return DashboardView(f"{kind}: {subset.title}" if subset.title else kind, key, mode, subset, charts)

    axes = ["lens/output_error", "cost/tokens_layer_average", "cost/over_unpruned_counted", "quality/accuracy"]
    parallel = _parallel([axis for axis in axes if everywhere is None or axis in everywhere])
    return [
        *(view("Trade-off", "CHART", subset, _TRADE_OFF) for subset in subsets.charts),
        *(view("Per task", "CHART", subset, _per_task(families)) for subset in subsets.tasks),
        *(view("All axes", "CHART", subset, {"all axes": [parallel]}) for subset in subsets.charts),
        *(view("Compare answers", "ARTIFACT", subset, {}) for subset in subsets.answers),
        *(view("Kept tokens", "CHART", subset, {"kept tokens": [_pictures()]}) for subset in subsets.answers),
        *(view("Error and accuracy", "CHART", subset, _ERRORS) for subset in subsets.charts),
        *(view("Table", "TABLE", subset, {}) for subset in subsets.charts),
    ]


def view_tags(views: Sequence[DashboardView], sweep_id: str, created_ms: int) -> dict[str, str]:
    """Experiment tags of preset views."""
    return {f"{VIEW_TAG}{view.key}": _tag(view, sweep_id, created_ms) for view in views}


def own_tag(name: str, sweep_id: str) -> bool:
    """Whether an experiment tag holds a preset view of a sweep."""
    return name.startswith(f"{VIEW_TAG}{PREFIX}-{sweep_id[:8]}-")


def view_addresses(experiment_id: str, views: Sequence[DashboardView]) -> dict[str, str]:
    """Addresses of the preset views by name, relative to the MLflow page."""
    base = f"#/experiments/{experiment_id}/runs?{_WORKFLOW}"
    return {view.name: f"{base}&compareRunsMode={view.mode}&viewStateShareKey={view.key}" for view in views}


def compare_link(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Address of the page that compares runs in parallel coordinates, scatter and box plots, and metric by metric."""
    runs, experiments = (json.dumps(ids, separators=(",", ":")) for ids in (list(run_ids), [experiment_id]))
    return f"#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}&{_WORKFLOW}"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """Address of a file of a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{_WORKFLOW}"


def note(name: str, addresses: Mapping[str, str], table: str) -> str:
    """The experiment's note: links first, because the note is folded to its first line, then what else fits.

    Args:
        name: The sweep's name.
        addresses: Views and pages, relative to the MLflow page.
        table: The leaderboard as Markdown.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for title, address in addresses.items():
        kind, _, about = title.partition(": ")
        kinds.setdefault(kind, []).append((about or kind, address))
    first = [_link(kind, shown[0][1]) for kind, shown in kinds.items()]
    text = f"**{markdown_text(name)}**: {' · '.join(first)}"
    more = [
        f"- {kind}: {' · '.join(_link(about, address) for about, address in shown)}"
        for kind, shown in kinds.items()
        if len(shown) > 1
    ]
    for addition in ("\n".join(more), table):
        if addition and len(text) + len(addition) + 2 < _NOTE_LIMIT:
            text += f"\n\n{addition}"
    return text


def _link(title: str, address: str) -> str:
    return f"[{markdown_text(title)}](/{address})"


def summary_note(table: str) -> str:
    """The summary run's note: the leaderboard, without its legend if that is too long, or else where to find it."""
    elsewhere = "The leaderboard is in the artifacts: `leaderboard.md`, `report.html`."
    forms = (table, table.rstrip().removesuffix(legend()).rstrip(), elsewhere)
    return next(text for text in forms if len(text) < _NOTE_LIMIT)


def filter_of(subset: RunSubset, sweep_id: str) -> str:
    """The search that finds the runs of a subset."""
    return f"tags.`{PREFIX}.views` LIKE '%|{subset.key}|%' and tags.`{PREFIX}.sweep` = '{sweep_id}'"


def _scatter(x: str, y: str) -> dict[str, Any]:
    return {"type": "SCATTER", "xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}


_TRADE_OFF = {
    "trade-off": [
        _scatter("cost/tokens_layer_average", "quality/accuracy"),
        _scatter("cost/over_unpruned_counted", "quality/accuracy"),
        _scatter("cost/tokens_final", "quality/accuracy"),
    ]
}
_ERRORS = {
    "error and accuracy": [
        _scatter("lens/output_error", "quality/accuracy"),
        _scatter("lens/dual_error", "quality/accuracy"),
        _scatter("lens/dual_error", "lens/output_error"),
    ]
}


def _per_task(families: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The trade-off of one task, and of each of its families of questions."""
    tokens = "cost/tokens_layer_average"
    whole = [_scatter(tokens, "quality/accuracy"), _scatter(tokens, "quality/accuracy_macro")]
    return {
        "task": [*whole, _scatter(tokens, "quality/retention")],
        "families of questions": [_scatter(tokens, f"quality/family/{name}") for name in families],
    }


def _parallel(metrics: Sequence[str]) -> dict[str, Any]:
    params = ["pruner", "budget"]
    return {"type": "PARALLEL", "selectedParams": params, "selectedMetrics": list(metrics), "showAllRuns": True}


def _pictures() -> dict[str, Any]:
    return {"type": "IMAGE", "imageKeys": [PICTURES], "step": 0, "showRunParams": False}


def _sections(charts: Charts) -> dict[str, Any]:
    """Open sections with charts; the page's own sections are folded below them."""
    filled = {name: found for name, found in charts.items() if found}
    return {
        "isAccordionReordered": True,
        "compareRunSections": [
            *(_section(name, opened=True, columns=min(3, len(found))) for name, found in filled.items()),
            *(_section(name, opened=False, columns=3) for name in _GENERATED),
        ],
        "compareRunCharts": list(_placed(filled)),
    }


def _section(name: str, *, opened: bool, columns: int) -> dict[str, Any]:
    height = {"cardHeight": _HEIGHTS[name]} if name in _HEIGHTS else {}
    state = {"display": opened, "isReordered": True, "deleted": False, "isGenerated": not opened}
    return {"uuid": name, "name": name, **state, "columns": columns, **height}


def _placed(charts: Charts) -> Iterator[dict[str, Any]]:
    for name, found in charts.items():
        for place, chart in enumerate(found):
            state = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
            yield {"uuid": f"{name}-{place}", "metricSectionId": name, **state, **chart}


def _tag(view: DashboardView, sweep_id: str, created_ms: int) -> str:
    whole = {
        "searchFilter": filter_of(view.subset, sweep_id),
        "orderByKey": f"metrics.`{view.order}`",
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": list(_COLUMNS),
        **(_sections(view.charts) if view.charts else {}),
    }
    text = json.dumps(whole, separators=(",", ":"))
    packed = text if len(text) < _TAG_LIMIT // 2 else "deflate;" + b64encode(zlib.compress(text.encode())).decode()
    return json.dumps({"name": view.name, "createdAt": created_ms, "updatedAt": created_ms, "state": packed})
