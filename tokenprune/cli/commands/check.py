"""`tokenprune check`: whether a pruner keeps the laws, one line for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.options import AsJson, ModelName, PrunerName, PrunerOptions, key_values
from tokenprune.cli.output import Invocation, invocation_of
from tokenprune.errors import ExitCode

if TYPE_CHECKING:
    from tokenprune.testing.conformance import Result


class CheckGroup(StrEnum):
    """Groups of laws."""

    SPEC = "spec"
    PLAN = "plan"
    CHOICE = "choice"
    MODEL = "model"


def check(
    context: typer.Context,
    name: PrunerName,
    option: PrunerOptions = None,
    group: Annotated[list[CheckGroup] | None, typer.Option(help="Only these laws; may be repeated.")] = None,
    model: ModelName = "scenes",
    budget: Annotated[
        list[str] | None, typer.Option(help="`25%`, `0.25` or `64`; may be repeated. Without: 25% and 1.")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Every budget in every check.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a pruner against the laws that every pruner keeps; exit code 4 if it breaks one.

    Example: tokenprune check iwp --group choice --budget 25%
    """
    invocation = invocation_of(context)
    spec = invocation.host.pruners.get(name)
    options = spec.validate(key_values("--option", option, example="layer=2"))
    budgets = tuple(Budget.parse(text) for text in budget or ())
    groups = tuple(chosen.value for chosen in group or ())
    if not groups or "model" in groups:
        _check_model(invocation, model)
    results = _results(invocation, name, options, model, budgets, thorough, groups)
    failed = sum(result.status == "failed" for result in results)
    if as_json:
        entries = [dataclasses.asdict(result) for result in results]
        invocation.output.json({"pruner": name, "options": options, "failed": failed, "checks": entries})
    else:
        for result in results:
            invocation.output.text(result.line())
        invocation.output.say(f"{failed} of {len(results)} failed" if failed else f"{len(results)} laws, none broken")
    if failed:
        raise typer.Exit(ExitCode.VERDICT)


def _check_model(invocation: Invocation, model: str) -> None:
    """Refuse a wrong name before anything runs."""
    from tokenprune.checkpoints.loading import model_path

    model_path(model, invocation.host)


def _results(
    invocation: Invocation,
    name: str,
    options: dict[str, Any],
    model: str,
    budgets: Sequence[Any],
    thorough: bool,
    groups: Sequence[Any],
) -> list[Result]:
    from tokenprune.testing.conformance import PrunerUnderTest, checks

    tested = PrunerUnderTest.of(
        name,
        options=options,
        model=model,
        budgets=tuple(budgets),
        thorough=thorough or bool(budgets),
        host=invocation.host,
    )
    return [law.evaluate(tested) for law in checks(*groups)]
