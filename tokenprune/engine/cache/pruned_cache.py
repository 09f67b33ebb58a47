"""A KV cache that knows what was pruned out of it.

What is known lies on the cache itself, so that copies have it too, also those that outlive their original. The cache's
own methods keep it true: they reorder, select, repeat and crop it with the keys and values. Keys and values are written
inside a session only, because nothing else gives each layer the mask of its own columns.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from tokenprune.engine.cache.caches import CacheState, held_columns
from tokenprune.engine.cache.offsets import give_back
from tokenprune.errors import IncompatibleError
from tokenprune.families.family import Parts
from tokenprune.pruner import Pruner

if TYPE_CHECKING:

    class _Stock:
        """What a pruned cache calls of its own class."""

        layers: list[Any]

        def update(self, *args: Any, **kwargs: Any) -> Any: ...
        def reset(self) -> None: ...
        def reorder_cache(self, beam_idx: Tensor) -> None: ...
        def batch_select_indices(self, indices: Tensor) -> None: ...
        def batch_repeat_interleave(self, repeats: int) -> None: ...
        def crop(self, tokens_to_remove: int) -> None: ...
else:
    _Stock = object

_HELD = "_tokenprune"


@dataclass(frozen=True)
class Maker:
    """What decides whether a session may go on with a cache: the shape of the model, the pruner, the positions."""

    model: str
    pruner: str
    positions: str

    @classmethod
    def of(cls, parts: Parts, pruner: Pruner, positions: str) -> Maker:
        """Of a session."""
        kind = f"`{type(parts.model).__name__}` of {parts.facts.num_layers} layers"
        return cls(kind, f"`{pruner.spec.name}`, {pruner!r}", positions)


class Owner:
    """One session, as its caches and their copies know it; a copy of it is itself, and pickled it is `None`.

    Args:
        model: The session's model.
        maker: What decides whether its caches can go on in another session.
    """

    def __init__(self, model: nn.Module, maker: Maker) -> None:
        self.model = weakref.ref(model)
        self.maker = maker
        self.open = True

    def close(self) -> None:
        """The session is over."""
        self.open = False

    def __copy__(self) -> Owner:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@dataclass
class Held:
    """What a cache knows of itself.

    Args:
        owner: The session that wrote it; `None` where it was loaded.
        maker: How that session was made.
        state: What was pruned; `None` where a forward pass broke off between its layers.
        reading: A pass of the session is running over it.
    """

    owner: Owner | None
    maker: Maker
    state: CacheState | None
    reading: bool = field(default=False)

    def known(self) -> CacheState:
        """What was pruned.

        Raises:
            IncompatibleError: A forward pass has broken off.
        """
        if self.state is None:
            raise IncompatibleError(
                "a forward pass over this KV cache broke off, so some layers hold other tokens than others",
                hint="start a new cache",
            )
        return self.state

    def check_read(self) -> None:
        """Refuse a use outside of the session.

        Raises:
            IncompatibleError: No pass of an open session is running over the cache.
        """
        if self.owner is not None and self.owner.open and self.reading:
            return
        why = "is used outside of the session that pruned it"
        if self.owner is None:
            why = "was loaded, and belongs to no session yet"
        elif not self.owner.open:
            why = "is used after its session ended"
        raise IncompatibleError(
            f"a pruned KV cache {why}; the stock model does not know which tokens are gone",
            hint="go on with it inside `with pruned(...)`, on the same model with the same pruner and positions",
        )


class PrunedCache(_Stock):
    """The methods of a pruned cache, in front of those of its own class."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Write keys and values, inside a session only."""
        _held(self).check_read()
        return super().update(*args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The length that the cache would have unpruned: `generate` slices and numbers new inputs by it."""
        if not self.layers or self.layers[0].get_seq_length() == 0:
            return 0  # its layers were emptied
        return _held(self).known().logical_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Sizes of a mask over that length, for models that build their masks before they call their text model."""
        return self.get_seq_length(layer_idx) + int(query_length), 0

    def reset(self) -> None:
        """Empty it, which makes it a stock cache again."""
        super().reset()
        base = _base(type(self))
        delattr(self, _HELD)
        self.__class__ = base

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other samples, as beam search does."""
        state = self._movable("beam search, which swaps samples between steps", "decode greedily or by sampling")
        super().reorder_cache(beam_idx)
        _held(self).state = state.take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take some samples."""
        state = self._movable("a choice of samples", "keep the batch as it is")
        super().batch_select_indices(indices)
        _held(self).state = state.take(torch.arange(state.batch, device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        state = self._movable("repeated samples", "repeat the prompts before the prefill")
        super().batch_repeat_interleave(repeats)
        _held(self).state = state.take(torch.arange(state.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens out, given as a negative number; not those that pruning has touched.

        Raises:
            IncompatibleError: The number is positive, or reaches into what was pruned.
        """
        count = -int(tokens_to_remove)
        state = self._movable("cropping", "decode without drafts (no `assistant_model` and no prompt lookup)")
        if count < 0:
            raise IncompatibleError(
                f"a pruned KV cache cannot be cropped to {tokens_to_remove} tokens, because layers differ in length",
                hint="give the number of tokens to take out, as a negative number",
            )
        if not state.ends_in_text(count):
            raise IncompatibleError(
                f"the last {count} tokens of this KV cache reach into a prompt that was pruned",
                hint="crop what came after the pruned prompt only, or copy the cache (`copy.deepcopy`) beforehand",
            )
        super().crop(tokens_to_remove)
        _held(self).state = state.without_last(count, self.layers)

    def __iter__(self) -> Iterator[Any]:
        raise IncompatibleError(
            "keys and values of a pruned KV cache do not say by themselves which tokens are gone",
            hint="copy the cache as a whole (`copy.deepcopy`), or read its `layers`",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_base(type(self)),), dict(vars(self))

    def _movable(self, what: str, instead: str) -> CacheState:
        """What is known, where it can follow a change of samples or length."""
        state = _held(self).known()
        if state.decode:
            raise IncompatibleError(
                f"views of the cache at every decoding step do not follow {what}", hint=f"{instead}, or another pruner"
            )
        return state


def _held(cache: Any) -> Held:
    held: Held = getattr(cache, _HELD)
    return held


@functools.cache
def _pruned(base: Any) -> Any:
    """A cache class whose caches know what was pruned."""
    return type(f"Pruned{base.__name__}", (PrunedCache, base), {"__module__": base.__module__})


def _base(kind: type) -> type:
    """The cache class that a pruned one was made of."""
    base: type = kind.__mro__[2]
    return base


def _restored(base: type) -> Any:
    """An empty cache that is filled as a copy, or from a file."""
    kind = _pruned(base)
    return kind.__new__(kind)


def state_of(cache: Any, owner: Owner) -> CacheState | None:
    """What is known of a cache that a session is given, or `None` where it was never pruned.

    Args:
        cache: The cache.
        owner: The session.

    Raises:
        IncompatibleError: Another kind of session has pruned it, or somebody else has changed it since.
    """
    held: Held | None = getattr(cache, _HELD, None)
    if held is None:
        return None
    state = held.known()
    if held.owner is not owner:
        _check_maker(held, owner)
        held.owner = owner
    for layer, source in enumerate(state.sources):
        found, known = held_columns(cache.layers[source]), state.columns[layer].valid.shape[1]
        if found != known:
            raise IncompatibleError(
                f"the cache of layer {layer} holds {found} tokens, but {known} were written while pruning",
                hint="a pruned cache cannot be edited layer by layer; start a new one",
            )
    return state


def _check_maker(held: Held, owner: Owner) -> None:
    """Refuse a cache of a session that prunes in another way, or another model."""

    def refuse(what: str) -> NoReturn:
        raise IncompatibleError(
            f"this KV cache was pruned {what}",
            hint="go on with it on the same model, with the same pruner and positions, or start a new cache",
        )

    if held.owner is not None and held.owner.model() is not owner.model():
        refuse("in a session of another model")
    theirs, ours = held.maker, owner.maker
    if theirs.model != ours.model:
        refuse(f"on a {theirs.model}, not on a {ours.model}")
    if theirs.pruner != ours.pruner:
        refuse(f"by {theirs.pruner}, not by {ours.pruner}")
    if theirs.positions != ours.positions:
        refuse(f"with positions `{theirs.positions}`, not `{ours.positions}`")


def is_pruned(cache: Any) -> bool:
    """Whether something was pruned out of a cache."""
    return hasattr(cache, _HELD)


def give_back_offsets(base: nn.Module, cache: Any) -> None:
    """Let a model number the coming tokens on from the prompt of a pruned cache, whatever it has seen since."""
    held: Held | None = getattr(cache, _HELD, None)
    if held is not None and held.state is not None:
        give_back(base, held.state.offsets)


def begin_reading(cache: Any) -> None:
    """Let a running pass write into a cache."""
    if is_pruned(cache):
        _held(cache).reading = True


def end_reading(cache: Any) -> None:
    """The pass over a cache is over."""
    if is_pruned(cache):
        _held(cache).reading = False


def remember(cache: Any, state: CacheState | None, owner: Owner) -> None:
    """Note on a cache what was pruned; `None` where the pass broke off."""
    if is_pruned(cache):
        _held(cache).state = state
        return
    setattr(cache, _HELD, Held(owner, owner.maker, state))
    kind: Any = type(cache)
    cache.__class__ = _pruned(kind)
