"""Check that the internals of transformers, on which the engine relies, behave as the engine expects.

Each probe uses an internal as the engine does and checks the result; versions are not compared. All probes run when a
session begins. So a changed transformers gives a clear error at the start, and not an `AttributeError` in the middle
of a prefill.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.families.family import Parts
from tokenprune.families.supported import CACHE_NAMES, UnknownInternalError, internal

#: Errors that a changed internal may raise.
_MISMATCH = (AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError, RuntimeError)

#: Kernels that accept an additive bias per key; `flex_attention` accepts it instead of a block mask.
BIASED_KERNELS = ("sdpa", "eager", "flex_attention")


@dataclass(frozen=True)
class Internal:
    """A part of transformers that is not public API.

    Args:
        name: Name in messages.
        used_for: What the engine uses it for.
        probe: Uses it as the engine does; returns what is different, or `None`.
    """

    name: str
    used_for: str
    probe: Callable[[], str | None]

    def problem(self) -> str | None:
        """What is different from what the engine expects, in one clause, or `None`."""
        try:
            return self.probe()
        except UnknownInternalError as error:
            return error.found
        except _MISMATCH as error:
            message = " ".join(str(error).split())
            return f"it does not work as expected ({type(error).__name__}: {message})"


@dataclass(frozen=True)
class MaskFunctions:
    """The functions with which transformers builds masks: factories by kernel, the causal rule, joining two rules."""

    factories: Any
    causal: Callable[..., Any]
    both: Callable[..., Any]


def attention_interface() -> Any:
    """The registry of attention kernels.

    Raises:
        UnknownInternalError: The installed transformers has no such registry.
    """
    return internal("transformers", "AttentionInterface")


def mask_functions() -> MaskFunctions:
    """The functions of transformers that build attention masks.

    Raises:
        UnknownInternalError: The installed transformers has no such functions.
    """
    module = "transformers.masking_utils"
    return MaskFunctions(
        internal(module, "ALL_MASK_ATTENTION_FUNCTIONS"),
        internal(module, "causal_mask_function"),
        internal(module, "and_masks"),
    )


def _kernels_are_looked_up() -> str | None:
    interface = attention_interface()
    interface.register("tokenprune_known", _same)
    if internal("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS")["tokenprune_known"] is not _same:
        return "a function registered with `AttentionInterface` is not found where models look it up"
    return None


def _kernels_are_switched() -> str | None:
    return _switching(internal("transformers", "PreTrainedConfig"))


@functools.cache
def _switching(config_class: Any) -> str | None:
    config = config_class()
    if not hasattr(config, "_attn_implementation_internal"):
        return "configs have no `_attn_implementation_internal`"
    config._attn_implementation_internal = "tokenprune_known"
    if config._attn_implementation != "tokenprune_known":
        return "a config's `_attn_implementation` does not follow `_attn_implementation_internal`"
    return None


def _masks_are_built() -> str | None:
    masks, config_class = mask_functions(), internal("transformers", "PreTrainedConfig")
    for kernel in ("sdpa", "eager"):
        problem = _building(masks.factories[kernel], masks.causal, masks.both, config_class)
        if problem is not None:
            return f"kernel `{kernel}`: {problem}"
    return None


@functools.cache
def _building(
    factory: Callable[..., Any], causal: Callable[..., Any], both: Callable[..., Any], config_class: Any
) -> str | None:
    """Build a mask of the last two of three tokens, the first of which is padding, and check it."""
    mask = factory(
        batch_size=1,
        q_length=2,
        kv_length=3,
        q_offset=1,
        kv_offset=0,
        mask_function=both(causal, _everywhere),
        attention_mask=torch.tensor([[False, True, True]]),
        allow_is_causal_skip=False,
        dtype=torch.float32,
        config=config_class(),
        use_vmap=False,
        device=torch.device("cpu"),
    )
    if not isinstance(mask, Tensor) or mask.shape != (1, 1, 2, 3):
        return "the mask is not a tensor over rows and columns"
    seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    if seen.tolist() != [[False, True, False], [False, True, True]]:
        return "the mask is not causal, or does not exclude padding"
    return None


def _caches_hold_columns() -> str | None:
    """Check what the engine reads from a cache, on a cache of two columns."""
    cache = internal("transformers", "DynamicCache")()
    if getattr(cache, "is_compileable", None) is not False:
        return "a `DynamicCache` does not say that it grows (`is_compileable`)"
    states = torch.zeros(1, 1, 2, 1)
    cache.update(states, states, 0)
    layer = cache.layers[0]
    if layer.keys.shape != states.shape or layer.values.shape != states.shape or layer.get_seq_length() != 2:
        return "a layer of a `DynamicCache` does not hold `keys` and `values` (B, H, T, d)"
    if cache.get_seq_length() != 2 or not callable(cache.reorder_cache):
        return "a `DynamicCache` does not count its columns in `get_seq_length`"
    if tuple(cache.get_mask_sizes(1, 0)) != (3, 0):
        return "`get_mask_sizes` of a `DynamicCache` does not answer for a number of queries and a layer"
    return None


#: Internals that all models share.
INTERNALS = (
    Internal("attention interface", "seeing queries, keys and values", _kernels_are_looked_up),
    Internal("kernel of a config", "switching to the engine's own kernel and back", _kernels_are_switched),
    Internal("mask functions", "masks for shortened sequences", _masks_are_built),
    Internal("dynamic cache", "caches whose layers differ in length", _caches_hold_columns),
)

#: Arguments of text models and of their layers that the engine changes.
_TEXT = ("inputs_embeds", "attention_mask", "position_ids")
_LAYER = ("hidden_states", "attention_mask")


def check_internals(parts: Parts) -> None:
    """Probe transformers, and the arguments of a model's parts, before a session begins.

    Raises:
        UnknownInternalError: Something differs from what the engine expects.
    """
    for each in INTERNALS:
        problem = each.problem()
        if problem is not None:
            raise UnknownInternalError(f"the engine does not know the {each.name} of this transformers: {problem}")
    for missing in _unknown_calls(parts):
        raise UnknownInternalError(f"the engine does not know how this model is called: {missing}")


def _unknown_calls(parts: Parts) -> Iterator[str]:
    if not callable(getattr(parts.model, "generate", None)):
        yield f"`{type(parts.model).__name__}` has no `generate`"
    if not hasattr(parts.text.config, "_attn_implementation"):
        yield f"the config of `{type(parts.text).__name__}` names no attention kernel (`_attn_implementation`)"
    yield from _without(parts.text, _TEXT)
    for layer in {type(layer): layer for layer in parts.layers}.values():
        yield from _without(layer, _LAYER)


def _without(module: nn.Module, names: tuple[str, ...]) -> Iterator[str]:
    takes = signature(type(module).forward).parameters
    if {each.kind for each in list(takes.values())[1:]} <= {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return  # a wrapper that passes everything on
    absent = [name for name in names if name not in takes]
    if not takes.keys() & set(CACHE_NAMES):
        absent.append(CACHE_NAMES[0])
    if absent:
        yield f"`{type(module).__name__}.forward` takes no " + ", ".join(f"`{name}`" for name in absent)


def _same(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return query, None


def _everywhere(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key >= 0
