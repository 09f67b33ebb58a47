"""HoliTom, outer part: windows, static rows and dynamic rows."""

from __future__ import annotations

import torch

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.pruner import Site
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Windows, tokens saved by them, and the emitted rows with their frames and cells."""
    parameters, features, received = case.parameters, case.given("features"), case.given("received")
    frames, cells = received.shape
    pruner = build("holitom", {"tau": parameters["tau"], "centre_weight": parameters["Beta"], "published": True})
    recording = Recording(
        tokens=frames * cells, projected=features[None], received_attention=received.reshape(1, -1), frames=frames
    )
    windows = pruner.windows(dual.by_frame(features[None], frames)[0], None)  # type: ignore[attr-defined]
    ratio = torch.tensor([windows.ratio(float(parameters["retain_ratio"]))])
    kept = decide(
        pruner,
        recording,
        recording.tokens,
        site=Site("input"),
        budget=Budget(ratio=float(parameters["retain_ratio"])),
        state={"density_noise": case.given("density_noise")[None]},
    ).units[0]
    return differences(
        same("windows", [frame for span in windows.spans for frame in span], case.wanted("windows")),
        same("total_reduced", [windows.saved], case.wanted("total_reduced")),
        close("adjusted_ratio", ratio, case.wanted("adjusted_ratio")),
        same("row_frame", kept.anchors // cells, case.wanted("row_frame")),
        same("row_cell", kept.anchors % cells, case.wanted("row_cell")),
        same("row_is_static", [label == "static" for label in kept.labels or ()], case.wanted("row_is_static")),
        close("features", emitted(kept, features), case.wanted("features")),
    )
