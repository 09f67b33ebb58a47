"""Run a transformer layer in two halves, so that tokens can leave between its attention and its MLP.

A pre-norm layer computes `x + attention(norm(x))` and then `x + mlp(norm(x))`. Its own forward gives the first half
while its MLP answers zeros, and the second half while its attention answers zeros: no layer is written anew here, and
norms before or after either part run as the model has them. That the halves make up the whole is checked on the layer
itself before they are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.errors import IncompatibleError


@dataclass(frozen=True)
class MidLayerState:
    """Between the halves: the residual stream (B, S, D), and what the MLP would read of it."""

    residual: Tensor
    mlp_input: Tensor


class SplitLayer:
    """The two halves of one layer.

    Args:
        layer: A decoder or encoder layer.
        attention: Name of its attention module.
        mlp: Name of its MLP.

    Raises:
        IncompatibleError: The layer has no such parts.
    """

    def __init__(self, layer: nn.Module, attention: str, mlp: str) -> None:
        self._layer = layer
        self._forward: Callable[..., Any] = layer.forward
        parts = [getattr(layer, name, None) for name in (attention, mlp)]
        if not all(isinstance(part, nn.Module) for part in parts):
            raise IncompatibleError(
                f"`{type(layer).__name__}` has no modules `{attention}` and `{mlp}`, so it cannot be cut in its middle",
                hint="choose a pruner that cuts entering a layer",
            )
        self._attention: nn.Module = parts[0]  # type: ignore[assignment]
        self._mlp: nn.Module = parts[1]  # type: ignore[assignment]
        self._rest: tuple[Any, ...] | None = None

    def first(self, hidden: Tensor, *args: Any, **kwargs: Any) -> MidLayerState:
        """Attention and its residual; fills the layer's KV cache."""
        read: list[Tensor] = []
        attend = self._attention.forward

        def silent(states: Tensor, *given: Any, **named: Any) -> Tensor:
            read.append(states)
            return torch.zeros_like(states)

        def observed(*given: Any, **named: Any) -> Any:
            answer = attend(*given, **named)
            self._rest = tuple(answer[1:]) if isinstance(answer, tuple) else None
            return answer

        with _answering(self._mlp, silent), _answering(self._attention, observed):
            output = self._forward(hidden, *args, **kwargs)
        if len(read) != 1:
            raise IncompatibleError(
                f"the MLP of `{type(self._layer).__name__}` ran {len(read)} times in one layer",
                hint="it cannot be cut in its middle; choose a pruner that cuts entering a layer",
            )
        return MidLayerState(_states(output), read[0])

    def second(self, residual: Tensor, *args: Any, **kwargs: Any) -> Any:
        """MLP and its residual, in the form in which the layer answers."""

        def silent(*given: Any, **named: Any) -> Any:
            states = named["hidden_states"] if "hidden_states" in named else given[0]
            nothing = torch.zeros_like(states)
            return nothing if self._rest is None else (nothing, *self._rest)

        with _answering(self._attention, silent):
            return self._forward(residual, *args, **kwargs)

    def check(self, hidden: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compare the halves with the whole layer on given states, without a cache.

        Raises:
            IncompatibleError: They differ: the layer is no sum of both halves.
        """
        try:
            whole = _states(self._forward(hidden, *args, **kwargs))
            split = _states(self.second(self.first(hidden, *args, **kwargs).residual, *args, **kwargs))
        except (TypeError, ValueError, AttributeError) as error:  # its parts answer otherwise than attention and MLP do
            raise IncompatibleError(
                f"`{type(self._layer).__name__}` does not run in halves ({error}): it has no middle to cut at",
                hint="choose a pruner that cuts entering a layer",
            ) from error
        if not torch.equal(whole, split):
            raise IncompatibleError(
                f"`{type(self._layer).__name__}` is not attention followed by an MLP: it has no middle to cut at",
                hint="choose a pruner that cuts entering a layer",
            )


class ForwardSwitch:
    """Stands before a layer's forward, so that one coming call can go another way.

    A module looks its forward up before its hooks run; so this has to stand there from the start of a session.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._own = vars(layer).get("forward")
        self.forward: Callable[..., Any] = layer.forward
        """The layer's own."""
        self._run: Callable[..., Any] | None = None
        object.__setattr__(layer, "forward", self)

    @classmethod
    def before(cls, layer: nn.Module, undo: contextlib.ExitStack) -> ForwardSwitch:
        """Stand before a layer; the stack takes what removes it."""
        switch = cls(layer)
        undo.callback(switch.remove)
        return switch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, or what was put in place of this call."""
        run, self._run = self._run, None
        return (run or self.forward)(*args, **kwargs)

    @property
    def redirected(self) -> bool:
        """Whether the next call goes another way already."""
        return self._run is not None

    def redirect(self, run: Callable[..., Any] | None) -> None:
        """Let the next call go to `run`, or the layer's own way."""
        self._run = run

    def remove(self) -> None:
        """Give the layer its own forward back."""
        if self._own is None:
            object.__delattr__(self._layer, "forward")
        else:
            object.__setattr__(self._layer, "forward", self._own)


@contextlib.contextmanager
def _answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """A module whose forward is replaced, and given back."""
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", answer)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", own)


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
