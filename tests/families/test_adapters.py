"""Directories with an adapter of PEFT: loaded with their model, and pruned with the adapter active."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForImageTextToText

from tests.engine.pruners import ByContent
from tests.families.proving import Zoo, assert_equal_to_masked
from tests.families.zoo import Built, Sample
from tokenprune.checkpoints.digest import model_digest
from tokenprune.checkpoints.examine import examine
from tokenprune.checkpoints.loading import load_model
from tokenprune.errors import IncompatibleError, TokenPruneError
from tokenprune.plugins import load_host


def save(built: Built, folder: Path, config: Any) -> Any:
    """An adapter of the family's model, whose weights matter."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(built.path).eval()
    wrapper = get_peft_model(model, config)
    wrapper.save_pretrained(folder)
    return wrapper


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_onevision", "gemma3"])
def test_an_adapter_is_loaded_with_its_model(zoo: Zoo, name: str, tmp_path: Path) -> None:
    built = zoo(name)
    wrapper = save(built, tmp_path, lora())
    loaded = load_model(str(tmp_path))
    inputs = built.inputs(Sample(), Sample(seed=1))
    with torch.no_grad():
        logits = loaded.model(**inputs).logits
        torch.testing.assert_close(logits, wrapper(**inputs).logits)
        assert not torch.allclose(logits, built.model(**inputs).logits, atol=1e-2)
    adapted = Built(built.family, built.path, loaded.model, built.processor)
    assert_equal_to_masked(adapted, inputs, ByContent(("layer:1",), ratios=(0.5,)), count=2)
    found = examine(str(tmp_path), load_host())
    assert (found.family, found.problem, found.processor) == (name, None, type(built.processor).__name__)


def test_virtual_tokens_are_refused_when_loaded(zoo: Zoo, tmp_path: Path) -> None:
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3, num_layers=4, token_dim=64, num_attention_heads=4
    )
    save(zoo("llava"), tmp_path, config)
    with pytest.raises(IncompatibleError, match=r"its adapter \(PROMPT_TUNING\) puts virtual tokens"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "names no model"),
        (
            {"base_model_name_or_path": "/no/such/model"},
            "changes the model `/no/such/model`, which does not exist here",
        ),
        ({"r": 5}, "does not fit"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_one_line(
    zoo: Zoo, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save(zoo("llava"), tmp_path, lora())
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TokenPruneError, match=said):
        load_model(str(tmp_path))


def test_an_adapter_without_weights_is_one_line(zoo: Zoo, tmp_path: Path) -> None:
    save(zoo("llava"), tmp_path, lora())
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(TokenPruneError, match=r"without `adapter_model.safetensors`"):
        load_model(str(tmp_path))


def test_the_model_below_is_part_of_what_a_sweep_compares(zoo: Zoo, tmp_path: Path) -> None:
    """Another model under the same adapter is another model."""
    save(zoo("llava"), tmp_path / "adapter", lora())
    host = load_host()
    before = model_digest(str(tmp_path / "adapter"), host)
    base = tmp_path / "base"
    shutil.copytree(zoo("llava").path, base)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(base)}))
    moved = model_digest(str(tmp_path / "adapter"), host)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert len({before, moved, model_digest(str(tmp_path / "adapter"), host)}) == 3
