"""The state of one forward pass of the text model: rows, key columns and positions of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.cache.caches import CacheState, KeyColumns
from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.state.prefill import LayerSnapshot, Prefill, Unit
from tokenprune.engine.state.rows import Rows, gather_embeddings


@dataclass
class DecoderPass:
    """What the engine knows while the decoder layers run.

    Args:
        mask: The attention mask that the text model received.
        position_ids: (B or 1, S) position of every slot, or (axes, B, S) if a position has several axes.
        compact: Positions are numbered without gaps. With several axes (rows and columns of patches) a removed token
            leaves no gap, so both position policies are the same there.
        length: S.
        cache: The KV cache.
        past: What earlier passes have pruned out of the cache.
        past_length: Tokens that the cache would hold before this pass if it had never been pruned.
        current: What enters the present layer.
        pad_left: Samples are padded on the left.
        first_slots: (B,) slot of each sample's first token.
        cut: Rows were removed in this pass.
        full_masks: The model has built its masks for the unpruned cache length, although the cache was pruned.
        layer_rows: By layer, the rows in its cache; pruning the caches of earlier layers changes them.
        position_rows: By layer, the rows among which positions without gaps were counted for its keys.
        columns: By layer, its key columns after this pass.
        attention_inputs: By layer, the states and other arguments that entered it, for stops at decoding steps.
        hidden_tokens: By sample, numbers of the visual tokens that are hidden in this decoding step.
        masked_columns: By the id of key columns, the same columns with hidden tokens marked as padding.
    """

    mask: Any
    position_ids: Tensor
    length: int
    compact: bool = False
    cache: Any = None
    past: CacheState | None = None
    past_length: int = 0
    current: DecoderInput | None = None
    pad_left: bool = True
    first_slots: Tensor | None = None
    cut: bool = False
    full_masks: bool = False
    layer_rows: list[Rows] = field(default_factory=list)
    position_rows: list[Rows] = field(default_factory=list)
    columns: list[KeyColumns] = field(default_factory=list)
    masks: dict[tuple[int, Any], tuple[Any, KeyColumns, Any]] = field(default_factory=dict)
    attention_inputs: dict[int, tuple[Tensor, Mapping[str, Any]]] = field(default_factory=dict)
    hidden_tokens: list[Tensor] | None = None
    masked_columns: dict[int, tuple[KeyColumns, KeyColumns]] = field(default_factory=dict)
    _unpruned: KeyColumns | None = None
    _extended: dict[tuple[int, int], tuple[KeyColumns, Rows, KeyColumns]] = field(default_factory=dict)
    _embeddings: dict[tuple[int, ...], tuple[Rows, Any, Any]] = field(default_factory=dict)

    def past_columns(self, layer: int, batch: int, device: torch.device) -> KeyColumns:
        """Key columns of a layer's cache before this pass."""
        if self.past is not None:
            return self.past.columns[layer]
        if self._unpruned is None:
            empty = KeyColumns.empty(batch, device)
            if isinstance(self.mask, Tensor) and self.mask.ndim == 2:
                valid = self.mask[:, : self.past_length].bool().to(device)
            else:
                valid = torch.ones((batch, self.past_length), dtype=torch.bool, device=device)
            logical = torch.arange(self.past_length, device=device).expand(batch, -1)
            first = self.first_slots if not self.past_length else valid.long().argmax(dim=1)
            self._unpruned = replace(
                empty,
                valid=valid,
                token=torch.full_like(logical, -1),
                logical=logical,
                start=empty.shift if first is None else first,
            )
        return self._unpruned

    def extend(self, past: KeyColumns, layer_input: DecoderInput, prefill: Prefill | None) -> KeyColumns:
        """Key columns of a layer after this pass; layers with the same past and rows share one object."""
        key = (id(past), id(layer_input.rows))
        if key not in self._extended:
            shift = past.shift
            if self.cut and self.compact:
                shift = shift + self._removed(layer_input)
            tokens = token_numbers(prefill.units if prefill is not None else (), layer_input.rows)
            logical = self.past_length + layer_input.rows.slots.clamp(min=0)
            columns = past.extend(layer_input.rows.valid, layer_input.log_weights, shift, tokens, logical)
            self._extended[key] = (past, layer_input.rows, columns)  # holds them, so that no new object gets their ids
        return self._extended[key][2]

    def shared(self, past: KeyColumns, layer_input: DecoderInput, source: int) -> KeyColumns:
        """Key columns of a layer that reads the keys of layer `source`: those whose tokens are still there."""
        theirs, ran = self.columns[source], self.layer_rows[source]
        width = ran.slots.shape[1]
        row = layer_input.rows.inverse.gather(1, ran.slots.clamp(min=0))  # present rows and weights
        new = theirs.valid[:, -width:] & (row >= 0)
        weights = layer_input.log_weights
        if weights is not None:
            weights = weights.gather(1, row.clamp(min=0)).masked_fill(~new, 0.0)
        past_now = replace(
            past,
            valid=theirs.valid[:, :-width] if self.past is None else past.valid,
            token=theirs.token[:, :-width],
            logical=theirs.logical[:, :-width],
        )
        return past_now.extend(new, weights, theirs.shift, theirs.token[:, -width:], theirs.logical[:, -width:])

    def _removed(self, layer_input: DecoderInput) -> Tensor:
        """By how much the position of each sample's last token was lowered in this pass, (B,)."""
        valid = layer_input.rows.valid
        new = self.compact_positions(layer_input).masked_fill(~valid, torch.iinfo(torch.long).min).amax(dim=1)
        original = self.position_ids.expand(valid.shape[0], -1).to(new.device)
        last = layer_input.rows.slots.amax(dim=1, keepdim=True)
        return original.gather(1, last)[:, 0] - new

    def compact_positions(self, layer_input: DecoderInput, among: Rows | None = None) -> Tensor:
        """Position ids (B, S') without gaps, counted from the position of the first row.

        Args:
            layer_input: The rows.
            among: Rows to count, a superset: those of the layer whose keys are read.
        """
        valid, among = layer_input.rows.valid, among or layer_input.rows
        original = positions_at(self.position_ids.to(valid.device), layer_input.positions())
        if not self.cut:
            return original
        first = original.masked_fill(~valid, torch.iinfo(torch.long).max).amin(dim=1, keepdim=True)
        rank = among.valid.long().cumsum(dim=1) - 1
        place = among.inverse.gather(1, layer_input.rows.slots.clamp(min=0)).clamp(min=0)
        return torch.where(valid, first + rank.gather(1, place), original)

    def embeddings(self, layer_input: DecoderInput, given: Any) -> Any:
        """The layer's position embeddings for the remaining rows, at their original positions."""
        if not self.cut or given is None:
            return given
        key = (id(layer_input.rows), id(given))
        if key not in self._embeddings:
            shorter = gather_embeddings(given, layer_input.positions())
            self._embeddings[key] = (layer_input.rows, given, shorter)
        return self._embeddings[key][2]

    def remade(self, layer_input: DecoderInput, given: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """New position embeddings for the rows, made once for all layers that receive the same ones."""
        key = (id(layer_input.rows), *map(id, given))
        if key not in self._embeddings:
            self._embeddings[key] = (layer_input.rows, given, make())
        return self._embeddings[key][2]


def positions_at(position_ids: Tensor, index: Tensor) -> Tensor:
    """Position ids (B or 1, S) at slots (B, S'), (B, S')."""
    return position_ids.expand(index.shape[0], -1).gather(1, index)


def token_numbers(units: Sequence[Unit], rows: Rows) -> Tensor:
    """For each row (B, S'), `unit * 2^32 + original index` of its visual token, -1 for everything else."""
    tokens = torch.full_like(rows.inverse, -1)
    for unit in units:
        ordered = unit.indices  # the n-th kept row is in the n-th of the sorted slots
        tokens[unit.span.sample, unit.slots] = (unit.span.image << 32) + ordered
    return tokens.gather(1, rows.slots.clamp(min=0)).masked_fill(~rows.valid, -1)


def snapshot(
    prefill: Prefill, layer_input: DecoderInput, position_embeddings: Any, call: Mapping[str, Any]
) -> LayerSnapshot:
    """What enters a layer, stored for the views of this and later layers."""
    return LayerSnapshot(
        hidden=layer_input.hidden,
        position_embeddings=position_embeddings,
        call=call,
        rows=layer_input.rows,
        log_weights=layer_input.log_weights,
        slot_of=tuple(unit.slot_of for unit in prefill.units),
    )
