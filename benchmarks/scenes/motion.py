"""Stage 3: the language model learns what is when, first in its visual tokens and then in its answers.

Beside the answers, every visual token says which frame it belongs to, and those on objects say, from the second
frame on, where their object goes and whether it has appeared. Two linear heads that are not exported read that
from the hidden states: thousands of small lessons a video, where the answers give a dozen.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from benchmarks.scenes.configs import PATCHES
from benchmarks.scenes.data import COLUMNS
from benchmarks.scenes.language import LanguageStage
from benchmarks.scenes.packing import IGNORE, PREFIX, Pack
from benchmarks.scenes.vision import patch_owners
from tokenprune.tasks.scenes.video import FRAMES, WAYS

FRAME_LAYER: Final = 1
"""Decoder layer whose output names the frame."""
MOTION_LAYER: Final = 3
"""Decoder layer whose output names way and change."""
HINT_WEIGHT: Final = 0.3


def motion_targets(objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Way (0: none) and change (1: it has appeared) of the object under every patch; both (B, N).

    Background and the first frame, where nothing can be known yet, are IGNORE.

    Args:
        objects: The tables of the frames; (B, F, O, 8).
    """
    flat = objects.flatten(0, 1)
    owner, outside, _ = patch_owners(flat[..., :COLUMNS])
    unknown = outside.view(len(objects), FRAMES, PATCHES).clone()
    unknown[:, 0] = True

    def of_owner(column: int) -> torch.Tensor:
        values = flat[..., column].long().gather(1, owner).view(len(objects), FRAMES, PATCHES)
        return values.masked_fill(unknown, IGNORE).flatten(1)

    return of_owner(COLUMNS), of_owner(COLUMNS + 1)


class FilmStage(LanguageStage):
    """The language stage with heads on two of its layers."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__(model)
        width = model.config.text_config.hidden_size
        self.frame_head = nn.Linear(width, FRAMES)
        self.motion_head = nn.Linear(width, 1 + len(WAYS) + 2)
        self._seen: dict[int, torch.Tensor] = {}
        for number in (FRAME_LAYER, MOTION_LAYER):
            self.decoder.layers[number].register_forward_hook(self._recorder(number))

    def _recorder(self, number: int) -> Any:
        def record(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            self._seen[number] = output

        return record

    def loss(
        self, features: torch.Tensor, objects: torch.Tensor, kept: torch.Tensor, pack: Pack
    ) -> tuple[torch.Tensor, dict[str, tuple[float, int]]]:
        """The loss of the answers and of what the visual tokens say, and (right, asked) by family and head."""
        loss, tally = super().loss(features, objects, kept, pack)
        visual = slice(PREFIX, PREFIX + kept.shape[1])
        early, late = (self._seen.pop(number)[:, visual] for number in (FRAME_LAYER, MOTION_LAYER))
        way, change = (target.gather(1, kept) for target in motion_targets(objects))
        motion = self.motion_head(late)
        hints = (
            ("hint-frame", self.frame_head(early), kept // PATCHES),
            ("hint-way", motion[..., : 1 + len(WAYS)], way),
            ("hint-change", motion[..., 1 + len(WAYS) :], change),
        )
        for name, logits, target in hints:
            asked = target != IGNORE
            loss = loss + HINT_WEIGHT * F.cross_entropy(logits[asked].float(), target[asked])
            right = logits.detach()[asked].argmax(-1) == target[asked]
            tally[name] = (float(right.sum()), int(asked.sum()))
        return loss, tally
