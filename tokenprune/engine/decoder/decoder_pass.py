"""One forward pass of the text model: its rows, key columns and positions, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.cache.caches import CacheState, Columns
from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.state.prefill import LayerInput, Prefill, Unit
from tokenprune.engine.state.rows import Rows, gather_embeddings


@dataclass
class DecoderPass:
    """What is known while the decoder layers run.

    Args:
        mask: The attention mask that the text model was given.
        position_ids: (B or 1, S) position of every slot, or (axes, B, S) where a position has several axes.
        compact: Positions are numbered without gaps. Positions with several axes (rows and columns of patches) leave
            no gap where a token goes, so that both policies are the same there.
        length: S.
        cache: The KV cache.
        past: What an earlier pass has taken out of it.
        seen: Tokens that the cache held before this pass, had it never been pruned.
        current: What enters the present layer.
        pad_left: Side of the padding.
        start: (B,) slot of each sample's first token.
        cut: Rows were taken out in this pass.
        whole: The model has built masks over all that the cache would hold unpruned, though it was pruned.
        entered: By layer, the rows that it ran with, while a cut may still reach back to its cache.
        counted: By layer, the rows among which positions without gaps were counted for its keys.
        columns: Key columns of every layer after this pass.
        queried: States and position embeddings that entered a layer, for views at decoding steps.
        hidden_tokens: By sample, numbers of the visual tokens that this step does not see.
        viewed: Columns with what is hidden taken for padding, by the columns' identity.
    """

    mask: Any
    position_ids: Tensor
    length: int
    compact: bool = False
    cache: Any = None
    past: CacheState | None = None
    seen: int = 0
    current: DecoderInput | None = None
    pad_left: bool = True
    start: Tensor | None = None
    cut: bool = False
    whole: bool = False
    entered: list[Rows] = field(default_factory=list)
    counted: list[Rows] = field(default_factory=list)
    columns: list[Columns] = field(default_factory=list)
    masks: dict[tuple[int, Any], tuple[Any, Columns, Any]] = field(default_factory=dict)
    queried: dict[int, tuple[Tensor, Any]] = field(default_factory=dict)
    hidden_tokens: list[Tensor] | None = None
    viewed: dict[int, tuple[Columns, Columns]] = field(default_factory=dict)
    _unpruned: Columns | None = None
    _extended: dict[tuple[int, int], tuple[Columns, Rows, Columns]] = field(default_factory=dict)
    _embeddings: dict[tuple[int, ...], tuple[Rows, Any, Any]] = field(default_factory=dict)

    def past_columns(self, layer: int, batch: int, device: torch.device) -> Columns:
        """Key columns that a layer's cache held before this pass."""
        if self.past is not None:
            return self.past.columns[layer]
        if self._unpruned is None:
            empty = Columns.empty(batch, device)
            if isinstance(self.mask, Tensor) and self.mask.ndim == 2:
                valid = self.mask[:, : self.seen].bool().to(device)
            else:
                valid = torch.ones((batch, self.seen), dtype=torch.bool, device=device)
            logical = torch.arange(self.seen, device=device).expand(batch, -1)
            first = self.start if not self.seen else valid.long().argmax(dim=1)
            self._unpruned = replace(
                empty,
                valid=valid,
                token=torch.full_like(logical, -1),
                logical=logical,
                start=empty.shift if first is None else first,
            )
        return self._unpruned

    def extend(self, past: Columns, present: DecoderInput, prefill: Prefill | None) -> Columns:
        """Key columns of a layer after this pass; layers of equal past and rows share them."""
        key = (id(past), id(present.rows))
        if key not in self._extended:
            shift = past.shift
            if self.cut and self.compact:
                shift = shift + self._removed(present)
            tokens = token_numbers(prefill.units if prefill is not None else (), present.rows)
            logical = self.seen + present.rows.slots.clamp(min=0)
            columns = past.extend(present.rows.valid, present.log_weights, shift, tokens, logical)
            self._extended[key] = (past, present.rows, columns)  # kept alive, so that ids stay theirs
        return self._extended[key][2]

    def shared(self, past: Columns, present: DecoderInput, source: int) -> Columns:
        """Key columns of a layer that reads the keys of the layer `source`: of those, what is still there."""
        theirs, ran = self.columns[source], self.entered[source]
        width = ran.slots.shape[1]
        row = present.rows.inverse.gather(1, ran.slots.clamp(min=0))  # its rows now, and what they weigh now
        new = theirs.valid[:, -width:] & (row >= 0)
        weights = present.log_weights
        if weights is not None:
            weights = weights.gather(1, row.clamp(min=0)).masked_fill(~new, 0.0)
        held = replace(
            past,
            valid=theirs.valid[:, :-width] if self.past is None else past.valid,
            token=theirs.token[:, :-width],
            logical=theirs.logical[:, :-width],
        )
        return held.extend(new, weights, theirs.shift, theirs.token[:, -width:], theirs.logical[:, -width:])

    def _removed(self, present: DecoderInput) -> Tensor:
        """How many positions the last token of every sample has moved down in this pass, (B,)."""
        valid = present.rows.valid
        new = self.compact_positions(present).masked_fill(~valid, torch.iinfo(torch.long).min).amax(dim=1)
        original = self.position_ids.expand(valid.shape[0], -1).to(new.device)
        last = present.rows.slots.amax(dim=1, keepdim=True)
        return original.gather(1, last)[:, 0] - new

    def compact_positions(self, present: DecoderInput, among: Rows | None = None) -> Tensor:
        """Position ids (B, S') without gaps, from the first row's own position on.

        Args:
            present: The rows.
            among: Rows that hold them all, among which is counted: those of the layer whose keys are read.
        """
        valid, among = present.rows.valid, among or present.rows
        original = positions_at(self.position_ids.to(valid.device), present.positions())
        if not self.cut:
            return original
        first = original.masked_fill(~valid, torch.iinfo(torch.long).max).amin(dim=1, keepdim=True)
        rank = among.valid.long().cumsum(dim=1) - 1
        place = among.inverse.gather(1, present.rows.slots.clamp(min=0)).clamp(min=0)
        return torch.where(valid, first + rank.gather(1, place), original)

    def embeddings(self, present: DecoderInput, given: Any) -> Any:
        """The layer's position embeddings for the rows that are left, at their original positions."""
        if not self.cut or given is None:
            return given
        key = (id(present.rows), id(given))
        if key not in self._embeddings:
            shorter = gather_embeddings(given, present.positions())
            self._embeddings[key] = (present.rows, given, shorter)
        return self._embeddings[key][2]

    def remade(self, present: DecoderInput, given: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Position embeddings that were made anew for the rows, once for all layers to which the same is given."""
        key = (id(present.rows), *map(id, given))
        if key not in self._embeddings:
            self._embeddings[key] = (present.rows, given, make())
        return self._embeddings[key][2]


def positions_at(position_ids: Tensor, index: Tensor) -> Tensor:
    """Position ids (B or 1, S) at slots (B, S'), (B, S')."""
    return position_ids.expand(index.shape[0], -1).gather(1, index)


def token_numbers(units: Sequence[Unit], rows: Rows) -> Tensor:
    """For each row (B, S'), `unit * 2^32 + original index` of its visual token, -1 for everything else."""
    tokens = torch.full_like(rows.inverse, -1)
    for unit in units:
        ordered = unit.indices  # rows stand, in the order of emission, in the sorted places
        tokens[unit.span.sample, unit.places] = (unit.span.image << 32) + ordered
    return tokens.gather(1, rows.slots.clamp(min=0)).masked_fill(~rows.valid, -1)


def snapshot(prefill: Prefill, present: DecoderInput, position_embeddings: Any, call: Mapping[str, Any]) -> LayerInput:
    """What enters a layer, for views at this layer and later."""
    return LayerInput(
        hidden=present.hidden,
        position_embeddings=position_embeddings,
        call=call,
        rows=present.rows,
        log_weights=present.log_weights,
        place_of=tuple(unit.place_of for unit in prefill.units),
    )
