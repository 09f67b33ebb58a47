"""The state of one prefill: its inputs, its images, and which of their tokens are left."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.patch.split_layer import MidLayerState
from tokenprune.engine.state.encoder_run import EncoderObservation
from tokenprune.engine.state.image_spans import ImageSpan, find_images, join_frames
from tokenprune.engine.state.prefill_memo import PrefillMemo
from tokenprune.engine.state.rows import Rows
from tokenprune.engine.state.stopwatch import Stopwatch
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts
from tokenprune.pruner import Kept, State, Stop, UnitRecord


@dataclass
class Unit:
    """The remaining visual tokens of one image or video.

    Args:
        span: The image.
        indices: (n,) original index of each remaining token, in sequence order.
        slots: (n,) slot of each remaining token.
        slot_of: (N,) slot of each original token, -1 if it was removed.
        sizes: (n,) number of original tokens that each row represents.
    """

    span: ImageSpan
    indices: Tensor
    slots: Tensor
    slot_of: Tensor
    sizes: Tensor

    @classmethod
    def whole(cls, span: ImageSpan) -> Unit:
        """All tokens of an image, each at its own slot."""
        device = span.slots.device
        count = len(span.slots)
        return cls(span, torch.arange(count, device=device), span.slots, span.slots, torch.ones(count, device=device))

    @classmethod
    def video(cls, frames: Sequence[Unit]) -> Unit:
        """The images of one sample as one unit, frame by frame."""
        offset = frames[0].original
        return cls(
            join_frames([frame.span for frame in frames]),
            torch.cat([frame.indices + number * offset for number, frame in enumerate(frames)]),
            torch.cat([frame.slots for frame in frames]),
            torch.cat([frame.slot_of for frame in frames]),
            torch.cat([frame.sizes for frame in frames]),
        )

    @property
    def original(self) -> int:
        """Visual tokens before the first cut."""
        return len(self.span.slots)

    @property
    def tokens(self) -> int:
        """Visual tokens that are left."""
        return len(self.indices)

    def after_decision(self, kept: Kept) -> Unit:
        """The unit after a decision: the emitted rows fill the anchors' slots in ascending order."""
        anchors = kept.anchors.to(self.indices.device)
        indices = self.indices[anchors]
        slots = self.slots[anchors.sort().values]
        slot_of = torch.full_like(self.slot_of, -1)
        slot_of[indices] = slots
        sizes = self.sizes[anchors]
        if kept.merge is not None:
            sizes = (kept.merge.to_dense().to(self.sizes.device) != 0).float() @ self.sizes
        return Unit(self.span, indices, slots, slot_of, sizes)


@dataclass(frozen=True)
class LayerSnapshot:
    """The input of one decoder layer, stored for views: hidden states (B, S', D), position embeddings and rows."""

    hidden: Tensor
    position_embeddings: Any
    call: Mapping[str, Any]
    """The other arguments of the layer's forward."""
    rows: Rows
    log_weights: Tensor | None
    slot_of: tuple[Tensor, ...]


@dataclass(frozen=True)
class EncoderInput:
    """The input rows of one encoder layer, for all images. If there is a CLS row, it is row 0.

    Args:
        hidden: (images, R, C) hidden states, padded at the end.
        valid: (images, R) False if the row is padding; `None` if no row is.
        log_weights: (images, R) added to the attention logits of the rows, or `None`.
        row_of: Per image, the row of each original token, (N,), -1 if it was removed.
    """

    hidden: Tensor
    valid: Tensor | None
    log_weights: Tensor | None
    row_of: tuple[Tensor, ...]

    def bias(self) -> Tensor | None:
        """Bias on the attention logits of the rows, (images, 1, 1, R), or `None` for no bias."""
        if self.valid is None and self.log_weights is None:
            return None
        bias = torch.zeros(self.hidden.shape[:2], device=self.hidden.device)
        if self.log_weights is not None:
            bias = bias + self.log_weights.to(bias.device)
        if self.valid is not None:
            bias = bias.masked_fill(~self.valid.to(bias.device), torch.finfo(self.hidden.dtype).min)
        return bias[:, None, None, :]


@dataclass(frozen=True)
class VisionCut:
    """What a stop before the decoder did: by image, the unit before it and the decision."""

    stop: Stop
    position: int
    units: Mapping[int, tuple[Unit, Kept]]


