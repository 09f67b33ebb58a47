"""HiPrune: anchors, neighbours and registers from received attention at two depths."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording

_OBJECT_LAYER = 8


def check(case: Case) -> list[str]:
    """Kept indices; received attention where queries and keys are given."""
    parameters = case.parameters
    middle, deep = _received(case, "object"), _received(case, "deep")
    tokens = deep.shape[0]
    if "grid" in parameters:
        rows, columns = (int(side) for side in parameters["grid"])
        keep = round(tokens * float(parameters["retention"]))
    else:
        columns = int(parameters["row_length"])
        rows, keep = tokens // columns, int(parameters["T"])
    pruner = build("hiprune", {"alpha": parameters["alpha"], "object_layer": _OBJECT_LAYER, "published": True})
    recording = Recording(tokens=tokens, received_attention=deep[None], grid=(rows, columns))
    encoder = {_OBJECT_LAYER: Recording(tokens=tokens, received_attention=middle[None])}
    kept = decide(pruner, recording, keep, encoder=encoder).units[0]
    scores = [
        close(name, got, case.wanted(name))
        for name, got in (("received_object", middle), ("received_deep", deep))
        if case.has(f"out.{name}")
    ]
    return differences(*scores, same("keep", kept.anchors, case.wanted("keep")))


def _received(case: Case, depth: str) -> Tensor:
    """Received attention of the patches, (N,)."""
    if case.has(f"in.received_{depth}"):
        return case.given(f"received_{depth}")
    queries, keys = case.given(f"q_{depth}"), case.given(f"k_{depth}")
    attention = torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1]), dim=-1)
    return attention.mean(dim=(0, 1))[1:]
