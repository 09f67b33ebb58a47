"""Choose the defaults of `iwp` by measurement: output error of every selection rule, with and without mass correction.

    python benchmarks/selectors/compare.py synthetic    # clusters, 11.1 % of 1024 tokens
    python benchmarks/selectors/compare.py scenes       # the shipped model's own keys and values, three budgets

Each writes `results/<name>.json` (all figures) and `results/<name>.md` (the table).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from problems import Problem, captured, synthetic
from tokenprune_iwp import Iwp, IwpExact, Oracle
from tokenprune_iwp.selection import ChunkedSelection
from tokenprune_zoo import DivPrune, FastV
from torch import Tensor

from tokenprune import Budget, dual
from tokenprune.correction import mass_corrected
from tokenprune.pruner import Decision, Kept, Pruner, Stop
from tokenprune.testing import RecordedView

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Rule:
    """A named rule: a real pruner, or a function of the problem for the controls."""

    name: str
    pruner: Pruner | None = None
    control: Callable[[Problem, int], Tensor] | None = None

    def steps(self, keep: int) -> int:
        """Dependent steps of a chunked selection; 1 for the others."""
        if not isinstance(self.pruner, ChunkedSelection):
            return 1
        chosen = self.pruner
        return len(dual.chunk_sizes(keep, chosen.schedule, first=chosen.first_chunk, growth=chosen.growth))  # type: ignore[arg-type]


def rules(name: str) -> list[Rule]:
    """The rules of one run: controls, one option at a time around exact MMR, schedules, the principled variant."""

    def mmr(label: str, **options: Any) -> Rule:
        return Rule(f"exact MMR{label}", Iwp(schedule="exact", **options))

    def chunks(schedule: str, first: int, growth: float, suppression: float) -> Rule:
        label = {"fixed": f"fixed {first}", "growing": f"growing {first} x {growth:g}", "shrinking": "shrinking"}
        guard = f", suppression {suppression:g}" if suppression else ""
        options = Iwp(schedule=schedule, first_chunk=first, growth=growth, suppression=suppression)
        return Rule(label[schedule] + guard, options)

    def principled(label: str, **options: Any) -> Rule:
        return Rule(f"iwp-exact{label}", IwpExact(mass_correction=False, **options))

    return [
        Rule("random", control=random_picks),
        Rule("divprune (values)", DivPrune()) if name == "synthetic" else Rule("fastv", FastV()),
        Rule("magnitude only", Iwp(trade_off=1.0, suppression=0.0)),
        mmr(""),
        *[mmr(f", lambda {value:g}", trade_off=value) for value in (0.1, 0.2, 0.5, 0.7)],
        *[mmr(f", tau {value:g}", tau=value) for value in (0.0, 0.5, 2.0)],
        mmr(", min-max", magnitude_scale="minmax"),
        mmr(", mean overlap", overlap="mean"),
        mmr(", rope in magnitude", rope_in_magnitude=True),
        mmr(", no rope in duplication", rope_in_duplication=False),
        *[chunks("fixed", first, 0.5, level) for first in (8, 32) for level in (0.0, 0.2, 0.5)],
        *[chunks("growing", first, 0.5, level) for first in (2, 4, 8) for level in (0.0, 0.2, 0.5)],
        chunks("growing", 2, 1.0, 0.2),
        *[chunks("shrinking", 1, 0.5, level) for level in (0.0, 0.2)],
        principled(""),
        principled(", lambda 0.5", trade_off=0.5),
        principled(", tau 0", tau=0.0),
        principled(", metric of the text", covariance_rows="text"),
        Rule("oracle", Oracle()),
    ]


def random_picks(problem: Problem, keep: int) -> Tensor:
    """The control: uniform without replacement, seeded."""
    generator = torch.Generator().manual_seed(keep)
    return torch.randperm(problem.recording.tokens, generator=generator)[:keep].unsqueeze(0)


def decide(rule: Rule, problem: Problem, keep: int) -> tuple[Kept, float]:
    """What a rule keeps, and the wall time in milliseconds."""
    started = time.perf_counter()
    if rule.pruner is None:
        assert rule.control is not None
        kept = Decision.keep(rule.control(problem, keep)).units[0]
    else:
        view = RecordedView.for_pruner(problem.recording, rule.pruner, keep)
        kept = rule.pruner.decide(view, Stop(view.site, Budget(tokens=keep)), {}).units[0]
    return kept, 1000.0 * (time.perf_counter() - started)


def corrected(kept: Kept, problem: Problem) -> Tensor:
    """Log counts of the kept tokens under the default duplication, for every rule alike."""
    recording = problem.recording
    assert recording.values is not None
    similarity = dual.value_key_duplication(recording.values, recording.keys, tau=0.0)
    weights = mass_corrected(Decision((kept,)), similarity).units[0].log_weights
    assert weights is not None
    return weights


def measure(rule: Rule, problems: Iterable[Problem], keep_ratio: float) -> dict[str, Any]:
    """Means over the problems of all figures of one rule at one budget."""
    rows = []
    for problem in problems:
        keep = Budget(ratio=keep_ratio).count(problem.recording.tokens)
        kept, milliseconds = decide(rule, problem, keep)
        weights = corrected(kept, problem)
        plain = [layer.error(kept.anchors, None) for layer in problem.layers]
        weighted = [layer.error(kept.anchors, weights) for layer in problem.layers]
        row = {
            "error": plain[0],
            "error_corrected": weighted[0],
            "error_all_layers": fmean(plain),
            "error_all_layers_corrected": fmean(weighted),
            "milliseconds": milliseconds,
        }
        if problem.clusters is not None:
            reached = problem.clusters[kept.anchors].unique().numel()
            row["clusters"] = reached / problem.clusters.unique().numel()
        rows.append(row)
    means = {key: fmean(row[key] for row in rows) for key in rows[0]}
    return {"rule": rule.name, "keep": keep_ratio, "steps": rule.steps(keep), "problems": len(rows), **means}


def table(results: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    clusters = "clusters" in results[0]
    head = ["keep", "rule", "steps", "error", "error, corrected", "all layers", "all layers, corrected", "ms"]
    lines = ["| " + " | ".join([*head, *(["clusters"] if clusters else [])]) + " |"]
    lines.append("|" + "---|" * (len(head) + clusters))
    for row in results:
        cells = [
            f"{100 * row['keep']:.3g}%",
            row["rule"],
            str(row["steps"]),
            f"{row['error']:.4f}",
            f"{row['error_corrected']:.4f}",
            f"{row['error_all_layers']:.4f}",
            f"{row['error_all_layers_corrected']:.4f}",
            f"{row['milliseconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells + ([f"{row['clusters']:.2f}"] if clusters else [])) + " |")
    return "\n".join(lines)


def digest(model: str) -> str:
    """Which weights the figures belong to: hash of the model's file."""
    from tokenprune.checkpoints.loading import model_path
    from tokenprune.plugins import load_host

    weights = Path(model_path(model, load_host())) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def main() -> None:
    """Run one comparison and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("synthetic", "scenes"))
    parser.add_argument("--problems", type=int, default=6, help="number of problems (default 6)")
    parser.add_argument("--only", default="", help="run only rules whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.name == "synthetic":
        problems, budgets, weights = list(synthetic(options.problems)), (1 / 9,), ""
    else:
        problems, budgets, weights = list(captured(options.problems)), (0.25, 1 / 9, 1 / 18), digest("scenes")
    results = []
    with torch.inference_mode():
        for budget in budgets:
            for rule in rules(options.name):
                if options.only in rule.name:
                    results.append(measure(rule, problems, budget))
                    print(json.dumps(results[-1]), flush=True)
    if options.only:
        return
    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    document = {"comparison": options.name, "weights_sha256": weights, "machine": machine, "results": results}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / f"{options.name}.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
