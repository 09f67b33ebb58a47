"""VScan, encoder stage: the quota rule of the LLaVA port, and the capped rule of the Qwen port."""

from __future__ import annotations

from torch import Tensor

from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted
from tokenprune.testing.recording import Recording

_SHALLOW = 5


def check(case: Case) -> list[str]:
    """Kept indices, what merges where, and merged rows."""
    parameters, features = case.parameters, case.given("features")
    tokens, rectangular = features.shape[0], isinstance(parameters["grid"], list)
    rows, columns = parameters["grid"] if rectangular else (parameters["grid"], parameters["grid"])
    pruner = build("vscan", {"window": int(parameters["window"]), "published": not rectangular})
    recording = Recording(
        tokens=tokens,
        projected=features[None],
        cls_attention=_attention(case, "deep", "global"),
        grid=(int(rows), int(columns)),
    )
    shallow = Recording(tokens=tokens, cls_attention=_attention(case, "shallow", "local"))
    kept = decide(pruner, recording, int(parameters["T"]), encoder={_SHALLOW: shallow}).units[0]
    findings = [
        same("keep", kept.anchors, case.wanted("keep")),
        close("features", emitted(kept, features), case.wanted("features")),
    ]
    if case.has("out.merged_into") and kept.merge is not None:
        into = kept.anchors[kept.merge[:, case.wanted("dropped")].argmax(dim=0)]
        findings.append(same("merged_into", into, case.wanted("merged_into")))
    return differences(*findings)


def _attention(case: Case, depth: str, role: str) -> Tensor:
    """Attention of one depth, (1, H, N)."""
    name = f"cls_attn_{depth}"
    return case.given(name)[None] if case.has(f"in.{name}") else case.given(f"attn_{role}")[None, None]
