"""Read a layer's queries, keys and values at the attention interface of transformers.

A layer runs up to its attention call. There a registered function takes the projections and stops the run with an
exception. This works for a layer that has not run yet and for any position embedding (the identity gives projections
without RoPE), and it needs neither eager attention nor `output_attentions`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tokenprune.engine.patch.internals import attention_interface
from tokenprune.errors import IncompatibleError
from tokenprune.families.supported import CACHE_NAMES

PROBE = "tokenprune_probe"

#: Arguments of a decoder layer that the engine sets itself.
OWN = ("hidden_states", "attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES)


@dataclass(frozen=True)
class Projections:
    """Queries (B, H, S, d), keys (B, G, S, d) and values (B, G, S, d) of one layer, in the model's dtype."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float


class _Taken(Exception):
    """Stops the run of a layer, and carries its projections and attention module out."""

    def __init__(self, projections: Projections, module: nn.Module) -> None:
        self.projections = projections
        self.module = module


def _take(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> NoReturn:
    del args, kwargs
    raise _Taken(Projections(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), module)


@torch.no_grad()
def project(layer: nn.Module, hidden: Tensor, **kwargs: Any) -> Projections:
    """The projections that a layer would compute from hidden states (B, S, D).

    Args:
        layer: A decoder or encoder layer.
        hidden: Its input states.
        kwargs: Other arguments of its forward, such as position embeddings.

    Raises:
        IncompatibleError: The layer does not use the attention interface.
    """
    configured = [module for module in layer.modules() if _names_kernel(getattr(module, "config", None))]
    before = [module.config for module in configured]
    attention_interface().register(PROBE, _take)
    try:
        for module, config in zip(configured, before, strict=True):
            module.config = _probing(config)
        layer.forward(hidden, **_without_mask(layer), **kwargs)
    except _Taken as taken:
        _offload(layer, taken.module)
        return taken.projections
    finally:
        for module, config in zip(configured, before, strict=True):
            module.config = config
    raise IncompatibleError(
        f"`{type(layer).__name__}` does not route its attention through the transformers attention interface",
        hint="its queries, keys and values cannot be seen; choose a pruner that needs none",
    )


def other_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a layer other than states, mask, positions and cache.

    Mappings are copied: layers that share keys write them into one, and a look at a layer must not change it.
    """
    return {
        name: copy.copy(value) if isinstance(value, MutableMapping) else value
        for name, value in arguments.items()
        if name not in OWN
    }


def _names_kernel(config: Any) -> bool:
    return hasattr(config, "_attn_implementation_internal")


def _probing(config: Any) -> Any:
    """A copy of a config that selects the probe; the config itself may belong to another running model."""
    changed = copy.copy(config)
    changed._attn_implementation_internal = PROBE
    return changed


def _offload(layer: nn.Module, attention: nn.Module) -> None:
    """Let accelerate offload the weights of the modules in which the run was stopped."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and any(part is attention for part in module.modules()):
            hook.post_forward(module, None)


def _without_mask(layer: nn.Module) -> dict[str, None]:
    """The mask argument, if the layer has one; some encoder layers would pass an unknown argument on and fail."""
    takes = signature(type(layer).forward).parameters
    return {"attention_mask": None} if "attention_mask" in takes else {}


def without_rotation(position_embeddings: Any) -> Any:
    """The position embedding without rotation, in the same form: (cosine, sine), or complex numbers."""
    if isinstance(position_embeddings, Tensor):
        return torch.ones_like(position_embeddings)
    cos, sin = position_embeddings
    return torch.ones_like(cos), torch.zeros_like(sin)
