"""MustDrop, vision part: windows that merge entering encoder layer 1, and the protected set among the merged rows."""

from __future__ import annotations

import math
from typing import Any

import torch

from tokenprune.pruner import Site
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Similarities, rows, sizes and groups after merging, and the protected rows."""
    given, attention = case.given("x")[1:], case.given("cls_attn")
    side = math.isqrt(len(given))
    pruner: Any = build(
        "mustdrop",
        {
            "published": True,
            "window_threshold": case.parameters["threshold"],
            "protected_share": case.parameters["protected_rate"],
        },
    )
    recording, site = Recording(tokens=len(given), hidden=given[None], grid=(side, side)), Site("tower", 1)
    similarity, members = pruner.window_similarity(look(pruner, recording, site=site))
    kept = decide(pruner, recording, 1, site=site).units[0]
    merge = torch.eye(len(given)) if kept.merge is None else kept.merge
    sizes = (merge > 0).sum(dim=-1)
    windows = members[:, kept.anchors[sizes > 1]].argmax(dim=0)
    merged = Recording(tokens=len(sizes), cls_attention=attention[None])
    protected = pruner.protected(look(pruner, merged, layer=3), {})[0]
    return differences(
        close("similarity", similarity[0], case.wanted("window_similarity")),
        same("windows", windows, case.wanted("merged_windows_official_order")),
        close("x", emitted(kept, given), case.wanted("x")[1:]),
        same("size", sizes, case.wanted("size")[1:]),
        same("group", (merge > 0).long().argmax(dim=0) + 1, case.wanted("group")[1:]),
        same("protected", protected.nonzero().squeeze(-1), case.wanted("protected")),
    )
