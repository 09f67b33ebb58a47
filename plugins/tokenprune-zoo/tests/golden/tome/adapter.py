"""ToMe: rounds of merging with given metrics; positions count the class token, which the pruner never sees."""

from __future__ import annotations

import dataclasses

import torch

from tokenprune.budget import Budget
from tokenprune.pruner import Site, Stop
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, differences, same
from tokenprune.testing.golden.replay import build, emitted, look
from tokenprune.testing.recording import Recording


def check(case: Case) -> list[str]:
    """Merged and unmerged positions, rows and sizes of every pass, and where every token ends."""
    cls = int(bool(case.parameters["class_token"]))
    rows = case.given("x")[cls:]
    group, sizes, found = torch.arange(len(rows)), torch.ones(len(rows)), []
    pruner = build("tome")
    for number, gone in enumerate(int(count) for count in case.parameters["r_per_pass"]):
        tokens = len(rows)
        recording = Recording(
            tokens=tokens, encoder_keys=case.given(f"metric{number}")[None, None, cls:], sizes=sizes[None]
        )
        view = look(pruner, recording, tokens - gone, site=Site("tower", number, "mid"))
        view.facts = dataclasses.replace(view.facts, has_cls=bool(cls))
        sources, partners, targets = pruner.matched(view)  # type: ignore[attr-defined]
        (kept,) = pruner.decide(view, Stop(view.site, Budget(tokens=tokens - gone)), {}).units
        assert kept.merge is not None
        assert kept.log_weights is not None
        staying = torch.cat((torch.zeros(cls, dtype=torch.long), kept.anchors[: -len(targets)] + cls))
        into = (kept.merge > 0).long().argmax(dim=0)
        rows, sizes, group = emitted(kept, rows), sizes[kept.anchors] * kept.log_weights.exp(), into[group]
        found += [
            same(f"merged{number}", sources[0, :gone] + cls, case.wanted(f"merged{number}")),
            same(f"into{number}", partners[0, :gone] + cls, case.wanted(f"into{number}")),
            same(f"unmerged{number}", staying, case.wanted(f"unmerged{number}")),
            close(f"x{number}", rows, case.wanted(f"x{number}")[cls:]),
            same(f"size{number}", sizes.round().long(), case.wanted(f"size{number}")[cls:]),
        ]
    return differences(*found, same("group", group + cls, case.wanted("group")[cls:]))
