"""The documents say what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from tokenprune import hookspecs
from tokenprune.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/*.md", "docs/guides/*.md", "plugins/*/README.md")
DOCUMENTS = [path for place in PLACES for path in sorted(ROOT.glob(place))]
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
        assert f"| {code.value} | {code.meaning} |" in text


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, section = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), f"{path.name} links to {target}"
        if section:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_generator_writes_every_document_with_blocks(tables: ModuleType) -> None:
    marked = {path for path in DOCUMENTS if "<!-- generated:" in path.read_text(encoding="utf-8")}
    assert marked <= set(tables.documents())


@each_document
def test_generated_blocks_are_up_to_date(path: Path, tables: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.filled(text, tables.block_makers(tables.own_host())) == text, "run `make docs-tables`"


def test_the_picture_is_drawn_from_the_recorded_sweep(tables: ModuleType) -> None:
    recorded = tables.RECORDED.read_text(encoding="utf-8")
    assert tables.drawn_from(tables.PICTURE) == tables.digest(recorded), "run `make docs-tables`"


def test_a_stale_block_is_found(tables: ModuleType) -> None:
    text = "a\n<!-- generated:one -->\nold\n<!-- end -->\nb <!-- generated:two -->\n<!-- end -->\n"
    made = tables.filled(text, {"one": lambda: "new", "two": lambda: "newer"})
    assert made == "a\n<!-- generated:one -->\nnew\n<!-- end -->\nb <!-- generated:two -->\nnewer\n<!-- end -->\n"
    with pytest.raises(KeyError):
        tables.filled(text, {"one": lambda: "new"})


def commands(path: Path) -> list[list[str]]:
    """The words after `tokenprune` of every command that a document shows."""
    lines = re.findall(r"^\$ (?:[A-Z_]+=\S+ )*tokenprune (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def understand(words: Sequence[str]) -> None:
    """Parse every word of a command as it would be, up to running it."""
    from tokenprune.cli.app import build_app
    from tokenprune.plugins import load_host

    command: Any = typer.main.get_command(build_app(load_host(())))
    context = command.make_context("tokenprune", [])
    while hasattr(command, "get_command"):
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None
    command.make_context(command.name, list(words), parent=context)


@each_document
def test_commands_in_the_documents_are_understood(path: Path) -> None:
    for words in commands(path):
        understand(words)


def test_commands_that_are_not_understood_are_found() -> None:
    understand(["runs", "status", "DIR"])
    with pytest.raises(AssertionError):
        understand(["runs", "staus", "DIR"])
    with pytest.raises(Exception, match="No such option: --exampel"):
        understand(["sweep", "--exampel"])


@each_document
def test_files_of_the_repository_in_commands_exist(path: Path) -> None:
    lines = re.findall(r"^\$ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for word in (word for line in lines for word in shlex.split(line, comments=True)):
        if word.removeprefix("./").startswith(("docs/", "benchmarks/", "plugins/")):
            assert (ROOT / word).exists(), word


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
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(pins)
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.!]*", pin), pin


def test_every_key_of_a_sweep_file_is_documented_and_no_other() -> None:
    from tokenprune.sweep import SweepConfig

    text = (ROOT / "docs" / "sweep-files.md").read_text(encoding="utf-8")
    keys = re.findall(r"^\| `([a-z_]+)` \|", text.split("## ")[0], re.MULTILINE)
    assert keys == list(SweepConfig.model_fields)


def sweep_files() -> list[tuple[str, str]]:
    """The sweep files that the documents show, and the one that they run."""
    found = [
        (f"{path.name}-{number}", block)
        for path in (ROOT / "docs" / "sweep-files.md", ROOT / "docs" / "compose.md")
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    ]
    return [*found, ("compose.yaml", (ROOT / "docs" / "examples" / "compose.yaml").read_text(encoding="utf-8"))]


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in sweep_files()])
def test_the_sweep_files_of_the_documents_are_valid(block: str, tmp_path: Path) -> None:
    from tokenprune.plugins import load_host
    from tokenprune.sweep import load_config

    path = tmp_path / "small.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path, load_host())
    assert len(config.pruners) > 1
    assert len({entry.title for entry in config.pruners}) == len(config.pruners)


def test_entries_of_a_sweep_file_mean_what_the_page_says(tmp_path: Path) -> None:
    from tokenprune.plugins import load_host
    from tokenprune.sweep import load_config

    small, entries = (block for name, block in sweep_files() if name.startswith("sweep-files"))
    path = tmp_path / "small.yaml"
    path.write_text(small, encoding="utf-8")
    config = load_config(path, load_host())
    assert (config.limit, len(config.budgets), config.pruners[2].title) == (210, 3, "iwp-0.7")
    path.write_text(entries, encoding="utf-8")
    titles = [entry.title for entry in load_config(path, load_host()).pruners]
    assert titles == [
        "random",
        "fastv[layer=1]",
        "published",
        "evs[published=True]",
        "evs[published=False]",
        *(f"iwp[layer={layer},schedule={schedule}]" for layer in (0, 1) for schedule in ("exact", "growing")),
        "mine",
    ]


def test_the_zoo_names_every_pruner_of_its_own_once() -> None:
    from tokenprune.plugins import load_host

    host = load_host()
    text = (ROOT / "plugins" / "tokenprune-zoo" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)
    own = [name for name in host.pruners.names() if host.pruners.owner(name) == "tokenprune-zoo"]
    assert sorted(rows) == sorted(own)


def test_every_accessor_of_a_view_is_told_to_pruner_authors() -> None:
    from tokenprune.view import View

    text = (ROOT / "docs" / "write-a-pruner.md").read_text(encoding="utf-8")
    accessors = [name for name, member in vars(View).items() if inspect.isfunction(member) and not name.startswith("_")]
    assert [name for name in accessors if f"{name}()" not in text] == []
