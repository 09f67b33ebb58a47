"""TRIM: joint-space score; kept rows and the mean of the rest."""

from __future__ import annotations

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording

_EPS = 1e-5


def check(case: Case) -> list[str]:
    """Kept indices and emitted rows."""
    features, share = case.given("features"), float(case.parameters["k"])
    tokens = features.shape[0]
    normed = torch.nn.functional.layer_norm(
        features, features.shape[-1:], case.given("ln_weight"), case.given("ln_bias"), _EPS
    )
    patches = normed @ case.given("proj_weight").T
    recording = Recording(
        tokens=tokens, encoder_features=features[None], joint_image=patches[None], joint_text=case.given("text")[None]
    )
    pruner = build("trim", {"adaptive": share < 0, "published": True})
    # the published budget leaves out the mean row
    kept = decide(pruner, recording, tokens if share < 0 else int(tokens * share) + 1).units[0]
    return differences(
        close("patch_embeds", patches, case.wanted("patch_embeds")),
        same("keep", kept.anchors[:-1], case.wanted("keep")),
        close("features", emitted(kept, features), case.wanted("features")),
    )
