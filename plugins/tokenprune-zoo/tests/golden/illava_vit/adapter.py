"""iLLaVA, vision part: one layer's received attention folds the least attended tokens."""

from __future__ import annotations

import math

import torch

from tokenprune.pruner import Site
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording

#: The published merged row is rounded to half precision.
_TOLERANCE = 2e-3


def check(case: Case) -> list[str]:
    """Received attention, kept indices, members of the fold by rising attention, and rows."""
    hidden, queries, keys = case.given("hidden"), case.given("q"), case.given("k")
    tokens = hidden.shape[0]
    attention = torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1]), dim=-1)
    received = attention.mean(dim=(0, 1))
    pruner, site = build("illava", {"published": True}), Site("tower", 5, "mid")
    recording = Recording(tokens=tokens, received_attention=received[None])
    kept = decide(pruner, recording, tokens - int(case.parameters["reduce"]), site=site).units[0]
    assert kept.merge is not None
    folded = kept.merge[(kept.merge > 0).sum(dim=-1).argmax()]  # the one row that is made of several
    members = folded.argsort(descending=True)[: int((folded > 0).sum())]  # published: the least attended weighs most
    return differences(
        close("received", received, case.wanted("received")),
        same("keep", kept.anchors, case.wanted("keep")),
        same("merged", members, case.wanted("merged_least_first")),
        close("features", emitted(kept, hidden), case.wanted("features"), relative=_TOLERANCE),
    )
