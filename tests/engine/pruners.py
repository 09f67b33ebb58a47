"""Pruners that only the engine's tests use: a fixed choice by content, at any site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenprune.budget import Budget
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source


def sites_of(names: Sequence[str]) -> list[Site]:
    return [Site("layer", int(name[6:])) if name.startswith("layer:") else Site(name) for name in names]  # type: ignore[arg-type]


@pruner(
    "by-content",
    summary="keeps the tokens with the largest hidden values; asks for everything",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("hidden", "fingerprint"),
)
@dataclass(frozen=True)
class ByContent(Pruner):
    """Top-k of a fixed projection of the content fingerprint, at one or several sites."""

    sites: tuple[str, ...] = ("input",)
    ratios: tuple[float, ...] = ()
    by_content: bool = True

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        budgets = [Budget(ratio=ratio) for ratio in self.ratios] or [budget] * len(self.sites)
        return [Stop(site, each) for site, each in zip(sites_of(self.sites), budgets, strict=True)]

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        rows = []
        for fingerprint in view.fingerprints() if self.by_content else [7] * view.units:
            generator = torch.Generator().manual_seed(fingerprint % 2**31)
            rows.append(torch.rand(view.original_tokens, generator=generator))
        score = torch.stack(rows).gather(1, view.indices())
        return Decision.keep(score.topk(view.keep, dim=1).indices)


@pruner(
    "ragged",
    summary="keeps a number of tokens that depends on the content",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("fingerprint",),
)
@dataclass(frozen=True)
class Ragged(ByContent):
    """Like `ByContent`, with a count of its own per unit (also zero)."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        units = []
        for unit, fingerprint in enumerate(view.fingerprints()):
            generator = torch.Generator().manual_seed(fingerprint % 2**31)
            score = torch.rand(view.original_tokens, generator=generator)[view.indices()[unit]]
            count = fingerprint % (view.keep + 1)
            units.append(Kept(score.topk(count).indices.sort().values))
        return Decision(tuple(units))


@pruner(
    "averaging",
    summary="merges neighbours and weighs them",
    source=Source("test"),
    axes=Axes(site="any", merge="mean"),
)
@dataclass(frozen=True)
class Averaging(ByContent):
    """Averages K runs of neighbours, emits them in reverse order, with or without log weights."""

    weighted: bool = False
    reverse: bool = True

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        cell = torch.arange(view.tokens) * view.keep // view.tokens
        merge = torch.nn.functional.one_hot(cell, view.keep).T.float()
        size = merge.sum(1)
        merge = merge / size[:, None]
        anchors = torch.tensor([int((cell == row).nonzero()[0]) for row in range(view.keep)])
        order = torch.arange(view.keep).flip(0) if self.reverse else torch.arange(view.keep)
        kept = Kept(anchors[order], merge=merge[order], log_weights=size[order].log() if self.weighted else None)
        return Decision((kept,) * view.units)
