"""Small random models of vision-language families, one file each, built from the config classes of transformers."""

from __future__ import annotations

import importlib
import pkgutil

from tests.families.zoo.base import Built, Family, Sample

__all__ = ["FAMILIES", "Built", "Family", "Sample"]


def _discover() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
            if family.name != module.name:
                raise ValueError(f"`{module.name}` describes a family named `{family.name}`")
            found[family.name] = family
    return found


FAMILIES: dict[str, Family] = _discover()
"""Every family of the zoo by name."""
