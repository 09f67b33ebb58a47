"""`tokenprune list` and `tokenprune show`: what is installed, without importing torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from tokenprune.cli.methods import methods_table
from tokenprune.cli.output import Session, session_of, table
from tokenprune.composition import PARTS
from tokenprune.composition.parts import Part as AxisPart
from tokenprune.errors import ConfigError
from tokenprune.registry import UNIVERSAL_OPTIONS, Axes, PrunerSpec, Registry

#: Terminals of this width show one column per axis; narrower ones show four, with the other axes under them.
_WIDE = 160
_MAIN_AXES = ("site", "magnitude", "duplication", "selector")
_UNDER = {"budget": "site", "groups": "site", "merge": "selector"}


class Part(StrEnum):
    """What `tokenprune list` can list."""

    PRUNERS = "pruners"
    TASKS = "tasks"
    MODELS = "models"
    FAMILIES = "families"
    EXECUTORS = "executors"
    TRACKERS = "trackers"


def list_parts(
    context: typer.Context,
    part: Annotated[Part, typer.Argument(help="What to list.")] = Part.PRUNERS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the pruners as a Markdown table.")] = False,
    axes: Annotated[bool, typer.Option("--axes", help="Print the pruners as points on the seven axes.")] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Print the parts that a composition takes.")] = False,
) -> None:
    """List pruners, tasks, models, model families, executors or trackers.

    Example: tokenprune list tasks
    """
    session = session_of(context)
    registry = _registry(session, part)
    if sum((markdown, axes, parts)) > 1:
        raise ConfigError("--markdown, --axes and --parts exclude each other", hint="choose one")
    if axes or parts:
        if part is not Part.PRUNERS:
            raise ConfigError(
                f"--{'axes' if axes else 'parts'} is about pruners, not {part.value}", hint="`tokenprune list --axes`"
            )
        (_show_axes if axes else _show_parts)(session, as_json)
    elif markdown:
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
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Set an option, `name=value`; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one pruner: its point on the seven axes, formula, options, source, and where it departs from it.

    Example: tokenprune show iwp, tokenprune show composed --set magnitude=cls
    """
    session = session_of(context)
    pruners = session.host.pruners
    spec = pruners.get(name)
    if options:  # a composition's point and needs follow from its options
        chosen = dict(_assignment(text) for text in options)
        spec = dataclasses.replace(spec.build(chosen).spec, defaults={**spec.defaults, **spec.validate(chosen)})
    if as_json:
        session.output.json({"pruner": {**spec.to_json(), "distribution": pruners.owner(name)}})
    else:
        heading = "options, as they are set" if options else "options, with their defaults"
        session.output.show(_card(spec, pruners.owner(name), heading))


def _show_axes(session: Session, as_json: bool) -> None:
    """Every pruner as a point on the seven axes."""
    points = {spec.name: dataclasses.asdict(spec.axes) for spec in session.host.pruners}
    if as_json:
        session.output.json({"axes": [{"name": name, **axes} for name, axes in points.items()]})
        return
    wide = session.output.data.width >= _WIDE
    columns = ["pruner", *(Axes.__dataclass_fields__ if wide else _MAIN_AXES)]
    rows = [[name, *(axes.values() if wide else _folded(axes))] for name, axes in points.items()]
    session.output.show(table(columns, rows))


def _folded(axes: Mapping[str, str]) -> list[str]:
    """The main axes; each of the others stands under one of them, where it is not as usual."""
    usual = dataclasses.asdict(Axes(site=""))
    cells = {axis: [axes[axis]] for axis in _MAIN_AXES}
    for axis, host in _UNDER.items():
        if axes[axis] != usual[axis]:
            cells[host].append(f"{axis}: {axes[axis]}")
    return ["\n".join(lines) for lines in cells.values()]


def _show_parts(session: Session, as_json: bool) -> None:
    """The parts of every axis, which sweep files compose pruners of."""
    if as_json:
        parts = {axis: [_part_json(part) for part in found.values()] for axis, found in PARTS.items()}
        session.output.json({"parts": parts})
        return
    rows = [
        [part.name, axis, ", ".join(part.sites), part.meaning]
        for axis, found in PARTS.items()
        for part in found.values()
    ]
    session.output.show(table(["part", "axis", "sites", "meaning"], rows))


def _part_json(part: AxisPart) -> dict[str, Any]:
    lists = {key: list(getattr(part, key)) for key in ("needs", "sites", "reads")}
    return {"name": part.name, "meaning": part.meaning, "term": part.text, **lists}


def _registry(session: Session, part: Part) -> Registry[Any]:
    registries: dict[Part, Registry[Any]] = {
        Part.PRUNERS: session.host.pruners,
        Part.TASKS: session.host.tasks,
        Part.MODELS: session.host.models,
        Part.FAMILIES: session.host.families,
        Part.EXECUTORS: session.host.executors,
        Part.TRACKERS: session.host.trackers,
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


def _card(spec: PrunerSpec, distribution: str, options_heading: str) -> Group:
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
    lines += [_heading(options_heading)]
    lines += _pairs({key: repr(value) for key, value in options.items()})
    lines += [_heading("needs"), _indented(", ".join(spec.needs) or "nothing of the model")]
    lines += [_heading("source"), _indented(source.title)]
    lines += [_indented(text) for text in (source.authors, source.venue, source.url, source.code) if text]
    lines += [_heading("fidelity"), _indented(spec.fidelity or "none known")]
    return Group(*lines)


def _assignment(text: str) -> tuple[str, Any]:
    """`name=value` with the value as JSON, or else as the text that it is.

    Raises:
        ConfigError: There is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set wants `name=value`, got `{text}`", hint="for example `--set layer=2`")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def _heading(text: str) -> Any:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _pairs(pairs: Mapping[str, str]) -> list[Any]:
    width = max(len(key) for key in pairs)
    return [_indented(f"{key:<{width}}  {value}") for key, value in pairs.items()]


def _indented(text: str) -> Any:
    return Padding(Text(text), (0, 0, 0, 2))
