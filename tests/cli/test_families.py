"""`tokenprune families`, and `tokenprune doctor --model`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import Commands, environment
from tests.cli.findings import findings
from tokenprune.errors import ExitCode
from tokenprune.families.catalogue import FAMILIES
from tokenprune.site import SITE_KINDS


def test_every_family_is_listed_with_its_sites(run: Commands) -> None:
    document = run("families", "--json").json()
    assert document["schema"] == 1
    entries = {entry["name"]: entry for entry in document["families"]}
    assert set(entries) == {spec.name for spec in FAMILIES}
    for entry in entries.values():
        assert set(entry) == {"name", "model_types", "sites", "video", "refused"}
        assert entry["sites"] == [kind for kind in SITE_KINDS if kind not in entry["refused"]]
        assert set(entry["refused"]) <= set(SITE_KINDS)
    assert entries["llava"]["sites"] == list(SITE_KINDS)
    assert entries["qwen2_5_vl"] | {"refused": {}} == {
        "name": "qwen2_5_vl",
        "model_types": ["qwen2_5_vl"],
        "sites": ["input", "layer", "decode"],
        "video": True,
        "refused": {},
    }
    assert "cross-attention" in entries["mllama"]["refused"]["input"]


def test_the_table_says_why_a_family_cannot_be_pruned(run: Commands) -> None:
    shown = run("families").out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    words = " ".join(shown.split())
    assert "qwen3_vl_moe input, layer, decode yes" in words
    assert "cannot be pruned why" in words
    assert "lfm2_vl its decoder has convolution layers" in words


def test_listing_families_imports_no_torch() -> None:
    program = (
        "import sys; from tokenprune.cli.app import main; code = main(['families', '--json']); "
        "sys.exit(code or int('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1


def model_findings(run: Commands, name: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    ran = run("doctor", "--model", str(name), "--json")
    return ran.code, {entry["subject"]: entry for entry in ran.json()["findings"]}


def test_doctor_examines_a_model(run: Commands) -> None:
    code, found = model_findings(run, "scenes")
    assert code == 0
    assert found["family"]["text"] == "llava, described by tokenprune"
    assert found["text model"]["text"] == "model.language_model: LlamaModel"
    assert found["placeholders"]["text"] == "image_token_id = 4"
    assert found["layer types"]["text"] == "6 x full_attention"
    assert found["processor"]["text"] == "LlavaProcessor"
    assert [found[f"site {kind}"]["text"] for kind in SITE_KINDS] == ["can be cut"] * len(SITE_KINDS)
    assert "torch" not in found  # the installation is another examination


def test_doctor_examines_the_installation_without_a_model(run: Commands) -> None:
    assert "torch" in findings(run)[1]


def test_doctor_says_that_a_model_was_discovered(run: Commands, tmp_path: Path) -> None:
    from transformers import MistralConfig, PixtralVisionConfig
    from transformers.models.lighton_ocr import LightOnOcrConfig

    LightOnOcrConfig(
        vision_config=PixtralVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16),
        text_config=MistralConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64),
        image_token_id=7,
    ).save_pretrained(tmp_path)
    code, found = model_findings(run, tmp_path)
    assert code == ExitCode.VERDICT  # there is no processor in the folder
    assert found["processor"]["verdict"] == "bad"
    assert found["family"]["verdict"] == "note"
    assert found["family"]["text"].startswith("not described: discovered")
    assert found["placeholders"]["text"] == "image_token_id = 7"
    assert found["site layer"]["verdict"] == "ok"
    assert "no description" in found["site encoder"]["text"]


def test_doctor_says_why_a_model_cannot_be_pruned(run: Commands, tmp_path: Path) -> None:
    from transformers import Lfm2VlConfig

    Lfm2VlConfig(
        vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
    ).save_pretrained(tmp_path)
    code, found = model_findings(run, tmp_path)
    assert code == ExitCode.VERDICT
    assert found["layer types"]["text"] == "1 x conv, 1 x full_attention"
    assert found["sites"]["verdict"] == "bad"
    assert "convolution layers" in found["sites"]["text"]


@pytest.mark.parametrize(("name", "error"), [("nowhere", "unknown model `nowhere`"), (None, "cannot build a model")])
def test_a_model_that_is_none_is_a_users_mistake(run: Commands, tmp_path: Path, name: str | None, error: str) -> None:
    ran = run("doctor", "--model", name or str(tmp_path))
    assert ran.code == 2
    assert f"error: {error}" in ran.err
    assert "hint:" in ran.err
    assert "Traceback" not in ran.err
