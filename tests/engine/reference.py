"""References that the engine's proofs compare against: the stock model, told in other ways to ignore tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tokenprune.pruner import PruneRecord


def dropped_by_layer(record: PruneRecord, inputs: dict[str, torch.Tensor], image: int, layers: int) -> torch.Tensor:
    """(L + 1, B, S) True where a visual token is gone in a layer and after the last one, from the record alone."""
    ids = inputs["input_ids"]
    gone = torch.zeros(layers + 1, *ids.shape, dtype=torch.bool)
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
        after = unit.site.startswith("layer") and unit.site.endswith(".mid")
        gone[unit.decoder_layer + after :, unit.sample, slots[out]] = True
    return gone


@contextlib.contextmanager
def tower_masked(model: Any, record: PruneRecord, tokens: int) -> Iterator[None]:
    """The unpruned model, in which the encoder masks the patches that a cut inside it has dropped."""
    images = sorted({(unit.sample, unit.image) for unit in record.units})
    encoder = model.model.vision_tower.encoder.layers
    allowed = torch.ones(len(encoder) + 1, len(images), 1 + tokens, dtype=torch.bool)
    for unit in record.units:
        kind, _, layer = unit.site.partition(":")
        if kind == "tower":
            out = torch.ones(1 + tokens, dtype=torch.bool)
            out[[0, *(index + 1 for index in unit.indices)]] = False
            allowed[int(layer[0]) + layer.endswith(".mid") :, images.index((unit.sample, unit.image)), out] = False
    handles = []
    for index, module in enumerate(encoder):
        bias = torch.zeros(allowed[index].shape).masked_fill(~allowed[index], torch.finfo(torch.float32).min)

        def run(module: Any, args: Any, kwargs: Any, bias: torch.Tensor = bias[:, None, None, :]) -> Any:
            return (args[0], bias, *args[2:]) if len(args) > 1 else args, (
                kwargs if len(args) > 1 else {**kwargs, "attention_mask": bias}
            )

        handles.append(module.register_forward_pre_hook(run, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def masked_from(
    model: Any,
    gone: torch.Tensor,
    valid: torch.Tensor,
    *,
    compact: bool,
    hidden: Callable[[int, int], torch.Tensor] | None = None,
) -> Iterator[None]:
    """The unpruned model, in which every layer masks the keys that are gone for it (and may renumber positions).

    Args:
        model: Random or shipped LLaVA, any length.
        gone: (L or L + 1, B, S) for the prompt; later columns are never gone.
        valid: (B, T) for the whole sequence.
        compact: Renumber the positions of what is left.
        hidden: (layer, row) -> (B, S) True where a row after the prompt does not see a token of the prompt.
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
        if hidden is not None:
            for row in range(gone.shape[2], length):
                allowed[:, 0, row, : gone.shape[2]] &= ~hidden(layer, row)
        # a row that sees nothing (padding) sees itself, as no result of it is used
        allowed = allowed | (torch.eye(length, dtype=torch.bool) & ~columns[:, None, :, None])
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        if compact:
            positions = (columns.long().cumsum(1) - 1).clamp(min=0)

        def run(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = {**kwargs, "attention_mask": mask, "position_ids": None}
            if compact:
                states = args[0] if args else kwargs["hidden_states"]
                changed["position_embeddings"] = text.rotary_emb(states, position_ids=positions)
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
