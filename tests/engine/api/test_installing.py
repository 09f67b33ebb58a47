"""What a session puts into a model is gone where the session cannot begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import ByContent
from tokenprune.engine import PrefillMemo, pruned
from tokenprune.engine.observe.capture import capture_prefill
from tokenprune.families.lookup import parts_of
from tokenprune.testing.conformance.masking import masks_changed

HOOKS = ("register_forward_pre_hook", "register_forward_hook")


class Broken(Exception):
    """A hook that cannot be registered."""


def installed(model: nn.Module) -> Mapping[str, Any]:
    """Hooks and attributes of every module."""
    return {
        name: [(key, list(value) if "hooks" in key else None) for key, value in sorted(vars(module).items())]
        for name, module in model.named_modules()
    }


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A countdown: at zero, no hook can be registered."""
    left = [0]
    for name in HOOKS:
        own = getattr(nn.Module, name)

        def register(module: nn.Module, *args: Any, own: Any = own, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Broken
            return own(module, *args, **options)

        monkeypatch.setattr(nn.Module, name, register)
    return left


def holders(model: Any) -> Mapping[str, Any]:
    """What puts hooks into a model, by name."""
    sites = ("encoder", "layer:2.mid")

    def masking() -> Any:
        return masks_changed(parts_of(model), lambda layer, rows, seen, mask: mask)

    return {
        "session": lambda: pruned(model, ByContent(sites, ratios=(0.5, 0.25)), ratio=0.5),
        "memo": lambda: pruned(model, ByContent(sites, ratios=(0.5, 0.25)), ratio=0.5, memo=PrefillMemo()),
        "masking": masking,
    }


@pytest.mark.parametrize("holder", ["session", "memo", "masking"])
def test_nothing_stays_where_a_hook_cannot_be_registered(holder: str, failing: list[int]) -> None:
    model = random_llava(layers=3)
    before = installed(model)
    enter = holders(model)[holder]
    failing[0] = many = 1000
    with enter():
        needed = many - failing[0]
        assert installed(model) != before
    assert installed(model) == before
    assert needed > 3
    for count in range(needed):
        failing[0] = count
        with pytest.raises(Broken), enter():
            raise AssertionError("it cannot begin")
        assert installed(model) == before


def test_nothing_stays_where_a_capture_cannot_begin(failing: list[int]) -> None:
    model = random_llava(layers=3)
    before = installed(model)
    for count in range(2):
        failing[0] = count
        with pytest.raises(Broken):
            capture_prefill(model, batch([prompt(1)]), [0, 2])
        assert installed(model) == before
