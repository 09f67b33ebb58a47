"""Names to light specs: listing and validating never import torch, transformers or mlflow."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tokenprune.errors import ConfigError, PluginError, UnknownNameError

_NAME = re.compile(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a method comes from."""

    title: str
    authors: str = ""
    venue: str = ""
    url: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """A pruner as a point on the seven axes (docs/design.md), each in a few words."""

    site: str
    budget: str = "ratio or tokens"
    groups: str = "image"
    magnitude: str = "1"
    duplication: str = "none"
    selector: str = "top-k"
    merge: str = "none"


class Spec(Protocol):
    """What a registry holds: a name, a summary, a lazy target."""

    @property
    def name(self) -> str:
        """Registry name."""
        ...

    @property
    def target(self) -> str:
        """Where it is: `"module:attribute"`."""
        ...

    @property
    def summary(self) -> str:
        """One line."""
        ...


#: An option that every pruner takes, whoever wrote it (see `tokenprune.correction`).
MASS_CORRECTION = "mass_correction"
UNIVERSAL_OPTIONS: Mapping[str, Any] = {MASS_CORRECTION: False}


@dataclass(frozen=True, slots=True)
class PrunerSpec:
    """Everything about a pruner that can be known without importing torch.

    Args:
        name: Registry name, lower case.
        target: `"module:Class"`, imported on first use.
        summary: One line.
        source: Paper, or how the method came about.
        axes: The point on the seven axes.
        formula: The selection as one formula in plain text.
        sites: Where it can cut: `pixels`, `tower`, `encoder`, `input`, `layer`, `decode`.
        needs: What its view must give (see `tokenprune.pruner.NEEDS`).
        defaults: Option names with their default values.
        fidelity: Where it departs from its source and why; one line per choice that the source leaves open.
        baseline: True for the controls that every comparison carries.
        calibrates: Options that `tokenprune calibrate` can find for a model and a budget.
        variants: Options under which the pruner is tested, beside its defaults (`tokenprune.testing.conformance`).
    """

    name: str
    target: str
    summary: str
    source: Source
    axes: Axes
    formula: str = ""
    sites: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fidelity: str = ""
    baseline: bool = False
    calibrates: tuple[str, ...] = ()
    variants: tuple[Mapping[str, Any], ...] = ()

    def load(self) -> Any:
        """Import the pruner's class."""
        return load_target(self.target)

    def validate(self, options: Mapping[str, Any], *, beside: Iterable[str] = ()) -> dict[str, Any]:
        """Check option names and kinds against the defaults, without importing the class.

        Args:
            options: Options by name.
            beside: Other names that a misspelt option may stand for; the hint considers them too.

        Raises:
            ConfigError: An option is unknown or of the wrong kind.
        """
        checked: dict[str, Any] = {}
        known = {**UNIVERSAL_OPTIONS, **self.defaults}
        for key, value in options.items():
            if key not in known:
                unknown = UnknownNameError(f"option of pruner `{self.name}`", key, {*known, *beside})
                raise ConfigError(unknown.message, hint=unknown.hint)
            checked[key] = _coerce(f"option `{key}` of pruner `{self.name}`", value, known[key])
        return checked

    def build(self, options: Mapping[str, Any] | None = None) -> Any:
        """Make the pruner with the given options on top of its defaults.

        Raises:
            ConfigError: An option is unknown, of the wrong kind or out of range.
        """
        checked = self.validate(options or {})
        corrected = MASS_CORRECTION not in self.defaults and checked.pop(MASS_CORRECTION, False)
        pruner = self.load()(**checked)
        return load_target("tokenprune.correction:MassCorrected")(pruner) if corrected else pruner

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON types."""
        return {
            "name": self.name,
            "target": self.target,
            "summary": self.summary,
            "source": dataclasses.asdict(self.source),
            "axes": dataclasses.asdict(self.axes),
            "formula": self.formula,
            "site": self.axes.site,
            "sites": list(self.sites),
            "needs": list(self.needs),
            "defaults": dict(self.defaults),
            "fidelity": self.fidelity,
            "baseline": self.baseline,
            "calibrates": list(self.calibrates),
        }


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task: data, questions and a scorer, by name; `target` takes the options as keyword arguments."""

    name: str
    target: str
    summary: str
    version: str
    families: tuple[str, ...] = ()
    video: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def build(self, options: Mapping[str, Any] | None = None) -> Any:
        """Make the task with the given options on top of its defaults.

        Raises:
            ConfigError: An option is unknown or missing, or the task refuses it.
        """
        make, given = load_target(self.target), {**self.defaults, **(options or {})}
        takes = inspect.signature(make).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
            known = [parameter.name for parameter in takes]
            for key in given:
                if key not in known:
                    unknown = UnknownNameError(f"option of task `{self.name}`", key, known)
                    raise ConfigError(unknown.message, hint=unknown.hint)
        for parameter in takes:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and parameter.name not in given:
                raise ConfigError(f"task `{self.name}` needs the option `{parameter.name}`", hint="give it a value")
        return make(**given)


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """A vision-language model family.

    Args:
        name: Family name.
        target: Its description, `"module:ATTRIBUTE"` (see `tokenprune.families`).
        summary: One line.
        model_types: `model_type` in the configs of its checkpoints.
        sites: Kinds of sites that exist, as in the description.
        video: Whether prompts may hold videos.
        refused: The other kinds of sites, with the reason.
    """

    name: str
    target: str
    summary: str
    model_types: tuple[str, ...]
    sites: tuple[str, ...] = ("input", "layer", "decode")
    video: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that ships with a distribution, by short name; `path` is a directory or a hub name."""

    name: str
    target: str
    summary: str


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """A way to run the cells of a sweep."""

    name: str
    target: str
    summary: str


@dataclass(frozen=True, slots=True)
class TrackerSpec:
    """A plugin that hears of sweeps, under the name by which it is chosen; `target` is its name in the host."""

    name: str
    target: str
    summary: str


AnySpec = TypeVar("AnySpec", bound=Spec)


class Registry(Generic[AnySpec]):
    """A mapping of names to specs that remembers which plugin each came from."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._specs: dict[str, AnySpec] = {}
        self._owners: dict[str, str] = {}

    def add(self, spec: AnySpec, owner: str) -> None:
        """Add a spec.

        Raises:
            PluginError: The name is not legal or already taken; both owners are named.
        """
        if not _NAME.fullmatch(spec.name):
            raise PluginError(
                f"{self.kind} name `{spec.name}` of plugin `{owner}` is not legal",
                hint="use lower case letters, digits, `-`, `_` and `.`, and start with a letter",
            )
        if spec.name in self._specs:
            raise PluginError(
                f"{self.kind} `{spec.name}` of plugin `{owner}` is already registered by `{self._owners[spec.name]}`",
                hint="rename one of them, or block one with TOKENPRUNE_DISABLE_PLUGINS",
            )
        self._specs[spec.name] = spec
        self._owners[spec.name] = owner

    def get(self, name: str) -> AnySpec:
        """The spec of that name.

        Raises:
            UnknownNameError: No such name; the hint gives close matches.
        """
        try:
            return self._specs[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._specs) from None

    def owner(self, name: str) -> str:
        """The plugin (distribution) that registered the name."""
        self.get(name)
        return self._owners[name]

    def names(self) -> tuple[str, ...]:
        """All names in order of registration."""
        return tuple(self._specs)

    def __iter__(self) -> Iterator[AnySpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs


def load_target(target: str) -> Any:
    """Import `"module:attribute"`.

    Raises:
        PluginError: The module or the attribute does not exist.
    """
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"cannot load `{target}`: {error}", hint="reinstall the distribution that registered it"
        ) from error


def _coerce(what: str, value: Any, default: Any) -> Any:
    """Accept a value of the default's kind; ints pass for floats, lists for tuples."""
    if default is None or value is None:
        return value
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(default, float):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(default, tuple):
        if isinstance(value, (list, tuple)):
            return tuple(value)
    elif isinstance(value, type(default)):
        return value
    raise ConfigError(f"{what} must be a {type(default).__name__}, got {value!r}", hint=f"its default is {default!r}")
