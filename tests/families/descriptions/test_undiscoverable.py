"""A model whose parts cannot be told is refused with the part that is missing, never taken for something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenprune.errors import IncompatibleError
from tokenprune.families.discovery import discover


class Layer(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in (parts or {"self_attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)}).items():
            setattr(self, name, part)


class Text(nn.Module):
    def __init__(self, layer: Layer | None = None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(4, 2)
        self.layers = nn.ModuleList([layer or Layer()])
        self.norm = nn.LayerNorm(2)
        self.rotary_emb = nn.Identity()


class Model(nn.Module):
    """A vision-language model, as far as discovery looks at it."""

    def __init__(self, text: nn.Module | None = None, **ids: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", **(ids or {"image_token_id": 3}))
        self.language_model = text or Text()

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        return torch.zeros(1)


class Blind(Model):
    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros(1)


def without(name: str) -> Text:
    text = Text()
    delattr(text, name)
    return text


def with_second_stack() -> Text:
    text = Text()
    text.blocks = nn.ModuleList([Layer()])
    return text


def twice() -> Model:
    model = Model()
    model.other = Text()
    return model


def test_the_usual_parts_are_found() -> None:
    family = discover(Model())
    assert (family.text, family.layers, family.attention, family.mlp) == (
        "language_model",
        "layers",
        "self_attn",
        "mlp",
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(Model(hidden_size=3), "its config has none of", id="no placeholder"),
        pytest.param(Model(nn.Linear(2, 2)), "both `embed_tokens` and a list of layers", id="no text model"),
        pytest.param(twice(), "several parts of it could be the text model", id="two text models"),
        pytest.param(Blind(), "takes both `input_ids` and `pixel_values`", id="no pixels"),
        pytest.param(Model(with_second_stack()), "several lists of layers", id="two stacks"),
        pytest.param(Model(without("norm")), "final norm", id="no final norm"),
        pytest.param(Model(without("rotary_emb")), "rotary embedding", id="no rotary embedding"),
        pytest.param(Model(Text(Layer(cross_attn=nn.Linear(2, 2)))), "images may enter beside", id="cross attention"),
        pytest.param(Model(Text(Layer(mlp=nn.Linear(2, 2)))), "attention module", id="no attention"),
        pytest.param(Model(Text(Layer(self_attn=nn.Linear(2, 2)))), "MLP in its decoder", id="no MLP"),
    ],
)
def test_what_is_missing_is_named(model: nn.Module, reason: str) -> None:
    with pytest.raises(IncompatibleError, match=reason) as caught:
        discover(model)
    assert "cannot be found" in str(caught.value)
    assert caught.value.hint
