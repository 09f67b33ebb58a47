"""The pruner contract: where to cut (`plan`), and which rows stay (`decide`).

A pruner reads a `View` and returns a `Decision`; it never touches a model, a cache, a mask or a position id.
This module imports no torch, so that listing pruners is fast: tensors appear in annotations only, and the maths in
`tokenprune.dual` loads on first use.

Shape letters: B units with the same number of visual tokens, N visual tokens before, K kept, D hidden,
H query heads, G key-value heads, d head width, R rows (queries), C encoder width, P joint image-text width.

A *unit* is one image, or one video (its tokens frame by frame), of one sample. The engine puts units of equal N and K
into one view, so that the maths is batched and every unit still gets its exact count.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast

from tokenprune.budget import Budget
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.plugins import default_host
from tokenprune.record import PruneRecord as PruneRecord
from tokenprune.record import UnitRecord as UnitRecord
from tokenprune.registry import Axes, PrunerSpec, Source
from tokenprune.site import ModelFacts as ModelFacts
from tokenprune.site import Point as Point
from tokenprune.site import Site as Site
from tokenprune.site import SiteKind as SiteKind
from tokenprune.site import Stop as Stop
from tokenprune.view import NEEDS as NEEDS
from tokenprune.view import Rows as Rows
from tokenprune.view import View as View

if TYPE_CHECKING:
    from torch import Tensor

PositionPolicy = Literal["keep", "compact"]


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows that stay of one unit, in the order of the new sequence.

    Args:
        anchors: (K,) int64, distinct: for each row, the index in `0..N-1` of the token whose position it has.
        merge: (K, N) weights of the tokens in each row (dense or sparse), `rows = merge @ hidden`; `None` keeps the
            anchors as they are.
        log_weights: (K,) float, added to the attention logits of the kept keys (log of the multiplicity), or `None`.
        labels: Reason for each kept row, for overlays and diagnostics (`("important", "diverse", ...)`), or `None`.
    """

    anchors: Tensor
    merge: Tensor | None = None
    log_weights: Tensor | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One `Kept` per unit of the view, in the view's order; units may keep different numbers of rows."""

    units: tuple[Kept, ...]
    resize: tuple[int, int] | None = None
    """At site `pixels` only: the token grid (rows, columns) to which the image is resized."""

    @classmethod
    def keep(cls, indices: Tensor, log_weights: Tensor | None = None) -> Decision:
        """Keep rows `indices` (B, K) as they are, in raster order (indices and weights are sorted here)."""
        order = indices.argsort(dim=-1)
        anchors = indices.gather(-1, order)
        weights = None if log_weights is None else log_weights.gather(-1, order)
        return cls(
            tuple(
                Kept(row, log_weights=None if weights is None else weights[index]) for index, row in enumerate(anchors)
            )
        )


State = dict[str, Any]
"""What a pruner stores between the stops of one prompt; empty at the first stop.

The next stop may group the units differently, so store values of a unit under its number in `View.ids()`. Stops of the
kind `decode` share a separate state, which lives as long as the KV cache.
"""


@dataclass(frozen=True, slots=True)
class Prefill:
    """One sample's prefill during a calibration: what was pruned, and the logits (V,) of the last prompt token."""

    record: PruneRecord
    logits: Tensor


class Calibrator(Protocol):
    """A model and some samples, for `Pruner.calibrate`."""

    facts: ModelFacts
    tokens: int
    """Visual tokens of each image."""

    def run(self, pruner: Pruner, budget: Budget) -> Sequence[Prefill]:
        """Prefill every sample with a pruner; one sample at a time, in the same order each time."""
        ...


