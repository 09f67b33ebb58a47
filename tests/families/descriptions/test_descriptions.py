"""The description of every family: its parts in a real model, its light spec, its tower; and doing without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.families.described import REFUSED, SEEN, Zoo, description, parts
from tests.families.zoo import FAMILIES, Sample
from tokenprune.checkpoints.examine import examine, examined
from tokenprune.errors import IncompatibleError
from tokenprune.families.catalogue import FAMILIES as SPECS
from tokenprune.families.discovery import discover
from tokenprune.families.family import Visual, placeholder_runs, resolve
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import load_host
from tokenprune.site import SITE_KINDS

everyone = pytest.mark.parametrize("name", FAMILIES)


def test_every_family_of_the_zoo_is_described_once() -> None:
    assert sorted(spec.name for spec in SPECS) == sorted(FAMILIES)
    assert {model_type for spec in SPECS for model_type in spec.model_types} >= {
        family.model_type for family in FAMILIES.values()
    }


@everyone
def test_the_light_spec_says_what_the_description_says(name: str) -> None:
    spec, family = next(spec for spec in SPECS if spec.name == name), description(name)
    assert family.name == name
    assert spec.video == family.video == FAMILIES[name].videos
    assert dict(spec.refused) == {kind: reason for kind in SITE_KINDS if (reason := family.refusal(kind)) is not None}
    assert spec.sites == tuple(kind for kind in SITE_KINDS if family.refusal(kind) is None)


@everyone
def test_paths_lead_to_parts_of_a_real_model(name: str, zoo: Zoo) -> None:
    built, family = zoo(name), description(name)
    if name in REFUSED:
        with pytest.raises(IncompatibleError, match=f"`{name}` cannot be pruned: its"):
            parts_of(built.model)
    found = parts(built)
    assert len(found.layers) == built.model.config.get_text_config().num_hidden_layers
    assert len(set(map(id, found.layers))) == len(found.layers)
    assert found.text.get_submodule(family.final_norm) is found.final_norm
    attention = [layer for layer in found.layers if hasattr(layer, family.attention)]
    assert attention
    assert all(hasattr(layer, family.mlp) for layer in found.layers)
    if name != "mllama":
        inputs = built.inputs(Sample())
        assert any(inputs.get(name) is not None for name in family.pixels)
        assert found.is_placeholder(inputs["input_ids"]).any()


with_towers = pytest.mark.parametrize("name", [name for name in FAMILIES if description(name).vision is not None])


@with_towers
def test_the_projector_reads_one_row_for_each_visual_token(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    found = parts(built)
    assert found.vision is not None
    inputs = built.inputs(Sample(images=2), Sample(images=1, seed=1))
    outputs: list[Tensor] = []
    read: list[Tensor] = []
    final: list[Tensor] = []
    about, skip = found.vision.about, int(found.facts.has_cls)
    handles = [layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in found.vision.layers]
    handles.append(found.vision.projector.register_forward_pre_hook(lambda module, args: read.append(args[0])))
    handles.append(found.vision.tower.register_forward_hook(lambda *call: final.append(call[-1].last_hidden_state)))
    with torch.no_grad():
        built.model(**inputs)
    for handle in handles:
        handle.remove()
    (rows,) = read
    assert [len(rows), rows.shape[1]] == [3, found.visuals(inputs)[0].tokens]
    layer = outputs[about.read_layer(built.model.config)][:, skip:]
    width = layer.shape[-1]
    channels = [rows[..., start : start + width] for start in range(0, rows.shape[-1], width)]
    if name == "paligemma":  # it reads behind the encoder's final norm
        torch.testing.assert_close(rows, final[0])
        torch.testing.assert_close(rows, found.vision.tower.post_layernorm(layer))
    else:
        assert any(torch.equal(part, layer) for part in channels)
    assert (len(channels) > 1) == ("tower" in description(name).refused)


@with_towers
def test_the_tower_runs_on_smaller_pixels(name: str, zoo: Zoo) -> None:
    built = zoo(name)
    found = parts(built)
    assert found.vision is not None
    about = found.vision.about
    assert about.resize is not None
    patch, skip = about.patch_size(built.model.config), int(found.facts.has_cls)
    with torch.no_grad():
        shown = found.vision.tower(torch.zeros(1, 3, 3 * patch, 2 * patch), **about.resize).last_hidden_state
    assert shown.shape[1] == 6 + skip


@pytest.mark.parametrize("name", [name for name in SEEN if name not in REFUSED])
def test_the_parts_of_a_described_family_would_have_been_discovered(name: str, zoo: Zoo) -> None:
    built, family = zoo(name), description(name)
    found = discover(built.model)
    for field in ("base", "text", "layers", "final_norm", "rotary", "attention", "mlp"):
        assert getattr(found, field) == getattr(family, field), field
    inputs = built.inputs(Sample(images=2))
    assert (
        resolve(built.model, found)
        .is_placeholder(inputs["input_ids"])
        .equal(parts(built).is_placeholder(inputs["input_ids"]))
    )
    assert set(family.pixels) & set(inputs) <= set(found.pixels)


def test_an_undescribed_model_is_discovered_with_a_warning(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo("llava")
    monkeypatch.setattr(built.model.config, "model_type", "unheard_of")
    with pytest.warns(UserWarning, match="no model family describes `unheard_of`"):
        found = parts_of(built.model)
    inputs = built.inputs(Sample(images=2))
    assert found.visuals(inputs) == [
        Visual(length, None) for length in placeholder_runs(found.is_placeholder(inputs["input_ids"]))
    ]
    assert found.facts.family == "unheard_of"
    assert found.vision is None


def test_what_cannot_be_discovered_is_an_error(zoo: Zoo) -> None:
    with pytest.raises(IncompatibleError, match="no model family describes `Linear`"):
        parts_of(nn.Linear(1, 1))
    with pytest.raises(IncompatibleError, match="cross"):
        discover(zoo("mllama").model)


# --- examination ----------------------------------------------------------------------------------------------------


@everyone
def test_a_model_is_examined_by_its_config_alone(name: str, zoo: Zoo) -> None:
    built, family = zoo(name), description(name)
    found = examine(str(built.path), load_host())
    assert (found.model, found.model_type) == (type(built.model).__name__, FAMILIES[name].model_type)
    assert (found.family, found.owner) == (name, "tokenprune")
    assert [part for part, (_, kind) in found.parts.items() if kind is None] == []
    assert ("vision tower" in found.parts) == (family.vision is not None)
    assert set(found.placeholders.values()) >= {built.model.config.image_token_id}
    assert sum(found.layer_types.values()) == built.model.config.get_text_config().num_hidden_layers
    assert found.processor == type(built.processor).__name__
    assert (found.problem is not None) == (name in REFUSED)
    assert found.refusals == {kind: family.refusal(kind) for kind in SITE_KINDS}


def test_an_undescribed_model_is_examined_by_its_parts(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo("qwen2_vl")
    monkeypatch.setattr(built.model.config, "model_type", "unheard_of")
    found = examined(built.model, load_host())
    assert (found.family, found.problem) == (None, None)
    assert found.parts["text model"] == ("model.language_model", "Qwen2VLTextModel")
    assert [kind for kind, reason in found.refusals.items() if reason is None] == ["input", "layer", "decode"]


def test_the_examination_says_what_is_missing(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo("llava")
    monkeypatch.delattr(built.model.model.language_model, "norm")
    found = examined(built.model, load_host())
    assert found.parts["final norm"] == ("model.language_model.norm", None)
    assert "has no `norm`" in str(found.problem)
