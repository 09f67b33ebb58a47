"""`tokenprune lens`: the errors that every pruner makes on the same inputs, beside the accuracy that it loses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.options import AsJson, ModelName, chosen_pruners, comma_list, sweep_changes
from tokenprune.cli.output import JSON_SCHEMA, Invocation, Output, invocation_of, table
from tokenprune.errors import ConfigError, ExitCode
from tokenprune.report.render.escaping import csv_text

if TYPE_CHECKING:
    from tokenprune.studies.lens_study import LensCorrelation, LensRow, LensStudy
    from tokenprune.sweep.config.schema import SweepConfig

_BUDGETS = "25%,11.1%,5.6%"
_NOTHING = "-"
_LEFT_OUT = ("none", "composed")
"""The reference, and what is no method until its parts are chosen."""
_FIGURES = (
    ("lost %", "accuracy_lost", 100.0, 1),
    ("output", "output_error", 1.0, 3),
    ("dual", "dual_error", 1.0, 3),
    ("twins", "duplication", 1.0, 3),
    ("cover", "coverage", 1.0, 3),
    ("regret", "regret", 1.0, 3),
)


def lens(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="Sweep file (YAML); without one, all pruners.")] = None,
    pruners: Annotated[str, typer.Option(help="Only these pruners, a comma list.")] = "",
    budgets: Annotated[str, typer.Option(help=f"Budgets, a comma list.  [default: {_BUDGETS}]")] = "",
    model: ModelName = "",
    task: Annotated[str, typer.Option(help="Task.")] = "",
    limit: Annotated[int | None, typer.Option(help="Questions for the accuracy.  [default: 70]", min=1)] = None,
    measured: Annotated[int, typer.Option(help="The first of them, whose errors are measured.", min=1)] = 28,
    layer: Annotated[int, typer.Option(help="Decoder layer of twins, cover and regret.", min=0)] = 2,
    batch_size: Annotated[int | None, typer.Option(help="Questions per batch.", min=1)] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for lens.json, lens.csv and correlations.csv.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
) -> None:
    """Measure the errors that pruners make on the implicit weight, and whether these predict the accuracy lost.

    Exit code 3 if a pruner failed; one that refuses or cannot be measured keeps its row, with the reason.

    Example: tokenprune lens --pruners random,divprune,fastv,iwp --limit 70
    """
    invocation = invocation_of(context)
    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other", hint="choose one, or take both with --out")
    changes = sweep_changes(budgets=budgets, model=model, task=task, device=device, limit=limit, batch_size=batch_size)
    chosen = _chosen(invocation, config, pruners, changes)
    if out is not None:
        _make_folder(out)
    output = invocation.output
    with output.talk.status("lens") if output.live else nullcontext() as status:
        say = None if status is None else (lambda text: status.update(f"lens: {text}"))
        studies = _studies(invocation, chosen, measured, layer, say)
    if out is not None:
        _write(out, studies)
        output.say(f"written: {out}")
    if as_json:
        output.json({"lens": [study.to_json() for study in studies]})
    elif as_csv:
        output.text(_rows_csv(studies).rstrip("\n"))
    else:
        for study in studies:
            _show(output, study)
    if any(row.outcome == "failed" for study in studies for row in study.rows):
        raise typer.Exit(ExitCode.FAILED_CELLS)


def _chosen(invocation: Invocation, path: Path | None, pruners: str, changes: dict[str, Any]) -> SweepConfig:
    """The sweep file, or all installed pruners, with what the options change."""
    from tokenprune.sweep.config.schema import load_config, parse_config, with_changes
    from tokenprune.sweep.config.yaml_source import Source

    host = invocation.host
    if path is None:
        names = [name for name in host.pruners.names() if name not in _LEFT_OUT]
        wanted = comma_list("--pruners", pruners) if pruners else names
        data = {"pruners": wanted, "budgets": comma_list("--budgets", _BUDGETS), "limit": 70, "batch_size": 14}
        return parse_config(Source("command line", {**data, **changes}), host)
    config = load_config(path, host)
    if pruners:
        changes = {**changes, "pruners": chosen_pruners(config, pruners)}
    return with_changes(config, changes, host) if changes else config


def _studies(
    invocation: Invocation, config: SweepConfig, measured: int, layer: int, progress: Callable[[str], None] | None
) -> list[LensStudy]:
    """One study per model and task of a sweep file; its seeds and trackers play no part."""
    from tokenprune.cells.cell import REFERENCE
    from tokenprune.checkpoints import load_model
    from tokenprune.evaluation.machine.devices import device_of
    from tokenprune.studies.lens_study import LensSettings, study_lens

    host = invocation.host
    listed = [entry for entry in config.pruners if entry.name != REFERENCE]
    settings = LensSettings(
        pruners={entry.title: host.pruners.get(entry.name).build(entry.options) for entry in listed},
        budgets=[entry.budget(config.account) for entry in config.budgets],
        limit=config.limit,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        positions=config.positions,
        measured=measured,
        layer=layer,
    )
    studies = []
    for model in config.models:
        device = device_of(config.device[0])
        loaded = load_model(model, device=device, dtype=config.dtype, attention=config.attention, host=host)
        studies += [
            study_lens(loaded, task.name, settings, options=task.options, model=model, host=host, progress=progress)
            for task in config.tasks
        ]
    return studies


def _show(output: Output, study: LensStudy) -> None:
    output.show(
        f"{study.model}, {study.task}: {study.questions} questions, {100 * study.accuracy:.1f} % right without pruning"
    )
    for budget in dict.fromkeys(row.budget for row in study.rows):
        rows = [row for row in study.rows if row.budget == budget]
        rows.sort(key=lambda row: (row.accuracy_lost is None, row.accuracy_lost))
        columns = [f"budget {budget}", *(heading for heading, *_ in _FIGURES)]
        lines = [
            [row.pruner, *(_number(row, name, factor, digits) for _, name, factor, digits in _FIGURES)] for row in rows
        ]
        output.show("")
        output.show(table(columns, lines, numbers=columns[1:]))
    for reason, names in _reasons(study.rows).items():
        output.show(f"{', '.join(names)}: {reason}")
    output.show("")
    output.show(f"rank correlation with the accuracy lost (twins, cover and regret at layer {study.layer})")
    columns = ["figure", "budget", "methods", "spearman", "95 %", "kendall"]
    output.show(table(columns, [_correlation(entry) for entry in study.correlations], numbers=columns[2:]))
    for reason in dict.fromkeys(entry.found.reason for entry in study.correlations if entry.found.reason):
        output.show(f"{_NOTHING}: {reason}")


def _number(row: LensRow, name: str, factor: float, digits: int) -> str:
    value = getattr(row, name)
    return _NOTHING if value is None else f"{value * factor:.{digits}f}"


def _reasons(rows: Sequence[LensRow]) -> dict[str, list[str]]:
    """Why figures are missing -> the pruners."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            reason = row.reason if row.outcome == "done" else f"{row.outcome}: {row.reason}"
            names = found.setdefault(reason, [])
            if row.pruner not in names:
                names.append(row.pruner)
    return found


