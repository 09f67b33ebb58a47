"""Stage 1: the vision tower learns what is in every patch, in the words of the text tower.

The supervision is dense and sits at the layer that the projector reads, so the language model finds
everything it needs there, and the joint image-text space is trained by the same loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from benchmarks.scenes.configs import GRID, PATCH, PATCHES, READ_LAYER, WIDTH_VISION, clip_config
from benchmarks.scenes.words import build_tokenizer
from tokenprune.tasks.scenes.generator import COLOURS, SHAPES

NAMES: Final = (*SHAPES, *(f"digit {value}" for value in range(10)))
"""What an object can be called, without its colour."""
PHRASES: Final = (
    "background",
    *NAMES,
    *COLOURS,
    *(f"{colour} {name}" for colour in COLOURS for name in NAMES),
)
NAME_SLICE: Final = slice(1, 1 + len(NAMES))
COLOUR_SLICE: Final = slice(NAME_SLICE.stop, NAME_SLICE.stop + len(COLOURS))
FULL_SLICE: Final = slice(COLOUR_SLICE.stop, len(PHRASES))
IGNORE: Final = -100
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.25, 0.25, 0.25)


def to_pixel_values(pixels: np.ndarray) -> torch.Tensor:
    """Normalise pictures as the processor does: (B, 128, 128, 3) uint8 to (B, 3, 128, 128)."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@dataclass(frozen=True)
class PatchTargets:
    """What every patch shows; all (B, N) with IGNORE on background unless said otherwise.

    Attributes:
        name: Index into NAMES.
        colour: Index of the colour.
        column: Patch column of the centre of the object the patch belongs to.
        row: Patch row of that centre.
        anchor: 1.0 on the one patch that holds an object's centre, otherwise 0.0.
        present: Which of PHRASES the picture shows; (B, len(PHRASES)).
    """

    name: torch.Tensor
    colour: torch.Tensor
    column: torch.Tensor
    row: torch.Tensor
    anchor: torch.Tensor
    present: torch.Tensor


