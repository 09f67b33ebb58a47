"""FitPrune, calibration step: what one layer may delete at a tolerance, against the masses of the unpruned sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """References, masses, both deletable sets by rising mass, and their intersection."""
    start, text = int(case.parameters["image_start"]), int(case.parameters["text_after"])
    tolerance, alive = float(case.parameters["alpha"]), case.given("alive")
    queries, keys = case.given("q"), case.given("k")
    length = keys.shape[1]
    tokens = length - start - text
    left = torch.cat((torch.arange(start), start + alive, torch.arange(length - text, length)))
    pruner: Any = build("fitprune")
    unpruned = pruner.masses(look(pruner, _recording(queries, keys, start, tokens), layer=1))
    own, cross = pruner.masses(look(pruner, _recording(queries[:, left], keys[:, left], start, len(alive)), layer=1))
    own_reference, cross_reference = (mass.sum(dim=-1) for mass in unpruned)
    by_own = pruner.deletable(own, own_reference, tolerance)[0]
    by_cross = pruner.deletable(cross, cross_reference, tolerance)[0]
    return differences(
        close("self_reference", own_reference, case.wanted("self_reference")),
        close("cross_reference", cross_reference, case.wanted("cross_reference")),
        close("self_score", own[0], case.wanted("self_score")),
        close("cross_score", cross[0], case.wanted("cross_score")),
        same("del_self", _rising(own[0], by_own), case.wanted("del_self_official_order")),
        same("del_cross", _rising(cross[0], by_cross), case.wanted("del_cross_official_order")),
        same("deleted", (by_own & by_cross).nonzero().squeeze(-1), case.wanted("deleted")),
    )


def _rising(mass: Tensor, chosen: Tensor) -> Tensor:
    """The chosen tokens (N,) by rising mass."""
    order = mass.argsort(stable=True)
    return order[chosen[order]]


def _recording(queries: Tensor, keys: Tensor, start: int, tokens: int) -> Recording:
    """Causal attention of visual and text rows on the visual columns, from queries and keys (H, S, d)."""
    length, end = keys.shape[1], start + tokens
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    attention = torch.softmax(logits.masked_fill(~causal, -torch.inf), dim=-1)[None, ..., start:end]
    return Recording(tokens=tokens, attention={"visual": attention[:, :, start:end], "text": attention[:, :, end:]})
