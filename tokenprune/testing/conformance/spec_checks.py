"""Laws of the spec: what can be known of a pruner without running it is complete and true."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any

from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.pruner import NEEDS, Pruner
from tokenprune.registry import PrunerSpec
from tokenprune.site import SITE_KINDS
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.result import ConformanceError
from tokenprune.testing.conformance.under_test import PrunerUnderTest

_NAME = re.compile(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*")
_STRANGE_NUMBERS = (-1, 0, 10**9, math.nan, math.inf)
_STRANGE_WORD = "no such word"


def complete(tested: PrunerUnderTest) -> tuple[str, ...]:
    """The spec says what it must, names what exists, and leads to the pruner's class."""
    spec = tested.spec
    if not _NAME.fullmatch(spec.name):
        raise ConformanceError("name", expected="lower case letters, digits, `-`, `_`, `.`", found=spec.name)
    for what, text in (("summary", spec.summary), ("source", spec.source.title), ("axes.site", spec.axes.site)):
        if not text.strip():
            raise ConformanceError(what, expected="a text", found="nothing")
    for what, given, known in (("needs", spec.needs, tuple(NEEDS)), ("sites", spec.sites, SITE_KINDS)):
        if set(given) - set(known):
            raise ConformanceError(what, expected=f"some of {known}", found=given)
    if spec.load() is not type(tested.pruner) and "mass_correction" not in tested.options:
        raise ConformanceError(f"target `{spec.target}`", expected=type(tested.pruner).__name__, found=spec.load())
    try:
        text = json.dumps(spec.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConformanceError("spec", expected="plain JSON types", found=error) from error
    if json.loads(text)["name"] != spec.name:
        raise ConformanceError("spec as JSON", expected=spec.name, found=json.loads(text)["name"])
    missing = [what for what in ("formula", "fidelity") if not getattr(spec, what) and not spec.baseline]
    remarks = [f"the spec has no {' and no '.join(missing)}"] if missing else []
    described = "".join(base.__doc__ or "" for base in spec.load().__mro__)
    silent = [name for name in spec.defaults if f"{name}:" not in described]
    if silent:
        remarks.append(f"options that the class's docstring does not describe: {', '.join(silent)}")
    return tuple(remarks)


def validated(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Options build as their defaults say; a strange value is refused with a reason, or the pruner takes it."""
    spec = tested.spec
    if not dataclasses.is_dataclass(tested.pruner) or not type(tested.pruner).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConformanceError("class", expected="a frozen dataclass", found=type(tested.pruner).__name__)
    if spec.build() != spec.build(dict(spec.defaults)):
        raise ConformanceError("build()", expected="the same as with the defaults spelt out", found="another pruner")
    _refused(spec, {"no-such-option": 1})
    for name, value in _strange(spec):
        try:
            built = spec.build({name: value})
        except TokenPruneError:
            continue
        except Exception as error:
            raise ConformanceError(f"option {name}={value!r}", expected="a `ConfigError`", found=repr(error)) from error
        if not isinstance(built, Pruner):
            raise ConformanceError(f"option {name}={value!r}", expected="a pruner", found=built)
    return ()


def copies(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A pruner is a value: its deep copy and its pickle are equal to it."""
    pruner = tested.pruner
    for what, other in (("deepcopy", copy.deepcopy(pruner)), ("pickle", pickle.loads(pickle.dumps(pruner)))):
        if other != pruner:
            raise ConformanceError(what, expected=pruner, found=other)
    return ()


def _refused(spec: PrunerSpec, options: dict[str, Any]) -> None:
    try:
        spec.build(options)
    except ConfigError:
        return
    raise ConformanceError(f"options {options}", expected="`ConfigError`", found="a pruner")


def _strange(spec: PrunerSpec) -> Iterator[tuple[str, Any]]:
    """Values of the right kind that a pruner may or may not take."""
    for name, default in spec.defaults.items():
        if isinstance(default, bool):
            yield name, not default
        elif isinstance(default, int):
            yield from ((name, value) for value in _STRANGE_NUMBERS if isinstance(value, int))
        elif isinstance(default, float):
            yield from ((name, float(value)) for value in _STRANGE_NUMBERS)
        elif isinstance(default, str):
            yield name, _STRANGE_WORD


CHECKS = (
    Check("spec", "spec", "the spec is complete, and what it names exists", complete),
    Check("options", "spec", "options build as declared, and a wrong one is refused as a wrong option", validated),
    Check("copy", "spec", "deep copies and pickles are equal to the pruner", copies),
)
