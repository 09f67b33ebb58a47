"""Capture the projections of decoder layers in an unpruned prefill, as the reference of the error lens."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.engine.patch.attention_probe import Projections, other_arguments, project, without_rotation
from tokenprune.engine.state.prefill import open_prefill
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of


@dataclass(frozen=True)
class CapturedLayer:
    """Projections of one decoder layer for a whole batch, float32.

    Args:
        layer: Decoder layer, 0-based.
        queries: (B, H, S, d) with RoPE.
        keys: (B, G, S, d) with RoPE.
        values: (B, G, S, d).
        queries_nope: (B, H, S, d) without RoPE.
        keys_nope: (B, G, S, d) without RoPE.
        scaling: Factor of the attention logits.
        visual: Per sample, rows of the visual tokens, (N,).
        text_after: Per sample, rows of the text after the last image, (T,).
        valid: (B, S) True if the row is a token, False for padding.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    queries_nope: Tensor
    keys_nope: Tensor
    scaling: float
    visual: tuple[Tensor, ...]
    text_after: tuple[Tensor, ...]
    valid: Tensor


@torch.no_grad()
def capture_prefill(model: nn.Module, inputs: Mapping[str, Any], layers: Sequence[int]) -> list[CapturedLayer]:
    """Projections of decoder layers in an unpruned forward pass of a batch with images.

    Raises:
        IncompatibleError: The batch holds no images, or a layer does not exist.
    """
    parts = parts_of(model)
    wanted = sorted(set(layers))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(parts.layers):
        raise IncompatibleError(f"layers {wanted} of a decoder with {len(parts.layers)} layers")
    found = open_prefill(parts, inputs)
    if found is None:
        raise IncompatibleError("the batch holds no images", hint="capture a batch made by the processor")
    input_ids, valid, spans = found
    seen: dict[int, tuple[Tensor, Mapping[str, Any]]] = {}

    def remember(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            del module
            call = {**other_arguments(kwargs), "position_embeddings": kwargs["position_embeddings"]}
            seen[index] = (args[0] if args else kwargs["hidden_states"], call)

        return hook

    with contextlib.ExitStack() as undo:
        for index in {*wanted, *(parts.kv_sources[index] for index in wanted)}:
            layer = parts.layers[index]
            undo.callback(layer.register_forward_pre_hook(remember(index), with_kwargs=True).remove)
        model(**inputs, use_cache=False)
    visual = tuple(
        torch.cat([span.slots for span in spans if span.sample == sample] or [input_ids.new_zeros(0)])
        for sample in range(len(input_ids))
    )
    text = []
    for sample, slots in enumerate(visual):
        after = torch.arange(input_ids.shape[1], device=input_ids.device) > (int(slots.max()) if len(slots) else -1)
        text.append((after & valid[sample]).nonzero()[:, 0])

    def projected(index: int, *, rope: bool) -> Projections:
        hidden, call = seen[index]
        embeddings = call["position_embeddings"]
        call = {**call, "position_embeddings": embeddings if rope else without_rotation(embeddings)}
        found, source = project(parts.layers[index], hidden, **call), parts.kv_sources[index]
        if source == index:
            return found
        theirs = projected(source, rope=rope)
        return replace(found, keys=theirs.keys, values=theirs.values)

    captured = []
    for index in wanted:
        rotated, plain = projected(index, rope=True), projected(index, rope=False)
        captured.append(
            CapturedLayer(
                layer=index,
                queries=rotated.queries.float(),
                keys=rotated.keys.float(),
                values=rotated.values.float(),
                queries_nope=plain.queries.float(),
                keys_nope=plain.keys.float(),
                scaling=rotated.scaling,
                visual=visual,
                text_after=tuple(text),
                valid=valid,
            )
        )
    return captured
