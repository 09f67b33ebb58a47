"""Sessions that share a memo answer as if they shared nothing, and run less."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import Averaging, ByContent, Ragged, Reaching
from tokenprune.engine import PrefillMemo, pruned
from tokenprune.engine.patch.attention_probe import PROBE
from tokenprune.plugins import load_host
from tokenprune.pruner import Pruner

INPUTS = batch([prompt(1), prompt(2, images=2), prompt(3, text=11)])
OTHERS = batch([prompt(5), prompt(6, images=2), prompt(3, text=11)])
HOST = load_host()


def zoo(name: str, **options: Any) -> Pruner:
    built: Pruner = HOST.pruners.get(name).build(options)
    return built


PRUNERS: dict[str, Pruner] = {
    "none": zoo("none"),
    "input": ByContent(("input",)),
    "layer 1": ByContent(("layer:1",)),
    "layers 2 and 3": Ragged(("layer:2", "layer:3"), ratios=(0.7, 0.4)),
    "layer 3": ByContent(("layer:3",)),
    "mid": Averaging(("layer:1.mid",)),
    "back": Reaching(("layer:3",)),
    "tower": ByContent(("tower:1",)),
    "tower and layer": ByContent(("tower:1", "layer:2"), ratios=(0.7, 0.4)),
    "encoder": ByContent(("encoder",)),
    "pixels": zoo("downsample"),
    "looks": zoo("visionzip"),
    "attends": zoo("fastv"),
    "iwp": zoo("iwp"),
}


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.thorough)])
def model(request: pytest.FixtureRequest) -> Any:
    return random_llava(request.param)


def said(
    model: Any, name: str, memo: PrefillMemo | None, inputs: Any = INPUTS, *, ratio: float = 0.5, **options: Any
) -> Any:
    with pruned(model, PRUNERS[name], ratio=ratio, memo=memo, host=HOST) as session:
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
        )
    return out.sequences, torch.stack(out.logits), session.last.units


def equal(found: Any, expected: Any) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert [unit.indices for unit in found[2]] == [unit.indices for unit in expected[2]]


@settings(max_examples=12, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(PRUNERS)), min_size=2, max_size=6))
def test_any_order_of_pruners_answers_alike(model: Any, names: list[str]) -> None:
    memo = PrefillMemo()
    for name in names:
        equal(said(model, name, memo), said(model, name, None))


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_each_pruner_after_all_others(model: Any, name: str) -> None:
    memo = PrefillMemo()
    for other in PRUNERS:
        said(model, other, memo)
    equal(said(model, name, memo), said(model, name, None))


@pytest.mark.parametrize("name", ["input", "layer 3", "encoder", "looks"])
def test_other_inputs_are_never_answered_from_it(model: Any, name: str) -> None:
    memo = PrefillMemo()
    said(model, "layer 3", memo)
    equal(said(model, name, memo, OTHERS), said(model, name, None, OTHERS))


@pytest.mark.parametrize("first", ["input", "layer 3"])
def test_beams_and_forward_calls_share_with_greedy_answers(model: Any, first: str) -> None:
    memo = PrefillMemo()
    said(model, first, memo)
    equal(said(model, "layer 3", memo, num_beams=2), said(model, "layer 3", None, num_beams=2))
    logits = []
    for each in (memo, None):
        with torch.no_grad(), pruned(model, PRUNERS["layer 3"], ratio=0.5, memo=each, host=HOST):
            logits.append(model(**INPUTS).logits)
    assert torch.equal(*logits)


def test_the_encoder_and_the_layers_before_a_cut_run_once(model: Any) -> None:
    memo = PrefillMemo()
    with counted(model) as runs:
        said(model, "layer 3", memo)
    assert runs["encoder"] == 1
    assert runs["prompt in layer 0"] == runs["prompt in layer 2"] == 1
    for name in ("layer 3", "layer 1", "encoder", "input", "looks", "back"):
        with counted(model) as runs:
            said(model, name, memo)
        assert runs["encoder"] == 0, name
        begins = {"layer 3": 3, "back": 3, "layer 1": 1}.get(name, 0)
        assert [runs[f"prompt in layer {layer}"] for layer in range(begins)] == [0] * begins, name
        assert runs[f"decoded in layer {begins}"] == 3, name


@pytest.mark.parametrize("name", ["attends", "iwp", "looks"])
def test_what_a_pruner_looks_at_is_projected_once(model: Any, name: str) -> None:
    memo = PrefillMemo()
    said(model, "none", memo)  # ran the encoder
    with probed(model) as first:
        said(model, name, memo)
    with probed(model) as again:
        for ratio in (0.5, 0.25, 0.1):
            said(model, name, memo, ratio=ratio)
    assert first.total() > 0
    assert again.total() == 0
    equal(said(model, name, memo, ratio=0.25), said(model, name, None, ratio=0.25))


def test_the_model_is_restored_and_the_memo_outlives_a_failure(model: Any) -> None:
    memo = PrefillMemo()
    model(**INPUTS)  # transformers notes at the first run that its own hooks are there
    before = {id(module): dict(vars(module)) for module in model.modules()}
    said(model, "layer 3", memo)
    handle = model.model.language_model.layers[3].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        said(model, "layer 3", memo)
    handle.remove()
    assert {id(module): dict(vars(module)) for module in model.modules()} == before
    equal(said(model, "layer 3", memo), said(model, "layer 3", None))


def fail(module: Any, args: Any) -> None:
    raise RuntimeError("stop")


@contextlib.contextmanager
def probed(model: Any) -> Iterator[Counter[str]]:
    """How often projections were taken out of the attention of a layer, without running the layer."""
    runs: Counter[str] = Counter()

    def note(part: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if module.config._attn_implementation == PROBE:
                runs.update([part])

        return hook

    modules = {f"layer {index}": layer for index, layer in enumerate(model.model.language_model.layers)}
    modules["the encoder"] = model.model.vision_tower.encoder.layers[-1]
    modules["the encoder before"] = model.model.vision_tower.encoder.layers[-2]
    handles = [
        layer.self_attn.register_forward_pre_hook(note(part), with_kwargs=True) for part, layer in modules.items()
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """How often parts of the model compute something, by the calls that reach their attention."""
    runs: Counter[str] = Counter()
    handles = [
        model.model.vision_tower.encoder.layers[0].self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: runs.update(["encoder"]), with_kwargs=True
        )
    ]

    def note(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            width = (args[0] if args else kwargs["hidden_states"]).shape[1]
            runs.update([f"{'prompt' if width > 1 else 'decoded'} in layer {layer}"])

        return hook

    for index, layer in enumerate(model.model.language_model.layers):
        handles.append(layer.self_attn.register_forward_pre_hook(note(index), with_kwargs=True))
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()
