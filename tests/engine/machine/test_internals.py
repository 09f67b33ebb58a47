"""A transformers that has moved on is named when a session begins: what is missing, and what was tested."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.specifiers import SpecifierSet
from torch import nn
from transformers import masking_utils, modeling_utils

from tests.engine.models import batch, prompt, random_llava
from tokenprune.engine import pruned
from tokenprune.engine.patch.internals import INTERNALS, check_internals
from tokenprune.errors import IncompatibleError
from tokenprune.families import supported
from tokenprune.families.layouts import last_layer
from tokenprune.families.lookup import parts_of
from tokenprune.families.supported import TESTED, internal, is_tested

ROOT = Path(__file__).resolve().parents[3]
INSTALLED = metadata.version("transformers")
Patch = pytest.MonkeyPatch


def stock() -> Any:
    """The module as the engine finds it; it replaces itself while it is imported."""
    return importlib.import_module("transformers")


def begins(model: Any) -> None:
    with pruned(model, "random", ratio=0.5):
        pass


def without_joining(patch: Patch) -> None:
    patch.delattr(masking_utils, "and_masks")


def other_mask_signature(patch: Patch) -> None:
    def factory(config: Any, cache_position: torch.Tensor) -> None: ...

    patch.setattr(masking_utils, "ALL_MASK_ATTENTION_FUNCTIONS", {"sdpa": factory, "eager": factory})


def masks_that_see_everything(patch: Patch) -> None:
    def factory(*, q_length: int, kv_length: int, **given: Any) -> torch.Tensor:
        return torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)

    patch.setattr(masking_utils, "ALL_MASK_ATTENTION_FUNCTIONS", {"sdpa": factory, "eager": factory})


def masks_that_are_none(patch: Patch) -> None:
    def factory(**given: Any) -> None: ...

    patch.setattr(masking_utils, "ALL_MASK_ATTENTION_FUNCTIONS", {"sdpa": factory, "eager": factory})


def kernels_in_another_place(patch: Patch) -> None:
    patch.setattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", {"tokenprune_known": None})


def kernels_without_a_switch(patch: Patch) -> None:
    patch.setattr(stock(), "PreTrainedConfig", SimpleNamespace)


def a_switch_that_nothing_follows(patch: Patch) -> None:
    def config() -> SimpleNamespace:
        return SimpleNamespace(_attn_implementation_internal="sdpa", _attn_implementation="sdpa")

    patch.setattr(stock(), "PreTrainedConfig", config)


def caches_without_layers(patch: Patch) -> None:
    class Cache:
        is_compileable = False

        def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None: ...

    patch.setattr(stock(), "DynamicCache", Cache)


def caches_asked_by_position(patch: Patch) -> None:
    def get_mask_sizes(cache: Any, cache_position: torch.Tensor, layer_idx: int) -> tuple[int, int]:
        return cache_position.shape[0] + 2, 0

    patch.setattr(stock().DynamicCache, "get_mask_sizes", get_mask_sizes)


def caches_of_fixed_size(patch: Patch) -> None:
    patch.setattr(stock().DynamicCache, "is_compileable", True)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (
            without_joining,
            "mask functions of this transformers: transformers has no `transformers.masking_utils.and_masks`",
        ),
        (other_mask_signature, "mask functions .*TypeError"),
        (masks_that_see_everything, "mask functions .*not causal"),
        (masks_that_are_none, "mask functions .*not a tensor"),
        (kernels_in_another_place, "attention interface .*not found"),
        (kernels_without_a_switch, "_attn_implementation_internal"),
        (a_switch_that_nothing_follows, "does not follow"),
        (caches_without_layers, "dynamic cache .*layers"),
        (caches_asked_by_position, "dynamic cache .*get_mask_sizes|dynamic cache .*AttributeError"),
        (caches_of_fixed_size, "is_compileable"),
    ],
)
def test_a_broken_internal_is_named_when_a_session_begins(
    broken: Callable[[Patch], None], named: str, monkeypatch: Patch
) -> None:
    model = random_llava(layers=2)
    with monkeypatch.context() as patch:
        broken(patch)
        with pytest.raises(IncompatibleError, match=named) as raised:
            begins(model)
    told(raised.value)
    begins(model)  # nothing stayed behind


def test_a_layer_that_is_called_otherwise_is_named(monkeypatch: Patch) -> None:
    model = random_llava(layers=2)

    def forward(layer: nn.Module, hidden_states: torch.Tensor, attention_mask: Any, past_key_value: Any) -> Any: ...

    layer = type(model.model.language_model.layers[0])
    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(IncompatibleError, match=r"LlamaDecoderLayer.forward` takes no `cache`") as raised:
        begins(model)
    told(raised.value)


def test_a_wrapper_that_hands_every_argument_on_is_no_other_call(monkeypatch: Patch) -> None:
    model = random_llava(layers=2)
    layer = type(model.model.language_model.layers[0])
    own = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *args, **kwargs: own(self, *args, **kwargs))
    check_internals(parts_of(model))


def test_a_model_without_a_part_of_its_family_is_named() -> None:
    model = random_llava(layers=2)
    del model.model.language_model.norm
    with pytest.raises(IncompatibleError, match="has no `norm`") as raised:
        begins(model)
    told(raised.value)
    assert "plugin" in raised.value.hint


def test_a_model_that_does_not_generate_is_named(monkeypatch: Patch) -> None:
    model = random_llava(layers=2)
    monkeypatch.setattr(type(model), "generate", None)
    with pytest.raises(IncompatibleError, match="no `generate`") as raised:
        begins(model)
    told(raised.value)


def test_a_session_is_as_before_once_the_internals_are_back(monkeypatch: Patch) -> None:
    model = random_llava(layers=2)
    inputs = batch([prompt(1)])
    with torch.no_grad():
        expected = model(**inputs).logits
        with monkeypatch.context() as patch:
            without_joining(patch)
            with pytest.raises(IncompatibleError):
                begins(model)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("module", ["transformers.no_such_module", "transformers.masking_utils"])
def test_a_missing_part_is_no_import_error(module: str) -> None:
    with pytest.raises(IncompatibleError, match=re.escape(f"{module}.no_such_part")) as raised:
        internal(module, "no_such_part")
    told(raised.value)


def test_the_installed_transformers_is_as_known() -> None:
    assert {each.name: each.problem() for each in INTERNALS} == {each.name: None for each in INTERNALS}


@pytest.mark.parametrize("name", ["num_hidden_layers", "depth"])
def test_the_depth_of_an_encoder_is_found_by_either_name(name: str) -> None:
    assert last_layer(SimpleNamespace(vision_config=SimpleNamespace(**{name: 7}))) == 6


def test_an_encoder_whose_depth_has_a_third_name_is_named() -> None:
    with pytest.raises(IncompatibleError, match="neither `num_hidden_layers` nor `depth`") as raised:
        last_layer(SimpleNamespace(vision_config=SimpleNamespace(num_layers=7)))
    told(raised.value)


def test_the_tested_range_is_the_one_that_is_declared_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = next(one for one in project["dependencies"] if one.startswith("transformers"))
    specifiers = SpecifierSet(declared.removeprefix("transformers"))
    assert TESTED[0] in specifiers
    assert f">={TESTED[0].removesuffix('.0')}" in str(specifiers)
    assert TESTED[1] in specifiers
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"transformers=={TESTED[1]}" in pins


@pytest.mark.parametrize("document", ["README.md", "docs/families.md"])
def test_the_tested_range_is_stated(document: str) -> None:
    assert f"Tested with transformers {supported.tested_range()}" in (ROOT / document).read_text(encoding="utf-8")


def test_releases_outside_of_the_range_are_not_tested() -> None:
    assert is_tested(TESTED[0])
    assert is_tested(TESTED[1])
    assert not is_tested("5.19.0")
    assert not is_tested("6.0.0")


def told(error: IncompatibleError) -> None:
    """One line that names the installed release and the tested range, and a hint."""
    assert f"transformers {INSTALLED} is installed" in error.message
    assert error.message.count(supported.tested_range()) == 1
    assert "\n" not in error.message
    assert f"transformers=={TESTED[1]}" in error.hint
