"""PruMerge: wide-head attention, kept rows with merged neighbours, one row for the rest."""

from __future__ import annotations

import math

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted, look
from tokenprune.testing.recording import Recording

from ..layers import split_heads


def check(case: Case, name: str = "prumerge") -> list[str]:
    """Emission order, score and emitted rows."""
    features, adaptive = case.given("hidden")[1:], bool(case.parameters["adaptive"])
    tokens = features.shape[0]
    recording = recorded(case)
    options = {"neighbours": case.parameters["neighbours"], "adaptive": adaptive, "published": True}
    pruner = build(name, options)
    # the published budget leaves out the last row
    keep = tokens if adaptive else int(tokens * float(case.parameters["ratio"])) + 1
    kept = decide(pruner, recording, keep).units[0]
    score = pruner.score(look(pruner, recording))[0]  # type: ignore[attr-defined]
    return differences(
        close("score", score, case.wanted("score")),
        same("order", kept.anchors[:-1], case.wanted("keep_official_order")),
        close("features", emitted(kept, features), case.wanted("features")),
    )


def recorded(case: Case) -> Recording:
    """Attention of ordinary heads, as a stock encoder has it, from the given queries and keys of all heads."""
    heads = math.gcd(4, case.given("k").shape[-1])
    queries, keys = (split_heads(case.given(name), heads)[0] for name in "qk")
    attention = torch.softmax(queries[:, :1] @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1]), dim=-1)
    return Recording(
        tokens=keys.shape[1] - 1,
        encoder_features=case.given("hidden")[None, 1:],
        encoder_keys=keys[None, :, 1:],
        cls_attention=attention[None, :, 0, 1:],
    )
