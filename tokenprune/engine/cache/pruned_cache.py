"""A KV cache that records what was pruned out of it.

The record is an attribute of the cache object, so every copy of the cache has it, even if the original is gone. The
cache's own methods keep it up to date: they reorder, select, repeat and crop the record together with the keys and
values. Only a session may write keys and values, because only a session gives each layer a mask of the right length.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from tokenprune.engine.cache.caches import CacheState, count_columns
from tokenprune.engine.cache.offsets import give_back
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts
from tokenprune.pruner import Pruner

if TYPE_CHECKING:

    class _Stock:
        """The methods of the stock class that a pruned cache calls."""

        layers: list[Any]

        def update(self, *args: Any, **kwargs: Any) -> Any: ...
        def reset(self) -> None: ...
        def reorder_cache(self, beam_idx: Tensor) -> None: ...
        def batch_select_indices(self, indices: Tensor) -> None: ...
        def batch_repeat_interleave(self, repeats: int) -> None: ...
        def crop(self, tokens_to_remove: int) -> None: ...
else:
    _Stock = object

_INFO = "_tokenprune"


@dataclass(frozen=True)
class PruningSettings:
    """The settings that two sessions must share to continue one cache: shape of the model, pruner, positions."""

    model: str
    pruner: str
    positions: str

    @classmethod
    def of(cls, parts: Parts, pruner: Pruner, positions: str) -> PruningSettings:
        """The settings of a session."""
        kind = f"`{type(parts.model).__name__}` of {parts.facts.num_layers} layers"
        return cls(kind, f"`{pruner.spec.name}`, {pruner!r}", positions)


class SessionHandle:
    """A session as its caches refer to it. Copying gives the same object, and pickling gives `None`.

    Args:
        model: The session's model.
        settings: What another session must have in common with this one to continue its caches.
    """

    def __init__(self, model: nn.Module, settings: PruningSettings) -> None:
        self.model = weakref.ref(model)
        self.settings = settings
        self.open = True

    def close(self) -> None:
        """Mark the session as ended."""
        self.open = False

    def __copy__(self) -> SessionHandle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@dataclass
class CacheInfo:
    """What a pruned cache stores about itself.

    Args:
        session: The session that wrote the cache; `None` if the cache was loaded from a file.
        settings: Settings of that session.
        state: What was pruned; `None` if a forward pass failed between two layers.
        in_pass: Whether a forward pass of the session uses the cache right now.
    """

    session: SessionHandle | None
    settings: PruningSettings
    state: CacheState | None
    in_pass: bool = field(default=False)

    def checked_state(self) -> CacheState:
        """What was pruned.

        Raises:
            IncompatibleError: A forward pass over the cache failed before its end.
        """
        if self.state is None:
            raise IncompatibleError(
                "a forward pass over this KV cache broke off, so its layers no longer hold the same tokens",
                hint="start a new cache",
            )
        return self.state

    def check_read(self) -> None:
        """Refuse a use outside of the session.

        Raises:
            IncompatibleError: The session has ended, or none of its forward passes uses the cache right now.
        """
        if self.session is not None and self.session.open and self.in_pass:
            return
        why = "is used outside of the session that pruned it"
        if self.session is None:
            why = "was loaded, and belongs to no session yet"
        elif not self.session.open:
            why = "is used after its session ended"
        raise IncompatibleError(
            f"a pruned KV cache {why}; the stock model does not know which tokens are gone",
            hint="continue it inside `with pruned(...)`, on the same model with the same pruner and positions",
        )


class PrunedCache(_Stock):
    """The methods that a pruned cache overrides in its stock class."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Write keys and values; refused outside of a session."""
        _info(self).check_read()
        return super().update(*args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The length of the cache as if nothing had been pruned: `generate` slices and numbers new inputs by it."""
        if not self.layers or self.layers[0].get_seq_length() == 0:
            return 0  # the layers were emptied
        return _info(self).checked_state().logical_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Mask sizes for the unpruned length, for models that build their masks before they call their text model."""
        return self.get_seq_length(layer_idx) + int(query_length), 0

    def reset(self) -> None:
        """Empty the cache, which makes it a stock cache again."""
        super().reset()
        base = _stock_class(type(self))
        delattr(self, _INFO)
        self.__class__ = base

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the samples, as beam search does."""
        state = self._state_to_move("beam search, which swaps samples between steps", "decode greedily or by sampling")
        super().reorder_cache(beam_idx)
        _info(self).state = state.take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the samples."""
        state = self._state_to_move("a choice of samples", "keep the batch as it is")
        super().batch_select_indices(indices)
        _info(self).state = state.take(torch.arange(state.batch, device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        state = self._state_to_move("repeated samples", "repeat the prompts before the prefill")
        super().batch_repeat_interleave(repeats)
        _info(self).state = state.take(torch.arange(state.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number.

        Raises:
            IncompatibleError: The number is positive, or the tokens belong to a pruned prompt.
        """
        count = -int(tokens_to_remove)
        state = self._state_to_move("cropping", "decode without drafts (no `assistant_model` and no prompt lookup)")
        if count < 0:
            raise IncompatibleError(
                f"a pruned KV cache cannot be cropped to {tokens_to_remove} tokens, because layers differ in length",
                hint="give the number of tokens to remove, as a negative number",
            )
        if not state.ends_in_text(count):
            raise IncompatibleError(
                f"the last {count} tokens of this KV cache reach into a prompt that was pruned",
                hint="crop what came after the pruned prompt only, or copy the cache (`copy.deepcopy`) beforehand",
            )
        super().crop(tokens_to_remove)
        _info(self).state = state.without_last(count, self.layers)

    def __iter__(self) -> Iterator[Any]:
        raise IncompatibleError(
            "keys and values of a pruned KV cache do not say by themselves which tokens are gone",
            hint="copy the cache as a whole (`copy.deepcopy`), or read its `layers`",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty_cache, (_stock_class(type(self)),), dict(vars(self))

    def _state_to_move(self, what: str, instead: str) -> CacheState:
        """The state, if it can be changed together with the samples or the length."""
        state = _info(self).checked_state()
        if state.decode:
            raise IncompatibleError(
                f"views of the cache at every decoding step do not follow {what}", hint=f"{instead}, or another pruner"
            )
        return state


def _info(cache: Any) -> CacheInfo:
    info: CacheInfo = getattr(cache, _INFO)
    return info


@functools.cache
def _pruned_class(base: Any) -> Any:
    """The class of pruned caches for a stock cache class."""
    return type(f"Pruned{base.__name__}", (PrunedCache, base), {"__module__": base.__module__})


def _stock_class(kind: type) -> type:
    """The stock cache class behind a class of pruned caches."""
    base: type = kind.__mro__[2]
    return base


def _empty_cache(base: type) -> Any:
    """An empty pruned cache, which `copy` or `pickle` then fills."""
    kind = _pruned_class(base)
    return kind.__new__(kind)


def pruned_state_of(cache: Any, session: SessionHandle) -> CacheState | None:
    """What was pruned out of a cache that a session receives; `None` if the cache was never pruned.

    Args:
        cache: The cache.
        session: The session.

    Raises:
        IncompatibleError: A session with other settings pruned the cache, or its layers were edited since.
    """
    info: CacheInfo | None = getattr(cache, _INFO, None)
    if info is None:
        return None
    state = info.checked_state()
    if info.session is not session:
        _check_settings(info, session)
        info.session = session
    for layer, source in enumerate(state.sources):
        held, written = count_columns(cache.layers[source]), state.columns[layer].valid.shape[1]
        if held != written:
            raise IncompatibleError(
                f"the cache of layer {layer} holds {held} tokens, but {written} were written while pruning",
                hint="a pruned cache cannot be edited layer by layer; start a new one",
            )
    return state


def _check_settings(info: CacheInfo, session: SessionHandle) -> None:
    """Refuse a cache of a session with another model or other settings."""

    def refuse(what: str) -> NoReturn:
        raise IncompatibleError(
            f"this KV cache was pruned {what}",
            hint="continue it on the same model, with the same pruner and positions, or start a new cache",
        )

    if info.session is not None and info.session.model() is not session.model():
        refuse("in a session of another model")
    theirs, ours = info.settings, session.settings
    if theirs.model != ours.model:
        refuse(f"on a {theirs.model}, not on a {ours.model}")
    if theirs.pruner != ours.pruner:
        refuse(f"by {theirs.pruner}, not by {ours.pruner}")
    if theirs.positions != ours.positions:
        refuse(f"with positions `{theirs.positions}`, not `{ours.positions}`")


def is_pruned(cache: Any) -> bool:
    """Whether something was pruned out of a cache."""
    return hasattr(cache, _INFO)


def give_back_offsets(base: nn.Module, cache: Any) -> None:
    """Restore the position offsets of a cache's prompt on the model, which may have run other prompts since."""
    info: CacheInfo | None = getattr(cache, _INFO, None)
    if info is not None and info.state is not None:
        give_back(base, info.state.offsets)


def begin_pass(cache: Any) -> None:
    """Allow writes to a cache while a forward pass runs."""
    if is_pruned(cache):
        _info(cache).in_pass = True


def end_pass(cache: Any) -> None:
    """Forbid writes to a cache after its forward pass."""
    if is_pruned(cache):
        _info(cache).in_pass = False


def note_pruned(cache: Any, state: CacheState | None, session: SessionHandle) -> None:
    """Store on a cache what was pruned; `None` if the forward pass failed."""
    if is_pruned(cache):
        _info(cache).state = state
        return
    setattr(cache, _INFO, CacheInfo(session, session.settings, state))
    kind: Any = type(cache)
    cache.__class__ = _pruned_class(kind)
