"""References that the engine's proofs compare against: the stock model, told in other ways to ignore tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tokenprune.pruner import PruneRecord


def dropped_by_layer(record: PruneRecord, inputs: dict[str, torch.Tensor], image: int, layers: int) -> torch.Tensor:
    """(L, B, S) True where a visual token is gone in a layer, from the record alone."""
    ids = inputs["input_ids"]
    gone = torch.zeros(layers, *ids.shape, dtype=torch.bool)
    spans: dict[tuple[int, int], torch.Tensor] = {}
    for sample in range(len(ids)):
        slots = (ids[sample] == image).nonzero()[:, 0]
        units = sorted({unit.image for unit in record.units if unit.sample == sample})
        if units:
            for unit, part in zip(units, slots.chunk(len(units)), strict=True):
                spans[sample, unit] = part
    for unit in record.units:
        slots = spans[unit.sample, unit.image]
        out = torch.ones(len(slots), dtype=torch.bool)
        out[list(unit.indices)] = False
        gone[unit.decoder_layer :, unit.sample, slots[out]] = True
    return gone


@contextlib.contextmanager
def masked_from(model: Any, gone: torch.Tensor, valid: torch.Tensor, *, compact: bool) -> Iterator[None]:
    """The unpruned model, in which every layer masks the keys that are gone for it (and may renumber positions).

    Args:
        model: Random or shipped LLaVA, any length.
        gone: (L, B, S) for the prompt; later columns are never gone.
        valid: (B, T) for the whole sequence.
        compact: Renumber the positions of what is left.
    """
    text = model.model.language_model
    length = valid.shape[1]
    handles = []

    def hook(layer: int) -> Any:
        out = torch.zeros(valid.shape, dtype=torch.bool)
        out[:, : gone.shape[2]] = gone[layer]
        columns = valid.bool() & ~out
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = columns[:, None, None, :] & causal
        # a row that sees nothing (padding) sees itself, as no result of it is used
        allowed = allowed | (torch.eye(length, dtype=torch.bool) & ~columns[:, None, :, None])
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        if compact:
            positions = (columns.long().cumsum(1) - 1).clamp(min=0)

        def run(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = {**kwargs, "attention_mask": mask, "position_ids": None}
            if compact:
                hidden = args[0] if args else kwargs["hidden_states"]
                changed["position_embeddings"] = text.rotary_emb(hidden, position_ids=positions)
            return args, changed

        return run

    for layer, module in enumerate(text.layers):
        handles.append(module.register_forward_pre_hook(hook(layer), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids that `generate` gives to a padded batch."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def fingerprint_of(model: Any) -> tuple[Any, ...]:
    """Everything that must be the same after a session: parameters, buffers, config, hooks, attributes."""
    tensors = tuple(
        (name, tensor.data_ptr(), tensor._version, tensor.detach().double().sum().item())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    )
    modules = tuple(
        (
            name,
            tuple(sorted(vars(module).keys())),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._forward_hooks_with_kwargs),
            len(module._forward_pre_hooks_with_kwargs),
            module.forward.__func__ if hasattr(module.forward, "__func__") else module.forward,
        )
        for name, module in model.named_modules()
    )
    configs = tuple(
        (config.to_json_string(), config._attn_implementation)
        for config in (model.config, model.config.text_config, model.config.vision_config)
    )
    return tensors, modules, configs
