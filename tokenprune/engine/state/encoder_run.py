"""What a session observed of a vision encoder in one forward pass: inputs of its layers, and its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.patch.attention_probe import Projections, project, without_rotation
from tokenprune.families.encoder_rows import EncoderRows, TokenRows

#: Arguments of encoder layers that rotate queries and keys.
_ROTATIONS = ("position_embeddings", "freqs_ci")


@dataclass(frozen=True)
class EncoderLayerCall:
    """The call of one encoder layer: hidden states (images, R, C), or packed (P, C), and its other arguments."""

    layer: nn.Module
    hidden: Tensor
    call: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows of all images."""
        return self.hidden.shape[:-1].numel()

    @property
    def segment_bounds(self) -> Tensor | None:
        """Bounds of the packed segments whose rows attend to each other; `None` if rows are not packed."""
        found: Tensor | None = self.call.get("cu_seqlens", self.call.get("cu_seq_lens_q"))
        return found

    def projections(self, *, rotated: bool) -> Projections:
        """Queries, keys and values of all rows, (images, H, R, d) or (1, H, P, d)."""
        call = {name: value for name, value in self.call.items() if name != "attention_mask"}
        if self.call.get("cu_seqlens") is not None:
            call["cu_seqlens"] = self.call["cu_seqlens"][[0, -1]]
        for name in _ROTATIONS if not rotated else ():
            if call.get(name) is not None:
                call[name] = without_rotation(call[name])
        return project(self.layer, self.hidden, **call)


@dataclass
class EncoderRun:
    """One run of a vision tower: the calls of its layers, and the rows (images, R, C) or (P, C) that make tokens."""

    layer_calls: dict[int, EncoderLayerCall] = field(default_factory=dict)
    features: Tensor | None = None

    def image_bounds(self) -> Tensor | None:
        """Bounds of whole images or frames in packed rows; some layers run with smaller windows."""
        found = [entered.segment_bounds for entered in self.layer_calls.values() if entered.segment_bounds is not None]
        return min(found, key=len) if found else None


@dataclass
class EncoderObservation:
    """What one forward pass observed of the encoder.

    Args:
        rows: Which encoder rows make the tokens of each image; `None` if the call has no pixels.
        runs: Runs of the towers, in order.
    """

    rows: EncoderRows | None = None
    runs: list[EncoderRun] = field(default_factory=list)

    def tokens_of(self, index: int, count: int) -> list[TokenRows]:
        """Encoder rows of a unit of `count` tokens whose first image is `index`: an image, a video, or frames."""
        if self.rows is None:
            return []
        found: list[TokenRows] = []
        while sum(len(tokens.index) for tokens in found) < count:
            found.append(self.rows.tokens[index + len(found)])
        return found