@dataclass
class VisionState:
    """The state of the vision side of a prompt; `generate` runs the vision side once, before the decoder.

    Args:
        pixels: The processor's tensors of images or videos, by name.
        units: By image, its remaining tokens.
        encoder_inputs: By encoder layer, its input rows.
        middle: Residual stream and MLP input, while a `mid` stop of the encoder is decided.
        observed: What was observed of an encoder that cannot be cut.
        features: (images, R, C) input of the projector.
        row_of: Per image, the row of each original token in `features`, (N,).
        cuts: Stops that ran before the decoder.
        log_weights: By image, (K,) what the cut between encoder and projector adds to the decoder's attention logits.
        state: What the pruner keeps from one stop to the next.
        held: (position in the plan, image) whose last token was kept against the decision (see `prompt_end.py`).
    """

    pixels: Mapping[str, Tensor] = field(default_factory=dict)
    units: dict[int, Unit] = field(default_factory=dict)
    encoder_inputs: dict[int, EncoderInput] = field(default_factory=dict)
    middle: MidLayerState | None = None
    observed: EncoderObservation = field(default_factory=EncoderObservation)
    features: Tensor | None = None
    row_of: tuple[Tensor, ...] = ()
    cuts: list[VisionCut] = field(default_factory=list)
    log_weights: dict[int, Tensor] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    held: set[tuple[int, int]] = field(default_factory=set)

    def pixels_of(self, unit: Unit) -> Tensor:
        """The pixels of an image or video.

        Raises:
            IncompatibleError: The inputs have no pixels, or the family does not say which rows belong to the image.
        """
        name, start, stop = unit.span.pixels or (
            next(iter(self.pixels), ""),
            unit.span.index,
            unit.span.index + unit.span.frames,
        )
        if name not in self.pixels:
            raise IncompatibleError(
                "this pruner draws from the image's pixels, but the inputs hold encoder outputs instead",
                hint="pass the processor's tensors as they are",
            )
        pixels = self.pixels[name]
        if unit.span.pixels is None and len(pixels) != len(self.units):
            raise IncompatibleError(
                f"`{name}` has {len(pixels)} rows for {len(self.units)} images, so it is not known which rows belong "
                "to which image",
                hint="describe the family in a plugin (hook `register_families`)",
            )
        return pixels[start:stop]


@dataclass
class TokenCounts:
    """Tokens per sample in one layer: visual tokens and all tokens, (B,) each."""

    visual: Tensor
    total: Tensor


@dataclass(frozen=True)
class RowUpdate:
    """A change of rows in one sample: rows at slots `targets` were picked by `anchors`, or merged, from `sources`."""

    sample: int
    sources: Tensor
    targets: Tensor
    anchors: Tensor
    merge: Tensor | None

    def apply(self, features: Tensor) -> None:
        """Apply the same change to another tensor (B, S, D) with one row per slot."""
        sources, targets, anchors = (part.to(features.device) for part in (self.sources, self.targets, self.anchors))
        rows = features[self.sample, sources]
        if self.merge is None:
            features[self.sample, targets] = rows[anchors]
        else:
            features[self.sample, targets] = (self.merge.to(rows.device).float() @ rows.float()).to(rows.dtype)


@dataclass
class Prefill:
    """The state of one forward pass with images."""

    parts: Parts
    input_ids: Tensor
    valid: Tensor
    vision: VisionState
    units: list[Unit]
    stops: Mapping[int, Sequence[Stop]]
    """Plan by number of visual tokens."""
    frames: bool = False
    """The images of a sample are the frames of one video, and one unit from the decoder on."""
    memo: PrefillMemo | None = None
    """Results of other sessions on the same inputs."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    """The session's stopwatch for views and decisions."""
    done: list[Stop] = field(default_factory=list)
    records: list[UnitRecord] = field(default_factory=list)
    embeddings: Tensor | None = None
    """(B, S, D) LLM input embeddings."""
    layers: dict[int, LayerSnapshot] = field(default_factory=dict)
    middle: MidLayerState | None = None
    """Residual stream and MLP input, while a `mid` stop of the decoder is decided."""
    row_updates: list[RowUpdate] = field(default_factory=list)
    """Changes of rows by merges and reordering, in order; DeepStack features follow them."""
    attended: list[TokenCounts] = field(default_factory=list)
    cached: list[TokenCounts] = field(default_factory=list)
    through_mlp: list[TokenCounts] = field(default_factory=list)
    _fingerprints: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """What the pruner keeps from one stop to the next."""
        return self.vision.state

    @functools.cached_property
    def ends_in_image(self) -> frozenset[int]:
        """Samples whose prompt ends in an image; read from the device only once, since that token is never dropped."""
        last = {unit.span.sample: unit.span.slots[-1] for unit in self.units}
        slots = torch.arange(self.valid.shape[1], device=self.valid.device)
        ends = slots.expand_as(self.valid).masked_fill(~self.valid, -1).amax(dim=1)
        same = torch.stack(list(last.values())).to(ends.device) == ends[list(last)]
        return frozenset(sample for sample, ends_there in zip(last, same.tolist(), strict=True) if ends_there)

    @property
    def plan(self) -> Sequence[Stop]:
        """The plan of the first image; the plans of all images have the same sites."""
        return next(iter(self.stops.values()), ())

    def stop_for(self, unit: Unit, position: int) -> Stop:
        """The stop at a position of the plan, with the unit's budget."""
        return self.stops[unit.original][position]

    def asked(self, unit: Unit, position: int) -> int:
        """Number of tokens that the budget of a stop allows for a unit."""
        return self.stop_for(unit, position).keep(unit.original)

    def next_vision_stop(self) -> Stop | None:
        """The next stop while the vision side runs; it may be a stop in the decoder."""
        position = len(self.vision.cuts)
        return self.plan[position] if position < len(self.plan) else None

    def next_decoder_stop(self, layer: int, point: str) -> Stop | None:
        """The next stop, if it is at this point of this decoder layer."""
        if len(self.done) == len(self.plan):
            return None
        site = self.parts.family.made_at(self.plan[len(self.done)].site)
        if site.kind in ("input", "layer") and (site.decoder_layer, site.point) == (layer, point):
            return self.plan[len(self.done)]
        return None

    def join_frames(self) -> None:
        """Join the images of each sample into one unit."""
        by_sample: dict[int, list[Unit]] = {}
        for unit in self.units:
            by_sample.setdefault(unit.span.sample, []).append(unit)
        self.units = [units[0] if len(units) == 1 else Unit.video(units) for units in by_sample.values()]

    def count(self, rows: Rows) -> TokenCounts:
        """Tokens per sample that are left."""
        visual = torch.zeros(rows.slots.shape[0], dtype=torch.long, device=rows.slots.device)
        for unit in self.units:
            visual[unit.span.sample] += unit.tokens
        return TokenCounts(visual, rows.valid.sum(dim=1))

    def fingerprint(self, unit: Unit) -> int:
        """A hash of the image's pixels and of the sample's token ids, which does not depend on the batch.

        Raises:
            IncompatibleError: The pixels are not among the inputs.
        """
        key = (unit.span.sample, unit.span.image)
        if key not in self._fingerprints:
            digest = hashlib.blake2b(digest_size=8)
            digest.update(_unpadded(self.vision.pixels_of(unit).float().cpu()).numpy().tobytes())
            ids = self.input_ids[unit.span.sample][self.valid[unit.span.sample]]
            digest.update(ids.cpu().numpy().tobytes())
            digest.update(bytes([unit.span.image % 256]))
            self._fingerprints[key] = int.from_bytes(digest.digest(), "big") >> 1
        return self._fingerprints[key]


