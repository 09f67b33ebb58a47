from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.errors import ConfigError
from tokenprune.sweep import default_config, load_config, with_changes
from tokenprune.sweep.config import parse_config
from tokenprune.sweep.source import Source

GOOD = """\
models: MODEL
tasks: toy
pruners:
  - none
  - name: first
    options: {pause: 0}
  - name: random
    label: dice
budgets: [25%, 0.5, 64]
account: average
seeds: [0, 1]
lens: false
"""


def write(folder: Path, text: str, model: Path) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text.replace("MODEL", str(model)), encoding="utf-8")
    return path


def test_short_forms(tmp_path: Path, workshop: Workshop) -> None:
    config = load_config(write(tmp_path, GOOD, workshop.model), workshop.host)
    assert config.models == (str(workshop.model),)
    assert [task.name for task in config.tasks] == ["toy"]
    assert [entry.title for entry in config.pruners] == ["none", "first[pause=0]", "dice"]
    assert [(entry.ratio, entry.tokens) for entry in config.budgets] == [(0.25, None), (0.5, None), (None, 64)]
    assert config.budgets[0].budget(config.account).account == "average"
    assert not config.lens.enabled
    assert config.efficiency.enabled


def test_resolved_file_reads_back_equal(workshop: Workshop) -> None:
    config = workshop.config(seeds=[3], positions="compact")
    assert parse_config(Source("again", config.to_json()), workshop.host) == config


def test_default_config_compares_baselines_zoo_and_iwp() -> None:
    config = default_config()
    names = "none random grid avgpool downsample fastv divprune visionzip dart cdpruner iwp iwp-exact oracle"
    assert sorted({entry.name for entry in config.pruners}) == sorted(names.split())
    first_layer = {entry.name for entry in config.pruners if dict(entry.options).get("layer") == 0}
    assert first_layer == {"iwp", "iwp-exact"}  # at the cost of a cut at the LLM input
    assert [entry.ratio for entry in config.budgets] == [0.5, 0.25, pytest.approx(0.111), pytest.approx(0.056)]
    assert (config.models, config.tasks[0].name, config.account) == (("scenes",), "scenes", "kept")
    assert config.limit is not None
    assert config.limit % 7 == 0  # balanced over the seven families


@pytest.mark.parametrize(
    ("find", "replace", "expected"),
    [
        ("seeds: [0, 1]", "seed: [0]", ":11:1: seed: unknown key, did you mean `seeds`?"),
        ("account: average", "account: mean", ":10:1: account: input should be 'kept' or 'average', got 'mean'"),
        ("- none", "- nune", ":4:5: pruners.0.name: unknown pruner `nune`; did you mean `none`"),
        ("name: random", "name: randomm", ":7:5: pruners.2.name: unknown pruner `randomm`; did you mean `random`?"),
        ("{pause: 0}", "{paus: 0}", ":6:5: pruners.1.options: unknown option of pruner `first` `paus`; did you mean"),
        ("{pause: 0}", "{pause: long}", "option `pause` of pruner `first` must be a float, got 'long'"),
        ("label: dice", "label: none", ":7:5: pruners.2: `none` is already pruners.0; give it a `label`"),
        ("label: dice", "lable: dice", ":8:5: pruners.2.lable: unknown key, did you mean `label`?"),
        ("0.5, 64", "1.5, 64", ":9:16: budgets.1: keep ratio must lie in (0, 1], got 1.5"),
        ("0.5, 64", "half, 64", ":9:16: budgets.1: not a budget, got 'half' (allowed: a ratio like 0.25 or 25%"),
        ("0.5, 64", "25%, 64", ":9:16: budgets.1: the same budget as budgets.0"),
        ("64]", "0]", ":9:21: budgets.2: keep tokens must be a whole number >= 1, got 0"),
        ("tasks: toy", "tasks: toi", ":2:1: tasks.0.name: unknown task `toi`; did you mean `toy`?"),
        ("models: MODEL", "models: scene", ":1:1: models.0: unknown model `scene`; did you mean `scenes`?"),
        ("lens: false", "executor: locla", ":12:1: executor: unknown executor `locla`; did you mean `local`?"),
        ("lens: false", "lens: {sample: 2}", ":12:8: lens.sample: unknown key, did you mean `samples`?"),
        ("lens: false", "limit: 0", ":12:1: limit: input should be greater than or equal to 1, got 0"),
        ("lens: false", "dtype: double", ":12:1: dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        ("budgets: [25%, 0.5, 64]\n", "", "budgets: this key is missing"),
        ("lens: false", "lens: false\nlens: true", ':13:1: found duplicate key "lens"'),
        ("lens: false", "lens: [", ":13:1: expected the node content"),
    ],
)
def test_every_mistake_has_its_place(
    tmp_path: Path, workshop: Workshop, find: str, replace: str, expected: str
) -> None:
    assert find in GOOD
    path = write(tmp_path, GOOD.replace(find, replace), workshop.model)
    with pytest.raises(ConfigError) as caught:
        load_config(path, workshop.host)
    assert str(path) in caught.value.message
    assert expected in caught.value.message


def test_all_mistakes_at_once(tmp_path: Path, workshop: Workshop) -> None:
    text = GOOD.replace("account: average", "account: mean").replace("seeds:", "sedes:").replace("0.5", "half")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text, workshop.model), workshop.host)
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert all("sweep.yaml:" in line for line in lines)


def test_yaml_1_2_surprises_are_absent(tmp_path: Path, workshop: Workshop) -> None:
    text = GOOD.replace("label: dice", "label: no")  # YAML 1.1 would read False
    assert load_config(write(tmp_path, text, workshop.model), workshop.host).pruners[2].title == "no"


@pytest.mark.parametrize(("text", "expected"), [("- a\n- b\n", "must be a mapping"), ("", "this key is missing")])
def test_not_a_sweep_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        load_config(path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"cannot read `nowhere\.yaml`"):
        load_config("nowhere.yaml")


def test_changes_are_checked(workshop: Workshop) -> None:
    config = workshop.config()
    changed = with_changes(config, {"limit": 3, "budgets": ["10%"], "pruners": ["grid"]}, workshop.host)
    assert (changed.limit, changed.budgets[0].ratio, changed.pruners[0].name) == (3, 0.1, "grid")
    with pytest.raises(ConfigError, match=r"command line: pruners\.0\.name: unknown pruner `gird`"):
        with_changes(config, {"pruners": ["gird"]}, workshop.host)
