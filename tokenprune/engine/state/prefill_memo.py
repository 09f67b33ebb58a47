"""Share the encoder, the layers before a cut and projections between sessions on the same inputs.

The memo answers a call only if all its arguments equal those of the recorded call, by value. So a memo can never
change a result; at worst nothing is shared.
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
        args: Positional arguments.
        kwargs: Keyword arguments, without the cache.
        output: What it returned.
        cached: Whether the call had a cache.
        writes: What it wrote into the cache: positional and keyword arguments of `update`.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    cached: bool = False
    writes: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = ()


@dataclass
class _Encoding(_Call):
    """A run of the vision encoder, with the inputs of its layers if a session needed them.

    Args:
        entered: By encoder layer, the hidden states (images, R, C) that entered it.
        runs: What was observed of an encoder that cannot be cut; `None` if nothing was observed.
    """

    entered: Mapping[int, Tensor] = field(default_factory=dict)
    runs: tuple[EncoderRun, ...] | None = None


class PrefillMemo:
    """Shares work between sessions that prune the same batch: `pruned(..., memo=memo)`.

    The first session that runs a part unpruned records it, and later sessions reuse it: the vision encoder, unless it
    is cut inside, the decoder layers before the first cut, and the projections of a layer that pruners ask for.
    Results are the same as without a memo, bit for bit. A memo holds the tensors of one batch: drop it with the batch.
    """

    def __init__(self) -> None:
        self._encodings: dict[str, _Encoding] = {}
        self._layers: dict[int, _Call] = {}
        self._values: dict[Hashable, _Call] = {}
        self._equal: list[tuple[Any, Any]] = []
        """Pairs of tensors that were found equal, so that they are not compared again for every layer."""

    def layer(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a decoder layer into an empty cache, or repeat what it did.

        Args:
            index: Layer index.
            forward: The layer's own forward.
            args: Positional arguments.
            kwargs: Keyword arguments.
        """
        cache = cache_in(kwargs)  # recorded writes are repeated on it
        given = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
        recorded = self._layers.get(index)
        if recorded is not None and recorded.cached == (cache is not None) and self._matches(recorded, args, given):
            for written, named in recorded.writes:
                cast(Any, cache).update(*written, **named)
            return recorded.output
        with _recorded_writes(cache) as writes:
            output = forward(*args, **kwargs)
        if recorded is None:
            self._layers[index] = _Call(args, given, output, cache is not None, writes)
        return output

    def tower(
        self, forward: Callable[..., Any], entered: Callable[[], Mapping[int, Tensor]], *args: Any, **kwargs: Any
    ) -> tuple[Any, Mapping[int, Tensor]]:
        """Run a vision tower, or repeat its output.

        Args:
            forward: The tower's own forward.
            entered: Called after the run; returns the hidden states (images, R, C) that entered the layers.
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The output, and the states that entered the layers.
        """
        recorded = self._encodings.get("tower")
        if recorded is not None and self._matches(recorded, args, kwargs):
            return recorded.output, recorded.entered
        output = forward(*args, **kwargs)
        states = entered()
        if recorded is None:
            self._encodings["tower"] = _Encoding(args, kwargs, output, entered=states)
        return output, states

    def features(
        self, name: str, forward: Callable[..., Any], runs: list[EncoderRun] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a method that makes the visual tokens, or repeat its output.

        Args:
            name: The method's name.
            forward: The method.
            runs: List to which the observed runs of the encoder are added; `None` if nothing is observed.
            args: Positional arguments.
            kwargs: Keyword arguments.
        """
        recorded = self._encodings.get(name)
        if (
            recorded is not None
            and (runs is None or recorded.runs is not None)
            and self._matches(recorded, args, kwargs)
        ):
            if runs is not None:
                runs += recorded.runs or ()
            return recorded.output
        before = len(runs or ())
        output = forward(*args, **kwargs)
        if recorded is None or recorded.runs is None:
            seen = None if runs is None else tuple(runs[before:])
            self._encodings[name] = _Encoding(args, kwargs, output, runs=seen)
        return output

    def value(self, name: Hashable, compute: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Value:
        """Call a pure function, or repeat its recorded result.

        Args:
            name: Key of the result.
            compute: The function; its result depends on its arguments only.
            args: Positional arguments.
            kwargs: Keyword arguments.
        """
        recorded = self._values.get(name)
        if recorded is not None and self._matches(recorded, args, kwargs):
            return cast(Value, recorded.output)
        output = compute(*args, **kwargs)
        if recorded is None:
            self._values[name] = _Call(args, kwargs, output)
        return output

    def _matches(self, recorded: _Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return (
            len(args) == len(recorded.args)
            and kwargs.keys() == recorded.kwargs.keys()
            and all(self._same(one, other) for one, other in zip(args, recorded.args, strict=True))
            and all(self._same(kwargs[name], recorded.kwargs[name]) for name in kwargs)
        )

    def _same(self, one: Any, other: Any) -> bool:
        """Whether two arguments are equal; arguments of unknown types count as different."""
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
    """Answers the methods that encode images and videos from a memo during one session.

    Args:
        base: The multimodal model.
        memo: The memo.
        runs: Returns the encoder runs that the session has observed; `None` if its pruner needs none.
    """

    def __init__(self, base: nn.Module, memo: PrefillMemo, runs: Callable[[], list[EncoderRun] | None]) -> None:
        self._base = base
        self._memo = memo
        self._runs = runs

    def install(self, undo: contextlib.ExitStack) -> None:
        """Replace the methods."""
        for name in ENCODING:
            if callable(getattr(self._base, name, None)):
                undo.enter_context(method_changed(self._base, name, functools.partial(self._answering, name)))

    def _answering(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            return self._memo.features(name, method, self._runs(), *args, **kwargs)

        return run


@contextlib.contextmanager
def _recorded_writes(cache: Any) -> Iterator[list[tuple[tuple[Any, ...], Mapping[str, Any]]]]:
    """Record what is written into a cache inside the block."""
    writes: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    if cache is None:
        yield writes
        return
    update = cache.update

    def recording_update(*args: Any, **kwargs: Any) -> Any:
        writes.append((args, kwargs))
        return update(*args, **kwargs)

    cache.update = recording_update
    try:
        yield writes
    finally:
        del cache.update
