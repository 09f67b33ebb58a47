"""Model families, one small description each, and the models that ship with tokenprune."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenprune.hookspecs import hookimpl
from tokenprune.models.catalogue import FAMILIES
from tokenprune.registry import FamilySpec, ModelSpec

if TYPE_CHECKING:
    from tokenprune.models.joint import JointSpace
    from tokenprune.models.loading import LoadedModel, load_model

__all__ = ["JointSpace", "LoadedModel", "load_model"]

_LAZY = {
    "load_model": "tokenprune.models.loading",
    "LoadedModel": "tokenprune.models.loading",
    "JointSpace": "tokenprune.models.joint",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `tokenprune.models` has no attribute `{name}`")


@hookimpl
def register_families(register: Callable[[FamilySpec], None]) -> None:
    """The families that tokenprune describes itself."""
    for spec in FAMILIES:
        register(spec)


@hookimpl
def register_models(register: Callable[[ModelSpec], None]) -> None:
    """The shipped models."""
    register(
        ModelSpec(
            name="scenes",
            target="tokenprune/models/scenes",
            summary="the shipped small LLaVA, trained on the task `scenes`",
        )
    )
    register(
        ModelSpec(
            name="scenes-video",
            target="tokenprune/models/scenes-video",
            summary="the same trained on for videos of four frames, the task `scenes-video`",
        )
    )
