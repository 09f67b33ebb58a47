"""Registries, specs and their options."""

from __future__ import annotations

import json

import pytest

from tokenprune.errors import ConfigError, PluginError, UnknownNameError
from tokenprune.plugins import load_host
from tokenprune.registry import Axes, PrunerSpec, Registry, Source, load_target

SPEC = PrunerSpec(
    name="sample",
    target="builtins:dict",
    summary="for tests",
    source=Source("a test"),
    axes=Axes(site="input"),
    defaults={"strength": 0.5, "layer": 2, "exact": False, "sizes": (1, 2), "note": None, "mode": "mean"},
)


def registry(*names: str) -> Registry[PrunerSpec]:
    made: Registry[PrunerSpec] = Registry("pruner")
    for name in names:
        made.add(PrunerSpec(name, "builtins:dict", "", Source("a test"), Axes(site="input")), "tests")
    return made


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({}, {}),
        ({"strength": 1}, {"strength": 1.0}),
        ({"sizes": [3, 4]}, {"sizes": (3, 4)}),
        ({"note": "anything"}, {"note": "anything"}),
        ({"exact": True, "layer": 7, "mode": "max"}, {"exact": True, "layer": 7, "mode": "max"}),
    ],
)
def test_options_of_the_right_kind_are_taken(options: dict[str, object], checked: dict[str, object]) -> None:
    assert SPEC.validate(options) == checked
    assert all(type(SPEC.validate(options)[key]) is type(value) for key, value in checked.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": "0.5"}, "option `strength` of pruner `sample` must be a float, got '0.5'"),
        ({"strength": True}, "option `strength` of pruner `sample` must be a float, got True"),
        ({"layer": 2.5}, "option `layer` of pruner `sample` must be a int, got 2.5"),
        ({"layer": True}, "option `layer` of pruner `sample` must be a int, got True"),
        ({"exact": 1}, "option `exact` of pruner `sample` must be a bool, got 1"),
        ({"sizes": "12"}, "option `sizes` of pruner `sample` must be a tuple, got '12'"),
        ({"mode": 3}, "option `mode` of pruner `sample` must be a str, got 3"),
    ],
)
def test_options_of_the_wrong_kind_are_refused_with_the_default(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SPEC.validate(options)
    assert caught.value.message == message
    assert caught.value.hint.startswith("its default is")


def test_an_unknown_option_is_refused_with_the_close_match() -> None:
    with pytest.raises(ConfigError) as caught:
        SPEC.validate({"strenght": 1.0})
    assert caught.value.message == "unknown option of pruner `sample` `strenght`"
    assert caught.value.hint == "did you mean `strength`?"


def test_building_loads_the_target_with_the_checked_options() -> None:
    assert SPEC.build({"strength": 1}) == {"strength": 1.0}


def test_an_unknown_name_gets_close_matches_or_all_names() -> None:
    known = registry("fastv", "fastervlm", "iwp")
    with pytest.raises(UnknownNameError) as caught:
        known.get("fast-v")
    assert caught.value.hint == "did you mean `fastv` or `fastervlm`?"
    assert str(caught.value) == "unknown pruner `fast-v`"
    with pytest.raises(UnknownNameError) as caught:
        known.get("zzz")
    assert caught.value.hint == "known: `fastervlm`, `fastv`, `iwp`"


@pytest.mark.parametrize("name", ["", "Upper", "1st", "with space", "-dash", "dash-", "a--b", "ä", "a/b"])
def test_illegal_names_are_refused(name: str) -> None:
    with pytest.raises(PluginError, match="is not legal"):
        registry(name)


@pytest.mark.parametrize("name", ["a", "iwp-exact", "avg_pool", "v1.5", "x2"])
def test_legal_names_are_taken(name: str) -> None:
    assert name in registry(name)


def test_a_registry_keeps_the_order_of_registration() -> None:
    assert registry("b", "a", "c").names() == ("b", "a", "c")
    assert [spec.name for spec in registry("b", "a")] == ["b", "a"]


@pytest.mark.parametrize("target", ["not_a_module:Thing", "json:not_there", "json"])
def test_a_target_that_is_not_there_is_a_plugin_error(target: str) -> None:
    with pytest.raises(PluginError, match="cannot load"):
        load_target(target)


def test_every_installed_spec_is_plain_json_and_its_defaults_are_valid() -> None:
    for spec in load_host().pruners:
        document = json.loads(json.dumps(spec.to_json(), allow_nan=False))
        assert document["name"] == spec.name
        assert spec.validate(spec.defaults) == dict(spec.defaults)
