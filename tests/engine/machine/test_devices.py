"""Models over several devices, and with weights that are only there while they run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn

from tests.engine.machine.places import FIRST, SECOND, Places, placed, put
from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import Alternating, Averaging, ByContent, Reaching
from tokenprune.engine import pruned

INPUTS = batch([prompt(1), prompt(2, text=9)])
PICKERS: list[Any] = [
    ByContent(("input", "layer:3")),
    ByContent(("tower:1",)),
    Averaging(("layer:2.mid",), weighted=True),
    Averaging(("encoder",), weighted=True),
    Reaching(("layer:3",)),
    Alternating(("input",), layer=3),
    "fastv",
    "iwp",
    "sparsevlm",
    "visionzip",
]
pickers = pytest.mark.parametrize(
    "picker", PICKERS, ids=lambda each: each if isinstance(each, str) else repr(each)[:40]
)


def answers(model: Any, picker: Any, inputs: dict[str, Tensor], positions: Any = "keep") -> tuple[Tensor, Tensor]:
    """Logits of a forward pass and of every step of `generate`."""
    with torch.no_grad(), pruned(model, picker, ratio=0.5, positions=positions) as session:
        logits = model(**inputs).logits
        said = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    assert len(session.records) == 2
    return logits, torch.stack(said.logits)


@functools.cache
def stock(kernel: str) -> Any:
    """A model that is all on the CPU."""
    return random_llava(kernel)


@functools.cache
def expected(kernel: str, picker: Any, positions: str = "keep") -> tuple[Tensor, Tensor]:
    """What that model says."""
    return answers(stock(kernel), picker, INPUTS, positions)


# --- weights that are elsewhere -----------------------------------------------------------------------------------


def on_cpu(model: Any, folder: Path) -> Any:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: Any, folder: Path) -> Any:
    return disk_offload(model, folder, execution_device=torch.device("cpu"))


def by_layers(model: Any, folder: Path) -> Any:
    """Whole layers are brought at once."""
    whole = ["LlamaDecoderLayer", "CLIPEncoderLayer"]
    return cpu_offload(model, execution_device=torch.device("cpu"), preload_module_classes=whole)


def dispatched(model: Any, folder: Path) -> Any:
    """Some parts stay, others are on disk."""
    places = {f"model.language_model.layers.{index}": "disk" if index % 2 else "cpu" for index in range(4)}
    text = {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    rest = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    return dispatch_model(model, places | text | rest, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("offload", [on_cpu, on_disk, by_layers, dispatched])
def test_offloaded_models_are_pruned_alike(offload: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    """Bit for bit, and what was put away is away again after layers were looked into."""
    elsewhere = offload(random_llava(), tmp_path)
    away = [name for name, weight in elsewhere.named_parameters() if weight.device.type == "meta"]
    assert away
    for picker in (PICKERS[0], PICKERS[2], "iwp", "visionzip"):
        for ours, theirs in zip(answers(elsewhere, picker, INPUTS), expected("sdpa", picker), strict=True):
            assert torch.equal(ours, theirs)
        left = [name for name, weight in elsewhere.named_parameters() if weight.device.type == "meta"]
        assert left == away


# --- several devices ----------------------------------------------------------------------------------------------


def layers_and_tower(model: Any) -> Sequence[nn.Module]:
    text = model.model.language_model
    return [model.model.vision_tower, *text.layers[2:], text.norm, model.lm_head]


def first_layers(model: Any) -> Sequence[nn.Module]:
    return [model.model.multi_modal_projector, *model.model.language_model.layers[:2]]


def whole_text(model: Any) -> Sequence[nn.Module]:
    """One hook before the text model: its layers get what the session gives them as it is."""
    return [model.model.language_model]


def within_the_tower(model: Any) -> Sequence[nn.Module]:
    return list(model.model.vision_tower.encoder.layers[1:])


@pickers
@pytest.mark.parametrize(
    "second",
    [
        layers_and_tower,
        pytest.param(first_layers, marks=pytest.mark.thorough),
        pytest.param(whole_text, marks=pytest.mark.thorough),
        within_the_tower,
    ],
)
@pytest.mark.parametrize("positions", ["keep", pytest.param("compact", marks=pytest.mark.slow)])
def test_devices_never_mix(picker: Any, second: Callable[[Any], Sequence[nn.Module]], positions: str) -> None:
    model = stock("eager")
    text = model.model.language_model
    back = [*text.layers[2:], text.norm] if second is first_layers else []
    with placed(model, second(model), back):
        inputs = {name: put(value.clone(), FIRST) for name, value in INPUTS.items()}
        found = answers(model, picker, inputs, positions)
    for ours, theirs in zip(found, expected("eager", picker, positions), strict=True):
        assert torch.equal(ours, theirs)


def test_devices_that_mix_would_be_found() -> None:
    """The test can fail: one tensor of each device is an error, also as an index."""
    with Places():
        one, other = put(torch.ones(3), FIRST), put(torch.tensor([0, 1, 2]), SECOND)
        assert (one.device, other.device, (one + 1).device) == (FIRST, SECOND, FIRST)
        assert torch.zeros_like(other).device == torch.zeros(2, device=SECOND).device == one.to(SECOND).device == SECOND
        for mixed in (lambda: one + other, lambda: one[other], lambda: torch.cat([one, other])):
            with pytest.raises(RuntimeError, match="several devices"):
                mixed()
