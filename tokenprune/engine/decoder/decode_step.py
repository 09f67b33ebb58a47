"""Stops at every decoding step: they choose which cached visual tokens the new token attends to.

Nothing is removed. The keys and values of the other visual tokens stay in the cache, masked for this step, because a
later step may choose them. So these stops save no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokenprune.engine.cache.caches import CachedUnit, CacheState, KeyColumns
from tokenprune.engine.decision import check_kept
from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.decoder.decoder_pass import DecoderPass
from tokenprune.engine.finite import WatchedView
from tokenprune.engine.observe.context import check_declared, known_grid
from tokenprune.engine.patch.attention_probe import project
from tokenprune.errors import IncompatibleError, NothingPrunedError
from tokenprune.pruner import ModelFacts, Rows, Site, Stop, View
from tokenprune.record import StepRecord

if TYPE_CHECKING:
    from tokenprune.engine.session import Session


class StepView:
    """What a pruner sees at a decoding step: the attention of the new token, and where the visual tokens are."""

    def __init__(
        self, session: Session, site: Site, units: Sequence[CachedUnit], keep: int, tokens: Tensor, attention: Tensor
    ) -> None:
        self.site = site
        self.facts: ModelFacts = session.parts.facts
        self.units = len(units)
        self.tokens = tokens.shape[1]
        self.original_tokens = units[0].original
        self.keep = keep
        self._needs = session.pruner.needs
        self._name = session.pruner.spec.name
        self._cached = tuple(units)
        self._indices = tokens & 0xFFFFFFFF
        self._attention = attention

    def attention(
        self,
        rows: Rows = "last",
        *,
        rope: bool = True,
        layer: int | None = None,
        support: Literal["causal", "visual", "all"] = "causal",
    ) -> tuple[Tensor, Tensor]:
        """Attention (B, H, 1, N) of the new token in the layer before the site, and the mask (B, 1)."""
        self._declared("attention")
        if rows != "last" or not rope or layer not in (None, self.site.layer - 1):
            raise IncompatibleError(
                f"`{self._name}` asks for rows `{rows}`, rope={rope} of layer {layer} at a decoding step",
                hint=f"only the last row of layer {self.site.layer - 1}, with RoPE, exists there",
            )
        attention = self._attention
        if support == "visual":
            attention = attention / attention.sum(dim=-1, keepdim=True)
        return attention, torch.ones(self.units, 1, dtype=torch.bool, device=attention.device)

    def ids(self) -> tuple[int, ...]:
        """A number for each unit, which is the same at every step."""
        return tuple((unit.sample << 16) + unit.image for unit in self._cached)

    def indices(self) -> Tensor:
        """Original index of each visual token in the cache, (B, N)."""
        return self._indices

    def grid(self) -> tuple[int, int]:
        """Rows and columns of one frame."""
        self._declared("geometry")
        return known_grid(self._name, self._cached[0].grid)

    def frames(self) -> int:
        """Frames of the unit."""
        self._declared("geometry")
        return self._cached[0].frames

    def coordinates(self) -> Tensor:
        """Row and column of each token, (B, N, 2)."""
        rows, columns = self.grid()
        cell = self._indices % (rows * columns)
        return torch.stack([cell // columns, cell % columns], dim=-1).float()

    def _declared(self, need: str) -> None:
        check_declared(self._name, self._needs, need)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(View, name):
            raise AttributeError(name)
        raise IncompatibleError(
            f"`{self._name}` asks for `{name}` at a decoding step", hint="only `attention` and geometry exist there"
        )


def visible_columns(
    session: Session,
    decoder_pass: DecoderPass,
    state: CacheState,
    layer: int,
    layer_input: DecoderInput,
    columns: KeyColumns,
    call: Mapping[str, Any],
) -> KeyColumns:
    """The key columns that the new token attends to in a layer."""
    for stop in state.decode:
        if layer == stop.site.layer - 1:
            decoder_pass.attention_inputs[layer] = (layer_input.hidden, call)
        elif layer == stop.site.layer:
            decoder_pass.hidden_tokens = _hidden(session, decoder_pass, state, stop)
    if decoder_pass.hidden_tokens is None:
        return columns
    if id(columns) not in decoder_pass.masked_columns:
        is_hidden = torch.stack(
            [torch.isin(row, hidden) for row, hidden in zip(columns.token, decoder_pass.hidden_tokens, strict=True)]
        )
        decoder_pass.masked_columns[id(columns)] = (columns, replace(columns, valid=columns.valid & ~is_hidden))
    return decoder_pass.masked_columns[id(columns)][1]


def _hidden(session: Session, decoder_pass: DecoderPass, state: CacheState, stop: Stop) -> list[Tensor]:
    """By sample, the numbers of the visual tokens that are hidden in this step."""
    layer = stop.site.layer - 1
    columns = decoder_pass.columns[layer]
    attention = _attention(session, decoder_pass, layer, columns)
    groups: dict[tuple[int, int, int, tuple[int, int] | None], list[tuple[CachedUnit, Tensor]]] = {}
    for unit in state.units:
        positions = ((columns.token[unit.sample] >> 32) == unit.image).nonzero()[:, 0]
        keep = min(len(positions), stop.keep(unit.original))
        groups.setdefault((len(positions), keep, unit.original, unit.grid), []).append((unit, positions))
    hidden: list[list[Tensor]] = [[] for _ in range(columns.valid.shape[0])]
    counts: dict[CachedUnit, tuple[int, int]] = {}
    for (length, keep, *_), members in groups.items():
        units = [unit for unit, _ in members]
        tokens = torch.stack([columns.token[unit.sample, positions] for unit, positions in members])
        rows = torch.stack([attention[unit.sample][..., positions] for unit, positions in members])
        labels = [f"sample {unit.sample}, image {unit.image}" for unit in units]
        step = StepView(session, stop.site, units, keep, tokens, rows)
        view = WatchedView(step, session.pruner.spec.name, labels)
        decision = view.asked(session.pruner.decide, stop, state.state)
        if len(decision.units) != len(units):
            raise NothingPrunedError(
                f"pruner `{session.pruner.spec.name}` answered for {len(decision.units)} of {len(units)} images",
                hint="a decision holds one `Kept` per unit of the view",
            )
        for index, (unit, kept, numbers) in enumerate(zip(units, decision.units, tokens, strict=True)):
            check_kept(session.pruner, kept, length, view, index)
            if kept.merge is not None or kept.log_weights is not None:
                raise IncompatibleError(
                    f"`{session.pruner.spec.name}` merges at a decoding step",
                    hint="a stop at decoding steps can only hide tokens",
                )
            is_hidden = torch.ones(length, dtype=torch.bool, device=numbers.device)
            is_hidden[kept.anchors.to(numbers.device)] = False
            hidden[unit.sample].append(numbers[is_hidden])
            counts[unit] = (length, len(kept.anchors))
    session.steps.append(
        StepRecord(stop.site.layer, *(tuple(counts[unit][part] for unit in state.units) for part in (0, 1)))
    )
    nothing = columns.token.new_zeros(0)
    return [torch.cat(parts) if parts else nothing for parts in hidden]


def _attention(session: Session, decoder_pass: DecoderPass, layer: int, columns: KeyColumns) -> Tensor:
    """Attention (B, H, 1, T) of the new token over the key columns of a layer that has just run."""
    hidden, call = decoder_pass.attention_inputs[layer]
    found = project(session.parts.layers[layer], hidden, **call)
    keys = decoder_pass.cache.layers[layer].keys.float()
    batch, heads, _, width = found.queries.shape
    grouped = found.queries.float().reshape(batch, keys.shape[1], -1, width) * found.scaling
    logits: Tensor = (grouped @ keys.transpose(-1, -2)).reshape(batch, heads, 1, -1).to(columns.valid.device)
    if columns.log_weights is not None:
        logits = logits + columns.log_weights[:, None, None, :]
    return logits.masked_fill(~columns.valid[:, None, None, :], float("-inf")).softmax(dim=-1)
