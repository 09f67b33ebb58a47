"""The state of a pruned KV cache: for each layer, which columns hold a token, and which token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.errors import IncompatibleError
from tokenprune.pruner import State, Stop


@dataclass(frozen=True)
class KeyColumns:
    """The key columns of one layer's cache.

    Args:
        valid: (B, T) True if the column holds a token.
        log_weights: (B, T) bias on the column's attention logits, or `None` for no bias.
        shift: (B,) how much the position ids of later tokens are lowered (`compact` positions).
        token: (B, T) number of the column's visual token (`decoder_pass.token_numbers`), -1 for everything else.
        logical: (B, T) column that the token would have if nothing had been pruned.
        start: (B,) logical column of each sample's first token.
    """

    valid: Tensor
    log_weights: Tensor | None
    shift: Tensor
    token: Tensor
    logical: Tensor
    start: Tensor

    def extend(
        self, valid: Tensor, log_weights: Tensor | None, shift: Tensor, token: Tensor, logical: Tensor
    ) -> KeyColumns:
        """These columns, followed by new ones (B, S)."""
        weights: Tensor | None = None
        if self.log_weights is not None or log_weights is not None:
            zeros = torch.zeros((), device=valid.device)
            past = zeros.expand(self.valid.shape) if self.log_weights is None else self.log_weights
            new = zeros.expand(valid.shape) if log_weights is None else log_weights
            weights = torch.cat([past, new], dim=1)
        return KeyColumns(
            torch.cat([self.valid, valid], dim=1),
            weights,
            shift,
            torch.cat([self.token, token], dim=1),
            torch.cat([self.logical, logical], dim=1),
            self.start,
        )

    def last(self, count: int) -> KeyColumns:
        """The last `count` columns: a layer with a sliding window keeps only these."""
        if count >= self.valid.shape[1]:
            return self
        first = self.valid.shape[1] - count
        weights = None if self.log_weights is None else self.log_weights[:, first:]
        return KeyColumns(
            self.valid[:, first:], weights, self.shift, self.token[:, first:], self.logical[:, first:], self.start
        )

    def select(self, index: Tensor, real: Tensor) -> KeyColumns:
        """The columns at `index` (B, T'); those that are not `real` become padding."""
        return KeyColumns(
            self.valid.gather(1, index) & real,
            None if self.log_weights is None else self.log_weights.gather(1, index).masked_fill(~real, 0.0),
            self.shift,
            self.token.gather(1, index).masked_fill(~real, -1),
            self.logical.gather(1, index),
            self.start,
        )

    def take(self, samples: Tensor) -> KeyColumns:
        """The columns of the given samples (B'), in that order."""
        index = samples.to(self.valid.device)
        return KeyColumns(
            self.valid[index],
            None if self.log_weights is None else self.log_weights[index],
            self.shift[index],
            self.token[index],
            self.logical[index],
            self.start[index],
        )

    def without_last(self, count: int) -> KeyColumns:
        """All columns but the last `count`."""
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
    def empty(cls, batch: int, device: torch.device) -> KeyColumns:
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
    """What was pruned out of one cache.

    Args:
        columns: Key columns by decoder layer.
        logical_length: Tokens that the cache would hold if nothing had been pruned.
        sources: By decoder layer, the cache layer whose keys and values it reads.
        units: Images in the cache; their `sample` counts in the batch of the prefill.
        samples: (B,) for each present sample, its number in the batch of the prefill; `None` if the batch is unchanged.
        decode: Stops at every decoding step.
        state: What the pruner keeps from step to step.
        offsets: (B, 1) what the model adds to the positions of later tokens; `None` if it stores no such offset.
    """

    columns: list[KeyColumns]
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
        """The state of the given samples (B'), in that order."""
        columns = _change_each(self.columns, lambda each: each.take(samples))
        return replace(
            self,
            columns=columns,
            samples=samples if self.samples is None else self.samples[samples.to(self.samples.device)],
            offsets=None if self.offsets is None else self.offsets[samples.to(self.offsets.device)],
        )

    def with_present_samples(self) -> CacheState:
        """The state with the `sample` of each image counted in the present batch."""
        if self.samples is None:
            return self
        by_sample = enumerate(self.samples.tolist())
        units = tuple(replace(unit, sample=new) for new, old in by_sample for unit in self.units if unit.sample == old)
        return replace(self, units=units, samples=None)

    def ends_in_text(self, count: int) -> bool:
        """Whether the last `count` tokens are text, and every layer still holds them all at its end."""
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
        """The state without the last `count` tokens, after they were removed from the layers of the cache."""
        columns = _change_each(self.columns, lambda each: each.without_last(count))
        lengths = [count_columns(layers[source]) for source in self.sources]
        columns = [each.last(length) for each, length in zip(columns, lengths, strict=True)]
        return replace(self, columns=columns, logical_length=self.logical_length - count)


def _change_each(columns: Sequence[KeyColumns], change: Callable[[KeyColumns], KeyColumns]) -> list[KeyColumns]:
    """Change the columns of all layers; layers that share one object still share one afterwards."""
    changed = {id(each): change(each) for each in {id(each): each for each in columns}.values()}
    return [changed[id(each)] for each in columns]


def count_columns(layer: Any) -> int:
    """Number of key columns that a cache layer holds, also if it is quantised."""
    if not getattr(layer, "is_sliding", False):
        return int(layer.get_seq_length())
    return 0 if getattr(layer, "keys", None) is None or layer.keys.ndim < 2 else int(layer.keys.shape[-2])


def check_growing(cache: Any) -> None:
    """Refuse caches of fixed size.

    Raises:
        IncompatibleError: The cache has a fixed size.
    """
    if cache is not None and getattr(cache, "is_compileable", False):
        raise IncompatibleError(
            f"`{type(cache).__name__}` has a fixed size, but pruned layers hold fewer tokens than others",
            hint="use the default dynamic cache",
        )


def check_readable(cache: Any, name: str) -> None:
    """Refuse caches that change or move their keys, for pruners that read or cut the cache later.

    Args:
        cache: The cache.
        name: Name of the pruner.

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
