"""VisionZip: dominant patches and merged contextual rows; a view has no CLS row, so none is emitted."""

from __future__ import annotations

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Dominant patches, targets, what merges where, and emitted rows."""
    features, contextual = case.given("hidden")[1:], int(case.parameters["contextual"])
    recording = Recording(
        tokens=features.shape[0],
        encoder_features=features[None],
        encoder_keys=case.given("keys")[None, :, 1:],
        cls_attention=case.given("cls_attn")[None],
    )
    pruner = build("visionzip", {"published": True, "contextual": contextual})
    kept = decide(pruner, recording, int(case.parameters["total"])).units[0]
    assert kept.merge is not None
    into = kept.merge[-contextual:][:, case.wanted("merged_patches")].argmax(dim=0)
    return differences(
        same("dominant_patches", kept.anchors[:-contextual], case.wanted("dominant_patches")),
        same("target_patches", kept.anchors[-contextual:], case.wanted("target_patches")),
        same("merged_into_target", into, case.wanted("merged_into_target")),
        close("features", kept.merge @ features, case.wanted("features")[1:]),
    )
