"""Run the compiled parts of a model uncompiled during a session.

A pruner decides in the middle of the model, and its decision is read on the host: a compiled graph cannot contain
that. The compiler would trace the engine's own code and compile again for every sequence length.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from torch import nn

from tokenprune.families.unwrap import COMPILED, is_a

#: Attribute in which `module.compile()` stores the compiled call.
_CALL = "_compiled_call_impl"


class Uncompiled:
    """Runs the compiled parts of a model uncompiled until the end of a session.

    Args:
        model: The model as the caller holds it, with its wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def install(self, undo: contextlib.ExitStack) -> None:
        """Replace the compiled calls by the plain ones."""
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
