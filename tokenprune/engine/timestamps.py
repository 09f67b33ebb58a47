"""Record when the vision side and each forward pass of a `generate` call begin and end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from tokenprune.engine.patch.methods import ENCODING, method_changed
from tokenprune.families.family import Parts

MarkT = TypeVar("MarkT")


@dataclass
class Timestamps(Generic[MarkT]):
    """Begin and end of each part of a run, in order.

    Args:
        encoder: Each run of vision tower and projector.
        forward: Each forward pass of the whole model: the prefill, then one per decoding step.
    """

    encoder: list[tuple[MarkT, MarkT]] = field(default_factory=list)
    forward: list[tuple[MarkT, MarkT]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all timestamps, before a new run."""
        self.encoder.clear()
        self.forward.clear()


@contextlib.contextmanager
def timestamps_of(parts: Parts, mark: Callable[[], MarkT]) -> Iterator[Timestamps[MarkT]]:
    """Record the timestamps of every run inside the block; the model is restored afterwards.

    Args:
        parts: The model, stock or inside `pruned`.
        mark: Returns a point in time: reads a clock, or records an event on the device.
    """
    found: Timestamps[MarkT] = Timestamps()
    began: list[MarkT] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        began.append(mark())

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.forward.append((began.pop(), mark()))

    with contextlib.ExitStack() as stack:
        for name in ENCODING:
            if callable(getattr(parts.base, name, None)):
                stack.enter_context(method_changed(parts.base, name, lambda own: _marked(own, mark, found.encoder)))
        stack.callback(parts.model.register_forward_pre_hook(before).remove)
        stack.callback(parts.model.register_forward_hook(after).remove)
        yield found


def _marked(
    own: Callable[..., Any], mark: Callable[[], MarkT], intervals: list[tuple[MarkT, MarkT]]
) -> Callable[..., Any]:
    @functools.wraps(own)  # `generate` reads the signature
    def run(*args: Any, **kwargs: Any) -> Any:
        begin = mark()
        made = own(*args, **kwargs)
        intervals.append((begin, mark()))
        return made

    return run
