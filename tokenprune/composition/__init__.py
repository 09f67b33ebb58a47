"""Pruners composed from one part per axis: magnitudes, duplications, selectors, groups, merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tokenprune.composition.composed import PARTS, Composed
from tokenprune.composition.options import AXES
from tokenprune.hookspecs import hookimpl

if TYPE_CHECKING:
    from tokenprune.registry import PrunerSpec

__all__ = ["AXES", "PARTS", "Composed", "register_pruners"]


@hookimpl
def register_pruners(register: Callable[[PrunerSpec], None]) -> None:
    """Add `composed`."""
    register(Composed.spec)
