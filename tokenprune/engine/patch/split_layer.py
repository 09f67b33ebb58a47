"""Run a transformer layer in two halves, so that tokens can be removed between its attention and its MLP.

A pre-norm layer computes `x + attention(norm(x))` and then `x + mlp(norm(x))`. The layer's own forward gives the first
half if its MLP returns zeros, and the second half if its attention returns zeros. So no layer is implemented again
here, and the model's own norms run in both halves. Before the halves are used, a check on the layer compares them with
the whole.
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
    """The state between the halves: the residual stream (B, S, D), and the input of the MLP."""

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
        """Run the attention and its residual; this fills the layer's KV cache."""
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
        """Run the MLP and its residual; the result has the form of the layer's output."""

        def silent(*given: Any, **named: Any) -> Any:
            states = named["hidden_states"] if "hidden_states" in named else given[0]
            nothing = torch.zeros_like(states)
            return nothing if self._rest is None else (nothing, *self._rest)

        with _answering(self._attention, silent):
            return self._forward(residual, *args, **kwargs)

    def check(self, hidden: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compare the halves with the whole layer on some states, without a cache.

        Raises:
            IncompatibleError: They differ.
        """
        try:
            whole = _states(self._forward(hidden, *args, **kwargs))
            split = _states(self.second(self.first(hidden, *args, **kwargs).residual, *args, **kwargs))
        except (TypeError, ValueError, AttributeError) as error:  # the modules are no attention and MLP
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
    """Replaces a layer's forward for a session, so that a hook can redirect the next call.

    A module looks up its forward before its hooks run, so the switch must be there before the call.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._own = vars(layer).get("forward")
        self.forward: Callable[..., Any] = layer.forward
        """The layer's own forward."""
        self._run: Callable[..., Any] | None = None
        object.__setattr__(layer, "forward", self)

    @classmethod
    def before(cls, layer: nn.Module, undo: contextlib.ExitStack) -> ForwardSwitch:
        """Put a switch before a layer; the stack removes it."""
        switch = cls(layer)
        undo.callback(switch.remove)
        return switch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward, or the function to which this call was redirected."""
        run, self._run = self._run, None
        return (run or self.forward)(*args, **kwargs)

    @property
    def redirected(self) -> bool:
        """Whether the next call is redirected already."""
        return self._run is not None

    def redirect(self, run: Callable[..., Any] | None) -> None:
        """Redirect the next call to `run`; `None` cancels a redirection."""
        self._run = run

    def remove(self) -> None:
        """Restore the layer's own forward."""
        if self._own is None:
            object.__delattr__(self._layer, "forward")
        else:
            object.__setattr__(self._layer, "forward", self._own)


@contextlib.contextmanager
def _answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a module inside the block."""
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
