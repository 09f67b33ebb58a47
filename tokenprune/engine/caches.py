"""What is known of the KV caches that a session has pruned: per layer, which columns are tokens, and which tokens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        units: Images in it.
        decode: Stops at every decoding step.
        state: What the pruner keeps from step to step.
    """

    columns: list[Columns]
    logical_length: int
    units: tuple[CachedUnit, ...] = ()
    decode: tuple[Stop, ...] = ()
    state: State = field(default_factory=dict)


class CacheBook:
    """The pruned caches of one session."""

    def __init__(self) -> None:
        self._states: weakref.WeakKeyDictionary[Any, CacheState] = weakref.WeakKeyDictionary()

    def find(self, cache: Any, sources: Sequence[int]) -> CacheState | None:
        """State of a cache, or `None` where it was never pruned.

        Args:
            cache: The cache.
            sources: By decoder layer, the layer whose keys and values it reads.

        Raises:
            IncompatibleError: The cache was changed by somebody else since.
        """
        state = self._states.get(cache) if cache is not None else None
        if state is None:
            return None
        for layer, source in enumerate(sources):
            held = held_columns(cache.layers[source])
            known = state.columns[layer].valid.shape[1]
            if held != known:
                raise IncompatibleError(
                    f"the cache of layer {layer} holds {held} tokens, but {known} were written while pruning",
                    hint="a pruned cache cannot be cropped or edited; start a new one",
                )
        return state

    def remember(self, cache: Any, state: CacheState) -> None:
        """Keep the state of a cache, and let the cache report the length that it would have unpruned.

        `generate` slices new inputs and numbers positions by that length.
        """
        self._states[cache] = state
        cache.get_seq_length = length = _LogicalLength(weakref.ref(cache), state)
        # models that build their masks before they call their text model build them for that length
        cache.get_mask_sizes = lambda query_length, layer_idx=0: (length(layer_idx) + int(query_length), 0)
        if state.decode:
            cache.reorder_cache = _refuse_reordering


def held_columns(layer: Any) -> int:
    """Key columns that a cache layer holds, whole or quantised."""
    if not getattr(layer, "is_sliding", False):
        return int(layer.get_seq_length())
    return 0 if getattr(layer, "keys", None) is None or layer.keys.ndim < 2 else int(layer.keys.shape[-2])


class _LogicalLength:
    """Replaces `get_seq_length` of one pruned cache object."""

    def __init__(self, cache: Any, state: CacheState) -> None:
        self._cache = cache
        self._state = state

    def __call__(self, layer_idx: int = 0) -> int:
        cache = self._cache()
        if cache is None or not cache.layers or cache.layers[0].get_seq_length() == 0:
            return 0  # reset since
        return self._state.logical_length


def _refuse_reordering(*args: Any, **kwargs: Any) -> None:
    raise IncompatibleError(
        "views of the cache at every decoding step do not follow beam search, which swaps samples between steps",
        hint="decode greedily or by sampling (`num_beams=1`)",
    )


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
