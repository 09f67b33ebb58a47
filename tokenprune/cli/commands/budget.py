"""`tokenprune budget`: the smallest keep ratio at which a pruner retains a share of the unpruned accuracy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.options import Account, AsJson, ModelName, PrunerName, PrunerOptions, key_values
from tokenprune.cli.output import Output, invocation_of, table
from tokenprune.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from tokenprune.studies.bisection import Found, Search, Trial
    from tokenprune.studies.budget_trials import Trials

_ASSUMPTION = "assumed: retention does not fall as the keep ratio grows"
_RETENTIONS = "99,95,90"


def budget(
    context: typer.Context,
    name: PrunerName,
    model: ModelName = "scenes",
    task: Annotated[str, typer.Option(help="Task.")] = "scenes",
    limit: Annotated[int, typer.Option(help="Questions, the first ones of the task.", min=1)] = 105,
    retention: Annotated[str, typer.Option(help="Percent of the unpruned accuracy, a comma list.")] = _RETENTIONS,
    precision: Annotated[
        float, typer.Option(help="Percentage points between neighbouring ratios.", min=0.1, max=50.0)
    ] = 1.0,
    option: PrunerOptions = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a pruner that draws at random.  [default: 0]")] = None,
    account: Annotated[Account, typer.Option(help="What the ratio counts.")] = Account.KEPT,
    batch_size: Annotated[int, typer.Option(help="Questions per batch.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda`, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Sweep directory for the runs.  [default: runs/budget-NAME]")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the smallest keep ratio that retains 99, 95 and 90 % of the unpruned accuracy, by bisection.

    Few runs are needed, because retention is assumed not to fall as the ratio grows; runs that contradict this are
    shown. The same command again runs nothing twice. Exit code 3 if a run failed: it counts as wrong answers.

    Example: tokenprune budget fastv --option layer=1 --limit 70 --retention 99,95
    """
    invocation = invocation_of(context)
    targets = _targets(retention)
    spec = invocation.host.pruners.get(name)  # a wrong name is an error before anything is loaded
    options = spec.validate(key_values("--option", option, example="layer=2"))
    invocation.host.tasks.get(task)
    from tokenprune.cells.cell import REFERENCE
    from tokenprune.report.text import counted
    from tokenprune.studies.bisection import bisect
    from tokenprune.studies.budget_trials import open_trials
    from tokenprune.sweep.config.schema import parse_config
    from tokenprune.sweep.config.yaml_source import Source

    if name == REFERENCE:
        raise ConfigError(f"`{REFERENCE}` keeps everything, so it needs no budget", hint="name a pruner")
    if seed is not None and "seed" not in spec.defaults:
        raise ConfigError(f"`{name}` draws nothing at random, so it has no seed", hint="leave --seed out")
    if seed is not None and "seed" in options:
        raise ConfigError("--seed and --option seed=... exclude each other", hint="choose one")
    data = {
        "models": [model],
        "tasks": [task],
        "pruners": [{"name": name, "options": options}],
        "seeds": [seed or 0],
        "budgets": ["50%"],
        "account": account.value,
        "limit": limit,
        "batch_size": batch_size,
        "device": device,
        "lens": False,
        "efficiency": False,
        "overlays": 0,
    }
    config = parse_config(Source("command line", data), invocation.host)
    directory = out or Path("runs") / f"budget-{name}"
    steps = max(2, round(100.0 / precision))
    with open_trials(config, directory, invocation.host, steps) as trials:

        def run(step: int) -> Trial:
            trial = trials(step)
            invocation.output.say(f"{_ratio(step, steps)}: {_outcome_text(trial)}")
            return trial

        invocation.output.say(f"unpruned accuracy: {100.0 * trials.unpruned.mean:.1f} %")
        search = bisect(run, targets, steps)
        if as_json:
            place = {
                "pruner": name,
                "options": options,
                "seed": seed or 0,
                "model": model,
                "task": task,
                "account": account.value,
            }
            invocation.output.json({"budget": {**place, **_json(search, trials), "directory": str(directory)}})
        else:
            title = config.pruners[0].title
            invocation.output.show(f"{title} on {model}, {task}: {counted(trials.questions, 'question')}")
            _show(invocation.output, search, trials)
    if any(trial.outcome == "failed" for trial in search.trials):
        invocation.output.error(
            "a run failed and counts as wrong answers",
            f"`tokenprune report {directory}` shows why; the same command tries it again",
        )
        raise typer.Exit(ExitCode.FAILED_CELLS)


