"""Hooks on the vision side: resize pixels, cut between encoder and projector, keep what views may ask for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenprune.engine.chunk import Chunk
from tokenprune.engine.cut import decide
from tokenprune.errors import IncompatibleError
from tokenprune.models.family import Parts
from tokenprune.models.joint import JointSpace
from tokenprune.pruner import Pruner


class TowerHooks:
    """The vision side of one session."""

    def __init__(
        self, parts: Parts, pruner: Pruner, joint: JointSpace | None, chunk: Callable[[], Chunk | None]
    ) -> None:
        self._parts = parts
        self._pruner = pruner
        self._joint = joint
        self._chunk = chunk
        self._places: list[Tensor] | None = None
        """Per image, the original indices at which the projector's rows stand; `None` where all stand in order."""

    def install(self) -> list[RemovableHandle]:
        """Register the hooks."""
        handles = [
            self._parts.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True),
            self._parts.projector.register_forward_pre_hook(self._before_projector, with_kwargs=True),
            self._parts.projector.register_forward_hook(self._after_projector),
        ]
        if "encoder_attention" in self._pruner.needs:
            for index, layer in enumerate(self._parts.tower_layers):
                handles.append(layer.register_forward_pre_hook(self._remember(index), with_kwargs=True))
        return handles

    def _remember(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            chunk = self._chunk()
            if chunk is not None:
                chunk.vision.tower_inputs[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _before_tower(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chunk = self._chunk()
        if chunk is None or _next_kind(chunk) != "pixels":
            return None
        started = time.perf_counter()
        stop = chunk.plan[len(chunk.vision.done)]
        selections, decision = decide(self._pruner, chunk, len(chunk.vision.done), self._joint)
        if decision.resize is None or self._parts.family.resize is None:
            raise IncompatibleError(
                f"family `{self._parts.family.name}` cannot run on a smaller image",
                hint="choose a pruner that cuts at `input` or in the decoder",
            )
        pixels = args[0] if args else kwargs["pixel_values"]
        patch = self._parts.family.patch_size(self._parts.model.config)
        cells = decision.resize
        smaller = nn.functional.interpolate(
            pixels.float(), size=(cells[0] * patch, cells[1] * patch), mode="bicubic", antialias=True
        ).to(pixels.dtype)
        chunk.vision.kept = {unit.span.index: kept for unit, kept in selections}
        chunk.vision.done.append(stop)
        self._places = [chunk.vision.kept[index].anchors for index in range(pixels.shape[0])]
        chunk.vision.seconds += time.perf_counter() - started
        if args:
            return (smaller, *args[1:]), {**kwargs, **self._parts.family.resize}
        return args, {**kwargs, "pixel_values": smaller, **self._parts.family.resize}

    def _before_projector(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chunk = self._chunk()
        if chunk is None:
            return None
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self._places is None:
            chunk.vision.features = features
        if _next_kind(chunk) != "encoder":
            return None
        started = time.perf_counter()
        stop = chunk.plan[len(chunk.vision.done)]
        selections, _ = decide(self._pruner, chunk, len(chunk.vision.done), self._joint)
        chunk.vision.kept = {unit.span.index: kept for unit, kept in selections}
        chunk.vision.done.append(stop)
        by_image = chunk.vision.kept
        width = max(len(kept.anchors) for kept in by_image.values())
        reduced = features.new_zeros(features.shape[0], width, features.shape[-1])
        self._places = []
        for index in range(features.shape[0]):
            kept = by_image[index]
            anchors = kept.anchors.to(features.device)
            emitted = features[index, anchors]
            if kept.merge is not None:
                emitted = (kept.merge.to(features.device).float() @ features[index].float()).to(features.dtype)
            reduced[index, : len(anchors)] = emitted
            self._places.append(anchors.sort().values)
        chunk.vision.seconds += time.perf_counter() - started
        if args:
            return (reduced, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): reduced}

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        places, self._places = self._places, None
        chunk = self._chunk()
        if chunk is None or places is None:
            return None
        # the model counts one row per placeholder: emitted rows stand in their anchors' places, the rest is cut at
        # the first decoder layer
        full = output.new_zeros(output.shape[0], chunk.units[0].original, output.shape[-1])
        for index, place in enumerate(places):
            full[index, place] = output[index, : len(place)]
        return full


def _next_kind(chunk: Chunk) -> str | None:
    """Kind of the next stop before the decoder."""
    done = len(chunk.vision.done)
    return chunk.plan[done].site.kind if done < len(chunk.plan) else None
