"""Hooks on the vision side: resize images, cut inside the encoder and behind it, store what views may read."""

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
    """The hooks of one session on the vision encoder and the projector."""

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
        self._tower_switch: ForwardSwitch | None = None
        self._projector_switch: ForwardSwitch | None = None
        self._rows: EncoderInput | None = None
        """Rows that enter the next encoder layer, after a cut inside the encoder."""
        self._indices_of_rows: list[Tensor] | None = None
        """Per image, the original index of each of the projector's rows; `None` if no row was removed or moved."""
        self._layer_switches: tuple[ForwardSwitch, ...] = ()
        self._checked_layers: set[int] = set()
        """Layers for which `SplitLayer.check` has passed."""

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        tower, projector = self._vision.tower, self._vision.projector
        undo.callback(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True).remove)
        undo.callback(projector.register_forward_pre_hook(self._before_projector, with_kwargs=True).remove)
        undo.callback(projector.register_forward_hook(self._after_projector).remove)
        if self._memo is not None:
            self._tower_switch, self._projector_switch = (
                ForwardSwitch.before(tower, undo),
                ForwardSwitch.before(projector, undo),
            )
        if "tower" in self._pruner.spec.sites:
            self._layer_switches = tuple(ForwardSwitch.before(layer, undo) for layer in self._vision.layers)
        needs_layers = "encoder_attention" in self._pruner.needs or "tower" in self._pruner.spec.sites
        if needs_layers or self._memo is not None:  # other sessions with this memo may need the layers
            for index, layer in enumerate(self._vision.layers):
                undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)

    # --- pixels -------------------------------------------------------------------------------------------------

    def _before_tower(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prefill, self._rows, self._indices_of_rows = self._prefill(), None, None
        stop = _stop_at(prefill, "pixels")
        if prefill is None:
            return None
        if stop is None:
            self._answer_tower_from_memo(prefill)
            return None
        with prefill.stopwatch.running():
            selections, decision = self._decide(prefill, stop)
            smaller, arguments = self._resized(args[0] if args else kwargs["pixel_values"], decision)
            self._indices_of_rows = [kept.anchors for _, kept in selections]
        if args:
            return (smaller, *args[1:]), {**kwargs, **arguments}
        return args, {**kwargs, "pixel_values": smaller, **arguments}

    def _resized(self, pixels: Tensor, decision: Decision) -> tuple[Tensor, Mapping[str, Any]]:
        """The images in the size that the pruner chose, and the other arguments that the tower needs for it."""
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

    def _answer_tower_from_memo(self, prefill: Prefill) -> None:
        """Answer the next call of the tower from the memo, unless it is cut inside."""
        next_stop = prefill.next_vision_stop()
        if (
            self._memo is None
            or self._tower_switch is None
            or (next_stop is not None and next_stop.site.kind == "tower")
        ):
            return
        memo, forward = self._memo, self._tower_switch.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output, entered = memo.tower(forward, lambda: _states(prefill.vision.encoder_inputs), *args, **kwargs)
            for index, hidden in entered.items():
                prefill.vision.encoder_inputs.setdefault(index, self._rows_entering(prefill, hidden))
            return output

        self._tower_switch.redirect(run)

    # --- inside the encoder -------------------------------------------------------------------------------------

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            prefill = self._prefill()
            if prefill is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            rows = self._rows_entering(prefill, hidden)
            prefill.vision.encoder_inputs[index] = rows
            while (stop := _stop_at(prefill, "tower", index, "in")) is not None:
                rows = self._cut(prefill, stop, rows)
                prefill.vision.encoder_inputs[index] = rows
            middle = _stop_at(prefill, "tower", index, "mid")
            if middle is not None:
                self._split_layer(prefill, module, index, rows)
            if self._rows is None and middle is None:
                return None
            return self._layer_arguments(rows, args, kwargs)

        return hook

    def _rows_entering(self, prefill: Prefill, hidden: Tensor) -> EncoderInput:
        """The rows that enter a layer, with its hidden states."""
        if self._rows is not None:
            return replace(self._rows, hidden=hidden)
        first = int(self._parts.facts.has_cls)
        units = prefill.vision.units
        return EncoderInput(hidden, None, None, tuple(units[image].indices + first for image in sorted(units)))

    def _layer_arguments(
        self, rows: EncoderInput, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a layer, with the states and the attention bias of the remaining rows."""
        changed, rest = dict(kwargs), list(args[1:])
        bias = rows.bias()
        if bias is not None:
            config: Any = self._vision.tower.config
            kernel = config._attn_implementation
            if kernel not in BIASED_KERNELS:
                raise IncompatibleError(
                    f"the attention kernel `{kernel}` of the vision encoder has no bias for single keys, which images "
                    "of different lengths and weighted rows need",
                    hint="load the model with attention `sdpa`, `eager` or `flex_attention`",
                )
            if kernel == "flex_attention":  # it also indexes the bias by query
                bias = bias.expand(-1, -1, rows.hidden.shape[1], -1)
            if rest:
                rest[0] = bias.to(rows.hidden.dtype)
            else:
                changed["attention_mask"] = bias.to(rows.hidden.dtype)
        if args:
            return (rows.hidden, *rest), changed
        return args, {**changed, "hidden_states": rows.hidden}

    def _split_layer(self, prefill: Prefill, layer: nn.Module, index: int, rows: EncoderInput) -> None:
        """Cut the next call of a layer between its attention and its MLP."""
        split = SplitLayer(layer, self._vision.about.attention, self._vision.about.mlp)
        if index not in self._checked_layers:
            split.check(rows.hidden[:, :2], attention_mask=None)
            self._checked_layers.add(index)

        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            prefill.vision.middle = split.first(hidden, *args, **kwargs)
            after = replace(rows, hidden=prefill.vision.middle.residual)
            while (stop := _stop_at(prefill, "tower", index, "mid")) is not None:
                after = self._cut(prefill, stop, after)
                prefill.vision.middle = None
            return split.second(after.hidden, *args, **kwargs)

        self._layer_switches[index].redirect(run)

    def _cut(self, prefill: Prefill, stop: Stop, rows: EncoderInput) -> EncoderInput:
        """Ask the pruner, and remove or merge rows."""
        with prefill.stopwatch.running():
            selections, _ = self._decide(prefill, stop)
            self._rows = shorten_rows(rows, selections, int(self._parts.facts.has_cls))
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
        if self._indices_of_rows is None:
            first = int(self._parts.facts.has_cls)
            prefill.vision.features = features
            prefill.vision.row_of = (
                tuple(units[image].indices for image in sorted(units))
                if self._rows is None
                else tuple(rows - first for rows in self._rows.row_of)
            )
        if self._rows is not None:
            self._indices_of_rows = [units[image].indices.sort().values for image in sorted(units)]
        self._rows = None
        stop = _stop_at(prefill, "encoder")
        if stop is None:
            if self._indices_of_rows is None:
                self._answer_projector_from_memo()
            return None
        with prefill.stopwatch.running():
            selections, _ = self._decide(prefill, stop)
            packed = EncoderInput(features, None, None, prefill.vision.row_of)
            reduced = shorten_rows(packed, selections, 0).hidden
            for unit, kept in selections:
                if kept.log_weights is not None:
                    prefill.vision.log_weights[unit.span.index] = kept.log_weights
            self._indices_of_rows = [units[image].indices.sort().values for image in sorted(units)]
        if args:
            return (reduced, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): reduced}

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        indices_of_rows, self._indices_of_rows = self._indices_of_rows, None
        prefill = self._prefill()
        if prefill is None or indices_of_rows is None:
            return None
        # the model expects one row per placeholder: put each row at its anchor's index; the first decoder layer
        # removes the empty ones
        full = output.new_zeros(output.shape[0], prefill.vision.units[0].original, output.shape[-1])
        for index, indices in enumerate(indices_of_rows):
            full[index, indices.to(full.device)] = output[index, : len(indices)]
        return full

    def _answer_projector_from_memo(self) -> None:
        """Answer the next call of the projector from the memo, if no row was removed before it."""
        switch, memo = self._projector_switch, self._memo
        if switch is not None and memo is not None:
            switch.redirect(functools.partial(memo.value, "projector", switch.forward))

    def _decide(self, prefill: Prefill, stop: Stop) -> tuple[list[tuple[Unit, Kept]], Decision]:
        """Ask the pruner about every image, and store its decisions."""
        position = len(prefill.vision.cuts)
        units = [prefill.vision.units[image] for image in sorted(prefill.vision.units)]
        selections, decision = decide(self._pruner, prefill, position, units, self._joint)
        prefill.vision.cuts.append(
            VisionCut(stop, position, {unit.span.index: (unit, kept) for unit, kept in selections})
        )
        for unit, kept in selections:
            prefill.vision.units[unit.span.index] = unit.after_decision(kept)
        return selections, decision


def shorten_rows(rows: EncoderInput, selections: Sequence[tuple[Unit, Kept]], first: int) -> EncoderInput:
    """The kept or merged rows (images, first + K, C), in the order of the decision; shorter images are padded.

    Args:
        rows: All rows.
        selections: One decision per image, in order.
        first: Number of leading rows that are not patches (CLS); they always stay.
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
        new_rows = torch.full_like(rows.row_of[image], -1)
        new_rows[unit.indices[anchors]] = torch.arange(first, end, device=new_rows.device)
        row_of.append(new_rows)
    return EncoderInput(
        short, None if min(counts) == max(counts) else valid, weights if weighted else None, tuple(row_of)
    )


def _states(tower: Mapping[int, EncoderInput]) -> Mapping[int, Tensor]:
    """By encoder layer, its input states."""
    return {index: rows.hidden for index, rows in tower.items()}


def _stop_at(prefill: Prefill | None, kind: str, layer: int = 0, point: str = "in") -> Stop | None:
    """The next stop, if it is of this kind, at this layer and at this point."""
    stop = prefill.next_vision_stop() if prefill is not None else None
    if stop is None or (stop.site.kind, stop.site.layer, stop.site.point) != (kind, layer, point):
        return None
    return stop
