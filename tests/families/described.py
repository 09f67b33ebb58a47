"""The descriptions of all families beside small models of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families.zoo import FAMILIES, Built
from tokenprune.families.catalogue import FAMILIES as SPECS
from tokenprune.families.family import Family as Description
from tokenprune.families.family import Parts, Visual, resolve
from tokenprune.families.lookup import parts_of
from tokenprune.registry import load_target

Zoo = Callable[[str], Built]
REFUSED = ("qwen3_5", "lfm2_vl", "mllama")
SEEN = {name: family for name, family in FAMILIES.items() if name != "mllama"}
"""Families whose decoder's sequence holds visual tokens."""


def description(name: str) -> Description:
    """The description that the catalogue names."""
    found: Description = load_target(next(spec.target for spec in SPECS if spec.name == name))
    return found


def parts(built: Built) -> Parts:
    """The parts of a model, of refused families too."""
    if built.family.name not in REFUSED:
        return parts_of(built.model)
    config = built.model.config.get_text_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "layer_types", ["full_attention"] * config.num_hidden_layers, raising=False)
        return resolve(built.model, dataclasses.replace(description(built.family.name), refused={}))


def units(built: Built, inputs: Mapping[str, Any]) -> list[Visual]:
    return parts(built).visuals(inputs)


@contextmanager
def embeddings(built: Built) -> Iterator[list[Tensor]]:
    """What the text model receives, (B, S, D), call by call."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(kwargs["inputs_embeds"].detach())

    handle = built.model.get_submodule(description(built.family.name).text).register_forward_pre_hook(
        keep, with_kwargs=True
    )
    try:
        yield found
    finally:
        handle.remove()


def embedded(built: Built, inputs: Mapping[str, Any]) -> Tensor:
    """(B, S, D) embeddings of a prompt, images among them."""
    with embeddings(built) as found, torch.no_grad():
        built.model(**inputs)
    return found[0]