@dataclass(frozen=True)
class Pruner(ABC):
    """A training-free pruner: frozen options, `plan` and `decide`.

    Write a subclass as a frozen dataclass whose fields are the options, and decorate it with `@pruner(...)`.
    """

    spec: ClassVar[PrunerSpec]
    positions: ClassVar[PositionPolicy] = "keep"
    """Position ids of the kept tokens: `keep` the original ids or `compact` them; a session may override it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The needs with these options; a subset of those that the spec declares."""
        return self.spec.needs

    @property
    def reads_budget(self) -> bool:
        """Whether the decision depends on the budget with these options; a session requires a budget then."""
        return True

    @abstractmethod
    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """Plan where to cut, and how many tokens may stay.

        Args:
            facts: Shape of the model.
            budget: The user's budget.
            tokens: Visual tokens per unit, which `average` budgets need.

        Raises:
            BudgetError: The budget cannot be met; the message gives the smallest one that can.
            IncompatibleError: The model lacks something, for example the layer of a cut.
        """

    @abstractmethod
    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Choose what stays at one stop, for every unit of the view."""

    def calibrate(self, calibrator: Calibrator, budget: Budget) -> Mapping[str, Any]:
        """Find the options in the spec's `calibrates`, for one model and one budget; values are plain JSON types.

        Raises:
            IncompatibleError: The pruner has nothing to calibrate.
        """
        raise IncompatibleError(
            f"`{self.spec.name}` has no options to calibrate",
            hint="it needs no calibration; `tokenprune show` lists its options",
        )


@dataclass(frozen=True)
class OneCut(Pruner):
    """A pruner with a single cut: a subclass sets `site` and implements `decide`."""

    site: ClassVar[SiteKind] = "input"

    @property
    def auto(self) -> bool:
        """Whether the number of kept tokens follows from the data: the budget is an upper bound, or not used."""
        return False

    def plan(self, facts: ModelFacts, budget: Budget, tokens: int) -> Sequence[Stop]:
        """One stop at the class's site; for the site `layer`, at the layer in the option `layer`."""
        site = Site(self.site, getattr(self, "layer", 0) if self.site == "layer" else 0)
        if site.decoder_layer >= facts.num_layers:
            raise IncompatibleError(
                f"`{self.spec.name}` cuts at decoder layer {site.layer}, but the model has {facts.num_layers} layers",
                hint=f"set its option `layer` to at most {facts.num_layers - 1}",
            )
        return (Stop(site, budget.after_cut(site.decoder_layer, facts.num_layers, tokens), auto=self.auto),)


@dataclass(frozen=True)
class ScoredPruner(OneCut):
    """Keep the K tokens with the highest score: a subclass implements `score`."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """One number per visual token, (B, N). The highest are kept; of equal scores, those with the lower index."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Keep the K tokens with the highest score."""
        from tokenprune import dual

        return Decision.keep(dual.top_k(self.score(view), view.keep))


AnyPruner = TypeVar("AnyPruner", bound=type[Pruner])


def pruner(
    name: str,
    *,
    summary: str,
    source: Source,
    axes: Axes,
    needs: Sequence[str] = (),
    sites: Sequence[SiteKind] = (),
    formula: str = "",
    fidelity: str = "",
    baseline: bool = False,
    calibrates: Sequence[str] = (),
    variants: Sequence[Mapping[str, Any]] = (),
) -> Callable[[AnyPruner], AnyPruner]:
    """Class decorator: attach the spec, with the dataclass fields as options and defaults.

    Raises:
        ConfigError: A need is not one of `NEEDS`, or a field has no default.

    Example:
        >>> from dataclasses import dataclass
        >>> from tokenprune import load_model, pruned
        >>> from tokenprune.pruner import ScoredPruner, pruner
        >>> from tokenprune.registry import Axes, Source
        >>> @pruner(
        ...     "loudest",
        ...     summary="keep the visual tokens with the largest embeddings",
        ...     source=Source("an example"),
        ...     axes=Axes(site="input", magnitude="norm(x)^power"),
        ...     needs=["projected"],
        ... )
        ... @dataclass(frozen=True)
        ... class Loudest(ScoredPruner):
        ...     power: float = 1.0
        ...
        ...     def score(self, view):
        ...         return view.projected().norm(dim=-1) ** self.power
        >>> loaded = load_model("scenes")
        >>> with pruned(loaded, Loudest(power=2.0), "25%") as session:
        ...     answer = loaded.answer("docs/examples/circle.png", "what color is the circle ?")
        >>> session.last.final()
        (64,)
    """

    def attach(cls: AnyPruner) -> AnyPruner:
        unknown = sorted(set(needs) - set(NEEDS))
        if unknown:
            raise ConfigError(f"pruner `{name}` declares unknown needs {unknown}", hint=f"known: {', '.join(NEEDS)}")
        cls.spec = PrunerSpec(
            name=name,
            target=f"{cls.__module__}:{cls.__qualname__}",
            summary=summary,
            source=source,
            axes=axes,
            formula=formula,
            sites=tuple(sites) or ((cls.site,) if issubclass(cls, OneCut) else ()),
            needs=tuple(needs),
            defaults={entry.name: _default(name, entry) for entry in dataclasses.fields(cls)},
            fidelity=fidelity,
            baseline=baseline,
            calibrates=tuple(calibrates),
            variants=tuple(variants),
        )
        return cls

    return attach


def get_pruner(name: str, /, **options: Any) -> Pruner:
    """An installed pruner by its name, with options as keywords.

    Args:
        name: Name of the pruner (`tokenprune list`, `list_pruners`).
        options: Its options (`tokenprune show NAME`); those not given keep their defaults.

    Raises:
        UnknownNameError: No pruner of that name is installed.
        ConfigError: An option is unknown, of the wrong kind or out of range.

    Example:
        >>> from tokenprune import get_pruner
        >>> get_pruner("iwp", layer=0).layer
        0
    """
    return cast(Pruner, default_host().pruners.get(name).build(options))


def _default(name: str, entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    raise ConfigError(f"option `{entry.name}` of pruner `{name}` has no default", hint="give the field a default")
