"""Hooks that observe a vision encoder that cannot be cut, because its patches are merged, pooled or packed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.state.encoder_run import EncoderLayerCall, EncoderRun
from tokenprune.engine.state.prefill import Prefill
from tokenprune.families.family import ObservedEncoderParts
from tokenprune.pruner import Pruner

#: Needs that require these hooks.
_LOOKING = frozenset({"encoder", "encoder_attention", "joint"})


def observes_encoder(pruner: Pruner) -> bool:
    """Whether a pruner may read something of the encoder."""
    return not _LOOKING.isdisjoint(pruner.needs) or "encoder" in pruner.spec.sites


class EncoderObserver:
    """Hooks of one session on the encoder layers; they change nothing."""

    def __init__(self, parts: ObservedEncoderParts, prefill: Callable[[], Prefill | None]) -> None:
        self._parts = parts
        self._prefill = prefill

    def install(self, undo: contextlib.ExitStack) -> None:
        """Register the hooks."""
        for layers, read in zip(self._parts.towers, self._parts.read, strict=True):
            for index, layer in enumerate(layers):
                undo.callback(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True).remove)
            undo.callback(read.register_forward_hook(self._after_read).remove)

    def _before_layer(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            prefill = self._prefill()
            if prefill is None:
                return
            names = list(signature(module.forward).parameters)
            call = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden = call.pop(names[0])
            if index == 0:
                prefill.vision.observed.runs.append(EncoderRun())
            prefill.vision.observed.runs[-1].layer_calls[index] = EncoderLayerCall(module, hidden, call)

        return hook

    def _after_read(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        prefill = self._prefill()
        if prefill is not None and prefill.vision.observed.runs:
            prefill.vision.observed.runs[-1].features = output if isinstance(output, Tensor) else output[0]
