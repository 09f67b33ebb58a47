"""The examples in docstrings run, on the shipped model, and give what they show."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenprune
from tokenprune import testing
from tokenprune.testing import conformance

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("tokenprune/**/*.py", "plugins/*/tokenprune_*/**/*.py")
SOURCES = [path for place in PLACES for path in sorted(ROOT.glob(place))]
SHOWN = {path: path.read_text(encoding="utf-8") for path in SOURCES}
#: Without an example of their own: the mark of hooks is pluggy's (docs/hooks.md shows it), and a class whose methods
#: have the examples.
NO_EXAMPLE = {"hookimpl", "LoadedModel"}


def name_of(path: Path) -> str:
    """The module of a file."""
    start = ROOT if path.is_relative_to(ROOT / "tokenprune") else ROOT / "plugins" / path.relative_to(ROOT).parts[1]
    parts = path.relative_to(start).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def examples(module: Any) -> Iterator[doctest.DocTest]:
    """Everything in a module's docstrings that is written as at a prompt."""
    return (test for test in doctest.DocTestFinder().find(module) if test.examples)


@pytest.mark.parametrize("path", [path for path in SOURCES if ">>> " in SHOWN[path]], ids=name_of)
def test_examples_give_what_they_show(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)  # an example may write files
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for example in examples(importlib.import_module(name_of(path))):
        runner.run(example, out=said.append, clear_globs=False)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)


def test_an_example_stands_under_its_heading() -> None:
    for path, text in SHOWN.items():
        assert text.count("Example:\n") >= (">>> " in text), path


def test_what_users_and_plugin_authors_call_has_an_example() -> None:
    offered = [(tokenprune, name) for name in dir(tokenprune)] + [(testing, name) for name in testing.__all__]
    offered += [(conformance, "checks"), (tokenprune.LoadedModel, "prepare"), (tokenprune.LoadedModel, "answer")]
    for owner, name in offered:
        member = getattr(owner, name)
        if name not in NO_EXAMPLE:
            assert "Example:\n" in (inspect.getdoc(member) or ""), name


def test_a_wrong_example_is_found() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner()
    runner.run(wrong, out=lambda text: None)
    assert runner.failures == 1