def _unpadded(pixels: Tensor) -> Tensor:
    """Pixels without trailing zeros on any axis: processors pad tiles and sizes to the largest of the batch."""
    for axis in range(1, pixels.ndim):
        others = [other for other in range(pixels.ndim) if other != axis]
        held = (pixels != 0).sum(dim=others).nonzero()
        pixels = pixels.narrow(axis, 0, int(held[-1]) + 1 if len(held) else 0)
    return pixels.contiguous()


def open_prefill(
    parts: Parts, inputs: Mapping[str, Any], known_spans: Callable[[Tensor], tuple[ImageSpan, ...]] | None = None
) -> tuple[Tensor, Tensor, tuple[ImageSpan, ...]] | None:
    """Token ids (B, S), validity (B, S) and images of a forward call; `None` if it has no visual tokens.

    Args:
        parts: The model.
        inputs: Arguments of the call.
        known_spans: Returns the images of the token ids, if they were found before.

    Raises:
        IncompatibleError: Images come without token ids, or with a mask that is not two-dimensional.
    """
    input_ids = inputs.get("input_ids")
    has_pixels = any(inputs.get(name) is not None for name in parts.family.pixels) or bool(
        inputs.get("mm_encoder_outputs")
    )
    if not has_pixels:
        return None  # the model may have generated a placeholder token itself
    if input_ids is None:
        raise IncompatibleError(
            "images come with `inputs_embeds`, so their placeholders cannot be found", hint="pass `input_ids`"
        )
    placeholder = parts.is_placeholder(input_ids)
    if not placeholder.any():
        return None
    spans = find_images(placeholder, parts.visuals(inputs)) if known_spans is None else known_spans(input_ids)
    if not spans:
        return None
    mask = inputs.get("attention_mask")
    if mask is None:
        valid = torch.ones_like(input_ids, dtype=torch.bool)
    elif is_per_token(mask):
        valid = mask[:, -input_ids.shape[1] :].bool()
    else:
        found = f"has {mask.ndim} dimensions" if isinstance(mask, Tensor) else f"is a `{type(mask).__name__}`"
        raise IncompatibleError(
            f"the attention mask {found}; only (batch, length) masks can be shortened",
            hint="pass a two-dimensional attention mask",
        )
    return input_ids, valid, spans


def is_per_token(mask: Any) -> bool:
    """Whether an attention mask only marks padding, (B, S)."""
    return isinstance(mask, Tensor) and mask.ndim == 2


def rebase(unit: Unit, span: ImageSpan) -> Unit:
    """The same tokens of an image, at their slots in another copy of the prompt."""
    slots = span.slots
    unit = replace(
        unit,
        indices=unit.indices.to(slots.device),
        slot_of=unit.slot_of.to(slots.device),
        sizes=unit.sizes.to(slots.device),
    )
    slot_of = torch.where(unit.slot_of >= 0, slots, torch.full_like(slots, -1))
    order = unit.indices.sort().values
    return replace(unit, span=span, slots=slots[order], slot_of=slot_of)
