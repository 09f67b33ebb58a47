"""One forward pass: its inputs, its images, and what has become of their tokens so far."""

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
    """The visual tokens of one image or video, as far as they are still there.

    Args:
        span: The image.
        indices: (n,) original index of each token, in sequence order.
        places: (n,) slot in which each token stands.
        place_of: (N,) slot of each original token, -1 where it is gone.
        sizes: (n,) original tokens that each row stands for.
    """

    span: ImageSpan
    indices: Tensor
    places: Tensor
    place_of: Tensor
    sizes: Tensor

    @classmethod
    def whole(cls, span: ImageSpan) -> Unit:
        """All tokens of an image at their own slots."""
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
            torch.cat([frame.places for frame in frames]),
            torch.cat([frame.place_of for frame in frames]),
            torch.cat([frame.sizes for frame in frames]),
        )

    @property
    def original(self) -> int:
        """Visual tokens before the first cut."""
        return len(self.span.slots)

    @property
    def tokens(self) -> int:
        """Visual tokens still there."""
        return len(self.indices)

    def follow(self, kept: Kept) -> Unit:
        """The unit after a decision: emitted rows stand, in order, in the anchors' places sorted by slot."""
        anchors = kept.anchors.to(self.indices.device)
        indices = self.indices[anchors]
        places = self.places[anchors.sort().values]
        place_of = torch.full_like(self.place_of, -1)
        place_of[indices] = places
        sizes = self.sizes[anchors]
        if kept.merge is not None:
            sizes = (kept.merge.to_dense().to(self.sizes.device) != 0).float() @ self.sizes
        return Unit(self.span, indices, places, place_of, sizes)


@dataclass(frozen=True)
class LayerInput:
    """What entered one decoder layer: hidden states (B, S', D), position embeddings, rows, and the units then."""

    hidden: Tensor
    position_embeddings: Any
    call: Mapping[str, Any]
    """The other arguments of its forward."""
    rows: Rows
    log_weights: Tensor | None
    place_of: tuple[Tensor, ...]


@dataclass(frozen=True)
class EncoderInput:
    """The rows of one encoder layer, for all images; the CLS row, where there is one, is row 0.

    Args:
        hidden: (images, R, C) what entered the layer, padded at the end.
        valid: (images, R) False where a row is padding; `None` where none is.
        log_weights: (images, R) added to the attention logits of the rows, or `None`.
        row_of: Per image, the row of each original token, -1 where it is gone, (N,).
    """

    hidden: Tensor
    valid: Tensor | None
    log_weights: Tensor | None
    row_of: tuple[Tensor, ...]

    def bias(self) -> Tensor | None:
        """What is added to the attention logits of every row, (images, 1, 1, R), or `None` for nothing."""
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
    """A stop before the decoder: by image, the unit before it and what was kept."""

    stop: Stop
    position: int
    units: Mapping[int, tuple[Unit, Kept]]


@dataclass
class VisionState:
    """What the vision side made of the images, by image; `generate` runs it before the decoder, and once per prompt.

    Args:
        pixels: The processor's tensors that bring images or videos, by name.
        units: Tokens of each image, as far as they are still there.
        encoder_inputs: What entered each encoder layer.
        middle: The residual stream and the MLP's input at the `mid` point that is being decided.
        observed: What was seen of an encoder that is observed and not cut.
        features: (images, R, C) what the projector would read.
        row_of: Per image, the row of each original token in `features`, (N,).
        cuts: Stops that ran before the decoder.
        log_weights: By image, what the cut between encoder and projector adds to the decoder's logits, (K,).
        state: What the pruner keeps from one stop to the next.
        held: Places in the plan and images whose last token stayed against the pruner's answer (`ends.py`).
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
            IncompatibleError: They are not among the inputs, or it is not known which of them are this image's.
        """
        name, start, stop = unit.span.pixels or (
            next(iter(self.pixels), ""),
            unit.span.index,
            unit.span.index + unit.span.frames,
        )
        if name not in self.pixels:
            raise IncompatibleError(
                "this pruner draws from the image's pixels, but the inputs hold encoder outputs in their place",
                hint="pass the processor's tensors as they are",
            )
        pixels = self.pixels[name]
        if unit.span.pixels is None and len(pixels) != len(self.units):
            raise IncompatibleError(
                f"`{name}` has {len(pixels)} rows for {len(self.units)} images: which pixels are whose is not known",
                hint="describe the family in a plugin (hook `register_families`)",
            )
        return pixels[start:stop]


@dataclass
class Counts:
    """Tokens per sample that one stretch of layers runs with: visual ones and all, (B,) each."""

    visual: Tensor
    total: Tensor


