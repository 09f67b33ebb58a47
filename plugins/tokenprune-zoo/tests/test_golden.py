"""The whole zoo against the published implementations, through the public golden harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tokenprune.errors import ExitCode, PrerequisiteError
from tokenprune.testing.golden import check_file, check_folder, covered_methods
from tokenprune.testing.golden.__main__ import main
from tokenprune.testing.golden.case import Case
from tokenprune.testing.golden.compare import close, same

COPIED = Path(__file__).parent / "golden"
#: Outputs that say which tokens stay, and where the others go.
CHOICES = ("out.keep", "out.dominant_patches", "out.group", "out.deleted", "out.row_cell", "out.view0")


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*/*.safetensors")) if path.parent.name in covered_methods()]


def altered(source: Path, folder: Path, name: str, parameters: dict[str, object] | None = None) -> Path:
    """A copy of a golden file with one output changed by one."""
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    if name:
        tensors[name] = tensors[name] + 1
    if parameters:
        metadata["hyper_parameters"] = json.dumps(json.loads(metadata["hyper_parameters"]) | parameters)
    target = folder / source.parent.name / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize("path", files(COPIED), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_copied_cases_agree(path: Path) -> None:
    verdict = check_file(path)
    assert verdict.passed, verdict.line()


def test_every_adapter_has_a_copied_case() -> None:
    assert {path.parent.name for path in files(COPIED)} == set(covered_methods())


@pytest.mark.parametrize("method", covered_methods())
def test_a_wrong_output_is_found(method: str, tmp_path: Path) -> None:
    source = sorted((COPIED / method).glob("*.safetensors"))[0]
    with safe_open(source, "pt") as file:
        names = sorted(name for name in file.keys() if name.startswith(CHOICES))  # noqa: SIM118
    verdicts = [check_file(altered(source, tmp_path, name)) for name in names]
    assert any(verdict.differences for verdict in verdicts)


def test_a_wrong_parameter_is_found(tmp_path: Path) -> None:
    source = next((COPIED / "vispruner").glob("a_*.safetensors"))
    assert check_file(altered(source, tmp_path, "")).passed
    assert check_file(altered(source, tmp_path, "", {"important_ratio": 0.75})).differences


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = next((COPIED / "fastervlm").glob("a_*.safetensors"))
    altered(source, tmp_path, "")
    assert main([str(tmp_path)]) == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == ["ok           fastervlm/a_N64_T16", "1 of 1 files agree"]
    altered(source, tmp_path, "out.keep")
    assert main([str(tmp_path)]) == ExitCode.VERDICT
    assert "DIFFERS      fastervlm/a_N64_T16: keep: 16 of 16 differ" in capsys.readouterr().out
    altered(source, tmp_path, "")
    other = tmp_path / "unheard-of" / "a.safetensors"
    other.parent.mkdir()
    save_file({"in.x": torch.zeros(1)}, other, {"hyper_parameters": "{}"})
    assert main([str(tmp_path)]) == ExitCode.VERDICT
    assert "NOT COVERED  unheard-of/a" in capsys.readouterr().out


def test_a_folder_without_files_is_a_wrong_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == ExitCode.USAGE
    assert "has no golden files" in capsys.readouterr().err
    with pytest.raises(PrerequisiteError):
        check_folder(tmp_path / "nowhere")


def test_a_broken_file_is_a_difference_and_the_others_are_still_checked(tmp_path: Path) -> None:
    altered(next((COPIED / "fastervlm").glob("a_*.safetensors")), tmp_path, "")
    broken = tmp_path / "fastervlm" / "b.safetensors"
    broken.write_bytes(b"not a golden file")
    good, bad = check_folder(tmp_path)
    assert good.passed
    assert not bad.passed
    assert "is no golden file" in bad.line()
    with pytest.raises(PrerequisiteError, match="is no golden file"):
        Case.read(broken)


def test_comparing() -> None:
    assert same("x", torch.tensor([1, 2]), [1, 2]) == []
    assert same("x", [1, 2], [2, 1]) == ["x: 2 of 2 differ, the first at 0: 1, not 2"]
    assert same("x", [1], [1, 2]) == ["x: 1 entries, not 2"]
    assert close("x", torch.tensor([1.0005]), torch.tensor([1.0])) == []
    assert close("x", torch.tensor([1.01]), torch.tensor([1.0]))
    assert close("x", torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert close("x", torch.ones(2), torch.ones(3)) == ["x: shape (2,), not (3,)"]


@pytest.mark.thorough
def test_the_module_can_be_run() -> None:
    folder = str(COPIED)
    run = subprocess.run(
        [sys.executable, "-m", "tokenprune.testing.golden", folder], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == f"{len(files(COPIED))} of {len(files(COPIED))} files agree"
