"""Weights are safetensors: any other format is refused in one line that says how to convert it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sweep.fixtures import Workshop
from tokenprune.checkpoints import load_model
from tokenprune.checkpoints.digest import directory_digest
from tokenprune.checkpoints.joint import JointSpace
from tokenprune.errors import PrerequisiteError
from tokenprune.sweep import plan_cells


@pytest.fixture
def pickled(workshop: Workshop, tmp_path: Path) -> Path:
    """The tiny model with its weights in the old format."""
    model = Path(shutil.copytree(workshop.model, tmp_path / "a model"))
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    torch.save({}, model / "training_args.bin")
    return model


def test_pickled_weights_are_refused_before_they_are_opened(
    workshop: Workshop, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", never)
    for attempt in (
        lambda: plan_cells(workshop.config(models=[str(pickled)]), workshop.host),
        lambda: load_model(str(pickled), host=workshop.host),
        lambda: JointSpace.load(pickled, str, device="cpu", dtype=torch.float32),
    ):
        with pytest.raises(PrerequisiteError, match=r"holds its weights as `pytorch_model\.bin`") as caught:
            attempt()
        assert "\n" not in caught.value.message + caught.value.hint
        assert f"convert it: {'python -c'}" in caught.value.hint


def test_the_command_of_the_hint_converts(workshop: Workshop, pickled: Path) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        load_model(str(pickled), host=workshop.host)
    program, option, code = shlex.split(caught.value.hint.partition("convert it: ")[2])
    assert (program, option) == ("python", "-c")
    exec(code, {})
    before, after = (load_file(folder / "model.safetensors") for folder in (workshop.model, pickled))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert load_model(str(pickled), host=workshop.host).family == "llava"


def test_a_folder_without_weights(workshop: Workshop, pickled: Path) -> None:
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(PrerequisiteError, match="holds no weights"):
        load_model(str(pickled), host=workshop.host)


def test_pickles_beside_the_weights_are_not_part_of_the_model(workshop: Workshop, tmp_path: Path) -> None:
    model = Path(shutil.copytree(workshop.model, tmp_path / "model"))
    torch.save({}, model / "training_args.bin")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    assert directory_digest(model) == directory_digest(workshop.model)
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, model / "model.safetensors")
    assert directory_digest(model) != directory_digest(workshop.model)
