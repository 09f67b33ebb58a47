"""Small models of every family, built once per session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import torchvision_names

HAS_TORCHVISION = torchvision_names.enable()

from tests.families.zoo import FAMILIES, Built, Family  # noqa: E402 - transformers must not be imported before


def missing(family: Family) -> str | None:
    """Why a family cannot be built in this environment."""
    if family.torchvision and not HAS_TORCHVISION:
        return f"needs torchvision and a run of its own: {torchvision_names.HINT}; pytest tests/families"
    for package in family.packages:
        if importlib.util.find_spec(package) is None:
            return f"needs `{package}`: {torchvision_names.HINT}"
    return None


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A function that builds a family by name, once per session."""
    folder: Path = tmp_path_factory.mktemp("zoo")
    made: dict[str, Built] = {}

    def build(name: str) -> Built:
        family = FAMILIES[name]
        why = missing(family)
        if why is not None:
            pytest.skip(f"{name} {why}")
        if name not in made:
            made[name] = family.build(folder)
        return made[name]

    return build
