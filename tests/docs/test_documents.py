"""The documents say what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from tokenprune import hookspecs
from tokenprune.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HOOKS = {
    name: member
    for name, member in vars(hookspecs).items()
    if callable(member) and getattr(member, f"{hookspecs.PROJECT}_spec", None) is not None
}


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """The script docs/tables.py as a module."""
    spec = importlib.util.spec_from_file_location("documents_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_hook_has_its_signature_as_a_heading_in_the_order_of_the_specs() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert headings == [f"{name}({', '.join(inspect.signature(hook).parameters)})" for name, hook in HOOKS.items()]


def test_every_hook_argument_is_documented_with_its_type() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    for hook in HOOKS.values():
        for name, parameter in inspect.signature(hook).parameters.items():
            annotation = re.sub(r", None\]$", ", None]", str(parameter.annotation))
            assert f"`{name}: {annotation}`" in text


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {code.value} | {code.name.lower().replace('_', ' ')} |" in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_generated_blocks_are_up_to_date(path: Path, tables: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.filled(text, tables.block_makers(tables.own_host())) == text, "run `make docs-tables`"


def test_a_stale_block_is_found(tables: ModuleType) -> None:
    text = "a\n<!-- generated:one -->\nold\n<!-- end -->\nb <!-- generated:two -->\n<!-- end -->\n"
    made = tables.filled(text, {"one": lambda: "new", "two": lambda: "newer"})
    assert made == "a\n<!-- generated:one -->\nnew\n<!-- end -->\nb <!-- generated:two -->\nnewer\n<!-- end -->\n"
    with pytest.raises(KeyError):
        tables.filled(text, {"one": lambda: "new"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_exist(path: Path) -> None:
    from tokenprune.cli.app import build_app
    from tokenprune.plugins import load_host

    known = {command.name for command in build_app(load_host(())).registered_commands}
    used = re.findall(r"^\$ tokenprune ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(used) <= known


def test_targets_of_make_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = {
        target
        for path in DOCUMENTS
        for target in re.findall(r"(?:^\$ |`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"test", "sweep"} <= used <= known


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.!]*", pin), pin


def test_every_key_of_a_sweep_file_is_documented_and_no_other() -> None:
    from tokenprune.sweep import SweepConfig

    text = (ROOT / "docs" / "sweep-files.md").read_text(encoding="utf-8")
    keys = re.findall(r"^\| `([a-z_]+)` \|", text.split("## The directory")[0], re.MULTILINE)
    assert keys == list(SweepConfig.model_fields)


def test_the_sweep_file_of_the_documents_is_valid(tmp_path: Path) -> None:
    from tokenprune.plugins import load_host
    from tokenprune.sweep import load_config

    text = (ROOT / "docs" / "sweep-files.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "small.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path, load_host())
    assert (config.limit, len(config.budgets), config.pruners[2].title) == (210, 3, "iwp-0.7")
