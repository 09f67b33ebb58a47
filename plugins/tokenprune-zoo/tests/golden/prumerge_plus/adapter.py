"""PruMerge+: as PruMerge, with the grid."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case

from ..prumerge import adapter as prumerge


def check(case: Case) -> list[str]:
    """Emission order, score and emitted rows."""
    return prumerge.check(case, "prumerge-plus")
