"""`tokenprune list` and `tokenprune show`: what is installed, without importing torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from tokenprune.cli.methods import methods_table
from tokenprune.cli.output import Session, session_of, table
from tokenprune.errors import ConfigError
from tokenprune.registry import UNIVERSAL_OPTIONS, PrunerSpec, Registry


class Part(StrEnum):
    """What `tokenprune list` can list."""

    PRUNERS = "pruners"
    TASKS = "tasks"
    MODELS = "models"
    FAMILIES = "families"
    EXECUTORS = "executors"


def list_parts(
    context: typer.Context,
    part: Annotated[Part, typer.Argument(help="What to list.")] = Part.PRUNERS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the pruners as a Markdown table.")] = False,
) -> None:
    """List pruners, tasks, models, model families or executors.

    Example: tokenprune list tasks
    """
    session = session_of(context)
    registry = _registry(session, part)
    if markdown:
        if part is not Part.PRUNERS or as_json:
            raise ConfigError("--markdown lists pruners only, and not as JSON", hint="`tokenprune list --markdown`")
        session.output.text(methods_table(session.host.pruners))
    elif as_json:
        entries = [{**_as_json(spec), "distribution": registry.owner(spec.name)} for spec in registry]
        session.output.json({part.value: entries})
    else:
        session.output.show(_table(registry, part))


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A pruner's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one pruner: its point on the seven axes, formula, options, source, and where it departs from it.

    Example: tokenprune show iwp
    """
    session = session_of(context)
    pruners = session.host.pruners
    spec = pruners.get(name)
    if as_json:
        session.output.json({"pruner": {**spec.to_json(), "distribution": pruners.owner(name)}})
    else:
        session.output.show(_card(spec, pruners.owner(name)))


def _registry(session: Session, part: Part) -> Registry[Any]:
    registries: dict[Part, Registry[Any]] = {
        Part.PRUNERS: session.host.pruners,
        Part.TASKS: session.host.tasks,
        Part.MODELS: session.host.models,
        Part.FAMILIES: session.host.families,
        Part.EXECUTORS: session.host.executors,
    }
    return registries[part]


def _as_json(spec: Any) -> dict[str, Any]:
    return spec.to_json() if isinstance(spec, PrunerSpec) else dataclasses.asdict(spec)


def _table(registry: Registry[Any], part: Part) -> Any:
    extra: dict[Part, tuple[str, Callable[[Any], str]]] = {
        Part.PRUNERS: ("site", lambda spec: spec.axes.site),
        Part.TASKS: ("version", lambda spec: spec.version),
        Part.FAMILIES: ("model types", lambda spec: ", ".join(spec.model_types)),
    }
    heading, value = extra.get(part, ("", None))
    columns = ["name", *([heading] if heading else []), "from", "what it does"]
    rows = [
        [spec.name, *([value(spec)] if value else []), registry.owner(spec.name), spec.summary] for spec in registry
    ]
    return table(columns, rows)


def _card(spec: PrunerSpec, distribution: str) -> Group:
    source = spec.source
    lines = [
        Text.assemble((spec.name, "bold"), f"  ({distribution}{', baseline' if spec.baseline else ''})"),
        Text(spec.summary),
        _heading("axes"),
        *_pairs(dataclasses.asdict(spec.axes)),
    ]
    if spec.formula:
        lines += [_heading("formula"), _indented(spec.formula)]
    options = {**spec.defaults, **{key: value for key, value in UNIVERSAL_OPTIONS.items() if key not in spec.defaults}}
    lines += [_heading("options, with their defaults")]
    lines += _pairs({key: repr(value) for key, value in options.items()})
    lines += [_heading("needs"), _indented(", ".join(spec.needs) or "nothing of the model")]
    lines += [_heading("source"), _indented(source.title)]
    lines += [_indented(text) for text in (source.authors, source.venue, source.url, source.code) if text]
    lines += [_heading("fidelity"), _indented(spec.fidelity or "none known")]
    return Group(*lines)


def _heading(text: str) -> Any:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _pairs(pairs: Mapping[str, str]) -> list[Any]:
    width = max(len(key) for key in pairs)
    return [_indented(f"{key:<{width}}  {value}") for key, value in pairs.items()]


def _indented(text: str) -> Any:
    return Padding(Text(text), (0, 0, 0, 2))
