"""FitPrune, online step: what one layer's attention deletes."""

from __future__ import annotations

import math

import torch

from tokenprune.pruner import Site
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices and the two masses."""
    start, text = int(case.parameters["image_start"]), int(case.parameters["text_after"])
    queries, keys = case.given("q"), case.given("k")
    length = keys.shape[1]
    end = length - text
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    attention = torch.softmax(logits.masked_fill(~causal, -torch.inf), dim=-1)[None, ..., start:end]
    recording = Recording(
        tokens=end - start, attention={"visual": attention[:, :, start:end], "text": attention[:, :, end:]}
    )
    pruner, keep, site = build("fitprune"), end - start - int(case.parameters["delete"]), Site("layer", 1, "mid")
    own, cross = pruner.masses(look(pruner, recording, site=site))  # type: ignore[attr-defined]
    kept = decide(pruner, recording, keep, site=site).units[0]
    return differences(
        close("self_score", own[0], case.wanted("self_score")),
        close("cross_score", cross[0] * text, case.wanted("cross_score")),  # theirs is a sum over the text rows
        same("keep", kept.anchors, case.wanted("keep")),
    )
