"""Families of vision-language models: one small description each, and discovery for models without one."""

from __future__ import annotations

from collections.abc import Callable

from tokenprune.families.catalogue import FAMILIES
from tokenprune.hookspecs import hookimpl
from tokenprune.registry import FamilySpec


@hookimpl
def register_families(register: Callable[[FamilySpec], None]) -> None:
    """The families that tokenprune describes itself."""
    for spec in FAMILIES:
        register(spec)
