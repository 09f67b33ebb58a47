"""Tables of one's own questions in sweep files: the short form, paths, mistakes, and a sweep over two of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import Commands
from tests.sweep.fixtures import Workshop
from tokenprune.errors import ConfigError
from tokenprune.sweep import SweepOutcome, SweepStore
from tokenprune.sweep.config.schema import load_config

Run = Callable[..., SweepOutcome]


def table(folder: Path, name: str, answers: list[str], **more: Any) -> Path:
    """Questions about pictures of unlike sizes that lie beside the table."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, answer in enumerate(answers):
        picture = folder / f"{name}-{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (32 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
        rows.append({"image": picture.name, "question": "what color is the circle ?", "answer": answer, **more})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def sweep_file(folder: Path, tasks: str, models: str = "scenes") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(
        f"models: [{models}]\ntasks: {tasks}\npruners: [random]\nbudgets: [50%]\n"
        "executor: inline\ndevice: cpu\nefficiency: false\nlens: false\noverlays: 0\ntrackers: none\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    "tasks",
    [
        "[{table: mine.jsonl, short: true}]",
        "{table: ./mine.jsonl, short: true}",
        "[{name: table, options: {table: mine.jsonl, short: true}}]",
    ],
)
def test_the_path_starts_at_the_sweep_file(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    path = table(tmp_path / "there", "mine", ["red"])
    monkeypatch.chdir(tmp_path)
    (entry,) = load_config(sweep_file(tmp_path / "there", tasks), workshop.host).tasks
    assert (entry.name, entry.options) == ("table", {"table": str(path), "short": True})


def test_a_path_that_starts_where_the_command_is_given_is_refused(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "here", "mine", ["red"])
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"tasks\.0: no table `.*there/mine\.jsonl`; paths start at the sweep file"):
        load_config(sweep_file(tmp_path / "there", "[{table: mine.jsonl}]"), workshop.host)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("question: q", "`q` is no column of"),
        ("metric: rouge", "unknown metric `rouge`"),
        ("colour: red", "unknown option of task `table` `colour`"),
    ],
)
def test_mistakes_are_told_before_anything_runs(run: Commands, tmp_path: Path, options: str, message: str) -> None:
    table(tmp_path, "mine", ["red"])
    ran = run("sweep", str(sweep_file(tmp_path, f"[{{table: mine.jsonl, {options}}}]")), "--out", str(tmp_path / "run"))
    assert ran.code == 2
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run" / "cells").exists()


def test_two_tables_in_one_sweep_are_two_tasks(workshop: Workshop, sweep: Run, tmp_path: Path) -> None:
    tables = [table(tmp_path, name, answers) for name, answers in (("one", ["red", "a"]), ("two", ["green"] * 3))]
    outcome = sweep(
        tasks=[{"table": str(path), "metric": "contains"} for path in tables],
        pruners=["random"],
        budgets=["50%"],
        efficiency=False,
        lens=False,
        overlays=1,
    )
    assert (outcome.done, outcome.failed) == (4, 0)
    store = SweepStore(outcome.directory)
    asked = {(cell.task_options["table"], cell.pruner): len(store.samples(cell.id)) for cell in store.plan()}
    first, second = map(str, tables)
    assert asked == {(first, "none"): 2, (first, "random"): 2, (second, "none"): 3, (second, "random"): 3}
