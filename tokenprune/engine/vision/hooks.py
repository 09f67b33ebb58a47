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
from tokenprune.engine.patch.split_layer import ForwardSwitch, SplitLayer
from tokenprune.engine.state.prefill import EncoderInput, Prefill, Unit, VisionCut
from tokenprune.engine.state.prefill_memo import PrefillMemo
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts, TowerParts
from tokenprune.pruner import Decision, Kept, Pruner, Stop


class VisionHooks:
    """The vision side of one session."""

    def __init__(
        self,
        parts: Parts,
        vision: TowerParts,
        pruner: Pruner,
        joint: JointSpace | None,
        prefill: Callable[[], Prefill | None],
        memo: PrefillMemo | None = None,
    ) -> None:
        self._parts = parts
        self._vision = vision
        self._pruner = pruner
        self._joint = joint
        self._prefill = prefill
        self._memo = memo
        self._switch: ForwardSwitch | None = None
        self._projector_switch: ForwardSwitch | None = None
        self._rows: EncoderInput | None = None
        """Rows that enter the next encoder layer, once something was cut inside the tower."""
        self._places: list[Tensor] | None = None
        """Per image, the original indices at which the projector's rows stand; `None` where all stand in order."""
        self._switches: tuple[ForwardSwitch, ...] = ()
        self._whole: set[int] = set()
        """Layers that were checked to be the sum of their halves."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        tower, projector = self._vision.tower, self._vision.projector
        undo.callback(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True).remove)
        undo.callback(projector.register_forward_pre_hook(self._before_projector, with_kwargs=True).remove)
        undo.callback(projector.register_forward_hook(self._after_projector).remove)
        if self._memo is not None:
            self._switch, self._projector_switch = (
                ForwardSwitch.before(tower, undo),
                ForwardSwitch.before(projector, undo),
            )
        if "tower" in self._pruner.spec.sites:
            self._switches = tuple(ForwardSwitch.before(layer, undo) for layer in self._vision.layers)
        looked_into = "encoder_attention" in self._pruner.needs or "tower" in self._pruner.spec.sites
        if looked_into or self._memo is not None:  # others that share the memo may look
            for index, layer in enumerate(self._vision.layers):
                undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)

    # --- pixels -------------------------------------------------------------------------------------------------

    def _before_tower(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prefill, self._rows, self._places = self._prefill(), None, None
        stop = _stop_at(prefill, "pixels")
        if prefill is None:
            return None
        if stop is None:
            self._share(prefill)
            return None
        with prefill.stopwatch.running():
            selections, decision = self._decide(prefill, stop)
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

    def _share(self, prefill: Prefill) -> None:
        """Let the coming call of a tower that runs whole be answered from the memo."""
        coming = prefill.next_stop()
        if self._memo is None or self._switch is None or (coming is not None and coming.site.kind == "tower"):
            return
        memo, forward = self._memo, self._switch.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output, entered = memo.tower(forward, lambda: _states(prefill.vision.encoder_inputs), *args, **kwargs)
            for index, hidden in entered.items():
                prefill.vision.encoder_inputs.setdefault(index, self._entering(prefill, hidden))
            return output

        self._switch.redirect(run)

    # --- inside the encoder -------------------------------------------------------------------------------------

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            prefill = self._prefill()
            if prefill is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            rows = self._entering(prefill, hidden)
            prefill.vision.encoder_inputs[index] = rows
            while (stop := _stop_at(prefill, "tower", index, "in")) is not None:
                rows = self._cut(prefill, stop, rows)
                prefill.vision.encoder_inputs[index] = rows
            middle = _stop_at(prefill, "tower", index, "mid")
            if middle is not None:
                self._split(prefill, module, index, rows)
            if self._rows is None and middle is None:
                return None
            return self._rewritten(rows, args, kwargs)

        return hook

    def _entering(self, prefill: Prefill, hidden: Tensor) -> EncoderInput:
        """The rows of the states that enter a layer."""
        if self._rows is not None:
            return replace(self._rows, hidden=hidden)
        first = int(self._parts.facts.has_cls)
        units = prefill.vision.units
        return EncoderInput(hidden, None, None, tuple(units[image].indices + first for image in sorted(units)))

    def _rewritten(
        self, rows: EncoderInput, args: tuple[Any, ...], kwargs: dict[str, Any]
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

    def _split(self, prefill: Prefill, layer: nn.Module, index: int, rows: EncoderInput) -> None:
        """Let the coming call of a layer be cut between attention and MLP."""
        split = SplitLayer(layer, self._vision.about.attention, self._vision.about.mlp)
        if index not in self._whole:
            split.check(rows.hidden[:, :2], attention_mask=None)
            self._whole.add(index)

        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            prefill.vision.middle = split.first(hidden, *args, **kwargs)
            after = replace(rows, hidden=prefill.vision.middle.residual)
            while (stop := _stop_at(prefill, "tower", index, "mid")) is not None:
                after = self._cut(prefill, stop, after)
                prefill.vision.middle = None
            return split.second(after.hidden, *args, **kwargs)

        self._switches[index].redirect(run)

    def _cut(self, prefill: Prefill, stop: Stop, rows: EncoderInput) -> EncoderInput:
        """Ask the pruner, and take out or merge rows."""
        with prefill.stopwatch.running():
            selections, _ = self._decide(prefill, stop)
            self._rows = shortened(rows, selections, int(self._parts.facts.has_cls))
        return self._rows

    # --- between encoder and projector --------------------------------------------------------------------------

    def _before_projector(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prefill = self._prefill()
        if prefill is None:
            return None
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        units = prefill.vision.units
        if self._places is None:
            first = int(self._parts.facts.has_cls)
            prefill.vision.features = features
            prefill.vision.row_of = (
                tuple(units[image].indices for image in sorted(units))
                if self._rows is None
                else tuple(rows - first for rows in self._rows.row_of)
            )
        if self._rows is not None:
            self._places = [units[image].indices.sort().values for image in sorted(units)]
        self._rows = None
        stop = _stop_at(prefill, "encoder")
        if stop is None:
            if self._places is None:
                self._share_projector()
            return None
        with prefill.stopwatch.running():
            selections, _ = self._decide(prefill, stop)
            packed = EncoderInput(features, None, None, prefill.vision.row_of)
            reduced = shortened(packed, selections, 0).hidden
            for unit, kept in selections:
                if kept.log_weights is not None:
                    prefill.vision.log_weights[unit.span.index] = kept.log_weights
            self._places = [units[image].indices.sort().values for image in sorted(units)]
        if args:
            return (reduced, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): reduced}

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        places, self._places = self._places, None
        prefill = self._prefill()
        if prefill is None or places is None:
            return None
        # the model counts one row per placeholder: emitted rows stand in their anchors' places, the rest is cut at
        # the first decoder layer
        full = output.new_zeros(output.shape[0], prefill.vision.units[0].original, output.shape[-1])
        for index, place in enumerate(places):
            full[index, place.to(full.device)] = output[index, : len(place)]
        return full

    def _share_projector(self) -> None:
        """Let the coming call of a projector that reads every row be answered from the memo."""
        switch, memo = self._projector_switch, self._memo
        if switch is not None and memo is not None:
            switch.redirect(functools.partial(memo.value, "projector", switch.forward))

    def _decide(self, prefill: Prefill, stop: Stop) -> tuple[list[tuple[Unit, Kept]], Decision]:
        """Ask about every image, and note the answers."""
        position = len(prefill.vision.cuts)
        units = [prefill.vision.units[image] for image in sorted(prefill.vision.units)]
        selections, decision = decide(self._pruner, prefill, position, units, self._joint)
        prefill.vision.cuts.append(
            VisionCut(stop, position, {unit.span.index: (unit, kept) for unit, kept in selections})
        )
        for unit, kept in selections:
            prefill.vision.units[unit.span.index] = unit.follow(kept)
        return selections, decision


def shortened(rows: EncoderInput, selections: Sequence[tuple[Unit, Kept]], first: int) -> EncoderInput:
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
    return EncoderInput(
        short, None if min(counts) == max(counts) else valid, weights if weighted else None, tuple(row_of)
    )


def _states(tower: Mapping[int, EncoderInput]) -> Mapping[int, Tensor]:
    """The states that entered each encoder layer."""
    return {index: rows.hidden for index, rows in tower.items()}


def _stop_at(prefill: Prefill | None, kind: str, layer: int = 0, point: str = "in") -> Stop | None:
    """The next stop before the decoder, where it is of this kind and at this place."""
    stop = prefill.next_stop() if prefill is not None else None
    if stop is None or (stop.site.kind, stop.site.layer, stop.site.point) != (kind, layer, point):
        return None
    return stop
