"""Attention that views pool some rows at a time is what the whole attention gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.models import batch, prompt, random_llava
from tests.engine.views.asking import ask
from tokenprune.dual import tiling
from tokenprune.pruner import View
from tokenprune.testing import RecordedView, random_recording

SAMPLES = [prompt(1), prompt(2, images=2), prompt(3, text=11)]
OPTIONS: list[dict[str, Any]] = [{}, {"heads": "max"}, {"support": "visual"}, {"support": "all"}, {"rope": False}]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llava("eager")


def pooled(view: View, rows: Any, options: dict[str, Any]) -> torch.Tensor:
    """The whole attention, pooled as it says."""
    asked = {name: value for name, value in options.items() if name != "heads"}
    attention, mask = view.attention(rows, **asked)
    attention = attention.amax(dim=1) if options.get("heads") == "max" else attention.mean(dim=1)
    return (attention * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", ["last", "text", "visual"])
def test_received_attention_is_the_pooled_attention(
    model: Any, rows: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(SAMPLES)
    expected = ask(model, inputs, lambda view: pooled(view, rows, options))
    for entries in (tiling.TILE, 1, 500):
        monkeypatch.setattr(tiling, "TILE", entries)
        found = ask(model, inputs, lambda view: view.attention_received(rows, **options))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [None, 0])
def test_the_encoder_is_read_some_rows_at_a_time(
    model: Any, layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(SAMPLES)
    whole = ask(model, inputs, lambda view: view.received_attention(layer))
    monkeypatch.setattr(tiling, "TILE", 30)
    torch.testing.assert_close(ask(model, inputs, lambda view: view.received_attention(layer)), whole)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", ["last", "text", "visual"])
def test_recordings_answer_alike(rows: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    view = RecordedView(random_recording(grid=(4, 5)), 3, ("attention",))
    expected = pooled(view, rows, options)
    for entries in (tiling.TILE, 1, 170):
        monkeypatch.setattr(tiling, "TILE", entries)
        found = view.attention_received(rows, **options)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
