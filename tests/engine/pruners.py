"""Pruners that only the engine's tests use: a fixed choice by content, at any site."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.budget import Budget
from tokenprune.pruner import Decision, Kept, ModelFacts, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune.site import SITE_KINDS


def sites_of(names: Sequence[str]) -> list[Site]:
    """Sites by the names that they print as."""
    sites = []
    for name in names:
        place, _, point = name.partition(".")
        kind, _, layer = place.partition(":")
        sites.append(Site(kind, int(layer or 0), point or "in"))  # type: ignore[arg-type]
    assert [str(site) for site in sites] == list(names)
    return sites


@pruner(
    "by-content",
    summary="keeps the tokens with the largest hidden values; asks for everything",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("hidden", "fingerprint"),
    sites=SITE_KINDS,
)
@dataclass(frozen=True)
class ByContent(Pruner):
    """Top-k of a fixed projection of the content fingerprint, at one or several sites."""

    sites: tuple[str, ...] = ("input",)
    ratios: tuple[float, ...] = ()
    by_content: bool = True

    @property
    def reads_budget(self) -> bool:
        return bool(self.sites) and not self.ratios

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        budgets = [Budget(ratio=ratio) for ratio in self.ratios] or [budget] * len(self.sites)
        return [Stop(site, each) for site, each in zip(sites_of(self.sites), budgets, strict=True)]

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        rows = []
        for fingerprint in view.fingerprints() if self.by_content else [7] * view.units:
            generator = torch.Generator().manual_seed(fingerprint % 2**31)
            rows.append(torch.rand(view.original_tokens, generator=generator))
        score = torch.stack(rows).to(view.indices().device).gather(1, view.indices())
        return Decision.keep(score.topk(view.keep, dim=1).indices)


@pruner(
    "ragged",
    summary="keeps a number of tokens that depends on the content",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("fingerprint",),
    sites=SITE_KINDS,
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
    "first",
    summary="keeps the first tokens, so never the last",
    source=Source("test"),
    axes=Axes(site="any"),
    sites=SITE_KINDS,
)
@dataclass(frozen=True)
class First(ByContent):
    """The first K tokens of each unit."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        return Decision.keep(torch.arange(view.keep).expand(view.units, -1))


@pruner(
    "averaging",
    summary="merges neighbours and weighs them",
    source=Source("test"),
    axes=Axes(site="any", merge="mean"),
    sites=SITE_KINDS,
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


@pruner(
    "reaching",
    summary="also cuts the caches of the layers before",
    source=Source("test"),
    axes=Axes(site="any"),
    needs=("fingerprint",),
    sites=SITE_KINDS,
)
@dataclass(frozen=True)
class Reaching(ByContent):
    """Like `ByContent`, and reaches back to the caches from layer `kv_from` on."""

    kv_from: int = 0

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        return [dataclasses.replace(stop, kv_from=self.kv_from) for stop in super().plan(facts, budget, tokens)]


@pruner(
    "alternating",
    summary="sees every other token, the others at the next step",
    source=Source("test"),
    axes=Axes(site="decode"),
    needs=("attention", "fingerprint", "geometry"),
    sites=SITE_KINDS,
)
@dataclass(frozen=True)
class Alternating(ByContent):
    """Cuts as `ByContent` does, then looks at even and odd tokens in turn from a layer on."""

    layer: int = 2
    seen: Any = None

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        stops = super().plan(facts, budget, tokens) if self.sites else ()
        return [*stops, Stop(Site("decode", self.layer), Budget(ratio=1.0), auto=True)]

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        if view.site.kind != "decode":
            return super().decide(view, stop, state)
        if self.seen is not None:
            self.seen(view)
        step = {unit: state.get(unit, -1) + 1 for unit in view.ids()}
        state.update(step)
        units = []
        for unit, row in zip(view.ids(), view.indices(), strict=True):
            units.append(Kept((row % 2 == step[unit] % 2).nonzero()[:, 0]))
        return Decision(tuple(units))
