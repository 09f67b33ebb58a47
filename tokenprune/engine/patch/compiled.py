"""Compiled parts of a model, set aside during a session.

Pruners decide in the middle of a model and read their decisions on the host, which no graph can hold. A compiler would
trace the engine's own code and compile it anew for every length. So compiled parts run as they were before.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from torch import nn

from tokenprune.families.unwrap import COMPILED, is_a

#: Where `module.compile()` keeps the compiled call.
_CALL = "_compiled_call_impl"


class Uncompiled:
    """Lets the parts of a model that were compiled run without the compiler until the end of a session.

    Args:
        model: The model as the caller holds it, with its wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def install(self, undo: contextlib.ExitStack) -> None:
        """Set the compiled calls aside."""
        compiled = 0
        for module in self._model.modules():
            if is_a(module, COMPILED):
                _replace(module, "forward", module._orig_mod, undo)
            elif vars(module).get(_CALL) is not None:
                _replace(module, _CALL, None, undo)
            else:
                continue
            compiled += 1
        if compiled:
            warnings.warn(f"{compiled} compiled parts of the model run uncompiled inside `pruned`", stacklevel=4)


def _replace(module: nn.Module, name: str, plain: Any, undo: contextlib.ExitStack) -> None:
    undo.callback(object.__setattr__, module, name, vars(module)[name])
    object.__setattr__(module, name, plain)
