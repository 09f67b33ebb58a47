"""Hooks on the vision side: resize pixels, cut inside the encoder and behind it, keep what views may ask for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.engine.decision import decide
from tokenprune.engine.patch.internals import BIASED_KERNELS
from tokenprune.engine.patch.split_layer import Door, Halves
from tokenprune.engine.state.forward_state import Chunk, TowerRows, Unit, VisionCut
from tokenprune.engine.state.prefill_memo import PrefillMemo
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts, TowerParts
from tokenprune.pruner import Decision, Kept, Pruner, Stop


class TowerHooks:
    """The vision side of one session."""

    def __init__(
        self,
        parts: Parts,
        vision: TowerParts,
        pruner: Pruner,
        joint: JointSpace | None,
        chunk: Callable[[], Chunk | None],
        memo: PrefillMemo | None = None,
    ) -> None:
        self._parts = parts
        self._vision = vision
        self._pruner = pruner
        self._joint = joint
        self._chunk = chunk
        self._memo = memo
        self._door: Door | None = None
        self._projector_door: Door | None = None
        self._rows: TowerRows | None = None
        """Rows that enter the next encoder layer, once something was cut inside the tower."""
        self._places: list[Tensor] | None = None
        """Per image, the original indices at which the projector's rows stand; `None` where all stand in order."""
        self._doors: tuple[Door, ...] = ()
        self._whole: set[int] = set()
        """Layers whose halves were checked."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        tower, projector = self._vision.tower, self._vision.projector
        undo.callback(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True).remove)
        undo.callback(projector.register_forward_pre_hook(self._before_projector, with_kwargs=True).remove)
        undo.callback(projector.register_forward_hook(self._after_projector).remove)
        if self._memo is not None:
            self._door, self._projector_door = Door.before(tower, undo), Door.before(projector, undo)
        if "tower" in self._pruner.spec.sites:
            self._doors = tuple(Door.before(layer, undo) for layer in self._vision.layers)
        looked_into = "encoder_attention" in self._pruner.needs or "tower" in self._pruner.spec.sites
        if looked_into or self._memo is not None:  # others that share the memo may look
            for index, layer in enumerate(self._vision.layers):
                undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)

    # --- pixels -------------------------------------------------------------------------------------------------

    def _before_tower(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chunk, self._rows, self._places = self._chunk(), None, None
        stop = _stop_at(chunk, "pixels")
        if chunk is None:
            return None
        if stop is None:
            self._share(chunk)
            return None
        with chunk.stopwatch.running():
            selections, decision = self._decide(chunk, stop)
            smaller, told = self._resized(args[0] if args else kwargs["pixel_values"], decision)
            self._places = [kept.anchors for _, kept in selections]
        if args:
            return (smaller, *args[1:]), {**kwargs, **told}
        return args, {**kwargs, "pixel_values": smaller, **told}

    def _resized(self, pixels: Tensor, decision: Decision) -> tuple[Tensor, Mapping[str, Any]]:
        """The pictures in the size that the pruner decided on, and what else the tower must be told then."""
        cells, about = decision.resize, self._vision.about
        if cells is None or about.resize is None:
            raise IncompatibleError(
                f"family `{self._parts.family.name}` cannot run on a smaller image",
                hint="choose a pruner that cuts at `input` or in the decoder",
            )
        patch = about.patch_size(self._parts.model.config)
        size = (cells[0] * patch, cells[1] * patch)
        smaller = nn.functional.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
        return smaller.to(pixels.dtype), about.resize

    def _share(self, chunk: Chunk) -> None:
        """Let the coming call of a tower that runs whole be answered from the memo."""
        coming = chunk.next_stop()
        if self._memo is None or self._door is None or (coming is not None and coming.site.kind == "tower"):
            return
        memo, forward = self._memo, self._door.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output, entered = memo.tower(forward, lambda: _states(chunk.vision.tower), *args, **kwargs)
            for index, hidden in entered.items():
                chunk.vision.tower.setdefault(index, self._entering(chunk, hidden))
            return output

        self._door.redirect(run)

    # --- inside the encoder -------------------------------------------------------------------------------------

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            chunk = self._chunk()
            if chunk is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            rows = self._entering(chunk, hidden)
            chunk.vision.tower[index] = rows
            while (stop := _stop_at(chunk, "tower", index, "in")) is not None:
                rows = self._cut(chunk, stop, rows)
                chunk.vision.tower[index] = rows
            middle = _stop_at(chunk, "tower", index, "mid")
            if middle is not None:
                self._split(chunk, module, index, rows)
            if self._rows is None and middle is None:
                return None
            return self._rewritten(rows, args, kwargs)

        return hook

    def _entering(self, chunk: Chunk, hidden: Tensor) -> TowerRows:
        """The rows of the states that enter a layer."""
        if self._rows is not None:
            return replace(self._rows, hidden=hidden)
        first = int(self._parts.facts.has_cls)
        units = chunk.vision.units
        return TowerRows(hidden, None, None, tuple(units[image].indices + first for image in sorted(units)))

    def _rewritten(
        self, rows: TowerRows, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a layer with the states and the attention bias of the rows that are left."""
        changed, rest = dict(kwargs), list(args[1:])
        bias = rows.bias()
        if bias is not None:
            config: Any = self._vision.tower.config
            kernel = config._attn_implementation
            if kernel not in BIASED_KERNELS:
                raise IncompatibleError(
                    f"the attention kernel `{kernel}` of the vision encoder has no bias for single keys, which rows of "
                    "several sizes need",
                    hint="load the model with attention `sdpa`, `eager` or `flex_attention`",
                )
            if kernel == "flex_attention":  # it looks a bias up by its query, too
                bias = bias.expand(-1, -1, rows.hidden.shape[1], -1)
            if rest:
                rest[0] = bias.to(rows.hidden.dtype)
            else:
                changed["attention_mask"] = bias.to(rows.hidden.dtype)
        if args:
            return (rows.hidden, *rest), changed
        return args, {**changed, "hidden_states": rows.hidden}

    def _split(self, chunk: Chunk, layer: nn.Module, index: int, rows: TowerRows) -> None:
        """Let the coming call of a layer be cut between attention and MLP."""
        halves = Halves(layer, self._vision.about.attention, self._vision.about.mlp)
        if index not in self._whole:
            halves.check(rows.hidden[:, :2], attention_mask=None)
            self._whole.add(index)

        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            chunk.vision.middle = halves.first(hidden, *args, **kwargs)
            after = replace(rows, hidden=chunk.vision.middle.residual)
            while (stop := _stop_at(chunk, "tower", index, "mid")) is not None:
                after = self._cut(chunk, stop, after)
                chunk.vision.middle = None
            return halves.second(after.hidden, *args, **kwargs)

        self._doors[index].redirect(run)

    def _cut(self, chunk: Chunk, stop: Stop, rows: TowerRows) -> TowerRows:
        """Ask the pruner, and take out or merge rows."""
        with chunk.stopwatch.running():
            selections, _ = self._decide(chunk, stop)
            self._rows = shortened(rows, selections, int(self._parts.facts.has_cls))
        return self._rows

    # --- between encoder and projector --------------------------------------------------------------------------

    def _before_projector(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chunk = self._chunk()
        if chunk is None:
            return None
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        units = chunk.vision.units
        if self._places is None:
            first = int(self._parts.facts.has_cls)
            chunk.vision.features = features
            chunk.vision.row_of = (
                tuple(units[image].indices for image in sorted(units))
                if self._rows is None
                else tuple(rows - first for rows in self._rows.row_of)
            )
        if self._rows is not None:
            self._places = [units[image].indices.sort().values for image in sorted(units)]
        self._rows = None
        stop = _stop_at(chunk, "encoder")
        if stop is None:
            if self._places is None:
                self._share_projector()
            return None
        with chunk.stopwatch.running():
            selections, _ = self._decide(chunk, stop)
            packed = TowerRows(features, None, None, chunk.vision.row_of)
            reduced = shortened(packed, selections, 0).hidden
            for unit, kept in selections:
                if kept.log_weights is not None:
                    chunk.vision.log_weights[unit.span.index] = kept.log_weights
            self._places = [units[image].indices.sort().values for image in sorted(units)]
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
        full = output.new_zeros(output.shape[0], chunk.vision.units[0].original, output.shape[-1])
        for index, place in enumerate(places):
            full[index, place.to(full.device)] = output[index, : len(place)]
        return full

    def _share_projector(self) -> None:
        """Let the coming call of a projector that reads every row be answered from the memo."""
        door, memo = self._projector_door, self._memo
        if door is not None and memo is not None:
            door.redirect(functools.partial(memo.value, "projector", door.forward))

    def _decide(self, chunk: Chunk, stop: Stop) -> tuple[list[tuple[Unit, Kept]], Decision]:
        """Ask about every image, and note the answers."""
        position = len(chunk.vision.cuts)
        units = [chunk.vision.units[image] for image in sorted(chunk.vision.units)]
        selections, decision = decide(self._pruner, chunk, position, units, self._joint)
        chunk.vision.cuts.append(
            VisionCut(stop, position, {unit.span.index: (unit, kept) for unit, kept in selections})
        )
        for unit, kept in selections:
            chunk.vision.units[unit.span.index] = unit.follow(kept)
        return selections, decision


def shortened(rows: TowerRows, selections: Sequence[tuple[Unit, Kept]], first: int) -> TowerRows:
    """Rows (images, first + K, C) that are left or merged, in the order of emission; shorter images padded at the end.

    Args:
        rows: All rows; the first `first` of each image (CLS) stay in front.
        selections: By image, in order.
        first: Rows in front that are no patches.
    """
    hidden = rows.hidden
    counts = [len(kept.anchors) for _, kept in selections]
    width = first + max(counts)
    short = hidden.new_zeros(hidden.shape[0], width, hidden.shape[-1])
    weighted = rows.log_weights is not None or any(kept.log_weights is not None for _, kept in selections)
    old = torch.zeros(hidden.shape[:2], device=hidden.device) if rows.log_weights is None else rows.log_weights
    weights = old.new_zeros(hidden.shape[0], width)
    valid = torch.zeros(hidden.shape[0], width, dtype=torch.bool, device=hidden.device)
    row_of = []
    for image, (unit, kept) in enumerate(selections):
        source = rows.row_of[image][unit.indices]
        anchors = kept.anchors.to(source.device)
        end = first + len(anchors)
        chosen = source[anchors].to(hidden.device)
        emitted = hidden[image, chosen]
        if kept.merge is not None:
            merged = hidden[image, source.to(hidden.device)]
            emitted = (kept.merge.to(hidden.device).float() @ merged.float()).to(hidden.dtype)
        short[image, :first] = hidden[image, :first]
        short[image, first:end] = emitted
        weights[image, :first] = old[image, :first]
        weights[image, first:end] = old[image, chosen]
        if kept.log_weights is not None:
            weights[image, first:end] += kept.log_weights.to(hidden.device).float()
        valid[image, :end] = True
        places = torch.full_like(rows.row_of[image], -1)
        places[unit.indices[anchors]] = torch.arange(first, end, device=places.device)
        row_of.append(places)
    return TowerRows(short, None if min(counts) == max(counts) else valid, weights if weighted else None, tuple(row_of))


def _states(tower: Mapping[int, TowerRows]) -> Mapping[int, Tensor]:
    """The states that entered each encoder layer."""
    return {index: rows.hidden for index, rows in tower.items()}


def _stop_at(chunk: Chunk | None, kind: str, layer: int = 0, point: str = "in") -> Stop | None:
    """The next stop before the decoder, where it is of this kind and at this place."""
    stop = chunk.next_stop() if chunk is not None else None
    if stop is None or (stop.site.kind, stop.site.layer, stop.site.point) != (kind, layer, point):
        return None
    return stop
