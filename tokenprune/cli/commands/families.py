"""`tokenprune families`: which vision-language models can be pruned, and where, without importing torch."""

from __future__ import annotations

from typing import Any

import typer

from tokenprune.cli.options import AsJson
from tokenprune.cli.output import invocation_of, table
from tokenprune.registry import FamilySpec


def families(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """List the model families, the sites where each can be cut, and why others cannot.

    Example: tokenprune families --json
    """
    invocation = invocation_of(context)
    known = invocation.host.families
    if as_json:
        invocation.output.json({"families": [_entry(spec) for spec in known]})
        return
    rows = [[spec.name, ", ".join(spec.sites) or "none", "yes" if spec.video else "no", spec.summary] for spec in known]
    invocation.output.show(table(["family", "sites", "video", "what it is"], rows))
    whole = [(spec, next(iter(spec.refused.values()))) for spec in known if spec.refused and not spec.sites]
    if whole:
        invocation.output.text("")
        invocation.output.show(table(["cannot be pruned", "why"], [[spec.name, reason] for spec, reason in whole]))


def _entry(spec: FamilySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "model_types": list(spec.model_types),
        "sites": list(spec.sites),
        "video": spec.video,
        "refused": dict(spec.refused),
    }
