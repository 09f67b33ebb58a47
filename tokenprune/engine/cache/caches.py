"""What is known of the KV caches that a session has pruned: per layer, which columns are tokens, and which tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError
from tokenprune.pruner import State, Stop


@dataclass(frozen=True)
class Columns:
    """Key columns of one layer.

    Args:
        valid: (B, T) True where the column is a token.
        log_weights: (B, T) bias of the column's logits, or `None` for none.
        shift: (B,) how much the position ids of later tokens are lowered (`compact` positions).
        token: (B, T) number of the column's visual token (`passes.token_numbers`), -1 for everything else.
        logical: (B, T) place that the column would have, had nothing been pruned.
        start: (B,) such a place of each sample's first token.
    """

    valid: Tensor
    log_weights: Tensor | None
    shift: Tensor
    token: Tensor
    logical: Tensor
    start: Tensor

    def extend(
        self, valid: Tensor, log_weights: Tensor | None, shift: Tensor, token: Tensor, logical: Tensor
    ) -> Columns:
        """These columns and the new ones (B, S) after them."""
        weights: Tensor | None = None
        if self.log_weights is not None or log_weights is not None:
            zeros = torch.zeros((), device=valid.device)
            past = zeros.expand(self.valid.shape) if self.log_weights is None else self.log_weights
            new = zeros.expand(valid.shape) if log_weights is None else log_weights
            weights = torch.cat([past, new], dim=1)
        return Columns(
            torch.cat([self.valid, valid], dim=1),
            weights,
            shift,
            torch.cat([self.token, token], dim=1),
            torch.cat([self.logical, logical], dim=1),
            self.start,
        )

    def last(self, count: int) -> Columns:
        """The last columns, which is what a layer with a sliding window keeps."""
        if count >= self.valid.shape[1]:
            return self
        first = self.valid.shape[1] - count
        weights = None if self.log_weights is None else self.log_weights[:, first:]
        return Columns(
            self.valid[:, first:], weights, self.shift, self.token[:, first:], self.logical[:, first:], self.start
        )

    def select(self, index: Tensor, real: Tensor) -> Columns:
        """The columns at `index` (B, T'); the others are padding where not `real`."""
        return Columns(
            self.valid.gather(1, index) & real,
            None if self.log_weights is None else self.log_weights.gather(1, index).masked_fill(~real, 0.0),
            self.shift,
            self.token.gather(1, index).masked_fill(~real, -1),
            self.logical.gather(1, index),
            self.start,
        )

    def take(self, samples: Tensor) -> Columns:
        """The columns of other samples (B'), in their order."""
        index = samples.to(self.valid.device)
        return Columns(
            self.valid[index],
            None if self.log_weights is None else self.log_weights[index],
            self.shift[index],
            self.token[index],
            self.logical[index],
            self.start[index],
        )

    def without_last(self, count: int) -> Columns:
        """The columns before the last ones."""
        end = self.valid.shape[1] - count
        weights = None if self.log_weights is None else self.log_weights[:, :end]
        return replace(
            self,
            valid=self.valid[:, :end],
            log_weights=weights,
            token=self.token[:, :end],
            logical=self.logical[:, :end],
        )

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Columns:
        """No columns yet."""
        nothing = torch.zeros((batch, 0), dtype=torch.bool, device=device)
        shift = torch.zeros(batch, dtype=torch.long, device=device)
        return cls(nothing, None, shift, nothing.long(), nothing.long(), shift)


@dataclass(frozen=True)
class CachedUnit:
    """An image or video whose keys and values lie in a cache."""

    sample: int
    image: int
    original: int
    grid: tuple[int, int] | None
    frames: int


@dataclass
class CacheState:
    """State of one pruned cache.

    Args:
        columns: Key columns by layer.
        logical_length: Tokens that it would hold unpruned.
        sources: By decoder layer, the cache layer whose keys and values it reads.
        units: Images in it, by the samples of the batch that was prefilled.
        samples: (B,) which of those each sample is now; `None` where all are in place.
        decode: Stops at every decoding step.
        state: What the pruner keeps from step to step.
        offsets: (B, 1) what the model adds to the positions of later tokens, where it keeps that of its last prompt.
    """

    columns: list[Columns]
    logical_length: int
    sources: tuple[int, ...]
    units: tuple[CachedUnit, ...] = ()
    samples: Tensor | None = None
    decode: tuple[Stop, ...] = ()
    state: State = field(default_factory=dict)
    offsets: Tensor | None = None

    @property
    def batch(self) -> int:
        """Samples in the cache."""
        return int(self.columns[0].valid.shape[0])

    def take(self, samples: Tensor) -> CacheState:
        """The state of other samples (B'), in their order."""
        columns = _each(self.columns, lambda each: each.take(samples))
        return replace(
            self,
            columns=columns,
            samples=samples if self.samples is None else self.samples[samples.to(self.samples.device)],
            offsets=None if self.offsets is None else self.offsets[samples.to(self.offsets.device)],
        )

    def settled(self) -> CacheState:
        """The state with its images under the samples of now."""
        if self.samples is None:
            return self
        by_sample = enumerate(self.samples.tolist())
        units = tuple(replace(unit, sample=new) for new, old in by_sample for unit in self.units if unit.sample == old)
        return replace(self, units=units, samples=None)

    def ends_in_text(self, count: int) -> bool:
        """Whether the last tokens are no visual ones, and stand one beside the other at the end of every layer."""
        last = torch.arange(self.logical_length - count, self.logical_length)
        for columns in {id(columns): columns for columns in self.columns}.values():
            if columns.valid.shape[1] < count:
                return False
            end = slice(columns.valid.shape[1] - count, None)
            there = columns.logical[:, end] == last.to(columns.logical.device)
            if not bool((there & columns.valid[:, end] & (columns.token[:, end] < 0)).all()):
                return False
        return True

    def without_last(self, count: int, layers: Sequence[Any]) -> CacheState:
        """The state without the last tokens, of which the layers of the cache hold no columns any more."""
        columns = _each(self.columns, lambda each: each.without_last(count))
        held = [held_columns(layers[source]) for source in self.sources]
        columns = [each.last(length) for each, length in zip(columns, held, strict=True)]
        return replace(self, columns=columns, logical_length=self.logical_length - count)


def _each(columns: Sequence[Columns], change: Callable[[Columns], Columns]) -> list[Columns]:
    """Changed columns of all layers; layers that share theirs go on sharing them."""
    changed = {id(each): change(each) for each in {id(each): each for each in columns}.values()}
    return [changed[id(each)] for each in columns]


def held_columns(layer: Any) -> int:
    """Key columns that a cache layer holds, whole or quantised."""
    if not getattr(layer, "is_sliding", False):
        return int(layer.get_seq_length())
    return 0 if getattr(layer, "keys", None) is None or layer.keys.ndim < 2 else int(layer.keys.shape[-2])


def check_growing(cache: Any) -> None:
    """Refuse caches of fixed size.

    Raises:
        IncompatibleError: The cache does not grow with its tokens.
    """
    if cache is not None and getattr(cache, "is_compileable", False):
        raise IncompatibleError(
            f"`{type(cache).__name__}` has a fixed size, but pruned layers hold fewer tokens than others",
            hint="use the default dynamic cache",
        )


def check_readable(cache: Any, name: str) -> None:
    """Refuse caches in which a pruner that reads or cuts them later would not find the keys as they were.

    Args:
        cache: The cache.
        name: The pruner's.

    Raises:
        IncompatibleError: The cache quantises its keys, or moves them off the device.
    """
    does = "offloads" if getattr(cache, "offloading", False) else None
    if any(hasattr(layer, "_quantize") for layer in getattr(cache, "layers", ())):
        does = "quantises"
    if does is not None:
        raise IncompatibleError(
            f"`{name}` reads or cuts the KV cache after it was written, but this `{type(cache).__name__}` {does} it",
            hint="use the default dynamic cache, or a pruner that leaves the cache alone",
        )
