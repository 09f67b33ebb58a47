"""`tokenprune doctor`."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import masking_utils

import tokenprune
from tests.cli.commands import Commands
from tests.cli.findings import findings
from tokenprune.engine.patch.internals import INTERNALS
from tokenprune.errors import ExitCode
from tokenprune.families.supported import TESTED, is_tested


def test_versions_devices_models_plugins_and_store_are_examined(run: Commands) -> None:
    _, found = findings(run)
    assert found["tokenprune"]["text"] == tokenprune.__version__
    assert found["torch"]["text"].split("+")[0] == torch.__version__.split("+")[0]  # a build may name its device
    assert "cores" in found["cpu"]["text"]
    assert {"model scenes", "plugin tokenprune.baselines", "tracking store", "mlflow"} <= set(found)


def test_the_code_says_whether_something_is_bad(run: Commands) -> None:
    code, found = findings(run)
    assert code == int(any(entry["verdict"] == "bad" for entry in found.values()))


def test_a_broken_plugin_is_bad(run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "tokenprune_bad-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune-bad\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text("[tokenprune]\nbad = a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, found = findings(run)
    assert code == ExitCode.VERDICT
    assert found["plugin bad"]["verdict"] == "bad"


def test_a_set_tracking_uri_is_noted(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker.invalid")
    assert "http://tracker.invalid" in findings(run)[1]["tracking store"]["text"]


def test_the_table_for_people_fits_80_columns(run: Commands) -> None:
    shown = run("doctor").out
    assert "transformers" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80


def test_the_tested_releases_of_transformers_stand_beside_the_installed_one(run: Commands) -> None:
    shown = findings(run)[1]["transformers"]
    installed = metadata.version("transformers")
    assert shown["text"] == f"{installed}; tested: {TESTED[0]} to {TESTED[1]}"
    assert shown["verdict"] == ("ok" if is_tested(installed) else "note")


def test_a_release_that_was_not_tested_is_noted(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    own = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "5.99.0" if name == "transformers" else own(name))
    shown = findings(run)[1]["transformers"]
    assert shown["verdict"] == "note"
    assert shown["text"].startswith("5.99.0; tested: ")


def test_what_the_engine_uses_inside_transformers_is_probed(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(run)[1]
    assert {f"engine: {each.name}": "ok" for each in INTERNALS} == {
        subject: entry["verdict"] for subject, entry in found.items() if subject.startswith("engine: ")
    }
    monkeypatch.delattr(masking_utils, "causal_mask_function")
    code, found = findings(run)
    assert code == ExitCode.VERDICT
    assert found["engine: mask functions"]["verdict"] == "bad"
    assert "causal_mask_function" in found["engine: mask functions"]["text"]
    assert found["engine: dynamic cache"]["verdict"] == "ok"


def test_a_package_that_is_missing_is_bad(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "pluggy":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    code, found = findings(run)
    assert code == ExitCode.VERDICT
    assert found["pluggy"]["verdict"] == "bad"
    assert "not installed" in found["pluggy"]["text"]


def test_models_without_weights_and_models_of_the_hub_are_told_apart(
    run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_plugin_with_models.py").write_text(
        "from tokenprune import hookimpl\n"
        "from tokenprune.registry import ModelSpec\n\n\n"
        "@hookimpl\n"
        "def register_models(register):\n"
        f"    register(ModelSpec(name='hollow', target={str(tmp_path / 'empty')!r}, summary='a folder'))\n"
        "    register(ModelSpec(name='far', target='nobody/nothing', summary='of the hub'))\n"
    )
    info = tmp_path / "tokenprune_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenprune]\nmodels = a_plugin_with_models\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TOKENPRUNE_LOAD_PLUGINS", raising=False)
    _, found = findings(run)
    assert (found["model hollow"]["verdict"], found["model far"]["verdict"]) == ("bad", "note")
    assert "no weights" in found["model hollow"]["text"]
    assert "comes from the hub" in found["model far"]["text"]
