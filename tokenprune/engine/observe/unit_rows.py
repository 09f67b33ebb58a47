"""Find the rows of visual tokens and text in the tensors of a forward pass, for the units of one view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.engine.state.prefill import LayerSnapshot, Prefill, Unit
from tokenprune.engine.state.rows import gather_rows, pack_slots
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Rows


class UnitRows:
    """Row indices of B units of N visual tokens each, and gathers by them.

    Args:
        prefill: The running prefill.
        units: The units, of equal size.
        numbers: Index of each unit among all units of the prefill.
    """

    def __init__(self, prefill: Prefill, units: Sequence[Unit], numbers: Sequence[int]) -> None:
        self._prefill = prefill
        self._units = tuple(units)
        self._numbers = tuple(numbers)
        self.original_tokens: int = units[0].original
        self._indices = torch.stack([unit.indices for unit in units])
        self._device = self._indices.device
        """The device of the prompt. A pruner gets all tensors on it; layers may be on other devices."""
        self._sample = torch.tensor([unit.span.sample for unit in units], device=self._indices.device)
        frames = torch.arange(units[0].span.frames, device=self._indices.device)
        self._images = torch.tensor([unit.span.index for unit in units], device=frames.device)[:, None] + frames
        self._text: tuple[Tensor, Tensor] | None = None

    def _vision_rows(self, values: Tensor, row_of: Sequence[Tensor]) -> Tensor:
        """Rows (B, N, ...) of the units' remaining tokens in a tensor of the vision side, (images, R, ...), float32.

        A remaining token always has a row there: tokens only become fewer from layer to layer.
        """
        frames, cells = self._images.shape[1], self.original_tokens // self._images.shape[1]
        rows = torch.stack([row_of[image] for image in self._images.flatten().tolist()])
        rows = rows.view(len(self._units), frames * cells).gather(1, self._indices)
        image = self._images.gather(1, self._indices // cells)
        return values[image.to(values.device), rows.to(values.device)].detach().float().to(self._device)

    def _encoder_means(self, values: Tensor) -> Tensor:
        """Mean of encoder values (rows, ...) over the rows that make each token, (B, N, ...), float32."""
        observed = self._prefill.vision.observed
        units = [
            torch.cat([tokens.pool(values.detach()) for tokens in observed.tokens_of(unit.span.index, unit.original)])
            for unit in self._units
        ]
        stacked = torch.stack(units).to(self._device)
        index = self._indices.reshape(*self._indices.shape, *[1] * (stacked.ndim - 2))
        return stacked.gather(1, index.expand(-1, -1, *stacked.shape[2:]))

    def _present_slots(self) -> Tensor:
        return torch.stack([unit.slots for unit in self._units])

    def _visual_rows(self, snapshot: LayerSnapshot) -> Tensor:
        """Row of each visual token (B, N) in the sequence that entered a layer."""
        slots = torch.stack([snapshot.slot_of[number] for number in self._numbers]).gather(1, self._indices)
        return snapshot.rows.inverse[self._sample].gather(1, slots)

    def _named_rows(self, rows: Rows, snapshot: LayerSnapshot) -> tuple[Tensor, Tensor]:
        """Row indices (B, R) of `last`, `text` or `visual` rows in the sequence that entered a layer, and the mask."""
        if rows == "visual":
            index = self._visual_rows(snapshot)
            return index, torch.ones_like(index, dtype=torch.bool)
        slots, mask = self._text_slots()
        if rows == "last":
            valid = self._prefill.valid[self._sample]
            positions = torch.arange(valid.shape[1], device=valid.device)
            slots = positions.expand_as(valid).masked_fill(~valid, -1).amax(dim=1, keepdim=True)
            mask = torch.ones_like(slots, dtype=torch.bool)
        elif rows != "text":
            raise IncompatibleError(f"unknown rows `{rows}`", hint="use `last`, `text` or `visual`")
        return snapshot.rows.inverse[self._sample].gather(1, slots).clamp(min=0), mask

    def _text_slots(self) -> tuple[Tensor, Tensor]:
        """Slots (B, T) of the text after each unit's image, and the mask."""
        if self._text is None:
            ids = self._prefill.input_ids[self._sample]
            end = torch.stack([unit.span.slots[-1] for unit in self._units])
            after = torch.arange(ids.shape[1], device=ids.device)[None, :] > end[:, None]
            text = after & self._prefill.valid[self._sample] & ~self._prefill.parts.is_placeholder(ids)
            self._text = pack_slots(text)
        return self._text

    def _gather_heads(self, values: Tensor, index: Tensor) -> Tensor:
        """Rows `index` (B, K) of per-head tensors (samples, H, S', d), float32."""
        chosen = values[self._sample.to(values.device)]
        expanded = index.to(values.device)[:, None, :, None].expand(-1, chosen.shape[1], -1, chosen.shape[3])
        return chosen.gather(2, expanded).float().to(self._device)

    def _gather_states(self, states: Tensor, index: Tensor) -> Tensor:
        """Rows `index` (B, K) of the units' samples in states (samples, S', D), float32."""
        return gather_rows(states[self._sample.to(states.device)], index).detach().float().to(self._device)
