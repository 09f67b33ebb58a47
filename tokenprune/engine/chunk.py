"""One forward pass: its inputs, its images, and what has become of their tokens so far."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.layout import ImageSpan, find_images
from tokenprune.engine.rows import Rows
from tokenprune.errors import IncompatibleError
from tokenprune.models.family import Parts
from tokenprune.pruner import Kept, State, Stop, UnitRecord


@dataclass
class Unit:
    """The visual tokens of one image, as far as they are still there.

    Args:
        span: The image.
        indices: (n,) original index of each token, in sequence order.
        places: (n,) slot in which each token stands.
        place_of: (N,) slot of each original token, -1 where it is gone.
    """

    span: ImageSpan
    indices: Tensor
    places: Tensor
    place_of: Tensor

    @classmethod
    def whole(cls, span: ImageSpan) -> Unit:
        """All tokens of an image at their own slots."""
        return cls(span, torch.arange(len(span.slots), device=span.slots.device), span.slots, span.slots)

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
        return Unit(self.span, indices, places, place_of)


@dataclass(frozen=True)
class Layer:
    """What entered one decoder layer: hidden states (B, S', D), position embeddings, rows, and the units then."""

    hidden: Tensor
    position_embeddings: tuple[Tensor, Tensor]
    rows: Rows
    log_weights: Tensor | None
    place_of: tuple[Tensor, ...]


@dataclass
class Vision:
    """What the vision side made of the images, by image; `generate` runs it before the decoder, and once per prompt.

    Args:
        pixel_values: (images, 3, height, width).
        tower_inputs: What entered each encoder layer, (images, patches, C).
        features: (images, N, C) what the projector would read.
        kept: Selections made before the decoder, whose rows already stand in place.
        done: Stops that ran before the decoder.
    """

    pixel_values: Tensor | None = None
    tower_inputs: dict[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    kept: dict[int, Kept] = field(default_factory=dict)
    done: list[Stop] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Chunk:
    """The state of one forward pass with images."""

    parts: Parts
    input_ids: Tensor
    valid: Tensor
    vision: Vision
    units: list[Unit]
    stops: Mapping[int, Sequence[Stop]]
    """Plan by number of visual tokens."""
    state: State = field(default_factory=dict)
    done: list[Stop] = field(default_factory=list)
    records: list[UnitRecord] = field(default_factory=list)
    embeddings: Tensor | None = None
    """(B, S, D) LLM input embeddings."""
    layers: dict[int, Layer] = field(default_factory=dict)
    timeline: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """(first layer, visual tokens per sample, all tokens per sample)."""
    seconds: float = 0.0
    _fingerprints: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def plan(self) -> Sequence[Stop]:
        """The plan of the first image; every image has the same sites."""
        return next(iter(self.stops.values()), ())

    def stop_for(self, unit: Unit, position: int) -> Stop:
        """The stop at a place in the plan, with the budget that fits the unit."""
        return self.stops[unit.original][position]

    def fingerprint(self, unit: Unit) -> int:
        """A number made of the image's pixels and of the sample's token ids: the same in any batch.

        Raises:
            IncompatibleError: The pixels are not among the inputs.
        """
        key = (unit.span.sample, unit.span.image)
        if key not in self._fingerprints:
            if self.vision.pixel_values is None:
                raise IncompatibleError(
                    "this pruner draws from the image's pixels, but the inputs hold encoder outputs in their place",
                    hint="pass `pixel_values`",
                )
            digest = hashlib.blake2b(digest_size=8)
            digest.update(self.vision.pixel_values[unit.span.index].float().cpu().numpy().tobytes())
            ids = self.input_ids[unit.span.sample][self.valid[unit.span.sample]]
            digest.update(ids.cpu().numpy().tobytes())
            digest.update(bytes([unit.span.image % 256]))
            self._fingerprints[key] = int.from_bytes(digest.digest(), "big") >> 1
        return self._fingerprints[key]


def open_chunk(parts: Parts, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, tuple[ImageSpan, ...]] | None:
    """Token ids (B, S), validity (B, S) and images of a forward call; `None` where it brings no images.

    Raises:
        IncompatibleError: Images come without token ids, or with a mask that is not two-dimensional.
    """
    input_ids = inputs.get("input_ids")
    brings = inputs.get("pixel_values") is not None or bool(inputs.get("mm_encoder_outputs"))
    if not brings:
        return None  # a model may also generate the placeholder itself
    if input_ids is None:
        raise IncompatibleError(
            "images come with `inputs_embeds`, so their placeholders cannot be found", hint="pass `input_ids`"
        )
    tokens = int((input_ids == parts.image_token_id).sum())
    if not tokens:
        return None
    spans = find_images(input_ids, parts.image_token_id, parts.grids(inputs, tokens))
    mask = inputs.get("attention_mask")
    if mask is None:
        valid = torch.ones_like(input_ids, dtype=torch.bool)
    elif mask.ndim == 2:
        valid = mask[:, -input_ids.shape[1] :].bool()
    else:
        raise IncompatibleError(
            f"the attention mask has {mask.ndim} dimensions; only (batch, length) masks can be shortened",
            hint="pass a two-dimensional attention mask",
        )
    return input_ids, valid, spans
