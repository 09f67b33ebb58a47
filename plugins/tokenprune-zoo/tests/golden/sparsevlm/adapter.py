"""SparseVLM v1.5: raters once, then kept and recycled tokens at every stage."""

from __future__ import annotations

from tokenprune.pruner import State
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, decide, emitted, look
from tokenprune.testing.recording import Recording

_FIRST_LAYER = 3


def check(case: Case) -> list[str]:
    """Raters, kept indices, clusters and emitted rows of every stage."""
    counts = [int(count) for count in case.parameters["kept_per_stage"]]
    layers = list(range(_FIRST_LAYER, _FIRST_LAYER + len(counts)))  # where exactly makes no difference to a recording
    pruner = build("sparsevlm", {"layers": layers, "kept": counts, "recycle_share": case.parameters["recycle_share"]})
    state: State = {}
    found: list[list[str]] = []
    for stage, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        hidden = case.given(f"hidden{stage}")
        recording = Recording(
            tokens=hidden.shape[0],
            hidden=hidden[None],
            # read at the first stage only, where all visual tokens are there
            projected=case.given("embed_visual")[None],
            text_embeddings=case.given("embed_text")[None],
            attention={"text": case.given(f"attn_text_rows{stage}")[None]},
        )
        state["density_noise"] = case.given(f"density_noise{stage}")[None]
        rows = int(case.parameters["visual_sizes"][stage + 1])
        kept = decide(pruner, recording, rows, layer=layer, state=state).units[0]
        assert kept.merge is not None
        count = min(count, hidden.shape[0] - 1)
        pool, centres = case.wanted(f"pool{stage}"), case.wanted(f"centres{stage}")
        clusters = kept.merge[count:]
        if stage == 0:
            raters = pruner.raters(look(pruner, recording, layer=layer), state)[0]  # type: ignore[attr-defined]
            found.append(same("raters", raters.nonzero().squeeze(-1), case.wanted("raters")))
        found.append(same(f"keep{stage}", kept.anchors[:count], case.wanted(f"keep{stage}")))
        found.append(
            same(f"cluster_of_pool{stage}", clusters[:, pool].argmax(0), case.wanted(f"cluster_of_pool{stage}"))
        )
        found.append(same(f"centres{stage}", kept.anchors[count:], centres))
        found.append(close(f"visual_out{stage}", emitted(kept, hidden), case.wanted(f"visual_out{stage}")))
    return differences(*found)