def _targets(text: str) -> list[float]:
    """Percentages as shares, the largest first: its runs narrow the search for the others."""
    try:
        shares = [float(part.strip().removesuffix("%")) / 100.0 for part in text.split(",")]
    except ValueError:
        shares = [0.0]
    if not all(0.0 < share <= 1.0 for share in shares):
        raise ConfigError(
            f"--retention must be percentages above 0 and up to 100, got `{text}`", hint="for example `99,95,90`"
        )
    return sorted(set(shares), reverse=True)


def _ratio(step: int, steps: int) -> str:
    return f"{100.0 * step / steps:.3g}%"


def _outcome_text(trial: Trial) -> str:
    if trial.outcome == "done":
        return f"retains {100.0 * (trial.retention or 0.0):.1f} %"
    return f"{trial.outcome}: {trial.reason}"


def _show(output: Output, search: Search, trials: Trials) -> None:
    rows = [[f"{100.0 * found.target:g} %", *_answer(found, trials)] for found in search.found]
    columns = ["retain", "keep ratio", "retention %", "interval", "below it"]
    output.show(table(columns, rows, numbers=columns[1:4]))
    output.show("")
    ran = [[_ratio(trial.step, trials.steps), trial.outcome, *_measured(trial, trials)] for trial in search.trials]
    columns = ["keep ratio", "outcome", "accuracy %", "retention %"]
    output.show(table(columns, ran, numbers=["keep ratio", *columns[2:]]))
    if any(found.high is None for found in search.found):
        output.show(f"never: even {_ratio(trials.steps - 1, trials.steps)} retains less")
    for reason in dict.fromkeys(found.low.reason for found in search.found if found.at_floor and found.low):
        output.show(f"floor: {reason}")
    output.show(f"{_ASSUMPTION}; {len(search.trials)} ratios looked at, {trials.runs} runs now")
    for smaller, larger in search.contradictions:
        output.show(
            f"contradicted: {_ratio(smaller.step, trials.steps)} {_outcome_text(smaller)}, "
            f"{_ratio(larger.step, trials.steps)} {_outcome_text(larger)}"
        )


def _answer(found: Found, trials: Trials) -> list[str]:
    below = "-" if found.low is None else f"{_ratio(found.low.step, trials.steps)}: {_brief(found.low)}"
    if found.high is None:
        return ["never", "-", "-", below]
    from tokenprune.report.text import percent_bounds

    interval = percent_bounds(trials.retention(found.high.step))
    return [_ratio(found.high.step, trials.steps), f"{100.0 * (found.high.retention or 0.0):.1f}", interval, below]


def _brief(trial: Trial) -> str:
    return f"{100.0 * (trial.retention or 0.0):.1f}" if trial.outcome == "done" else trial.outcome


def _measured(trial: Trial, trials: Trials) -> tuple[str, str]:
    if trial.retention is None:
        return "-", "-"
    return f"{100.0 * trials.accuracy(trial.step).mean:.1f}", f"{100.0 * trial.retention:.1f}"


def _json(search: Search, trials: Trials) -> dict[str, Any]:
    def ratio(trial: Trial | None) -> float | None:
        return None if trial is None else trial.step / trials.steps

    def interval(trial: Trial | None) -> dict[str, float] | None:
        found = None if trial is None else trials.retention(trial.step)
        return None if found is None else asdict(found)

    return {
        "questions": trials.questions,
        "assumption": _ASSUMPTION,
        "precision": 1.0 / trials.steps,
        "unpruned": asdict(trials.unpruned),
        "targets": [
            {
                "target": found.target,
                "ratio": ratio(found.high),
                "reached": found.high is not None,
                "retention": interval(found.high),
                "below": ratio(found.low),
                "at_floor": found.at_floor,
            }
            for found in search.found
        ],
        "trials": [
            {
                "ratio": ratio(trial),
                "outcome": trial.outcome,
                "retention": trial.retention,
                "accuracy": None if trial.retention is None else asdict(trials.accuracy(trial.step)),
                "reason": trial.reason,
            }
            for trial in search.trials
        ],
        "contradictions": [[ratio(smaller), ratio(larger)] for smaller, larger in search.contradictions],
        "runs": trials.runs,
    }
