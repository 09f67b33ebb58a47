"""FitPrune, online step: what one layer's attention deletes."""

from __future__ import annotations

import math

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices and the product of the two masses."""
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
    pruner, keep = build("fitprune"), end - start - int(case.parameters["delete"])
    score = pruner.score(look(pruner, recording, keep, layer=1), 1)[0]  # type: ignore[attr-defined]
    kept = decide(pruner, recording, keep, layer=1).units[0]
    return differences(
        close("score", score, case.wanted("self_score") * case.wanted("cross_score")),
        same("keep", kept.anchors, case.wanted("keep")),
    )
