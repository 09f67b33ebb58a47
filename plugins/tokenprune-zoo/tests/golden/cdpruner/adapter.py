"""CDPruner: relevance over the batch and greedy DPP."""

from __future__ import annotations

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Relevance and kept indices of every unit of the batch."""
    features = case.given("features")
    # Several text segments: the mean of their cosines is the cosine with their mean direction up to a factor, which
    # the min-max takes out again.
    segments = torch.nn.functional.normalize(case.given("text_embeds"), dim=-1).mean(dim=0)
    recording = Recording(
        tokens=features.shape[1],
        projected=features,
        joint_image=case.given("image_embeds"),
        joint_text=segments.expand(features.shape[0], -1),
    )
    pruner = build("cdpruner", {"published": True})
    relevance = pruner.relevance(look(pruner, recording))  # type: ignore[attr-defined]
    decision = decide(pruner, recording, int(case.parameters["T"]))
    kept = torch.stack([unit.anchors for unit in decision.units])
    return differences(close("relevance", relevance, case.wanted("relevance")), same("keep", kept, case.wanted("keep")))
