from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fixtures import Workshop
from tokenprune.errors import ConfigError
from tokenprune.plugins import load_host
from tokenprune.sweep import default_config, load_config, plan_cells, with_changes
from tokenprune.sweep.config.pruner_entries import expand_entries
from tokenprune.sweep.config.schema import parse_config
from tokenprune.sweep.config.yaml_source import Source

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


@pytest.mark.parametrize("name", ["model", "./model", "../here/model", "./nowhere/../model"])
def test_a_model_beside_the_file_is_the_same_from_everywhere(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "model").symlink_to(workshop.model)
    path = write(here, GOOD, Path(name))
    assert load_config(path, workshop.host).models == (str(here / "model"),)
    monkeypatch.chdir(tmp_path)
    config = load_config("here/sweep.yaml", workshop.host)
    assert config.models == (str(here / "model"),)
    monkeypatch.chdir("/")
    assert plan_cells(config, workshop.host)[0].model == str(here / "model")


def test_names_of_models_stay_as_they_are(tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes").mkdir()  # a registered name comes first
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "someone/tiny"):
        path = write(tmp_path, GOOD, Path(name))
        assert load_config(path, workshop.host).models == (name,)
        assert load_config(path).models == (name,)


def test_a_model_that_is_only_where_the_command_was_given(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "model").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "files", GOOD, Path("deep/model"))
    with pytest.raises(ConfigError, match=r"sweep\.yaml:1:1: models\.0: no directory .*paths start at the sweep file"):
        load_config(path, workshop.host)


def test_an_executor_with_options_and_its_short_form(tmp_path: Path, workshop: Workshop) -> None:
    def executor(text: str) -> tuple[str, dict[str, object]]:
        read = load_config(write(tmp_path, GOOD + text, workshop.model), workshop.host)
        return read.executor.name, read.executor.options

    assert executor("") == ("local", {})
    assert executor("executor: inline\n") == ("inline", {})
    assert executor("executor: {name: ray, options: {address: auto, actors: 2}}\n") == (
        "ray",
        {"address": "auto", "actors": 2},
    )


def test_resolved_file_reads_back_equal(workshop: Workshop) -> None:
    config = workshop.config(seeds=[3], positions="compact", executor={"name": "local", "options": {"workers": 2}})
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
        ("0.5, 64", "half, 64", ":9:16: budgets.1: not a budget: 'half'; a whole number is tokens (`64`)"),
        ("0.5, 64", "25%, 64", ":9:16: budgets.1: the same budget as budgets.0"),
        ("64]", "0]", ":9:21: budgets.2: keep tokens must be a whole number >= 1, got 0"),
        ("tasks: toy", "tasks: toi", ":2:1: tasks.0.name: unknown task `toi`; did you mean `toy`?"),
        ("models: MODEL", "models: scene", ":1:1: models.0: unknown model `scene`; did you mean `scenes`"),
        ("lens: false", "executor: locla", ":12:1: executor: unknown executor `locla`; did you mean `local`?"),
        ("lens: false", "executor: {nam: ray}", ":12:12: executor.nam: unknown key, did you mean `name`?"),
        ("lens: false", "executor: {name: rai}", ":12:1: executor: unknown executor `rai`; did you mean `ray`?"),
        (
            "lens: false",
            "executor: {name: ray, options: {adress: auto}}",
            ":12:33: executor.options.adress: unknown option `adress` of executor `ray`, did you mean `address`?",
        ),
        (
            "lens: false",
            "executor: {name: local, options: {workers: [2]}}",
            ":12:35: executor.options.workers: option `workers` of executor `local` must be one text or number",
        ),
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


COMPOSING = """\
models: MODEL
tasks: toy
pruners:
  - none
  - mine: {magnitude: [cls, norm], duplication: features, selector: mmr}
  - first: {pause: [0, 0.5]}
  - {name: other, options: {selector: random}}
  - name: first
    label: slow
    options: {gate: x}
    ablate: {pause: [1, 2]}
budgets: [25%]
seeds: [0, 1]
"""