@dataclass(frozen=True)
class Move:
    """Rows of one sample at `targets` that were made of those at `sources` (slots): picked by `anchors`, or merged."""

    sample: int
    sources: Tensor
    targets: Tensor
    anchors: Tensor
    merge: Tensor | None

    def apply(self, planes: Tensor) -> None:
        """Do the same to other tensors (B, S, D) that lie beside the rows."""
        sources, targets, anchors = (part.to(planes.device) for part in (self.sources, self.targets, self.anchors))
        rows = planes[self.sample, sources]
        if self.merge is None:
            planes[self.sample, targets] = rows[anchors]
        else:
            planes[self.sample, targets] = (self.merge.to(rows.device).float() @ rows.float()).to(rows.dtype)


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
    """The images of a sample are the frames of one video, seen as one unit from the decoder on."""
    memo: PrefillMemo | None = None
    """What other sessions have computed on the same inputs."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    """The session's, on all that its pruner asks and decides."""
    done: list[Stop] = field(default_factory=list)
    records: list[UnitRecord] = field(default_factory=list)
    embeddings: Tensor | None = None
    """(B, S, D) LLM input embeddings."""
    layers: dict[int, LayerInput] = field(default_factory=dict)
    middle: MidLayerState | None = None
    """The residual stream and the MLP's input at the decoder's `mid` point that is being decided."""
    moves: list[Move] = field(default_factory=list)
    """Rows that were merged or took over another place, in order."""
    attended: list[Counts] = field(default_factory=list)
    cached: list[Counts] = field(default_factory=list)
    through_mlp: list[Counts] = field(default_factory=list)
    _fingerprints: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """What the pruner keeps from one stop to the next."""
        return self.vision.state

    @functools.cached_property
    def ends_in_image(self) -> frozenset[int]:
        """Samples whose prompt ends in an image. Read from the device once: its last token never leaves."""
        last = {unit.span.sample: unit.span.slots[-1] for unit in self.units}
        slots = torch.arange(self.valid.shape[1], device=self.valid.device)
        ends = slots.expand_as(self.valid).masked_fill(~self.valid, -1).amax(dim=1)
        same = torch.stack(list(last.values())).to(ends.device) == ends[list(last)]
        return frozenset(sample for sample, ends_there in zip(last, same.tolist(), strict=True) if ends_there)

    @property
    def plan(self) -> Sequence[Stop]:
        """The plan of the first image; every image has the same sites."""
        return next(iter(self.stops.values()), ())

    def stop_for(self, unit: Unit, position: int) -> Stop:
        """The stop at a place in the plan, with the budget that fits the unit."""
        return self.stops[unit.original][position]

    def asked(self, unit: Unit, position: int) -> int:
        """Rows that the budget of a stop allows to a unit."""
        return self.stop_for(unit, position).keep(unit.original)

    def next_stop(self) -> Stop | None:
        """The stop that comes next before the decoder."""
        position = len(self.vision.cuts)
        return self.plan[position] if position < len(self.plan) else None

    def join_frames(self) -> None:
        """Make one unit of the images of each sample."""
        by_sample: dict[int, list[Unit]] = {}
        for unit in self.units:
            by_sample.setdefault(unit.span.sample, []).append(unit)
        self.units = [units[0] if len(units) == 1 else Unit.video(units) for units in by_sample.values()]

    def count(self, rows: Rows) -> Counts:
        """Tokens per sample at present."""
        visual = torch.zeros(rows.slots.shape[0], dtype=torch.long, device=rows.slots.device)
        for unit in self.units:
            visual[unit.span.sample] += unit.tokens
        return Counts(visual, rows.valid.sum(dim=1))

    def fingerprint(self, unit: Unit) -> int:
        """A number made of the image's pixels and of the sample's token ids: the same in any batch.

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
    """Pixels without zeros at the ends of their axes: processors pad tiles and sizes to those of the batch."""
    for axis in range(1, pixels.ndim):
        others = [other for other in range(pixels.ndim) if other != axis]
        held = (pixels != 0).sum(dim=others).nonzero()
        pixels = pixels.narrow(axis, 0, int(held[-1]) + 1 if len(held) else 0)
    return pixels.contiguous()


def open_prefill(
    parts: Parts, inputs: Mapping[str, Any], known: Callable[[Tensor], tuple[ImageSpan, ...]] | None = None
) -> tuple[Tensor, Tensor, tuple[ImageSpan, ...]] | None:
    """Token ids (B, S), validity (B, S) and images of a forward call; `None` where it brings no visual tokens.

    Args:
        parts: The model.
        inputs: Arguments of the call.
        known: Images of the token ids, where they were found before.

    Raises:
        IncompatibleError: Images come without token ids, or with a mask that is not two-dimensional.
    """
    input_ids = inputs.get("input_ids")
    brings = any(inputs.get(name) is not None for name in parts.family.pixels) or bool(inputs.get("mm_encoder_outputs"))
    if not brings:
        return None  # a model may also generate the placeholder itself
    if input_ids is None:
        raise IncompatibleError(
            "images come with `inputs_embeds`, so their placeholders cannot be found", hint="pass `input_ids`"
        )
    placeholder = parts.is_placeholder(input_ids)
    if not placeholder.any():
        return None
    spans = find_images(placeholder, parts.visuals(inputs)) if known is None else known(input_ids)
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
    """Whether an attention mask says which tokens are padding, (B, S), and no more."""
    return isinstance(mask, Tensor) and mask.ndim == 2


def rebase(unit: Unit, span: ImageSpan) -> Unit:
    """The same tokens of an image, at the slots of another copy of its prompt."""
    slots = span.slots
    unit = replace(
        unit,
        indices=unit.indices.to(slots.device),
        place_of=unit.place_of.to(slots.device),
        sizes=unit.sizes.to(slots.device),
    )
    place_of = torch.where(unit.place_of >= 0, slots, torch.full_like(slots, -1))
    order = unit.indices.sort().values
    return replace(unit, span=span, places=slots[order], place_of=place_of)
