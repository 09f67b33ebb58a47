"""PruneVid, stage 1: windows, static and dynamic sets, and their clusters."""

from __future__ import annotations

import torch

from tokenprune import dual
from tokenprune.pruner import Site
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording

#: Published scale of the noise.
_SCALE = 1e-6


def check(case: Case) -> list[str]:
    """Frame labels, sizes of the sets, the row of every token, and emitted rows."""
    parameters, features = case.parameters, case.given("features")
    windows = case.wanted("window_sizes").tolist()
    frames = sum(windows)
    pruner = build(
        "prunevid",
        {
            "tau": parameters["tau"],
            "segment_ratio": parameters["temporal_segment_ratio"],
            "cluster_ratio": parameters["cluster_ratio"],
            "published": True,
        },
    )
    recording = Recording(tokens=features.shape[0], projected=features[None], frames=frames)
    noise = case.given("density_noise")[None]
    means = dual.by_frame(features[None], frames)[0].mean(dim=1)
    labels = pruner.labels(means, _SCALE * noise[:, :frames])  # type: ignore[attr-defined]
    spans = dual.runs(labels)
    kept = decide(pruner, recording, recording.tokens, site=Site("input"), state={"density_noise": noise}).units[0]
    assert kept.merge is not None
    window = torch.tensor([number for number, (first, last) in enumerate(spans) for _ in range(first, last + 1)])
    row_window = window[kept.anchors * frames // recording.tokens]
    static = torch.tensor([label == "static" for label in kept.labels or ()])
    return differences(
        same("frame_cluster", labels, case.wanted("frame_cluster")),
        same("window_sizes", window.bincount(), windows),
        same("static_sizes", row_window[static].bincount(minlength=len(spans)), case.wanted("static_sizes")),
        same("dynamic_sizes", row_window[~static].bincount(minlength=len(spans)), case.wanted("dynamic_sizes")),
        same("group", kept.merge.argmax(dim=0), case.wanted("group")),
        close("features", emitted(kept, features), case.wanted("features")),
    )
