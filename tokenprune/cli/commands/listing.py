"""`tokenprune list`: what is installed, without importing torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from tokenprune.cli.methods import methods_table
from tokenprune.cli.options import AsJson
from tokenprune.cli.output import Invocation, invocation_of, table
from tokenprune.composition import PARTS
from tokenprune.composition.parts import Part as AxisPart
from tokenprune.errors import ConfigError
from tokenprune.registry import Axes, PrunerSpec, Registry

#: Terminals of this width show one column per axis; narrower ones show four, with the other axes under them.
_WIDE = 160
_MAIN_AXES = ("site", "magnitude", "duplication", "selector")
_UNDER = {"budget": "site", "groups": "site", "merge": "selector"}


class Kind(StrEnum):
    """What `tokenprune list` can list."""

    PRUNERS = "pruners"
    TASKS = "tasks"
    MODELS = "models"
    FAMILIES = "families"
    EXECUTORS = "executors"
    TRACKERS = "trackers"


def list_kinds(
    context: typer.Context,
    part: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.PRUNERS,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the pruners as a Markdown table.")] = False,
    axes: Annotated[bool, typer.Option("--axes", help="Print the pruners as points on the seven axes.")] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Print the parts that a composition takes.")] = False,
) -> None:
    """List pruners, tasks, models, model families, executors or trackers.

    Example: tokenprune list tasks
    """
    invocation = invocation_of(context)
    registry = _registry(invocation, part)
    if sum((markdown, axes, parts)) > 1:
        raise ConfigError("--markdown, --axes and --parts exclude each other", hint="choose one")
    if axes or parts:
        if part is not Kind.PRUNERS:
            raise ConfigError(
                f"--{'axes' if axes else 'parts'} is about pruners, not {part.value}", hint="`tokenprune list --axes`"
            )
        (_show_axes if axes else _show_parts)(invocation, as_json)
    elif markdown:
        if part is not Kind.PRUNERS or as_json:
            raise ConfigError("--markdown lists pruners only, and not as JSON", hint="`tokenprune list --markdown`")
        invocation.output.text(methods_table(invocation.host.pruners))
    elif as_json:
        entries = [{**_as_json(spec), "distribution": registry.owner(spec.name)} for spec in registry]
        invocation.output.json({part.value: entries})
    else:
        invocation.output.show(_table(registry, part))


def _show_axes(invocation: Invocation, as_json: bool) -> None:
    """Every pruner as a point on the seven axes."""
    points = {spec.name: dataclasses.asdict(spec.axes) for spec in invocation.host.pruners}
    if as_json:
        invocation.output.json({"axes": [{"name": name, **axes} for name, axes in points.items()]})
        return
    wide = invocation.output.data.width >= _WIDE
    columns = ["pruner", *(Axes.__dataclass_fields__ if wide else _MAIN_AXES)]
    rows = [[name, *(axes.values() if wide else _folded(axes))] for name, axes in points.items()]
    invocation.output.show(table(columns, rows))


def _folded(axes: Mapping[str, str]) -> list[str]:
    """The main axes; each other axis stands under one of them, if it is not the default."""
    usual = dataclasses.asdict(Axes(site=""))
    cells = {axis: [axes[axis]] for axis in _MAIN_AXES}
    for axis, host in _UNDER.items():
        if axes[axis] != usual[axis]:
            cells[host].append(f"{axis}: {axes[axis]}")
    return ["\n".join(lines) for lines in cells.values()]


def _show_parts(invocation: Invocation, as_json: bool) -> None:
    """The parts of every axis, which sweep files compose pruners of."""
    if as_json:
        parts = {axis: [_part_json(part) for part in found.values()] for axis, found in PARTS.items()}
        invocation.output.json({"parts": parts})
        return
    rows = [
        [part.name, axis, ", ".join(part.sites), part.meaning]
        for axis, found in PARTS.items()
        for part in found.values()
    ]
    invocation.output.show(table(["part", "axis", "sites", "meaning"], rows))


def _part_json(part: AxisPart) -> dict[str, Any]:
    lists = {key: list(getattr(part, key)) for key in ("needs", "sites", "reads")}
    return {"name": part.name, "meaning": part.meaning, "term": part.text, **lists}


def _registry(invocation: Invocation, part: Kind) -> Registry[Any]:
    registries: dict[Kind, Registry[Any]] = {
        Kind.PRUNERS: invocation.host.pruners,
        Kind.TASKS: invocation.host.tasks,
        Kind.MODELS: invocation.host.models,
        Kind.FAMILIES: invocation.host.families,
        Kind.EXECUTORS: invocation.host.executors,
        Kind.TRACKERS: invocation.host.trackers,
    }
    return registries[part]


def _as_json(spec: Any) -> dict[str, Any]:
    return spec.to_json() if isinstance(spec, PrunerSpec) else dataclasses.asdict(spec)


def _table(registry: Registry[Any], part: Kind) -> Any:
    extra: dict[Kind, tuple[str, Callable[[Any], str]]] = {
        Kind.PRUNERS: ("site", lambda spec: spec.axes.site),
        Kind.TASKS: ("version", lambda spec: spec.version),
        Kind.FAMILIES: ("model types", lambda spec: ", ".join(spec.model_types)),
    }
    heading, value = extra.get(part, ("", None))
    columns = ["name", *([heading] if heading else []), "from", "what it does"]
    rows = [
        [spec.name, *([value(spec)] if value else []), registry.owner(spec.name), spec.summary] for spec in registry
    ]
    return table(columns, rows)
