"""Find the parts of a model that no family describes, by the structure that most models share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Family, layout_by_runs

#: Config attributes that hold placeholder ids; two of them may name the same id.
_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_NORMS = ("norm", "final_layernorm", "embedding_norm")
_ROTARIES = ("rotary_emb", "rotary_pos_emb")
_ATTENTIONS = ("self_attn", "self_attention", "attention", "attn")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_HINT = "describe the family in a plugin (hook `register_families`)"


def discover(model: nn.Module) -> Family:
    """Describe a model's decoder and placeholders; every run of placeholders counts as one image without a grid.

    Raises:
        IncompatibleError: A part is missing, or several modules could be that part.
    """
    config: Any = getattr(model, "config", None)
    by_id = {int(token): name for name in reversed(_IDS) if isinstance(token := getattr(config, name, None), int)}
    placeholders = tuple(sorted(by_id.values(), key=_IDS.index))
    if not placeholders:
        raise _not_found(model, f"its config has none of {list(_IDS)}")
    path, text = _text_model(model)
    base, pixels = _base(model, path)
    stacks = [name for name, child in text.named_children() if _is_stack(child)]
    if len(stacks) > 1:
        raise _not_found(model, f"`{path}` has several lists of layers: {stacks}")
    layers = [layer for _, layer in text.get_submodule(stacks[0]).named_children()]
    inside = {name for layer in layers for name, _ in layer.named_children()}
    crossing = sorted(name for name in inside if "cross" in name)
    if crossing:
        raise _not_found(model, f"its decoder layers have `{crossing[0]}`: images may enter beside the sequence")
    return Family(
        name=str(config.model_type),
        layout=layout_by_runs,
        placeholders=placeholders,
        pixels=pixels,
        base=base,
        text=path,
        layers=stacks[0],
        final_norm=_first(model, f"final norm in `{path}`", _NORMS, _names(text)),
        rotary=_first(model, f"rotary embedding in `{path}`", _ROTARIES, _names(text)),
        attention=_first(model, "attention module in its decoder layers", _ATTENTIONS, inside),
        mlp=_first(model, "MLP in its decoder layers", _MLPS, inside),
        video=any("video" in name for name in placeholders) and any("video" in name for name in pixels),
    )


def _text_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the text model: the only part that embeds tokens and has a list of layers."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(getattr(module, "embed_tokens", None), nn.Embedding)
        and any(_is_stack(child) for child in module.children())
    ]
    if not found:
        raise _not_found(model, "no part of it has both `embed_tokens` and a list of layers")
    if len(found) > 1:
        raise _not_found(model, f"several parts of it could be the text model: {[path for path, _ in found]}")
    return found[0]


def _base(model: nn.Module, text: str) -> tuple[str, tuple[str, ...]]:
    """The base: the innermost part around the text model that takes token ids and pixels. Its path, and pixel names.

    The model itself may use an older name for the pixels than its base.
    """
    outer = [name for name in inspect.signature(model.forward).parameters if name.startswith("pixel_values")]
    steps = text.split(".")
    for end in range(len(steps) - 1, -1, -1):
        path = ".".join(steps[:end])
        takes = inspect.signature(model.get_submodule(path).forward).parameters
        pixels = tuple(name for name in takes if name.startswith("pixel_values"))
        if "input_ids" in takes and pixels:
            return path, tuple(dict.fromkeys([*outer, *pixels]))
    raise _not_found(model, f"nothing around `{text}` takes both `input_ids` and `pixel_values`")


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and any(True for _ in module[0].named_children())


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _first(model: nn.Module, what: str, wanted: Iterable[str], found: set[str]) -> str:
    for name in wanted:
        if name in found:
            return name
    raise _not_found(model, f"there is no {what} named {' or '.join(f'`{name}`' for name in wanted)}")


def _not_found(model: nn.Module, reason: str) -> IncompatibleError:
    return IncompatibleError(f"the parts of `{type(model).__name__}` cannot be found: {reason}", hint=_HINT)
