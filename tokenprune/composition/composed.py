"""A pruner put together from one part per axis, without code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from tokenprune import dual
from tokenprune.budget import Budget
from tokenprune.composition.checks import check_values, parse_site
from tokenprune.composition.duplications import DUPLICATIONS, DuplicationPart
from tokenprune.composition.groups import GROUPS, Groups, Within
from tokenprune.composition.magnitudes import MAGNITUDES, Magnitude
from tokenprune.composition.merges import MERGES, Merge
from tokenprune.composition.options import AXES, Options
from tokenprune.composition.parts import DECODER, EVERYWHERE, Part, find
from tokenprune.composition.selectors import SELECTORS, Selector
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.pruner import Decision, ModelFacts, PositionPolicy, Pruner, Site, State, Stop, View, pruner
from tokenprune.registry import Axes, Source
from tokenprune.view import NEEDS

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual import Duplication

#: The parts of every axis but the site, in the order of the axes.
PARTS: Mapping[str, Mapping[str, Part]] = {
    "groups": GROUPS,
    "magnitude": MAGNITUDES,
    "duplication": DUPLICATIONS,
    "selector": SELECTORS,
    "merge": MERGES,
}
_AUTO = "auto"
_ALL_NEEDS = {need for parts in PARTS.values() for part in parts.values() for need in part.needs} | {"hidden"}


@dataclass(frozen=True)
class Composition:
    """The chosen parts of one pruner, checked against each other.

    Raises:
        ConfigError: Two parts do not fit, or a setting is without effect; the message says why and what works.
    """

    options: Options
    site: Site
    groups: Groups
    magnitude: Magnitude
    duplication: DuplicationPart
    selector: Selector
    merge: Merge

    @classmethod
    def of(cls, options: Options) -> Composition:
        """Look the parts up by their names.

        Raises:
            UnknownNameError: A part does not exist.
        """
        magnitude = find("magnitude", options.magnitude, MAGNITUDES)
        duplication = find("duplication", options.duplication, DUPLICATIONS)
        selector = _automatic(options) if options.selector == _AUTO else options.selector
        return cls(
            options=options,
            site=parse_site(options.site),
            groups=find("groups", options.groups, GROUPS),
            magnitude=magnitude,
            duplication=duplication,
            selector=find("selector", selector, SELECTORS),
            merge=find("merge", options.merge, MERGES),
        )

    def __post_init__(self) -> None:
        check_values(self.options)
        self._check_site()
        self._check_use("magnitude", self.options.magnitude != "one", self.selector.magnitude, "one")
        self._check_use("duplication", self.options.duplication != "none", self.selector.duplication, "none")
        self._check_maths()
        self._check_settings()

    @property
    def parts(self) -> Mapping[str, Part]:
        """Axis -> part, the site left out."""
        return {axis: cast(Part, getattr(self, axis)) for axis in PARTS}

    @property
    def needs(self) -> tuple[str, ...]:
        """Union of the parts' needs, in the order of `NEEDS`."""
        needs = {need for part in self.parts.values() for need in part.needs}
        if self.merge.emit is not None and self.duplication.similarity is None:
            needs.add("hidden")
        return tuple(need for need in NEEDS if need in needs)

    @property
    def formula(self) -> str:
        """The selection as one formula, from the parts' terms."""
        options, magnitude = self.options, self.magnitude.term
        scaled = magnitude if options.magnitude_scale == "none" else f"{options.magnitude_scale}({magnitude})"
        chosen = self.selector.formula(magnitude, scaled, self.duplication.term)
        if options.overlap == "mean" and "overlap" in self.selector.reads:
            chosen = chosen.replace("max_{j in S}", "mean_{j in S}")
        inside = f"{self.groups.term}: " if self.groups.term else ""
        return inside + chosen + (f"; {self.merge.term}" if self.merge.term else "")

    @property
    def axes(self) -> Axes:
        """The point on the seven axes."""
        return Axes(
            site=str(self.site),
            groups=self.groups.name,
            magnitude=self.magnitude.term,
            duplication="none" if self.duplication.similarity is None else self.duplication.term,
            selector=self.selector.name,
            merge=self.merge.name,
        )

    def _check_site(self) -> None:
        for axis, part in self.parts.items():
            if self.site.kind not in part.sites:
                works = [name for name, other in PARTS[axis].items() if self.site.kind in other.sites]
                raise ConfigError(
                    f"{axis} `{part.name}` reads what the decoder is given, which is not there yet at site "
                    f"`{self.site}`",
                    hint=f"cut at {_or(_examples(part))}, or take {axis} {_or(works)}",
                )
        for axis in ("magnitude", "duplication"):
            part, layer = self.parts[axis], getattr(self.options, f"{axis}_layer")
            if part.sites == DECODER and layer > self.site.decoder_layer:
                raise ConfigError(
                    f"`{axis}_layer` is {layer}, but at site `{self.site}` only decoder layers up to "
                    f"{self.site.decoder_layer} have run",
                    hint=f"set it to at most {self.site.decoder_layer}, or -1 for the site's own",
                )

    def _check_use(self, axis: str, given: bool, use: str, neutral: str) -> None:
        """The selector uses what is given, and is given what it uses."""
        if given and use == "ignored":
            works = [name for name, other in SELECTORS.items() if getattr(other, axis) != "ignored"]
            raise ConfigError(
                f"selector `{self.selector.name}` does not look at the {axis}, but it is `{getattr(self, axis).name}`",
                hint=f"take selector {_or(works)}, or {axis} `{neutral}`",
            )
        if not given and use == "required":
            works = [name for name in PARTS[axis] if name != neutral and self.site.kind in PARTS[axis][name].sites]
            raise ConfigError(
                f"selector `{self.selector.name}` needs a {axis}, but it is `{neutral}`",
                hint=f"at site `{self.site}` the {axis} can be {_or(works)}",
            )

    def _check_maths(self) -> None:
        if self.selector.weighs and self.magnitude.signed and self.options.magnitude_scale == "none":
            raise ConfigError(
                f"selector `{self.selector.name}` weighs with the magnitude, and `{self.magnitude.name}` can be "
                "negative",
                hint="set `magnitude_scale` to `rank` or `minmax`",
            )
        if not self.duplication.normalised:
            wrong = self.selector if self.selector.normalised else self.merge if self.merge.emit else None
            if wrong is not None:
                works = [name for name, other in DUPLICATIONS.items() if other.similarity and other.normalised]
                raise ConfigError(
                    f"`{wrong.name}` compares similarities, and duplication `{self.duplication.name}` carries sizes",
                    hint=f"take selector `dpp` without a merge, or duplication {_or(works)}",
                )

    def _check_settings(self) -> None:
        read = {name for part in self.parts.values() for name in part.reads} | {"position_ids"}
        for entry in dataclasses.fields(Options):
            if entry.name in AXES or entry.name in read or getattr(self.options, entry.name) == entry.default:
                continue
            readers = [
                f"{axis} `{name}`"
                for axis, parts in PARTS.items()
                for name, part in parts.items()
                if entry.name in part.reads
            ]
            raise ConfigError(
                f"option `{entry.name}` is set, but no part of this composition reads it",
                hint=f"leave it out; it is read by {', '.join(readers)}",
            )


