"""G-Prune: base view and tiles as two images; row separators always stay."""

from __future__ import annotations

import torch

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept indices over the whole sequence, and scores."""
    parameters = case.parameters
    features, newlines = case.given("features"), case.wanted("newlines")
    rows, columns = (int(side) for side in parameters["tile_grid"])
    base = features.shape[0] - rows * (columns + 1)
    places = torch.arange(base, features.shape[0])
    tiles = places[(places - base) % (columns + 1) != columns]
    pruner = build(
        "gprune",
        {
            "threshold": parameters["similarity_threshold"],
            "temperature": parameters["temperature"],
            "steps": parameters["iterations"],
        },
    )
    found, kept = [], [newlines]
    for name, where in (("base", torch.arange(base)), ("tile", tiles)):
        recording = Recording(tokens=where.shape[0], projected=features[where][None])
        score = pruner.score(look(pruner, recording))[0]  # type: ignore[attr-defined]
        found.append(close(f"score_{name}", score, case.wanted(f"score_{name}")))
        count = int(_ratio(parameters["keep_ratio"]) * where.shape[0])
        kept.append(where[decide(pruner, recording, count).units[0].anchors])
    return differences(*found, same("keep", torch.cat(kept).sort().values, case.wanted("keep")))


def _ratio(figure: object) -> float:
    """A number, or a fraction written as text."""
    over, _, under = str(figure).partition("/")
    return float(over) / float(under or 1)
