"""Wrapped models are pruned like the model inside, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.engine.models import batch, prompt, random_llava
from tests.engine.pruners import Averaging, ByContent
from tests.engine.reference import fingerprint_of
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.pruner import Pruner

INPUTS = batch([prompt(1), prompt(2, text=9)])
PICKERS: list[tuple[Pruner, float]] = [
    (ByContent(("layer:1",)), 0.5),
    (ByContent(("input", "layer:2")), 0.25),
    (Averaging(("layer:2.mid",), weighted=True), 0.5),
    (ByContent(("tower:1",)), 0.5),
]


def answers(wrapper: Any, call: Any) -> list[Tensor]:
    """What a wrapper says before, inside and after several sessions: logits of a forward pass and of `generate`."""
    found = []
    with torch.no_grad():
        found.append(call(**INPUTS).logits)
        for picker, ratio in PICKERS:
            with pruned(wrapper, picker, ratio=ratio) as session:
                found.append(call(**INPUTS).logits)
                said = wrapper.generate(**INPUTS, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
                found.append(torch.stack(said.logits))
            assert [record.final() for record in session.records] == [session.last.final()] * 2
            assert session.last.final() < session.last.original_visual_tokens
        found.append(call(**INPUTS).logits)
    return found


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    """What the model that is not wrapped says."""
    model = random_llava()
    return answers(model, model)


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# --- compiled ---------------------------------------------------------------------------------------------------


def whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def text_alone(model: Any) -> Any:
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model


def layer_by_layer(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


def layers_replaced(model: Any) -> Any:
    layers = model.model.language_model.layers
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer, backend="eager", fullgraph=True)
    return model


def encoder_layers(model: Any) -> Any:
    layers = model.model.vision_tower.encoder.layers
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer, backend="eager")
        layer.self_attn.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, in_place, text_alone, layer_by_layer, layers_replaced, encoder_layers])
def test_compiled_models_are_pruned_alike(compiled: Callable[[Any], Any], expected: list[Tensor]) -> None:
    """They run uncompiled inside, and compiled again afterwards."""
    wrapper = compiled(random_llava())
    before = calls_of(wrapper)
    with torch.no_grad():
        for (picker, ratio), logits, steps in zip(PICKERS, expected[1::2], expected[2::2], strict=False):
            with pytest.warns(UserWarning, match="run uncompiled inside"):
                found, said = both(wrapper, picker, ratio)
            assert torch.equal(found, logits)
            assert torch.equal(said, steps)
    assert calls_of(wrapper) == before


def both(wrapper: Any, picker: Pruner, ratio: float) -> tuple[Tensor, Tensor]:
    """Logits of a forward pass and of `generate` in one session."""
    with pruned(wrapper, picker, ratio=ratio):
        said = wrapper.generate(**INPUTS, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        return wrapper(**INPUTS).logits, torch.stack(said.logits)


def calls_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """What runs where each module of a model is called."""
    names = ("forward", "_compiled_call_impl")
    return [tuple(vars(module).get(name) for name in names) for module in model.modules()]


@pytest.mark.thorough
def test_a_compiled_model_runs_compiled_before_and_after(expected: list[Tensor]) -> None:
    runs = []

    def backend(graph: Any, example: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(len(args))
            return graph(*args)

        return run

    torch.compiler.reset()
    model = random_llava()
    for layer in model.model.language_model.layers:
        layer.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**INPUTS).logits, expected[0])
        count = len(runs)
        assert count == 4
        with pytest.warns(UserWarning, match="4 compiled parts"):
            assert torch.equal(both(model, *PICKERS[0])[0], expected[1])
        assert len(runs) == count
        torch.testing.assert_close(model(**INPUTS).logits, expected[0])
    assert len(runs) == 2 * count


# --- adapters ---------------------------------------------------------------------------------------------------


def adapted(**options: Any) -> Any:
    """A model with an active LoRA adapter, whose weights matter."""
    targets = r".*language_model.*(q_proj|k_proj|v_proj|down_proj)"
    options = {"r": 4, "target_modules": targets, "init_lora_weights": False, **options}
    torch.manual_seed(1)
    return get_peft_model(random_llava(), LoraConfig(**options)).eval()


@pytest.mark.parametrize("task", [None, TaskType.CAUSAL_LM])
def test_an_adapter_takes_part(task: TaskType | None, expected: list[Tensor]) -> None:
    """The same as the model into whose weights the adapter was merged."""
    wrapper = adapted(task_type=task)
    merged = copy.deepcopy(wrapper).merge_and_unload()
    found = answers(wrapper, wrapper)
    for ours, theirs in zip(found, answers(merged, merged), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[1], expected[1], atol=1e-2)


def test_pruners_see_the_adapter() -> None:
    """A choice by attention is the merged model's, not that of the model without the adapter."""
    wrapper = adapted()
    merged = copy.deepcopy(wrapper).merge_and_unload()
    chosen = []
    for model in (wrapper, merged, wrapper):
        with torch.no_grad(), pruned(model, "fastv", tokens=5) as session:
            model(**INPUTS)
        chosen.append([unit.indices for unit in session.last.units])
        if model is merged:
            wrapper.base_model.disable_adapter_layers()
    assert chosen[0] == chosen[1] != chosen[2]


