"""What the run of a cell holds: params, metrics and tags with stable names, made from the files of the sweep.

Metric names have sections (`quality/`, `cost/`, `lens/`), because MLflow groups charts by the text before the last
slash. Names hold only characters that MLflow allows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.cells.cell import REFERENCE, Cell
from tokenprune.evaluation.environment import facts_of
from tokenprune.report.data.costs import MEASURED, Quartiles
from tokenprune.tracking.subsets import RunSubset, short_model

PREFIX = "tokenprune"
PICTURES = "kept tokens"
"""Name under which the overlays of a run are logged as images."""

_COSTS = tuple(name for name in MEASURED if name != "overhead_share")
"""Measurements with quartiles and an interval; one that could not be measured is `None` or missing."""

_BOUNDS = ("q1", "q3", "low", "high")


def params_of(cell: Cell) -> dict[str, str]:
    """What varies between cells, as short texts; numbers are plain numbers, so that axes are numeric."""
    whole = cell.pruner == REFERENCE
    amount = 1.0 if whole else cell.budget_ratio if cell.budget_ratio is not None else cell.budget_tokens
    params = {
        "pruner": cell.label,
        "task": cell.task,
        "model": cell.model,
        "budget": f"{amount:g}",
        "budget_label": cell.budget_label,
        "account": cell.account,
        "layer": str(cell.options.get("layer", 0)),
        "seed": str(cell.seed),
        "dtype": cell.dtype,
        "attention": cell.attention,
    }
    # the page that compares runs begins with the first three that differ, by name: `pruner` comes before its options
    return {**params, **{f"pruner.{name}": str(value) for name, value in sorted(cell.options.items())}}


@dataclass(frozen=True, slots=True)
class RunStyle:
    """How the runs of a sweep are shown: what depends on the whole plan, in a form that does not grow with the plan.

    Args:
        colours: Colour of each pruner by its label.
        subsets: The subsets that the views show.
        several_models: Whether a run's name must contain the model.
    """

    colours: Mapping[str, str]
    subsets: tuple[RunSubset, ...]
    several_models: bool

    def name(self, cell: Cell) -> str:
        """The run's name: `pruner/task@budget`, with the seed and the model if they are needed."""
        return f"{short_model(cell.model)}: {cell.name}" if self.several_models else cell.name

    def tags(self, cell: Cell) -> dict[str, str]:
        """The tags that follow from the plan."""
        keys = "|".join(subset.key for subset in self.subsets if subset.holds(cell))
        return {"mlflow.runColor": self.colours.get(cell.label, ""), f"{PREFIX}.views": f"|{keys}|"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunStyle:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(data)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A result or an error as 16 hexadecimal digits: a run with other digits is out of date."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def tags_of(cell: Cell, sweep_id: str, outcome: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which runs are found, and the fingerprint of the result or error that a run holds."""
    return {
        f"{PREFIX}.facts": fingerprint(facts),
        f"{PREFIX}.kind": "cell",
        f"{PREFIX}.sweep": sweep_id,
        f"{PREFIX}.cell_id": cell.id,
        f"{PREFIX}.outcome": outcome,
        f"{PREFIX}.pruner": cell.pruner,
        f"{PREFIX}.model": cell.model,
        f"{PREFIX}.model_digest": cell.model_digest,
        f"{PREFIX}.task": cell.task,
        f"{PREFIX}.budget": cell.budget_label,
        f"{PREFIX}.distribution": f"{cell.distribution} {cell.distribution_version}".strip(),
        **{f"{PREFIX}.env.{name}": value for name, value in environment_of(facts).items()},
    }


def environment_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Versions and devices that a cell was run with, by names that MLflow accepts; empty if its result lacks them."""
    return {legal(name).replace(" ", "_"): value for name, value in facts_of(facts.get("environment")).items()}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a result under its stable name; what was not measured is left out."""
    quality, against, lens, cost = (result.get(name) or {} for name in ("quality", "against_none", "lens", "cost"))
    found: dict[str, Any] = {
        "quality/accuracy": quality["accuracy"],
        "quality/accuracy_macro": quality["accuracy_macro"],
        "quality/questions": quality["questions"],
        "quality/sample_errors": quality["errors"],
        **{f"quality/{name}": value for name, value in against.items()},
        **{f"quality/family/{legal(name)}": facts["accuracy"] for name, facts in quality["families"].items()},
        **{f"cost/tokens_{name}": value for name, value in result["tokens"].items()},
        **{f"cost/{name}": cost[name]["median"] for name in _COSTS if cost.get(name)},
        **{f"cost/{name}_{bound}": cost[name].get(bound) for name in _COSTS if cost.get(name) for bound in _BOUNDS},
        **_certainty(cost),
        **{f"cost/{name}": cost.get(name) for name in ("peak_mem_mib", "kv_mib")},
        "cost/prefill_gflops": None if cost.get("prefill_tflops") is None else 1000.0 * cost["prefill_tflops"],
        "lens/dual_error": lens.get("dual_error"),
        "lens/output_error": lens.get("output_error"),
        "cost/cell_seconds": result["seconds"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _certainty(cost: Mapping[str, Any]) -> dict[str, Any]:
    """How precisely the ratios are known, and each ratio as it counts: 1 if its 95 % interval holds 1."""
    precision = cost.get("precision") or {}
    found: dict[str, Any] = {
        "cost/precision_met": precision.get("met"),
        "cost/precision_uncertainty": precision.get("uncertainty"),
    }
    for name in ("over_unpruned", "over_floor"):
        if cost.get(name):
            bounds = {bound: cost[name].get(bound) for bound in ("median", *_BOUNDS)}
            found[f"cost/{name}_counted"] = Quartiles(**bounds).counted
    return found


def data_set_of(cell: Cell) -> dict[str, str]:
    """The questions of a cell, as MLflow describes a data set that it does not hold.

    The name is the task's, so that the column *Dataset* is short; the digest tells data sets apart.
    """
    return {
        "name": cell.task,
        "digest": cell.task_digest[:16],
        "source_type": PREFIX,
        "source": json.dumps(
            {
                "task": cell.task,
                "version": cell.task_version,
                "options": dict(cell.task_options),
                "digest": cell.task_digest,
            }
        ),
        "profile": json.dumps({"num_rows": cell.samples}),
    }


def curves_of(result: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Errors per decoder layer; the layer is the step of the metric."""
    lens = result.get("lens") or {}
    return {
        f"lens/{name}_by_layer": lens[f"{name}_per_layer"]
        for name in ("dual_error", "output_error")
        if lens.get(f"{name}_per_layer")
    }


def sample_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sample table in the form of `mlflow.log_table`: the first column groups, the second is compared."""
    columns = ["sample", "prediction", "answer", "score", "family", "kl", "final_tokens", "error"]
    data = [
        [
            f"{row['id']}: {row['question']} [{row['answer']}]",
            row["prediction"],
            *(row.get(name) for name in columns[2:]),
        ]
        for row in rows
    ]
    return {"columns": columns, "data": data}


def legal(name: str) -> str:
    """A component of a metric name that MLflow accepts."""
    return re.sub(r"[^A-Za-z0-9_\-. ]", "_", name)
