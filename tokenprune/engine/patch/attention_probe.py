"""See a layer's q, k and v where transformers itself routes them: at the registered attention interface.

A layer is run up to its attention call, where a registered function takes the projections and stops the run by an
exception. So projections can be had of a layer that has not run yet, with any position embedding (the identity gives
them without RoPE), and neither eager attention nor `output_attentions` is ever needed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tokenprune.engine.patch.internals import attention_interface
from tokenprune.errors import IncompatibleError

PROBE = "tokenprune_probe"


@dataclass(frozen=True)
class Projections:
    """Queries (B, H, S, d), keys (B, G, S, d) and values (B, G, S, d) of one layer, in the model's dtype."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float


class _Taken(Exception):
    """Carries the projections out of the layer, and the attention module that made them."""

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
    """Projections that a layer would compute from hidden states (B, S, D).

    Args:
        layer: A decoder or encoder layer.
        hidden: Hidden states that enter it.
        kwargs: Other arguments of its forward (position embeddings).

    Raises:
        IncompatibleError: The layer does not route its attention through the interface.
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


def _names_kernel(config: Any) -> bool:
    return hasattr(config, "_attn_implementation_internal")


def _probing(config: Any) -> Any:
    """A config under which attention is taken, not computed; another model may run with the same one meanwhile."""
    changed = copy.copy(config)
    changed._attn_implementation_internal = PROBE
    return changed


def _offload(layer: nn.Module, attention: nn.Module) -> None:
    """Let accelerate put the weights away that it brought for modules in which the run was stopped."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and any(part is attention for part in module.modules()):
            hook.post_forward(module, None)


def _without_mask(layer: nn.Module) -> dict[str, None]:
    """The mask argument, where a layer takes one; some encoder layers hand unknown arguments on beside their own."""
    takes = signature(type(layer).forward).parameters
    return {"attention_mask": None} if "attention_mask" in takes else {}


def without_rotation(position_embeddings: Any) -> Any:
    """The position embedding that rotates nothing, of the same form: (cosine, sine), or complex numbers."""
    if isinstance(position_embeddings, Tensor):
        return torch.ones_like(position_embeddings)
    cos, sin = position_embeddings
    return torch.ones_like(cos), torch.zeros_like(sin)
