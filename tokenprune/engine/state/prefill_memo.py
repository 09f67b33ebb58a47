"""What several sessions on the same inputs need not compute twice: the encoder, the layers before a cut, projections.

A call is answered from the memo only where all its arguments equal those of the recorded one, by value. So a memo
cannot change a result, whatever it is given to; at worst nothing is shared.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tokenprune.engine.patch.methods import ENCODING, method_changed
from tokenprune.engine.state.encoder_run import EncoderRun
from tokenprune.families.supported import CACHE_NAMES, cache_in

Value = TypeVar("Value")

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


@dataclass
class _Call:
    """One recorded call.

    Args:
        args: Its arguments by place.
        kwargs: Its arguments by name, without the cache.
        output: What it returned.
        cached: Whether there was a cache.
        writes: What it wrote into the cache: arguments of `update`, by place and by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    cached: bool = False
    writes: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = ()


@dataclass
class _Encoding(_Call):
    """A run of the vision encoder, with what entered its layers, where a session looked.

    Args:
        entered: By encoder layer, the hidden states (images, R, C) that entered it.
        runs: What was seen of an encoder that is only looked into; `None` where nobody looked.
    """

    entered: Mapping[int, Tensor] = field(default_factory=dict)
    runs: tuple[EncoderRun, ...] | None = None


class PrefillMemo:
    """Shares work between sessions that prune the same batch: `pruned(..., memo=memo)`.

    The first session that runs a part unpruned records it, later ones go on from there: the vision encoder, unless
    it is cut inside, the decoder layers before the first cut, and the projections of a layer that pruners ask for.
    Answers are those without a memo, bit for bit. It holds the tensors of one batch; let go of it with the batch.
    """

    def __init__(self) -> None:
        self._encodings: dict[str, _Encoding] = {}
        self._layers: dict[int, _Call] = {}
        self._values: dict[Hashable, _Call] = {}
        self._equal: list[tuple[Any, Any]] = []
        """Tensors that were found equal, kept alive so that they are not compared for every layer."""

    def layer(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a decoder layer into an empty cache, or repeat what it did.

        Args:
            index: Layer index.
            forward: The layer's own forward.
            args: Arguments by place.
            kwargs: Arguments by name.
        """
        cache = cache_in(kwargs)  # what was written there is replayed
        given = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
        known = self._layers.get(index)
        if known is not None and known.cached == (cache is not None) and self._matches(known, args, given):
            for written, named in known.writes:
                cast(Any, cache).update(*written, **named)
            return known.output
        with _observed(cache) as writes:
            output = forward(*args, **kwargs)
        if known is None:
            self._layers[index] = _Call(args, given, output, cache is not None, writes)
        return output

    def tower(
        self, forward: Callable[..., Any], entered: Callable[[], Mapping[int, Tensor]], *args: Any, **kwargs: Any
    ) -> tuple[Any, Mapping[int, Tensor]]:
        """Run a vision tower, or repeat its output.

        Args:
            forward: The tower's own forward.
            entered: After it ran: the hidden states (images, R, C) that entered its layers.
            args: Arguments by place.
            kwargs: Arguments by name.

        Returns:
            The output, and the states that entered the layers.
        """
        known = self._encodings.get("tower")
        if known is not None and self._matches(known, args, kwargs):
            return known.output, known.entered
        output = forward(*args, **kwargs)
        states = entered()
        if known is None:
            self._encodings["tower"] = _Encoding(args, kwargs, output, entered=states)
        return output, states

    def features(
        self, name: str, forward: Callable[..., Any], runs: list[EncoderRun] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a method that makes the visual tokens, or repeat its output.

        Args:
            name: The method's name.
            forward: The method.
            runs: Takes what is seen of the encoder; `None` where nobody looks.
            args: Arguments by place.
            kwargs: Arguments by name.
        """
        known = self._encodings.get(name)
        if known is not None and (runs is None or known.runs is not None) and self._matches(known, args, kwargs):
            if runs is not None:
                runs += known.runs or ()
            return known.output
        before = len(runs or ())
        output = forward(*args, **kwargs)
        if known is None or known.runs is None:
            seen = None if runs is None else tuple(runs[before:])
            self._encodings[name] = _Encoding(args, kwargs, output, runs=seen)
        return output

    def value(self, name: Hashable, compute: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Value:
        """Compute something that depends on nothing but its arguments, or repeat it.

        Args:
            name: What it is.
            compute: The function.
            args: Arguments by place.
            kwargs: Arguments by name.
        """
        known = self._values.get(name)
        if known is not None and self._matches(known, args, kwargs):
            return cast(Value, known.output)
        output = compute(*args, **kwargs)
        if known is None:
            self._values[name] = _Call(args, kwargs, output)
        return output

    def _matches(self, known: _Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return (
            len(args) == len(known.args)
            and kwargs.keys() == known.kwargs.keys()
            and all(self._same(one, other) for one, other in zip(args, known.args, strict=True))
            and all(self._same(kwargs[name], known.kwargs[name]) for name in kwargs)
        )

    def _same(self, one: Any, other: Any) -> bool:
        """Whether two arguments are equal; what cannot be compared is not."""
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one is other or any(one is a and other is b for a, b in self._equal):
                return True
            equal = one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
            if equal:
                self._equal = [*self._equal[-7:], (one, other)]
            return equal
        if isinstance(one, tuple | list) and isinstance(other, tuple | list):
            return len(one) == len(other) and all(map(self._same, one, other))
        return isinstance(one, _PLAIN) and type(one) is type(other) and bool(one == other)


class MemoMethods:
    """The methods of a multimodal model that make its visual tokens, answered from a memo during one session.

    Args:
        base: The multimodal model.
        memo: The memo.
        runs: What the session has seen of the encoder so far; `None` if its pruner asks for nothing of it.
    """

    def __init__(self, base: nn.Module, memo: PrefillMemo, runs: Callable[[], list[EncoderRun] | None]) -> None:
        self._base = base
        self._memo = memo
        self._runs = runs

    def install(self, undo: contextlib.ExitStack) -> None:
        """Put the memo before the methods."""
        for name in ENCODING:
            if callable(getattr(self._base, name, None)):
                undo.enter_context(method_changed(self._base, name, functools.partial(self._answering, name)))

    def _answering(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            return self._memo.features(name, method, self._runs(), *args, **kwargs)

        return run


@contextlib.contextmanager
def _observed(cache: Any) -> Iterator[list[tuple[tuple[Any, ...], Mapping[str, Any]]]]:
    """What is written into a cache inside the block."""
    writes: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    if cache is None:
        yield writes
        return
    update = cache.update

    def observed(*args: Any, **kwargs: Any) -> Any:
        writes.append((args, kwargs))
        return update(*args, **kwargs)

    cache.update = observed
    try:
        yield writes
    finally:
        del cache.update
