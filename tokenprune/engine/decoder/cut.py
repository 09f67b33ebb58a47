"""Remove rows from a decoder layer's input after a pruner's decision, and write the decision's record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.engine.state.prefill import Prefill, RowUpdate, Unit
from tokenprune.engine.state.rows import Rows, gather_rows
from tokenprune.pruner import Kept, Stop, UnitRecord


@dataclass(frozen=True)
class DecoderInput:
    """What enters a decoder layer.

    Args:
        hidden: (B, S', D) hidden states.
        rows: Which slot of the prompt each row holds.
        origins: (B, S') slot of the prompt whose position each row has; `None` if each row has its own slot's.
        log_weights: (B, S') added to the attention logits of the rows, or `None`.
    """

    hidden: Tensor
    rows: Rows
    origins: Tensor | None = None
    log_weights: Tensor | None = None

    def positions(self) -> Tensor:
        """(B, S') slot of the prompt whose position each row has; 0 for padding."""
        return (self.rows.slots if self.origins is None else self.origins).clamp(min=0)


def take(
    prefill: Prefill, sequence: DecoderInput, selections: Sequence[tuple[Unit, Kept]], *, merge: bool, pad_left: bool
) -> DecoderInput:
    """Remove the rows that are not kept; returns the same object if nothing changes.

    Args:
        prefill: The prefill; its units are replaced.
        sequence: What enters the layer.
        selections: One decision per unit.
        merge: Build merged rows here; `False` if the emitted rows are already in their slots.
        pad_left: Pad shorter samples on the left instead of on the right.
    """
    if all(_is_identity(unit, kept) for unit, kept in selections):
        return sequence
    rows = sequence.rows
    remaining = rows.inverse >= 0
    hidden, origins, weights = sequence.hidden, sequence.positions(), sequence.log_weights
    is_copy = False
    followed: dict[int, Unit] = {}
    for unit, kept in selections:
        after = unit.after_decision(kept)
        followed[id(unit)] = after
        sample = unit.span.sample
        remaining[sample, unit.slots] = False
        remaining[sample, after.slots] = True
        anchors = kept.anchors.to(unit.slots.device)
        moved = kept.merge is not None or not bool((anchors[1:] > anchors[:-1]).all())
        if moved or kept.log_weights is not None:
            if not is_copy:
                hidden, origins = hidden.clone(), origins.clone()
                is_copy = True
            prefill.row_updates.append(
                RowUpdate(sample, unit.slots, after.slots, anchors, kept.merge if merge else None)
            )
            source = rows.inverse[sample, unit.slots]
            target = rows.inverse[sample, after.slots]
            read, written = source.to(hidden.device), target.to(hidden.device)
            if merge and kept.merge is not None:
                emitted = kept.merge.to(hidden.device).float() @ sequence.hidden[sample, read].float()
                hidden[sample, written] = emitted.to(hidden.dtype)
            elif merge:
                hidden[sample, written] = sequence.hidden[sample, read[anchors.to(hidden.device)]]
            origins[sample, target] = sequence.positions()[sample, source[anchors]]
            if weights is not None or kept.log_weights is not None:
                old = torch.zeros(hidden.shape[:2], device=source.device) if weights is None else weights
                weights = old.clone()
                weights[sample, target] = old[sample, source[anchors]]
                if kept.log_weights is not None:
                    weights[sample, target] += kept.log_weights.to(source.device).float()
    prefill.units = [followed.get(id(unit), unit) for unit in prefill.units]
    index, shorter = rows.select(remaining, pad_left=pad_left)
    return DecoderInput(
        hidden=gather_rows(hidden, index),
        rows=shorter,
        origins=origins.gather(1, index) if is_copy or sequence.origins is not None else None,
        log_weights=None if weights is None else weights.gather(1, index).masked_fill(~shorter.valid, 0.0),
    )


def record(prefill: Prefill, stop: Stop, position: int, selections: Sequence[tuple[Unit, Kept]]) -> list[UnitRecord]:
    """What the stop at `position` of the plan did, one record per unit."""
    entries = []
    for unit, kept in selections:
        weights = () if kept.log_weights is None else tuple(float(weight) for weight in kept.log_weights.tolist())
        entries.append(
            UnitRecord(
                sample=unit.span.sample,
                image=unit.span.image,
                site=str(prefill.parts.family.made_at(stop.site)),
                decoder_layer=stop.site.decoder_layer,
                before=unit.tokens,
                asked=prefill.asked(unit, position),
                kept=len(kept.anchors),
                indices=tuple(unit.indices[kept.anchors.to(unit.indices.device)].tolist()),
                merged=kept.merge is not None,
                log_weights=weights,
                labels=kept.labels or (),
                auto=stop.auto,
                held=(position, unit.span.index) in prefill.vision.held,
            )
        )
    return entries


def _is_identity(unit: Unit, kept: Kept) -> bool:
    if kept.merge is not None or kept.log_weights is not None or len(kept.anchors) != unit.tokens:
        return False
    return bool((kept.anchors.cpu() == torch.arange(unit.tokens)).all())
