"""MustDrop, decoder part: thresholds at four stages, with the protected set."""

from __future__ import annotations

import torch

from tokenprune.pruner import State
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import differences, same
from tokenprune.testing.golden.replay import build, decide
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Kept original indices after each stage."""
    parameters, protected = case.parameters, case.given("protected")
    layers = [int(layer) + 1 for layer in parameters["layers"]]  # a cut after layer l enters layer l + 1
    tokens = case.given("attn_text_rows0").shape[-1]
    # CLS attention that ranks the given protected tokens first, and the share that gives their number
    attention = torch.zeros(tokens).scatter(0, protected, 1.0)
    pruner = build(
        "mustdrop",
        {
            "layers": layers,
            "global_threshold": parameters["global_threshold"],
            "individual_threshold": parameters["individual_threshold"],
            "protected_share": (protected.shape[0] - 0.5) / tokens if protected.shape[0] else 0.0,
            "published": True,
        },
    )
    state: State = {}
    left, found = torch.arange(tokens), []
    for stage, layer in enumerate(layers):
        recording = Recording(
            tokens=left.shape[0],
            attention={"text": case.given(f"attn_text_rows{stage}")[None][..., left]},
            cls_attention=attention[left][None, None],
        )
        decision = decide(
            pruner, recording, left.shape[0], layer=layer, indices=left[None], original=tokens, state=state
        )
        left = left[decision.units[0].anchors]
        found.append(same(f"keep{stage}", left, case.wanted(f"keep{stage}")))
    return differences(*found)
