"""Compiled parts of a model, set aside during a session.

Pruners decide in the middle of a model and read their decisions on the host, which no graph can hold. A compiler would
trace the engine's own code and compile it anew for every length. So compiled parts run as they were before.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tokenprune.models.unwrap import COMPILED, is_a

#: Where `module.compile()` keeps the compiled call.
_CALL = "_compiled_call_impl"


class Uncompiled:
    """Lets the parts of a model that were compiled run without the compiler until the end of a session.

    Args:
        model: The model as the caller holds it, with its wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: list[tuple[nn.Module, str, Any]] = []

    def install(self) -> list[RemovableHandle]:
        """Set the compiled calls aside; there are no hooks."""
        for module in self._model.modules():
            if is_a(module, COMPILED):
                self._replace(module, "forward", module._orig_mod)
            elif vars(module).get(_CALL) is not None:
                self._replace(module, _CALL, None)
        if self._before:
            warnings.warn(
                f"{len(self._before)} compiled parts of the model run uncompiled inside `pruned`", stacklevel=4
            )
        return []

    def release(self) -> None:
        """Give the modules their compiled calls back."""
        while self._before:
            module, name, compiled = self._before.pop()
            object.__setattr__(module, name, compiled)

    def _replace(self, module: nn.Module, name: str, plain: Any) -> None:
        self._before.append((module, name, vars(module)[name]))
        object.__setattr__(module, name, plain)
