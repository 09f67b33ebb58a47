"""`list`, `show` and `plugins`."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.cli.commands import Commands
from tokenprune.composition import PARTS as AXIS_PARTS
from tokenprune.plugins import load_host
from tokenprune.registry import PrunerSpec

PARTS = ["pruners", "tasks", "models", "families", "executors", "trackers"]


def test_list_shows_every_pruner_with_where_it_comes_from(run: Commands) -> None:
    shown = run("list")
    assert shown.code == 0
    host = load_host()
    assert len(host.pruners) >= 13
    lines = [line for line in shown.out.splitlines() if line[:1].strip()][2:]
    assert [line.split()[0] for line in lines] == list(host.pruners.names())
    for spec, line in zip(host.pruners, lines, strict=True):
        assert host.pruners.owner(spec.name) in line
    assert shown.err == ""


def test_list_json_is_the_specs_with_their_distributions(run: Commands) -> None:
    document = run("list", "--json").json()
    host = load_host()
    specs = [{**spec.to_json(), "distribution": host.pruners.owner(spec.name)} for spec in host.pruners]
    assert document == {"schema": 1, "pruners": json.loads(json.dumps(specs))}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_listed_for_people_and_programs(run: Commands, part: str) -> None:
    document = run("list", part, "--json").json()
    assert list(document) == ["schema", part]
    assert document[part]
    shown = run("list", part)
    for entry in document[part]:
        assert entry["distribution"]
        assert entry["name"] in shown.out


def test_list_markdown_has_one_row_per_pruner(run: Commands) -> None:
    lines = run("list", "--markdown").out.strip().splitlines()
    assert lines[0].startswith("| pruner | site | magnitude | duplication | selector | merge |")
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == [f"`{name}`" for name in load_host().pruners.names()]
    columns = lines[0].count("|")
    assert all(line.replace("\\|", "").count("|") == columns for line in lines)


@pytest.mark.parametrize("width", [80, 200])
def test_axes_are_one_table_of_points(run: Commands, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("list", "--axes")
    lines = shown.out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert [line.split()[0] for line in lines if line[:1].strip()][2:] == list(load_host().pruners.names())
    assert ("merge" in lines[0]) == (width == 200)
    for words in ("greedy DPP", "max-min"):
        assert words in shown.out
    if width == 80:
        assert "merge: mean" in shown.out  # what is not usual stands under the main axes


def test_axes_json_has_the_seven_axes_of_every_pruner(run: Commands) -> None:
    document = run("list", "--axes", "--json").json()
    expected = [{"name": spec.name, **dataclasses.asdict(spec.axes)} for spec in load_host().pruners]
    assert document == {"schema": 1, "axes": expected}
    assert all(len(entry) == 8 for entry in document["axes"])


def test_parts_of_compositions_are_listed(run: Commands) -> None:
    document = run("list", "--parts", "--json").json()
    assert {axis: [part["name"] for part in parts] for axis, parts in document["parts"].items()} == {
        axis: list(parts) for axis, parts in AXIS_PARTS.items()
    }
    assert all(part["meaning"] and "{m}" not in part["term"] for part in document["parts"]["selector"])
    shown = run("list", "--parts").out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert all(name in shown for parts in AXIS_PARTS.values() for name in parts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tasks", "--axes"], "--axes is about pruners, not tasks"),
        (["models", "--parts"], "--parts is about pruners, not models"),
        (["--axes", "--markdown"], "exclude each other"),
    ],
)
def test_axes_of_other_parts_are_refused(run: Commands, words: list[str], message: str) -> None:
    ran = run("list", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_markdown_of_other_parts_is_refused(run: Commands) -> None:
    ran = run("list", "tasks", "--markdown")
    assert ran.code == 2
    assert ran.err.startswith("error: --markdown lists pruners only")


@pytest.mark.parametrize("spec", load_host().pruners, ids=lambda spec: spec.name)
def test_show_tells_everything_about_a_pruner(run: Commands, spec: PrunerSpec) -> None:
    shown = run("show", spec.name)
    assert shown.code == 0
    words = " ".join(shown.out.split())
    for text in (spec.name, spec.summary, spec.axes.site, spec.axes.selector, spec.source.title):
        assert " ".join(text.split()) in words
    for option, default in spec.defaults.items():
        assert f"{option} {default!r}" in words
    assert "mass_correction" in words
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 80


def test_show_json_is_the_spec(run: Commands) -> None:
    document = run("show", "random", "--json").json()
    assert document["pruner"]["name"] == "random"
    assert document["pruner"]["distribution"] == "tokenprune"
    assert document["pruner"]["axes"]["site"] == "input"


def test_show_tells_the_point_that_options_choose(run: Commands) -> None:
    words = ["--set", "site=layer:2", "--set", "magnitude=cls", "--set", "duplication=value-gauss"]
    document = run("show", "composed", *words, "--set", "trade_off=0.5", "--json").json()["pruner"]
    assert (document["site"], document["axes"]["selector"]) == ("layer:2", "mmr")
    assert document["needs"] == ["qkv", "encoder_attention"]
    assert document["formula"].startswith("argmax_i lambda rank(a_cls,i) - (1-lambda) max_{j in S} cos(v_i,v_j)")
    assert document["defaults"]["trade_off"] == 0.5
    shown = run("show", "composed", *words).out
    assert "options, as they are set" in shown
    assert "a_cls,i" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magnitude", "--set must be `NAME=VALUE`, got `magnitude`"),
        ("magnitude=clss", "unknown magnitude `clss`"),
        ("magnitud=cls", "unknown option of pruner `composed` `magnitud`"),
        ("pivots=many", "option `pivots` of pruner `composed` must be a int, got 'many'"),
    ],
)
def test_options_to_show_are_checked(run: Commands, text: str, message: str) -> None:
    ran = run("show", "composed", "--set", text)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_an_unknown_pruner_is_an_error_with_its_close_match(run: Commands) -> None:
    ran = run("show", "avgpol")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: unknown pruner `avgpol`\n\nhint: did you mean `avgpool`?\n"


def test_plugins_shows_ours_only_when_asked(run: Commands) -> None:
    assert "tokenprune.baselines" not in run("plugins").out
    assert "tokenprune.baselines" in run("plugins", "--verbose").out


def test_plugins_json_has_a_report_per_plugin(run: Commands) -> None:
    document = run("plugins", "--json").json()
    entry = next(entry for entry in document["plugins"] if entry["name"] == "tokenprune.baselines")
    assert (entry["outcome"], entry["distribution"]) == ("loaded", "tokenprune")
    assert entry["hooks"] == ["register_pruners"]


def test_a_failed_plugin_is_a_warning_on_other_commands_and_a_row_in_plugins(
    run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "tokenprune_bad-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune-bad\nVersion: 0.2\n")
    (info / "entry_points.txt").write_text("[tokenprune]\nbad = a_module_that_is_missing\n")
    ran = run("list")
    assert ran.code == 0
    assert ran.err.startswith(
        "warning: plugin `bad` (tokenprune-bad 0.2) was not loaded: ModuleNotFoundError: No module named "
    )
    assert "TOKENPRUNE_DISABLE_PLUGINS=tokenprune-bad" in ran.err
    assert "random" in ran.out
    ran = run("plugins", "--verbose")
    assert (ran.code, ran.err) == (0, "")
    assert "failed" in ran.out
    assert "Traceback" in ran.out
    monkeypatch.setenv("TOKENPRUNE_DISABLE_PLUGINS", "tokenprune-bad")
    assert run("list").err == ""
