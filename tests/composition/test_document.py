"""docs/compose.md and the ablation say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.composition.points import POINTS, build
from tokenprune import load_host
from tokenprune.sweep import load_config
from tokenprune.sweep.config.yaml_source import read_yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")


def test_the_sweep_files_of_the_document_are_valid(tmp_path: Path) -> None:
    titles = []
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        titles += [entry.title for entry in load_config(path, load_host()).pruners]
    assert titles == [
        "random",
        "mine",
        "iwp[rope_in_magnitude=True,schedule=exact]",
        "iwp[rope_in_magnitude=True,schedule=fixed]",
        "iwp[rope_in_magnitude=False,schedule=exact]",
        "iwp[rope_in_magnitude=False,schedule=fixed]",
        "mine[magnitude=cls]",
        "mine[magnitude=attention]",
    ]


def test_the_points_of_the_document_are_the_proven_ones(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\{.+\})` \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    proven = {name: [point for other, options, point in POINTS if other == name] for name, _ in rows}
    for name, words in rows:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"point: {words}\n", encoding="utf-8")
        composed = build(**read_yaml(path).data["point"])
        assert composed in [build(**point) for point in proven[name]]


def test_the_ablation_compares_what_it_says() -> None:
    config = load_config(ROOT / "benchmarks" / "scenes" / "iwp-ablation.yaml", load_host())
    titles = [entry.title for entry in config.pruners]
    for title in ("iwp", "magnitude-only[rope_in_magnitude=False]", "duplication-only", "iwp[mass_correction=True]"):
        assert title in titles
    for part in ("layer", "schedule", "rope_in_magnitude", "rope_in_duplication", "trade_off", "suppression"):
        assert any(part in title for title in titles)
    assert [entry.ratio for entry in config.budgets] == [
        pytest.approx(0.222),
        pytest.approx(0.111),
        pytest.approx(0.056),
    ]
