"""`tokenprune check`: whether a pruner keeps the laws, one line for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.calibrate import parse_options
from tokenprune.cli.output import Session, session_of
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
    name: Annotated[str, typer.Argument(help="A pruner's name.")],
    option: Annotated[list[str] | None, typer.Option("--option", "--options", help="An option, `KEY=VALUE`.")] = None,
    group: Annotated[list[CheckGroup] | None, typer.Option(help="Only these laws; may be repeated.")] = None,
    model: Annotated[str, typer.Option(help="Model: short name, directory or hub name.")] = "scenes",
    budget: Annotated[
        list[str] | None, typer.Option(help="`25%`, `0.25` or `64`; may be repeated. Without: 25% and 1.")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Every budget in every check.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a pruner against the laws that every pruner keeps; exit code 4 if it breaks one.

    Example: tokenprune check iwp --group choice --budget 25%
    """
    session = session_of(context)
    spec = session.host.pruners.get(name)
    options = spec.validate(parse_options(option or []))
    budgets = tuple(Budget.parse(text) for text in budget or ())
    groups = tuple(chosen.value for chosen in group or ())
    if not groups or "model" in groups:
        _check_model(session, model)
    results = _looked(session, name, options, model, budgets, thorough, groups)
    failed = sum(result.status == "failed" for result in results)
    if as_json:
        entries = [dataclasses.asdict(result) for result in results]
        session.output.json({"pruner": name, "options": options, "failed": failed, "checks": entries})
    else:
        for result in results:
            session.output.text(result.line())
        session.output.say(f"{failed} of {len(results)} failed" if failed else f"{len(results)} laws, none broken")
    if failed:
        raise typer.Exit(ExitCode.VERDICT)


def _check_model(session: Session, model: str) -> None:
    """Refuse a wrong name before anything runs."""
    from tokenprune.checkpoints.loading import model_path

    model_path(model, session.host)


def _looked(
    session: Session,
    name: str,
    options: dict[str, Any],
    model: str,
    budgets: Sequence[Any],
    thorough: bool,
    groups: Sequence[Any],
) -> list[Result]:
    from tokenprune.testing.conformance import Subject, checks

    subject = Subject.of(
        name,
        options=options,
        model=model,
        budgets=tuple(budgets),
        thorough=thorough or bool(budgets),
        host=session.host,
    )
    return [law.look(subject) for law in checks(*groups)]
