"""What was seen of a vision encoder in one forward pass: what entered its layers, and what it gave."""

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
    """What entered one encoder layer: hidden states (images, R, C), or packed (P, C), and its other arguments."""

    layer: nn.Module
    hidden: Tensor
    call: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows of all images."""
        return self.hidden.shape[:-1].numel()

    @property
    def stretches(self) -> Tensor | None:
        """Where the stretches of packed rows that see each other begin and end, or `None` where nothing is packed."""
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
    """One run of a tower: what entered its layers, and the rows (images, R, C) or (P, C) that become the tokens."""

    entered: dict[int, EncoderLayerCall] = field(default_factory=dict)
    features: Tensor | None = None

    def images(self) -> Tensor | None:
        """The stretches of whole images or frames, where layers run with windows of them."""
        found = [entered.stretches for entered in self.entered.values() if entered.stretches is not None]
        return min(found, key=len) if found else None


@dataclass
class EncoderObservation:
    """What one forward pass showed of the encoder.

    Args:
        rows: Which rows make the tokens of each image; `None` where the pass brought no pixels.
        runs: Runs of the towers, in order.
    """

    rows: EncoderRows | None = None
    runs: list[EncoderRun] = field(default_factory=list)

    def tokens_of(self, index: int, count: int) -> list[TokenRows]:
        """Rows of a unit of `count` tokens that begins with image `index`: one image or video, or images as frames."""
        if self.rows is None:
            return []
        found: list[TokenRows] = []
        while sum(len(tokens.index) for tokens in found) < count:
            found.append(self.rows.tokens[index + len(found)])
        return found
