"""Load models by short name, directory or hub name; two small models ship with tokenprune."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import lazy_loader

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import ModelSpec

if TYPE_CHECKING:
    from tokenprune.checkpoints.joint import JointSpace as JointSpace
    from tokenprune.checkpoints.loaded_model import LoadedModel as LoadedModel
    from tokenprune.checkpoints.loading import load_model as load_model

# without lazy_loader's `__dir__`: the plugin host reads every name of a plugin, and would load all of these
__getattr__, _, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"joint": ["JointSpace"], "loaded_model": ["LoadedModel"], "loading": ["load_model"]}
)


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
