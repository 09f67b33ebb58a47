"""The pluggy host: loads every plugin on its own, keeps what failed and why, and runs the rest."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import re
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from tokenprune import hookspecs
from tokenprune.errors import PluginError
from tokenprune.registry import ExecutorSpec, FamilySpec, ModelSpec, PrunerSpec, Registry, TaskSpec, TrackerSpec

if TYPE_CHECKING:
    import typer

#: Our own pruners, families, tasks, trackers and executors come in through the same hooks as a stranger's.
DEFAULT_PLUGINS = (
    "tokenprune.baselines",
    "tokenprune.composition",
    "tokenprune.families",
    "tokenprune.checkpoints",
    "tokenprune.tasks",
    "tokenprune.sweep.executors.executor",
    "tokenprune.report.listener",
    "tokenprune.tracking.jsonl_tracker",
    "tokenprune.tracking.mlflow_tracker",
)
ENTRY_POINT_GROUP = "tokenprune"
LOAD_VARIABLE = "TOKENPRUNE_LOAD_PLUGINS"
DISABLE_VARIABLE = "TOKENPRUNE_DISABLE_PLUGINS"

API_ATTRIBUTE = "TOKENPRUNE_API"
TRACKER_ATTRIBUTE = "TOKENPRUNE_TRACKER"
"""A tracker's module may give itself a name with this attribute; without it, the name is the entry point's. An empty
name says that the plugin is no tracker: it hears of every sweep, whichever trackers were chosen."""

NO_TRACKER = "none"
"""What stands for no tracker at all, so no tracker may have this name."""

_ORDER_OPTIONS = ("tryfirst", "trylast")
_WRAPPER_OPTIONS = ("wrapper", "hookwrapper")

Outcome = Literal["loaded", "partial", "blocked", "failed"]
"""`partial`: the plugin is in use, but something that it wanted to register was refused."""


@dataclass(frozen=True, slots=True)
class PluginReport:
    """What became of one plugin."""

    name: str
    distribution: str
    version: str
    outcome: Outcome
    seconds: float
    hooks: tuple[str, ...] = ()
    reason: str = ""
    details: str = ""


class Host:
    """Everything that plugins registered, and the way to call their life-cycle hooks."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.pruners: Registry[PrunerSpec] = Registry("pruner")
        self.families: Registry[FamilySpec] = Registry("model family")
        self.models: Registry[ModelSpec] = Registry("model")
        self.tasks: Registry[TaskSpec] = Registry("task")
        self.executors: Registry[ExecutorSpec] = Registry("executor")
        self.trackers: Registry[TrackerSpec] = Registry("tracker")
        self.reports: list[PluginReport] = []
        self._observers: set[str] = set()

    def failures(self) -> tuple[PluginReport, ...]:
        """The plugins that could not be loaded, or not with all that they register."""
        return tuple(report for report in self.reports if report.outcome in ("failed", "partial"))

    def add(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> PluginReport:
        """Register one plugin object and let it register its parts; never raises for a plugin's fault."""
        started = time.perf_counter()
        distribution = distribution or name

        def report(outcome: Outcome, reason: str = "", details: str = "") -> PluginReport:
            seconds = time.perf_counter() - started
            hooks = _hooks_of(plugin)
            entry = PluginReport(name, distribution, version, outcome, seconds, hooks, reason, details)
            self.reports.append(entry)
            return entry

        taken = self.manager.has_plugin(name)
        try:
            problem = _misfit(plugin)
            if problem:
                return report("failed", problem)
            self.manager.register(plugin, name=name)
        except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the host
            if not taken and self.manager.has_plugin(name):
                self.manager.unregister(name=name)  # pluggy keeps the hooks that it checked before the wrong one
            return report("failed", _one_line(error), traceback.format_exc())
        problems: list[str] = []
        details = ""
        for hook, registry in self._registries():
            for implementation in self._implementations(hook):
                if implementation.plugin_name != name:
                    continue
                try:
                    _call(implementation, register=_register_into(registry, distribution, problems))
                except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the host
                    problems.append(f"{hook}: {_one_line(error)}")
                    details += traceback.format_exc()
        if set(hookspecs.LIFE_HOOKS) & set(_hooks_of(plugin)):
            self._add_tracker(plugin, name, distribution, problems)
        if problems:
            return report("partial", "; ".join(problems), details)
        return report("loaded")

    def _add_tracker(self, plugin: object, name: str, distribution: str, problems: list[str]) -> None:
        """Give a plugin that hears of sweeps the name under which it can be chosen."""
        tracker = str(getattr(plugin, TRACKER_ATTRIBUTE, name)).lower()
        if not tracker:
            self._observers.add(name)
            return
        if tracker == NO_TRACKER:
            problems.append(f"tracker name `{tracker}` of plugin `{name}` stands for no tracker")
            return
        about = (inspect.getdoc(plugin) or "").partition("\n")[0].rstrip(".")
        _register_into(self.trackers, distribution, problems)(TrackerSpec(tracker, name, about))

    def emit(self, hook: str, event: object, trackers: Collection[str] | None = None) -> list[str]:
        """Call a life-cycle hook in every plugin, each on its own; returns the problems met, one line each.

        Args:
            hook: Name of the hook.
            event: What happened.
            trackers: Names of the trackers that hear of it; all of them if not given. Plugins that are no trackers hear
                of it, too, and `write_report` is called in every plugin.

        Raises:
            UnknownNameError: A tracker is not installed.
        """
        problems = []
        names = self.trackers.names() if trackers is None else trackers
        chosen = self._observers | {self.trackers.get(name).target for name in names}
        for implementation in self._implementations(hook):
            if hook in hookspecs.LIFE_HOOKS and implementation.plugin_name not in chosen:
                continue
            try:
                _call(implementation, event=event)
            except Exception as error:  # noqa: BLE001 - a tracker must never kill a sweep
                problems.append(f"plugin `{implementation.plugin_name}` failed in `{hook}`: {_one_line(error)}")
        return problems

    def add_commands(self, app: typer.Typer) -> None:
        """Let every plugin add its commands; a plugin that fails is reported and skipped."""
        for implementation in self._implementations("register_commands"):
            try:
                _call(implementation, app=app)
            except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the command line
                reason = f"register_commands: {_one_line(error)}"
                self._downgrade(implementation.plugin_name, reason, traceback.format_exc())

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """All implementations of a hook in the order of their calls.

        That is the order of registration, ours first; `tryfirst` and `trylast` are honoured as pluggy does: of several,
        the one that was registered last is the very first, or the very last.
        """
        found = getattr(self.manager.hook, hook).get_hookimpls()
        first = [each for each in reversed(found) if each.tryfirst]
        last = [each for each in reversed(found) if each.trylast]
        return [*first, *(each for each in found if not (each.tryfirst or each.trylast)), *last]

    def _downgrade(self, name: str, reason: str, details: str) -> None:
        """Note a fault of a plugin that was loaded before, in the report that it already has."""
        for index, report in enumerate(self.reports):
            if report.name == name and report.outcome in ("loaded", "partial"):
                self.reports[index] = replace(
                    report,
                    outcome="partial",
                    reason="; ".join(filter(None, (report.reason, reason))),
                    details=report.details + details,
                )

    def _registries(self) -> tuple[tuple[str, Registry[Any]], ...]:
        return (
            ("register_pruners", self.pruners),
            ("register_families", self.families),
            ("register_models", self.models),
            ("register_tasks", self.tasks),
            ("register_executors", self.executors),
        )


def load_host(
    entry_points: Iterable[metadata.EntryPoint] | None = None, *, defaults: Iterable[str] = DEFAULT_PLUGINS
) -> Host:
    """Load the default plugins and every installed distribution of the entry-point group `tokenprune`.

    Args:
        entry_points: Entry points to use in place of the installed ones (for tests).
        defaults: Modules of our own plugins.

    Environment: `TOKENPRUNE_LOAD_PLUGINS` (unset: all, empty: none, a comma list: only these distributions) and
    `TOKENPRUNE_DISABLE_PLUGINS` (a comma list of distributions).

    Example:
        >>> from tokenprune import load_host
        >>> host = load_host()
        >>> host.pruners.get("divprune").summary
        'Max-min cosine distance of the projected tokens (farthest-point selection)'
        >>> host.failures()
        ()
    """
    host = Host()
    for module_name in defaults:
        try:
            plugin = importlib.import_module(module_name)
        except ImportError as error:  # our own plugin: a broken installation, said aloud in the report
            host.reports.append(
                PluginReport(module_name, "tokenprune", "", "failed", 0.0, (), _one_line(error), traceback.format_exc())
            )
            continue
        host.add(plugin, module_name, distribution="tokenprune")
    found = metadata.entry_points(group=ENTRY_POINT_GROUP) if entry_points is None else entry_points
    owners: dict[str, str] = {}
    for entry_point in sorted(found, key=lambda point: (_distribution(point)[0], point.name)):
        distribution, version = _distribution(entry_point)
        failed = functools.partial(PluginReport, entry_point.name, distribution, version, "failed")
        if _blocked(distribution):
            host.reports.append(PluginReport(entry_point.name, distribution, version, "blocked", 0.0))
            continue
        if entry_point.name in owners:
            reason = f"entry point `{entry_point.name}` is already taken by `{owners[entry_point.name]}`"
            host.reports.append(failed(0.0, reason=reason))
            continue
        owners[entry_point.name] = distribution
        started = time.perf_counter()
        try:
            plugin = entry_point.load()
        except Exception as error:  # noqa: BLE001 - a plugin that cannot be imported must not stop the host
            seconds = time.perf_counter() - started
            host.reports.append(failed(seconds, reason=_one_line(error), details=traceback.format_exc()))
            continue
        host.add(plugin, entry_point.name, distribution=distribution, version=version)
    return host


@functools.cache
def default_host() -> Host:
    """The host of this process, for callers that are given none: to load it takes as long as a small forward pass.

    It does not see what is installed, or set in the environment, later; `default_host.cache_clear()` forgets it, and
    `load_host()` makes a fresh one.
    """
    return load_host()


def list_pruners() -> tuple[str, ...]:
    """Names of the installed pruners, ours first; each can be given to `pruned` and `get_pruner`.

    Example:
        >>> from tokenprune import list_pruners
        >>> [name for name in list_pruners() if name.startswith("iwp")]
        ['iwp', 'iwp-exact']
    """
    return default_host().pruners.names()


def _misfit(plugin: object) -> str:
    """Name a misspelt or unmarked hook, a mark that does nothing, or a wrong hook version; empty if all is well."""
    made_for = getattr(plugin, API_ATTRIBUTE, hookspecs.API_VERSION)
    if not isinstance(made_for, int) or made_for > hookspecs.API_VERSION:
        return (
            f"it is made for hook version {made_for!r}, but this tokenprune offers "
            f"{hookspecs.API_VERSION}: upgrade tokenprune-vlm"
        )
    if made_for < hookspecs.OLDEST_API_VERSION:
        return (
            f"it is made for hook version {made_for}, but this tokenprune needs at least "
            f"{hookspecs.OLDEST_API_VERSION}: upgrade the plugin"
        )
    known = set(_hook_names())
    for name in dir(plugin):
        member = getattr(plugin, name, None)
        if name in known and callable(member) and _options(member) is None:
            return f"hook `{name}` is not marked with `@tokenprune.hookimpl`"
    for hook, options in _marked(plugin):
        if hook not in known and not options.get("optionalhook"):
            close = difflib.get_close_matches(hook, sorted(known), n=1)
            suggestion = f", did you mean `{close[0]}`?" if close else ""
            return f"unknown hook `{hook}`{suggestion}"
        for option in _WRAPPER_OPTIONS:
            if options.get(option):
                return (
                    f"hook `{hook}` is marked with `{option}`, which does nothing here: "
                    "every plugin is called on its own, so there is no call to wrap"
                )
        for option in _ORDER_OPTIONS:
            if options.get(option) and hook in hookspecs.REGISTRATION_HOOKS:
                return (
                    f"hook `{hook}` is marked with `{option}`, which does nothing here: "
                    "plugins register one after the other, in order of their distributions' names"
                )
    return ""


def _marked(plugin: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The hooks that a plugin implements, as it names them, with the options of their marks."""
    for name in dir(plugin):
        options = _options(getattr(plugin, name, None))
        if options is not None:
            yield options.get("specname") or name, options


def _options(member: object) -> Mapping[str, Any] | None:
    """The options of `@tokenprune.hookimpl`, or `None` if the mark is missing."""
    options = getattr(member, f"{hookspecs.PROJECT}_impl", None)
    return options if isinstance(options, dict) else None


def _hooks_of(plugin: object) -> tuple[str, ...]:
    """The known hooks that a plugin implements, in the order of their specifications."""
    implemented = {hook for hook, _ in _marked(plugin)}
    return tuple(hook for hook in _hook_names() if hook in implemented)


def _call(implementation: pluggy.HookImpl, **available: object) -> None:
    """Call an implementation with those of the hook's arguments that it takes."""
    taken = {*implementation.argnames, *implementation.kwargnames}
    implementation.function(**{name: value for name, value in available.items() if name in taken})


def _hook_names() -> tuple[str, ...]:
    return tuple(
        name
        for name, member in vars(hookspecs).items()
        if callable(member) and getattr(member, f"{hookspecs.PROJECT}_spec", None) is not None
    )


def _register_into(registry: Registry[Any], owner: str, problems: list[str]) -> Callable[[Any], None]:
    """A `register` callback: a bad spec is rejected on its own and noted, the plugin's other specs still count."""

    def register(spec: Any) -> None:
        try:
            registry.add(spec, owner)
        except PluginError as error:
            problems.append(error.message)
        except AttributeError as error:
            problems.append(f"`{spec!r}` is not a {registry.kind} spec ({error})")

    return register


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    distribution = entry_point.dist
    if distribution is None:
        return entry_point.name, ""
    return distribution.name, distribution.version


def _blocked(distribution: str) -> bool:
    name = _normal(distribution)
    allowed = os.environ.get(LOAD_VARIABLE)
    if allowed is not None and name not in _comma_list(allowed):
        return True
    return name in _comma_list(os.environ.get(DISABLE_VARIABLE, ""))


def _comma_list(text: str) -> set[str]:
    return {_normal(part.strip()) for part in text.split(",") if part.strip()}


def _normal(distribution: str) -> str:
    """The name as package indexes compare it, so that `tokenprune_foo` blocks `tokenprune-foo`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