def test_an_adapted_model_is_restored() -> None:
    wrapper = adapted()
    with torch.no_grad():
        wrapper.generate(**INPUTS, max_new_tokens=2)  # a first run lets transformers set up what it makes late
    before = fingerprint_of(wrapper)
    with torch.no_grad(), pruned(wrapper, ByContent(("layer:1.mid",)), ratio=0.5):
        wrapper.generate(**INPUTS, max_new_tokens=2)
        with pytest.raises(IncompatibleError, match="already being pruned"):
            begin(wrapper.get_base_model())
    assert fingerprint_of(wrapper) == before


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused(config: Any) -> None:
    model = random_llava()
    settings = config(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=3,
        num_layers=4,
        token_dim=32,
        num_attention_heads=4,
        num_transformer_submodules=1,
    )
    with pytest.raises(IncompatibleError, match=r"`PeftModel` cannot be pruned: its adapter \(P\w+_TUNING\)") as raised:
        begin(PeftModel(model, settings))
    assert "LoRA" in str(raised.value.hint)


# --- data parallelism -------------------------------------------------------------------------------------------


def test_data_parallel_on_one_device(expected: list[Tensor]) -> None:
    model = random_llava()
    check_parallel(nn.DataParallel(model), expected)


def test_distributed_data_parallel(one_process: None, expected: list[Tensor]) -> None:
    check_parallel(nn.parallel.DistributedDataParallel(random_llava()), expected)


def check_parallel(wrapper: Any, expected: list[Tensor]) -> None:
    with torch.no_grad(), pruned(wrapper, PICKERS[0][0], ratio=0.5) as session:
        assert torch.equal(wrapper(**INPUTS).logits, expected[1])
        said = wrapper.module.generate(**INPUTS, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(torch.stack(said.logits), expected[2])
    assert len(session.records) == 2


def test_replicas_are_refused() -> None:
    wrapper = nn.DataParallel(random_llava())
    wrapper.device_ids = [0, 1]
    with pytest.raises(IncompatibleError, match=r"`DataParallel` cannot be pruned: it copies .* \[0, 1\]"):
        begin(wrapper)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layers"])
def test_shards_are_refused(whole: bool, one_process: None) -> None:
    model = random_llava()
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    if whole:
        fully_shard(model, mesh=mesh)
    with pytest.raises(IncompatibleError, match="`FSDPModule` cannot be pruned: FSDP keeps a part") as raised:
        begin(model)
    assert "device_map" in str(raised.value.hint)


def test_tensor_parallelism_is_refused() -> None:
    model = random_llava()
    model._tp_size = 2
    with pytest.raises(IncompatibleError, match="split over 2 processes by heads"):
        begin(model)


@pytest.mark.filterwarnings("ignore:1 compiled parts")
def test_wrappers_in_wrappers(expected: list[Tensor]) -> None:
    wrapper = nn.DataParallel(torch.compile(random_llava(), backend="eager"))
    with torch.no_grad(), pruned(wrapper, PICKERS[0][0], ratio=0.5):
        assert torch.equal(wrapper(**INPUTS).logits, expected[1])


def test_a_wrapper_that_is_not_known_is_named() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = random_llava()

    with pytest.raises(IncompatibleError, match="no model family describes `Holder`: it has no config") as raised:
        begin(Holder())
    assert "`held`" in str(raised.value.hint)


def begin(model: Any) -> None:
    """Begin a session, and end it."""
    with pruned(model, "none", ratio=1.0):
        pass
