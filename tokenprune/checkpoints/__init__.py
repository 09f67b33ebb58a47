"""Checkpoints: loading of models by name, directory or hub name, and the two that ship with tokenprune."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ModelSpec

if TYPE_CHECKING:
    from tokenprune.checkpoints.joint import JointSpace
    from tokenprune.checkpoints.loading import LoadedModel, load_model

__all__ = ["JointSpace", "LoadedModel", "load_model"]

_LAZY = {
    "load_model": "tokenprune.checkpoints.loading",
    "LoadedModel": "tokenprune.checkpoints.loading",
    "JointSpace": "tokenprune.checkpoints.joint",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `tokenprune.checkpoints` has no attribute `{name}`")


@hookimpl
def register_models(register: Callable[[ModelSpec], None]) -> None:
    """The shipped models."""
    register(
        ModelSpec(
            name="scenes",
            target="tokenprune/checkpoints/scenes",
            summary="the shipped small LLaVA, trained on the task `scenes`",
        )
    )
    register(
        ModelSpec(
            name="scenes-video",
            target="tokenprune/checkpoints/scenes-video",
            summary="the same trained on for videos of four frames, the task `scenes-video`",
        )
    )
