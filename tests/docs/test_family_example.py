"""The family of the guide: described in a plugin, found by its model type, pruned at every site that it names."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration

from tokenprune import pruned
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import default_host, load_host
from tokenprune.site import SITE_KINDS

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "third-party-family"
SIDE, IMAGE = 4, 3
"""Visual tokens along a side, and the id of the placeholder."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example on the path, with the metadata that an installation writes."""
    facts = tmp_path / "tokenprune_deepseek_vl-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune-deepseek-vl\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[tokenprune]\ndeepseek-vl = tokenprune_deepseek_vl\n")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    default_host.cache_clear()
    yield
    importlib.invalidate_caches()
    default_host.cache_clear()


def small_model() -> Any:
    """A DeepSeek-VL of stock classes with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {"model_type": "llama", "vocab_size": 64, "num_hidden_layers": 4, "num_key_value_heads": 2, **shape}
    vision = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "num_hidden_layers": 3, **shape}
    config = DeepseekVLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, tie_word_embeddings=False)
    return DeepseekVLForConditionalGeneration(config).eval()


def prompt() -> dict[str, torch.Tensor]:
    """Two samples with one image each."""
    ids = torch.tensor([[5, *[IMAGE] * SIDE**2, 6, 7], [8, *[IMAGE] * SIDE**2, 9, 10]])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_the_guide_says_twenty_lines() -> None:
    code = (EXAMPLE / "tokenprune_deepseek_vl" / "description.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) <= 22


@pytest.mark.usefixtures("installed")
def test_the_light_spec_says_what_the_description_says() -> None:
    host = load_host()
    spec = host.families.get("deepseek_vl")
    family = parts_of(small_model(), host).family
    assert host.families.owner("deepseek_vl") == "tokenprune-deepseek-vl"
    assert (spec.name, spec.video) == (family.name, family.video)
    assert dict(spec.refused) == {kind: reason for kind in SITE_KINDS if (reason := family.refusal(kind)) is not None}
    assert spec.sites == tuple(kind for kind in SITE_KINDS if family.refusal(kind) is None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "site"), [("tome", "tower"), ("hiprune", "encoder"), ("divprune", "input"), ("fastv", "layer")]
)
def test_it_is_pruned_at_every_site(name: str, site: str) -> None:
    model = small_model()
    with pruned(model, name, ratio=0.5) as session, torch.no_grad():
        model.generate(**prompt(), max_new_tokens=3, do_sample=False)
    assert session.last.original_visual_tokens == (SIDE**2, SIDE**2)
    assert session.last.final() == (SIDE**2 // 2, SIDE**2 // 2)
    assert {unit.site.partition(":")[0] for unit in session.last.units} == {site}


@pytest.mark.usefixtures("installed")
def test_keeping_all_changes_nothing() -> None:
    model = small_model()
    with torch.no_grad():
        stock = model(**prompt()).logits
        with pruned(model, "divprune", ratio=1.0):
            kept = model(**prompt()).logits
    assert torch.equal(stock, kept)


def test_without_the_plugin_only_the_decoder_is_found() -> None:
    with pytest.warns(UserWarning, match="no model family describes `deepseek_vl`"):
        found = parts_of(small_model())
    assert found.vision is None
