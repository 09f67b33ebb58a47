"""`tokenprune show`: everything about one pruner, without importing torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from tokenprune.cli.options import AsJson, PrunerName, key_values
from tokenprune.cli.output import invocation_of
from tokenprune.registry import UNIVERSAL_OPTIONS, PrunerSpec


def show(
    context: typer.Context,
    name: PrunerName,
    options: Annotated[list[str] | None, typer.Option("--set", help="Set an option, `NAME=VALUE`; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one pruner: its point on the seven axes, formula, options, source, and where it departs from it.

    Example: tokenprune show iwp, tokenprune show composed --set magnitude=cls
    """
    invocation = invocation_of(context)
    pruners = invocation.host.pruners
    spec = pruners.get(name)
    if options:  # a composition's point and needs follow from its options
        chosen = key_values("--set", options, example="layer=2")
        spec = dataclasses.replace(spec.build(chosen).spec, defaults={**spec.defaults, **spec.validate(chosen)})
    if as_json:
        invocation.output.json({"pruner": {**spec.to_json(), "distribution": pruners.owner(name)}})
    else:
        heading = "options, as they are set" if options else "options, with their defaults"
        invocation.output.show(_card(spec, pruners.owner(name), heading))


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


def _heading(text: str) -> Any:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _pairs(pairs: Mapping[str, str]) -> list[Any]:
    width = max(len(key) for key in pairs)
    return [_indented(f"{key:<{width}}  {value}") for key, value in pairs.items()]


def _indented(text: str) -> Any:
    return Padding(Text(text), (0, 0, 0, 2))
