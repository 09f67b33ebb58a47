"""LLaVA 1.5 and models with the same classes: one image is one fixed grid of patch tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, VisionTower, Visual
from tokenprune.families.layouts import equal_grids, named_layer, patches_per_side


def has_cls(config: Any) -> bool:
    """Whether the encoder puts a CLS row before the patches."""
    return str(config.vision_config.model_type) == "clip_vision_model"


def cls_row(config: Any) -> int | None:
    """Row of the encoder's CLS token, or `None`."""
    return 0 if has_cls(config) else None


def patch_size(config: Any) -> int:
    """Pixels per token side."""
    return int(config.vision_config.patch_size)


def refuse_cls_tokens(config: Any) -> None:
    """Refuse checkpoints in which the CLS row of an image is a visual token.

    Raises:
        IncompatibleError: The checkpoint is one of them.
    """
    if getattr(config, "vision_feature_select_strategy", "default") != "default" and has_cls(config):
        raise IncompatibleError(
            f"vision_feature_select_strategy is `{config.vision_feature_select_strategy}`, so the CLS row would be a "
            "visual token outside of the grid",
            hint="choose a checkpoint with the strategy `default`",
        )


def square(config: Any, inputs: Mapping[str, Any], runs: tuple[int, ...]) -> list[Visual]:
    """Every image is one square grid of all its patches.

    Raises:
        IncompatibleError: The CLS row is a visual token, or the placeholders do not fill whole grids.
    """
    del inputs
    refuse_cls_tokens(config)
    side = patches_per_side(config)
    return equal_grids(runs, side, side)


LLAVA = Family(
    name="llava",
    layout=square,
    vision=VisionTower(
        tower="model.vision_tower",
        layers="encoder.layers",
        projector="model.multi_modal_projector",
        read_layer=named_layer,
        has_cls=has_cls,
        patch_size=patch_size,
        resize={"interpolate_pos_encoding": True},
    ),
)
