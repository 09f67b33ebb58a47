"""Preset views of the MLflow page, and the note with their links.

The shape of these tags is the page's own storage, not a documented interface: it was read from, and tried on, MLflow
3.17. A version that changes it ignores the tags; nothing else depends on them.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

CELLS = "tags.`tokenprune.kind` = 'cell'"
VIEW_TAG = "mlflow.sharedViewState."
_TAG_LIMIT = 20_000
_NOTE_LIMIT = 5_000
"""Characters of a note: a tag holds no more, and PostgreSQL, unlike SQLite, says so."""

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
    "metrics.`cost/prefill_ms`",
    "metrics.`cost/overhead_ms`",
    "metrics.`cost/prefill_gflops`",
)


def view_tags(created_ms: int) -> dict[str, str]:
    """Experiment tags of all preset views."""
    trade_off = _charts(
        "trade-off",
        [
            _scatter("cost/tokens_final", "quality/accuracy"),
            _scatter("cost/tokens_layer_average", "quality/accuracy"),
            _scatter("cost/prefill_ms", "quality/accuracy"),
        ],
    )
    errors = _charts(
        "error-and-accuracy",
        [
            _scatter("lens/output_error", "quality/accuracy"),
            _scatter("lens/dual_error", "quality/accuracy"),
            _scatter("lens/dual_error", "lens/output_error"),
        ],
    )
    parallel = _charts(
        "all-at-once",
        [
            {
                "type": "PARALLEL",
                "selectedParams": ["pruner", "budget"],
                "selectedMetrics": ["lens/output_error", "cost/prefill_ms", "quality/accuracy"],
                "showAllRuns": True,
            }
        ],
    )
    views = {
        "tradeoff": ("Trade-off", trade_off),
        "errors": ("Error and accuracy", errors),
        "parallel": ("All at once", parallel),
        "table": ("Table", {}),
    }
    return {f"{VIEW_TAG}{key}": _tag(name, state, created_ms) for key, (name, state) in views.items()}


def links(experiment_id: str) -> dict[str, str]:
    """Addresses of the preset views, relative to the MLflow page."""
    base = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return {
        "Trade-off": f"{base}&compareRunsMode=CHART&viewStateShareKey=tradeoff",
        "Error and accuracy": f"{base}&compareRunsMode=CHART&viewStateShareKey=errors",
        "All at once": f"{base}&compareRunsMode=CHART&viewStateShareKey=parallel",
        "Table": f"{base}&compareRunsMode=TABLE&viewStateShareKey=table",
        "Answers side by side": f"{base}&compareRunsMode=ARTIFACT",
    }


def note(name: str, experiment_id: str, table: str, summary_run: str) -> str:
    """The experiment's note: links first (the note is folded to its first line), then the tables."""
    shown = " · ".join(f"[{title}](/{address})" for title, address in links(experiment_id).items())
    summary = f"[Report, figures and tables](/#/experiments/{experiment_id}/runs/{summary_run}/artifacts)"
    text = f"**{name}**: {shown} · {summary}\n\n{table}"
    return text if len(text) < _NOTE_LIMIT else f"**{name}**: {shown} · {summary}\n"


def summary_note(table: str) -> str:
    """The summary run's note: the leaderboard, or where it is if it is too long."""
    return table if len(table) < _NOTE_LIMIT else "The leaderboard is in the artifacts: `leaderboard.md`, `index.html`."


def _charts(section: str, charts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One open section with some charts, and nothing else."""
    return {
        "isAccordionReordered": True,
        "compareRunSections": [
            {
                "uuid": section,
                "name": section.replace("-", " "),
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "compareRunCharts": [
            {
                "uuid": f"{section}-{place}",
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "runsCountToCompare": 100,
                **chart,
            }
            for place, chart in enumerate(charts)
        ],
    }


def _scatter(x: str, y: str) -> dict[str, Any]:
    return {"type": "SCATTER", "xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}


def _tag(name: str, state: Mapping[str, Any], created_ms: int) -> str:
    whole = {
        "searchFilter": CELLS,
        "orderByKey": "metrics.`quality/accuracy`",
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": list(_COLUMNS),
        **state,
    }
    text = json.dumps(whole, separators=(",", ":"))
    packed = text if len(text) < _TAG_LIMIT // 2 else "deflate;" + b64encode(zlib.compress(text.encode())).decode()
    return json.dumps({"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": packed})