@pruner(
    "composed",
    summary="A point on the axes put together from parts, without code",
    source=Source(title="the parts of tokenprune"),
    axes=Axes(
        site="encoder, input or layer",
        groups="any part",
        magnitude="any part",
        duplication="any part",
        selector="any part",
        merge="any part",
    ),
    formula="selector(magnitude, duplication) within groups at the site, then merge",
    needs=tuple(need for need in NEEDS if need in _ALL_NEEDS),
    sites=EVERYWHERE,
    fidelity="nothing to be faithful to; tests prove which points equal named methods",
)
@dataclass(frozen=True)
class Composed(Options, Pruner):
    """A pruner whose options are the axes (see `Options`)."""

    def __post_init__(self) -> None:
        composition = self.composition
        spec = dataclasses.replace(
            type(self).spec,
            axes=composition.axes,
            formula=composition.formula,
            needs=composition.needs,
            sites=(composition.site.kind,),
        )
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "positions", cast(PositionPolicy, self.position_ids))

    @cached_property
    def composition(self) -> Composition:
        """The chosen parts."""
        return Composition.of(self)

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the site."""
        site = self.composition.site
        if site.decoder_layer >= facts.num_layers:
            raise IncompatibleError(
                f"`composed` cuts at decoder layer {site.layer}, but the model has {facts.num_layers} layers",
                hint=f"set its option `site` to at most `layer:{facts.num_layers - 1}`",
            )
        return (Stop(site, budget.after_cut(site.decoder_layer, facts.num_layers, tokens)),)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Select within each group, then merge."""
        parts = self.composition
        score = parts.selector.score or parts.magnitude.score
        duplication = parts.duplication.of(view, self, signed=parts.selector.signed)
        picks = self._picks(view, score(view, self), duplication)
        if parts.merge.emit is None:
            return Decision.keep(picks)
        similarity = parts.duplication.of(view, self, signed=False)
        if similarity is None:
            similarity = dual.cosine_duplication(view.hidden(), centred=True)
        return parts.merge.emit(picks, similarity, self)

    def _picks(self, view: View, magnitude: Tensor, duplication: Duplication | None) -> Tensor:
        """Chosen indices, (B, K)."""
        import torch

        parts = self.composition
        if parts.groups.numbers is None:
            return parts.selector.pick(magnitude, duplication, view.keep, self)
        chosen = []
        for members, quota in parts.groups.split(view, self):
            here = members.to(magnitude.device).expand(view.units, -1)
            inside = None if duplication is None else Within(duplication, here)
            picks = parts.selector.pick(magnitude.gather(-1, here), inside, quota, self)
            chosen.append(here.gather(-1, picks))
        return torch.cat(chosen, dim=-1)


def _automatic(options: Options) -> str:
    """The selector that fits to what is given."""
    magnitude, duplication = options.magnitude != "one", options.duplication != "none"
    if magnitude:
        return "mmr" if duplication else "top-k"
    return "max-min" if duplication else "stride"


def _or(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _examples(part: Part) -> list[str]:
    return [{"layer": "layer:2"}.get(kind, kind) for kind in part.sites]
