"""A torch without the torchvision that was built for it: what is said, by `doctor` and where a model is loaded."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from tokenprune.checkpoints import load_model
from tokenprune.checkpoints.torchvision_build import partner, torchvision_hint, torchvision_problem
from tokenprune.cli.app import main
from tokenprune.errors import ExitCode, PrerequisiteError

ROOT = Path(__file__).parent.parent.parent
PAIR = f"torch=={Version(metadata.version('torch')).base_version} torchvision=={partner(metadata.version('torch'))}"


@pytest.fixture(params=["missing", "of another torch"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is told of a torchvision that is not there, or does not import; transformers then fails in its own way."""
    own_version, own_import = metadata.version, importlib.import_module
    known = own_version("torchvision")

    def version(name: str) -> str:
        if name == "torchvision" and request.param == "missing":
            raise metadata.PackageNotFoundError(name)
        return own_version(name)

    def load(name: str, package: str | None = None) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more lines")
        return own_import(name, package)

    def processor(*args: Any, **options: Any) -> Any:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library. Checkout\n the instructions")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", load)
    if request.param == "missing":
        return "torchvision is not installed"
    torch = own_version("torch")
    return f"torchvision {known} does not work with torch {torch} (operator torchvision::nms does not exist)"


@pytest.mark.parametrize(
    ("torch", "torchvision"),
    [("2.9.0", "0.24.0"), ("2.9.1", "0.24.1"), ("2.14.1", "0.29.1"), ("2.14.1+cpu", "0.29.1"), ("2.10.0a0", "0.25.0")],
)
def test_the_partner_of_a_torch(torch: str, torchvision: str) -> None:
    assert partner(torch) == torchvision


def test_the_pinned_pair_is_one() -> None:
    pins = dict(re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    assert partner(pins["torch"]) == pins["torchvision"]


def test_a_torchvision_that_works_is_no_problem() -> None:
    assert torchvision_problem() is None


def test_a_model_load_says_which_pair_to_install(broken: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        load_model("scenes")
    assert broken in caught.value.message
    assert "Qwen2VLVideoProcessor requires the Torchvision library" in caught.value.message
    assert "\n" not in caught.value.message
    assert f"`pip install {PAIR}`" in caught.value.hint == torchvision_hint()


def test_a_command_ends_with_one_line_and_the_pair(
    broken: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert main(["explain", "--image", str(picture), "--question", "what ?"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert broken in told
    assert PAIR in told
    assert "Traceback" not in told
    assert "bug of tokenprune" not in told


def test_doctor_says_which_pair_to_install(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["doctor", "--json"]) == ExitCode.VERDICT
    found = {entry["subject"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert found["torchvision"]["verdict"] == "bad"
    assert found["torchvision"]["text"] == f"{broken}; {torchvision_hint()}"
    assert main(["doctor", "--model", "scenes", "--json"]) == ExitCode.VERDICT
    found = {entry["subject"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert broken in found["processor"]["text"]
    assert PAIR in found["processor"]["text"]


def test_another_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def processor(*args: Any, **options: Any) -> Any:
        raise ImportError("Package `num2words` is required to run SmolVLM processor. Install it")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)
    with pytest.raises(PrerequisiteError, match="`num2words` is required") as caught:
        load_model("scenes")
    assert "pip" in caught.value.hint


def test_an_error_that_is_no_missing_package_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def processor(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", processor)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_model("scenes")