def test_axes_make_a_composition_and_lists_make_one_entry_each(tmp_path: Path, workshop: Workshop) -> None:
    config = load_config(write(tmp_path, COMPOSING, workshop.model), workshop.host)
    assert [(entry.title, entry.name) for entry in config.pruners] == [
        ("none", "none"),
        ("mine[magnitude=cls]", "composed"),
        ("mine[magnitude=norm]", "composed"),
        ("first[pause=0]", "first"),
        ("first[pause=0.5]", "first"),
        ("other", "composed"),
        ("slow[pause=1]", "first"),
        ("slow[pause=2]", "first"),
    ]
    assert config.pruners[2].options == {"magnitude": "norm", "duplication": "features", "selector": "mmr"}
    assert config.pruners[7].options == {"gate": "x", "pause": 2}
    assert parse_config(Source("again", config.to_json()), workshop.host) == config


def test_a_composition_is_one_cell_whatever_its_label_and_the_seeds(tmp_path: Path, workshop: Workshop) -> None:
    """Seeds count where something is drawn; a cell's id is made of the options."""
    data = workshop.data(
        pruners=[{"mine": {"magnitude": "norm"}}, {"other": {"selector": "random"}}], budgets=["25%"], seeds=[0, 1]
    )
    cells = plan_cells(parse_config(Source("one", data), workshop.host), workshop.host)
    assert [(cell.label, cell.pruner, cell.seed) for cell in cells[1:]] == [
        ("mine", "composed", 0),
        ("other", "composed", 0),
        ("other", "composed", 1),
    ]
    renamed = {**data, "pruners": [{"yours": {"magnitude": "norm", "selector": "auto"}}]}
    again = plan_cells(parse_config(Source("two", renamed), workshop.host), workshop.host)
    assert again[1].id == cells[1].id
    assert again[1].label == "yours"


def test_values_that_are_lists_are_not_expanded() -> None:
    host = load_host()
    name, option = next(
        (spec.name, key)
        for spec in host.pruners
        for key, default in spec.defaults.items()
        if isinstance(default, tuple)
    )
    value = list(host.pruners.get(name).defaults[option])
    assert len(value) > 1
    kept = expand_entries([{name: {option: value}}], host)
    assert [entry["options"][option] for entry in kept.data] == [value]
    expanded = expand_entries([{name: {option: [value, value[:1]]}}], host)
    assert [entry["options"][option] for entry in expanded.data] == [value, value[:1]]


@pytest.mark.parametrize(
    ("find", "replace", "expected"),
    [
        ("[cls, norm]", "[cls, nrm]", ":5:12: pruners.1.mine.magnitude: unknown magnitude `nrm`; did you mean `norm`?"),
        ("selector: mmr", "selector: mrm", "pruners.1.mine.selector: unknown selector `mrm`; did you mean `mmr`"),
        ("magnitude: [cls", "magnitud: [cls", "unknown option of pruner `composed` `magnitud`; did you mean"),
        ("selector: mmr", "selector: top-k", ":5:5: pruners.1.mine: selector `top-k` does not look at the duplication"),
        ("mmr}", "mmr, site: inptu}", ":5:74: pruners.1.mine.site: unknown site `inptu`; did you mean `input`"),
        (
            "[0, 0.5]",
            "[0, long]",
            ":6:5: pruners.2.first: option `pause` of pruner `first` must be a float, got 'long'",
        ),
        ("[0, 0.5]", "[1.0, 1]", ":6:5: pruners.2: `first[pause=1]` is `first[pause=1.0]` with other words; leave one"),
        (
            "selector: random",
            "magnitude: cls, duplication: features, selector: mmr",
            "`other` is `mine[magnitude=cls]` with other words",
        ),
        ("[0, 0.5]", "[]", ":6:13: pruners.2.first.pause: an empty list of values"),
        ("pause: [1, 2]", "pause: 1", ":11:5: pruners.4.ablate: not lists of values"),
        ("pause: [1, 2]", "pase: [1, 2]", ":10:5: pruners.4.options: unknown option of pruner `first` `pase`"),
        ("- mine: {m", "- mine: {mass: 1, m", "unknown option of pruner `composed` `mass`"),
        ("{selector: random}", "{slector: random}", ":7:19: pruners.3.options: unknown option of pruner `composed`"),
        ("{selector: random}", "{colour: red}", ":7:6: pruners.3.name: unknown pruner `other`"),
    ],
)
def test_every_mistake_in_a_composition_has_its_place(
    tmp_path: Path, workshop: Workshop, find: str, replace: str, expected: str
) -> None:
    assert find in COMPOSING
    path = write(tmp_path, COMPOSING.replace(find, replace), workshop.model)
    with pytest.raises(ConfigError) as caught:
        load_config(path, workshop.host)
    assert expected in caught.value.message