def _correlation(entry: LensCorrelation) -> list[str]:
    found = entry.found
    headings = {name: heading for heading, name, *_ in _FIGURES}
    if found.spearman is None or found.kendall is None:
        figures = [_NOTHING] * 3
    else:
        figures = [f"{found.spearman:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", f"{found.kendall:+.2f}"]
    return [headings[entry.measure], entry.budget, str(found.points), *figures]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write `{folder}`: {error.strerror}", hint="give --out another folder") from error


def _write(folder: Path, studies: Sequence[LensStudy]) -> None:
    document = {"schema": JSON_SCHEMA, "lens": [study.to_json() for study in studies]}
    (folder / "lens.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "lens.csv").write_text(_rows_csv(studies), encoding="utf-8")
    (folder / "correlations.csv").write_text(_correlations_csv(studies), encoding="utf-8")


def _rows_csv(studies: Sequence[LensStudy]) -> str:
    from tokenprune.studies.lens_study import LensRow

    names = [entry.name for entry in fields(LensRow)]
    return csv_text(
        ["model", "task", *names],
        [[study.model, study.task, *asdict(row).values()] for study in studies for row in study.rows],
    )


def _correlations_csv(studies: Sequence[LensStudy]) -> str:
    from tokenprune.report.stats.ranks import RankCorrelation

    names = [entry.name for entry in fields(RankCorrelation)]
    return csv_text(
        ["model", "task", "measure", "budget", *names],
        [
            [study.model, study.task, entry.measure, entry.budget, *asdict(entry.found).values()]
            for study in studies
            for entry in study.correlations
        ],
    )
