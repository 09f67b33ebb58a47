"""LLaVA 1.5 (and what follows its classes): one image is one fixed grid of patch tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.errors import IncompatibleError
from tokenprune.models.family import Family


def _read_layer(config: Any) -> int:
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise IncompatibleError(
            f"vision_feature_layer is {layer}: reading several encoder layers at once is not described",
            hint="choose a checkpoint that reads one encoder layer",
        )
    # hidden_states[0] are the embeddings, so hidden_states[i] is the output of layer i - 1
    index = layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer
    return index - 1


def _has_cls(config: Any) -> bool:
    return str(config.vision_config.model_type) == "clip_vision_model"


def _grids(config: Any, inputs: Mapping[str, Any], tokens: int) -> list[tuple[int, int]]:
    if config.vision_feature_select_strategy != "default" and _has_cls(config):
        raise IncompatibleError(
            f"vision_feature_select_strategy is `{config.vision_feature_select_strategy}`: the CLS row would be a "
            "visual token without a place on the grid",
            hint="choose a checkpoint with the strategy `default`",
        )
    side = config.vision_config.image_size // config.vision_config.patch_size
    if tokens % (side * side):
        raise IncompatibleError(
            f"{tokens} image placeholders are not a multiple of {side} x {side}",
            hint="make the inputs with the checkpoint's own processor",
        )
    return [(side, side)] * (tokens // (side * side))


LLAVA = Family(
    name="llava",
    base="model",
    text="model.language_model",
    layers="layers",
    final_norm="norm",
    rotary="rotary_emb",
    tower="model.vision_tower",
    tower_layers="encoder.layers",
    projector="model.multi_modal_projector",
    image_token="image_token_id",
    read_layer=_read_layer,
    grids=_grids,
    has_cls=_has_cls,
    patch_size=lambda config: int(config.vision_config.patch_size),
    resize={"interpolate_pos_encoding": True},
)
