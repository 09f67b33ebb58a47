"""Remove tokens from the KV caches of layers that have already run (`Stop.kv_from`)."""

from __future__ import annotations

import torch

from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.decoder.decoder_pass import DecoderPass
from tokenprune.errors import IncompatibleError


def prune_past_kv(decoder_pass: DecoderPass, first: int, last: int, layer_input: DecoderInput) -> None:
    """Remove from the caches of layers `first..last` every token that is no longer in the layer's input.

    The layers' keys and values are not computed again: a merged row keeps those of its anchor.

    Raises:
        IncompatibleError: A layer's cache does not hold one column for each token.
    """
    remaining = layer_input.rows.inverse >= 0
    for layer in range(first, last + 1):
        ran = decoder_pass.layer_rows[layer]
        columns = decoder_pass.columns[layer]
        past = columns.valid.shape[1] - ran.slots.shape[1]
        index, rows = ran.select(remaining & (ran.inverse >= 0), pad_left=decoder_pass.pad_left)
        past_columns = torch.arange(past, device=index.device).expand(index.shape[0], -1)
        whole = torch.cat([past_columns, past + index], dim=1)
        real = torch.cat([torch.ones_like(past_columns, dtype=torch.bool), rows.valid], dim=1)
        decoder_pass.columns[layer] = columns.select(whole, real)
        decoder_pass.layer_rows[layer] = rows
        if decoder_pass.cache is None:
            continue
        cached = decoder_pass.cache.layers[layer]
        if cached.keys.shape[-2] != columns.valid.shape[1]:
            raise IncompatibleError(
                f"the cache of layer {layer} is a `{type(cached).__name__}`, whose columns are not the layer's tokens",
                hint="choose a pruner that leaves the caches of earlier layers alone",
            )
        for name in ("keys", "values"):
            tensor = getattr(cached, name)
            wide = whole[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            setattr(cached, name, tensor.gather(2, wide.to(tensor.device)))
