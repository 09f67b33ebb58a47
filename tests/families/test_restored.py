"""Every family's model is as it was after a session: bit for bit, also where a forward pass broke off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.engine.pruners import Averaging, ByContent
from tests.families.described import description
from tests.families.proving import REFUSED, Zoo, everyone, said, samples
from tests.families.zoo import Built, Sample
from tokenprune.engine import pruned
from tokenprune.engine.patch.internals import INTERNALS
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import Decision, State, Stop, View

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_state_dict_hooks",
)


class Exploding(ByContent):
    """Raises where it is asked."""

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        raise ArithmeticError("inside")


def configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A config and those inside it."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(one for each in inner if isinstance(each, PreTrainedConfig) for one in configs(each))]


def state_of(model: Any) -> Mapping[str, Any]:
    """Everything that a session must leave as it was, but the values of the weights."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [(name, tensor.data_ptr(), tensor._version, tensor.requires_grad) for name, tensor in tensors],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "methods": [(name, module.forward, type(module).forward) for name, module in model.named_modules()],
        "hooks": [
            (name, [list(getattr(module, hooks).items()) for hooks in HOOKS]) for name, module in model.named_modules()
        ],
        "configs": [(each.to_json_string(), each._attn_implementation) for each in configs(model.config)],
        "generation": model.generation_config.to_json_string(),
        "generate": model.generate,
        "mode": [module.training for module in model.modules()],
        "kernels": {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS},
        "masks": {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ALL_MASK_ATTENTION_FUNCTIONS},
        "gradients": torch.is_grad_enabled(),
    }


class Watched:
    """A model's state and answers, to compare with later ones."""

    def __init__(self, built: Built, inputs: Any) -> None:
        self.built, self.inputs = built, inputs
        self.answers = self._answers()  # a first run lets transformers set up what it makes late
        assert not any(each.problem() for each in INTERNALS)  # so does the first session of a process
        self.weights = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
        self.state = state_of(built.model)

    def _answers(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.built.model(**self.inputs).logits, said(self.built, self.inputs, 2).sequences

    def assert_restored(self) -> None:
        found = state_of(self.built.model)
        for part, expected in self.state.items():
            assert found[part] == expected, part
        weights = self.built.model.state_dict()
        assert weights.keys() == self.weights.keys()
        for name, value in self.weights.items():
            assert torch.equal(weights[name], value), name
        for ours, theirs in zip(self._answers(), self.answers, strict=True):
            assert torch.equal(ours, theirs)


#: Families whose decoder layers have no middle: attention and MLP side by side, or more than one of each.
NO_MIDDLE = ("aya_vision", "gemma4", "llama4")


def sites_of(name: str) -> list[str]:
    """A site of every kind that the family has, but pixels and decoding steps."""
    family = description(name)
    sites = {"tower": "tower:1", "encoder": "encoder", "input": "input", "layer": "layer:2"}
    middle = [] if name in NO_MIDDLE else ["layer:1.mid"]
    return [site for kind, site in sites.items() if family.refusal(kind) is None] + middle  # type: ignore[arg-type]


@everyone
def test_restored_after_a_session(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    watched = Watched(built, built.inputs(*samples(built)))
    for site in sites_of(name):
        with torch.no_grad(), pruned(built.model, ByContent((site,)), ratio=0.5) as session:
            said(built, watched.inputs, 2)
        assert session.last.final() < session.last.original_visual_tokens
    with torch.no_grad(), pruned(built.model, Averaging(("input",), weighted=True), ratio=0.5):
        said(built, watched.inputs, 2)
    watched.assert_restored()


@everyone
def test_restored_after_a_pruner_failed(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    watched = Watched(built, built.inputs(Sample()))
    for site in sites_of(name):
        failing = pytest.raises(ArithmeticError, match="inside")
        with failing, pruned(built.model, Exploding((site,)), ratio=0.5), torch.no_grad():
            said(built, watched.inputs, 2)
    watched.assert_restored()


@everyone
def test_restored_after_the_model_failed(zoo: Zoo, name: str) -> None:
    """Inside the block the same session also goes on after the failure."""
    built = zoo(name)
    watched = Watched(built, built.inputs(Sample()))
    broken = parts_of(built.model).layers[3]

    def fail(*call: Any) -> None:
        raise ArithmeticError("inside the model")

    sites = ("input", sites_of(name)[-1])
    with torch.no_grad(), pruned(built.model, ByContent(sites), ratio=0.5):
        expected = built.model(**watched.inputs).logits
    with torch.no_grad(), pruned(built.model, ByContent(sites), ratio=0.5) as session:
        handle = broken.register_forward_pre_hook(fail)
        for run in (lambda: built.model(**watched.inputs), lambda: said(built, watched.inputs, 2)):
            with pytest.raises(ArithmeticError, match="inside the model"):
                run()
        assert not session.records
        handle.remove()
        assert torch.equal(built.model(**watched.inputs).logits, expected)
    watched.assert_restored()


@pytest.mark.parametrize("name", NO_MIDDLE)
def test_restored_after_a_cut_in_the_middle_was_refused(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    watched = Watched(built, built.inputs(Sample()))
    refused = pytest.raises(IncompatibleError, match="it has no middle to cut at")
    with refused, pruned(built.model, ByContent(("layer:1.mid",)), ratio=0.5):
        said(built, watched.inputs, 2)
    watched.assert_restored()


@pytest.mark.parametrize("name", REFUSED)
def test_restored_after_a_refusal(zoo: Zoo, name: str) -> None:
    built = zoo(name)
    watched = Watched(built, built.inputs(Sample()))
    with pytest.raises(IncompatibleError), pruned(built.model, ByContent(), ratio=0.5):
        said(built, watched.inputs, 2)
    watched.assert_restored()
