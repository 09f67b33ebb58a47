"""FastVID: segments, salient tokens, and anchors that take in their segment."""

from __future__ import annotations

import torch

from tokenprune.budget import Budget
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Salient tokens, anchors of every frame, kept indices and emitted rows."""
    parameters, features, attention = case.parameters, case.given("features"), case.given("frame_attn")
    frames, cells = attention.shape
    pruner = build(
        "fastvid",
        {
            "segments": parameters["DySeg_c"],
            "threshold": parameters["DySeg_tau"],
            "context_share": parameters["STPrune_d"],
            "anchor_step": parameters["DTM_p"],
            "anchor_weight": parameters["DTM_beta"],
            "published": True,
        },
    )
    recording = Recording(
        tokens=frames * cells, projected=features[None], cls_attention=attention.reshape(1, 1, -1), frames=frames
    )
    state = {"frame_features": case.given("frame_global")[None], "density_noise": case.given("density_noise")[None]}
    budget = Budget(ratio=float(parameters["retention"]))
    kept = decide(pruner, recording, budget.count(recording.tokens), budget=budget, state=state).units[0]
    context = torch.tensor([label == "context" for label in kept.labels or ()])
    return differences(
        same("keep", kept.anchors, case.wanted("keep")),
        same("salient", kept.anchors[~context], case.wanted("salient")),
        same(
            "context_per_frame",
            (kept.anchors[context] // cells).bincount(minlength=frames),
            case.wanted("context_per_frame"),
        ),
        close("features", emitted(kept, features), case.wanted("features")),
    )
