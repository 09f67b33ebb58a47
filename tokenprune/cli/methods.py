"""The table of methods as Markdown, made from the specs and never typed by hand."""

from __future__ import annotations

from tokenprune.registry import PrunerSpec, Registry
from tokenprune.report.render.escaping import markdown_grid

_COLUMNS = ("pruner", "site", "magnitude", "duplication", "selector", "merge", "needs", "source", "from")


def methods_table(pruners: Registry[PrunerSpec]) -> str:
    """One row per pruner in Markdown, in order of registration: its point on the axes, its source, its distribution."""
    return markdown_grid(_COLUMNS, [_cells(spec, pruners) for spec in pruners])


def method_sections(pruners: Registry[PrunerSpec]) -> str:
    """One section per pruner in Markdown: summary, formula, options, fidelity, source."""
    return "\n\n".join(_section(spec) for spec in pruners)


def _cells(spec: PrunerSpec, pruners: Registry[PrunerSpec]) -> tuple[str, ...]:
    axes = spec.axes
    title = f"[{spec.source.title}]({spec.source.url})" if spec.source.url else spec.source.title
    return (
        f"`{spec.name}`",
        axes.site,
        axes.magnitude,
        axes.duplication,
        axes.selector,
        axes.merge,
        ", ".join(spec.needs) or "nothing",
        title,
        pruners.owner(spec.name),
    )


def _section(spec: PrunerSpec) -> str:
    source = spec.source
    parts = [f"### `{spec.name}`", spec.summary + "."]
    if spec.formula:
        parts.append(f"```text\n{spec.formula}\n```")
    if spec.defaults:
        parts.append("Options: " + ", ".join(f"`{key}={value!r}`" for key, value in spec.defaults.items()) + ".")
    parts.append(f"Fidelity: {spec.fidelity or 'none known.'}")
    credit = ", ".join(text for text in (source.authors, source.title, source.venue, source.url) if text)
    parts.append(f"Source: {credit}." + (f" Reference code: {source.code}." if source.code else ""))
    return "\n\n".join(parts)
