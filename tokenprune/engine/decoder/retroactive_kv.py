"""Cut the KV caches of layers that have already run: a stop that reaches back."""

from __future__ import annotations

import torch

from tokenprune.engine.decoder.cut import DecoderInput
from tokenprune.engine.decoder.decoder_pass import DecoderPass
from tokenprune.errors import IncompatibleError


def prune_past_kv(running: DecoderPass, first: int, last: int, present: DecoderInput) -> None:
    """Take out of the caches of layers `first..last` what is not among the rows present.

    Keys and values that stay are those that the layers computed; a merged row is there with its anchor's own.

    Raises:
        IncompatibleError: A layer's cache does not hold one column for each token.
    """
    alive = present.rows.inverse >= 0
    for layer in range(first, last + 1):
        ran = running.entered[layer]
        columns = running.columns[layer]
        past = columns.valid.shape[1] - ran.slots.shape[1]
        index, rows = ran.select(alive & (ran.inverse >= 0), pad_left=running.pad_left)
        held = torch.arange(past, device=index.device).expand(index.shape[0], -1)
        whole = torch.cat([held, past + index], dim=1)
        real = torch.cat([torch.ones_like(held, dtype=torch.bool), rows.valid], dim=1)
        running.columns[layer] = columns.select(whole, real)
        running.entered[layer] = rows
        if running.cache is None:
            continue
        cached = running.cache.layers[layer]
        if cached.keys.shape[-2] != columns.valid.shape[1]:
            raise IncompatibleError(
                f"the cache of layer {layer} is a `{type(cached).__name__}`, whose columns are not the layer's tokens",
                hint="choose a pruner that leaves the caches of earlier layers alone",
            )
        for name in ("keys", "values"):
            tensor = getattr(cached, name)
            wide = whole[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            setattr(cached, name, tensor.gather(2, wide.to(tensor.device)))
