"""The reference of the law `masked`: the stock model, told by its attention masks which visual tokens are gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.engine.state.image_spans import find_images
from tokenprune.families.family import Parts
from tokenprune.families.supported import cache_in
from tokenprune.pruner import PruneRecord


def gone_by_layer(parts: Parts, inputs: Mapping[str, Any], record: PruneRecord) -> Tensor:
    """True where a visual token is gone in a decoder layer and after the last one, (L + 1, B, S), by the record."""
    ids = inputs["input_ids"]
    spans = find_images(parts.is_placeholder(ids), parts.visuals(inputs))
    slots = {(span.sample, span.image): span.slots for span in spans}
    gone = torch.zeros(parts.facts.num_layers + 1, *ids.shape, dtype=torch.bool, device=ids.device)
    for unit in record.units:
        part = slots[unit.sample, unit.image]
        out = torch.ones(len(part), dtype=torch.bool, device=ids.device)
        out[list(unit.indices)] = False
        first = unit.decoder_layer + (unit.site.startswith("layer") and unit.site.endswith(".mid"))
        gone[first:, unit.sample, part[out]] = True
    return gone


@contextlib.contextmanager
def masked(parts: Parts, gone: Tensor) -> Iterator[None]:
    """The stock model, cache and all, in which every layer masks the keys that are gone for it."""

    def change(layer: int, rows: int, seen: int, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = torch.ones(rows, seen, dtype=torch.bool, device=gone.device).tril(seen - rows)[None, None]
        out = torch.zeros(gone.shape[1], seen, dtype=torch.bool, device=gone.device)
        out[:, : gone.shape[2]] = gone[layer]
        out = out[:, None, None, -mask.shape[-1] :]
        if mask.dtype == torch.bool:
            mask = mask & ~out
            return mask | ~mask.any(-1, keepdim=True)  # a row that sees nothing is one that nobody reads
        return mask.masked_fill(out, torch.finfo(mask.dtype).min)

    with masks_changed(parts, change):
        yield


@contextlib.contextmanager
def masks_changed(parts: Parts, change: Callable[[int, int, int, Any], Tensor]) -> Iterator[None]:
    """The stock model, in which every decoder layer runs with another attention mask.

    Args:
        parts: The model.
        change: Makes the mask from the layer's index, its rows, the tokens seen so far and these, and its own mask.
    """
    seen = 0

    def count(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        nonlocal seen
        cache = cache_in(kwargs)
        seen = kwargs["inputs_embeds"].shape[1] + (0 if cache is None else int(cache.get_seq_length()))

    def hook(layer: int) -> Any:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": change(layer, args[0].shape[1], seen, kwargs["attention_mask"])}

        return run

    with contextlib.ExitStack() as undo:
        undo.callback(parts.text.register_forward_pre_hook(count, with_kwargs=True).remove)
        for index, module in enumerate(parts.layers):
            undo.callback(module.register_forward_pre_hook(hook(index), with_kwargs=True).remove)
        yield
