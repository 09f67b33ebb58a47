"""A choice that is the same in every family, and the families where its prompt can be written without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.pruner import Decision, OneCut, State, Stop, View, pruner
from tokenprune.registry import Axes, Source

#: Positions in one dimension, layers that see everything, pictures whose units have one size.
PLAIN = ("fast_vlm", "idefics3", "internvl", "llava", "mistral3", "ovis2", "paligemma", "perception_lm", "vipllava")


@pruner("evenly-spaced", summary="the same choice", source=Source("test"), axes=Axes(site="input"))
@dataclass(frozen=True)
class EvenlySpaced(OneCut):
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        kept = torch.arange(view.keep) * view.tokens // view.keep
        return Decision.keep(kept.expand(view.units, -1))