def patch_owners(objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which object every patch shows, from the object table (B, O, 6).

    Returns:
        The nearest object, whether the patch lies outside of it, and whether it holds a centre; all (B, N).
    """
    kind, _, _, x, y, radius = objects.unbind(-1)
    real = kind >= 0
    centres = (torch.arange(GRID) + 0.5) * PATCH
    px, py = centres.repeat(GRID), centres.repeat_interleave(GRID)
    distance = torch.hypot(px - x[..., None], py - y[..., None])
    distance = distance.masked_fill(~real[..., None], math.inf)
    column, row = (x / PATCH).long(), (y / PATCH).long()
    place = (row * GRID + column).clamp(0, PATCHES - 1)
    is_anchor = F.one_hot(place, PATCHES).bool() & real[..., None]
    # The patch with the centre always belongs to the object, however small that is.
    distance = distance.masked_fill(is_anchor, -1.0)
    nearest, owner = distance.min(dim=1)
    reach = radius.gather(1, owner)
    return owner, nearest > reach, is_anchor.any(1)


def patch_targets(objects: torch.Tensor) -> PatchTargets:
    """Targets from the object table (B, O, 6)."""
    kind, colour, value, x, y, _ = objects.unbind(-1)
    real = kind >= 0
    name = torch.where(value >= 0, len(SHAPES) + value, kind).long()
    column, row = (x / PATCH).long(), (y / PATCH).long()
    owner, outside, anchor = patch_owners(objects)

    def of_owner(values: torch.Tensor) -> torch.Tensor:
        return values.long().gather(1, owner).masked_fill(outside, IGNORE)

    present = torch.zeros(len(objects), len(PHRASES))
    batch = torch.arange(len(objects))[:, None].expand_as(kind)[real]
    n, c = name[real], colour[real].long()
    present[batch, NAME_SLICE.start + n] = 1
    present[batch, COLOUR_SLICE.start + c] = 1
    present[batch, FULL_SLICE.start + c * len(NAMES) + n] = 1
    return PatchTargets(
        of_owner(name),
        of_owner(colour),
        of_owner(column),
        of_owner(row),
        anchor.float(),
        present,
    )


def _sincos_table() -> torch.Tensor:
    """Smooth row and column codes for the start; (N, WIDTH_VISION)."""
    quarter = WIDTH_VISION // 4
    rates = 1.0 / (20.0 ** (torch.arange(quarter) / quarter))
    at = torch.arange(GRID)[:, None] * rates
    line = torch.cat([at.sin(), at.cos()], dim=-1)
    columns, rows = line.repeat(GRID, 1), line.repeat_interleave(GRID, dim=0)
    return torch.cat([columns, rows], dim=-1)


class VisionStage(nn.Module):
    """The CLIP model and the training-only heads on the features that the projector reads."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPModel(clip_config())
        tower = self.clip.vision_model
        with torch.no_grad():
            tower.embeddings.position_embedding.weight[1:].copy_(0.5 * _sincos_table())
            nn.init.normal_(tower.embeddings.patch_embedding.weight, std=192**-0.5)
        for layer in (*tower.encoder.layers, *self.clip.text_model.encoder.layers):
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.6 * module.in_features**-0.5)
        nn.init.normal_(self.clip.visual_projection.weight, std=WIDTH_VISION**-0.5)
        nn.init.normal_(self.clip.text_projection.weight, std=WIDTH_VISION**-0.5)
        self.sizes = (len(NAMES), len(COLOURS), GRID, GRID, GRID, GRID, 1)
        self.heads = nn.Linear(WIDTH_VISION, sum(self.sizes))
        self.background = nn.Parameter(torch.tensor(0.0))
        self.presence_bias = nn.Parameter(torch.tensor(-4.0))
        encoded = build_tokenizer(for_text_tower=True)(list(PHRASES), return_tensors="pt", padding=True)
        self.register_buffer("phrase_ids", encoded.input_ids, persistent=False)
        self.register_buffer("phrase_mask", encoded.attention_mask, persistent=False)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the projector reads, CLS first; (B, 1 + N, D)."""
        tower = self.clip.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:READ_LAYER]:
            hidden = layer(hidden, None)
        return hidden

    def joint(self, features: torch.Tensor) -> torch.Tensor:
        """Features in the joint space, unit length; (..., D)."""
        tower = self.clip.vision_model
        return F.normalize(self.clip.visual_projection(tower.post_layernorm(features)), dim=-1)

    def phrase_embeddings(self) -> torch.Tensor:
        """Text embeddings of PHRASES, unit length; (P, D)."""
        out = self.clip.text_model(input_ids=self.phrase_ids, attention_mask=self.phrase_mask)
        return F.normalize(self.clip.text_projection(out.pooler_output), dim=-1)

    def forward(self, pixel_values: torch.Tensor, targets: PatchTargets) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and its parts and accuracies by name."""
        read = self.features(pixel_values)
        patches = read[:, 1:]
        # The layer behind the read one serves the CLS token only: a part of the batch is enough.
        part = max(1, len(read) // 6)
        last = self.clip.vision_model.encoder.layers[READ_LAYER](read[:part], None)
        scale = self.clip.logit_scale.exp().clamp(max=60)
        texts = self.phrase_embeddings()
        inside = targets.name >= 0
        n, c = targets.name[inside], targets.colour[inside]
        # Two in three background patches say nothing new: an eighth of them is enough.
        empty = ~inside & (torch.rand(inside.shape) < 0.125)
        chosen = torch.cat([patches[inside], patches[empty]])
        similarity = (scale * self.joint(chosen) @ texts.T).float()
        zero = torch.zeros(int(empty.sum()), dtype=torch.long)
        losses: dict[str, torch.Tensor] = {}
        for names, goal in (
            (NAME_SLICE, n),
            (COLOUR_SLICE, c),
            (FULL_SLICE, c * len(NAMES) + n),
        ):
            options = torch.cat([similarity[:, :1], similarity[:, names]], dim=1)
            losses[f"joint-{names.start}"] = F.cross_entropy(options, torch.cat([goal + 1, zero]))
        place = torch.arange(PATCHES).expand_as(targets.name)
        goals = (
            targets.name,
            targets.colour,
            targets.column,
            targets.row,
            place % GRID,
            place // GRID,
        )
        *heads, anchor = self.heads(patches).float().split(self.sizes, dim=-1)
        labels = ("name", "colour", "column", "row", "own-column", "own-row")
        for label, head, goal in zip(labels, heads, goals, strict=True):
            losses[label] = F.cross_entropy(head.transpose(1, 2), goal, ignore_index=IGNORE)
        losses["anchor"] = 4 * F.binary_cross_entropy_with_logits(anchor[..., 0], targets.anchor)
        presence = (scale * self.joint(last[:, 0]) @ texts.T).float() + self.presence_bias
        losses["presence"] = 2 * F.binary_cross_entropy_with_logits(presence[:, 1:], targets.present[:part, 1:])
        with torch.no_grad():
            report = {name: float(value) for name, value in losses.items()}
            report["acc-name"] = float((heads[0][inside].argmax(-1) == n).float().mean())
            report["acc-colour"] = float((heads[1][inside].argmax(-1) == c).float().mean())
            at = targets.anchor.bool()
            right = heads[0][at].argmax(-1) == targets.name[at]
            digit = targets.name[at] >= len(SHAPES)
            report["acc-anchor-shape"] = float(right[~digit].float().mean())
            report["acc-anchor-digit"] = float(right[digit].float().mean())
            found = anchor[..., 0] > 0
            report["anchor-recall"] = float(found[at].float().mean())
            report["anchor-precision"] = float(at[found].float().mean())
            full = similarity[: len(n), FULL_SLICE].argmax(-1)
            report["acc-joint"] = float((full == c * len(NAMES) + n).float().mean())
        return torch.stack(list(losses.values())).sum(), report
