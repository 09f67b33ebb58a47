"""A captured layer, cuts, and the attention output after them, one head and row at a time."""

from __future__ import annotations

import math
from typing import Any

import torch

from tokenprune.engine import CapturedLayer
from tokenprune.metrics.lens import Cut, KeptTokens

B, H, G, S, D = 2, 4, 2, 12, 8


VISUAL = (2, 3, 4, 5, 6, 7)


def captured(layer: int, seed: int = 0) -> CapturedLayer:
    """Two samples of random projections; rows 2 to 7 are visual, 8 to 11 text."""
    generator = torch.Generator().manual_seed(seed + layer)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(B, heads, S, D, generator=generator)

    return CapturedLayer(
        layer=layer,
        queries=draw(H),
        keys=draw(G),
        values=draw(G),
        queries_nope=draw(H),
        keys_nope=draw(G),
        scaling=D**-0.5,
        visual=(torch.tensor(VISUAL),) * B,
        text_after=(torch.tensor([8, 9, 10, 11]),) * B,
        valid=torch.ones(B, S, dtype=torch.bool),
    )


def cut(*indices: int, layer: int = 0, weights: tuple[float, ...] = (), **facts: Any) -> KeptTokens:
    return KeptTokens((Cut(0, "input", layer, len(VISUAL), indices, weights, **facts),))


def output_by_hand(layer: CapturedLayer, sample: int, kept: list[int], weights: dict[int, float]) -> torch.Tensor:
    """Attention output of the text rows with only some visual tokens there, one head and row at a time."""
    rows = []
    for head in range(H):
        for row in (8, 9, 10, 11):
            places = [p for p in range(row + 1) if p not in VISUAL or p - VISUAL[0] in kept]
            logits = [
                float(layer.queries[sample, head, row] @ layer.keys[sample, head // 2, p]) / math.sqrt(D)
                + weights.get(p - VISUAL[0], 0.0) * (p in VISUAL)
                for p in places
            ]
            share = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
            rows.append((share[:, None] * layer.values[sample, head // 2, places].double()).sum(0))
    return torch.stack(rows)
