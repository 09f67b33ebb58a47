"""The host: every kind of broken plugin is reported by name, and the rest works."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tests.plugins import OWN, STAND_INS
from tokenprune import hookspecs
from tokenprune.plugins import DEFAULT_PLUGINS, Host, PluginReport, default_host, load_host

from .distributions import Site

HOOK = "from tokenprune import hookimpl\n\n\n@hookimpl\n"


def loaded(site: Site) -> Host:
    """A host with the distributions of the site folder only."""
    found = metadata.distributions(path=[str(site.folder)])
    points = [point for distribution in found for point in distribution.entry_points if point.group == "tokenprune"]
    assert points, "the fixture laid down no entry points"
    return load_host(points, defaults=())


def report_of(host: Host, name: str) -> PluginReport:
    (report,) = [report for report in host.reports if report.name == name]
    return report


def test_a_good_plugin_is_loaded_with_its_hooks_and_distribution(site: Site) -> None:
    site.install_good("tokenprune-good", "good", version="2.3")
    host = loaded(site)
    report = report_of(host, "good")
    assert (report.outcome, report.distribution, report.version) == ("loaded", "tokenprune-good", "2.3")
    assert report.hooks == ("register_pruners",)
    assert host.pruners.owner("good") == "tokenprune-good"
    assert host.failures() == ()


def test_the_installed_environment_is_searched_when_no_entry_points_are_given(site: Site) -> None:
    site.install_good("tokenprune-good", "found-on-the-path")
    assert "found-on-the-path" in load_host(defaults=()).pruners


def test_the_tests_load_no_plugins_of_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Site(tmp_path, []).install_good("tokenprune-stranger", "found-on-the-path")
    monkeypatch.syspath_prepend(tmp_path)
    host = load_host()
    assert report_of(host, "stranger").outcome == "blocked"
    owners = {host.pruners.owner(name) for name in host.pruners.names()}
    assert {"tokenprune", *OWN} <= owners <= {"tokenprune", *OWN, *STAND_INS}  # a test before may have left its own


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_package_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("raise RuntimeError('on import')\n", "RuntimeError: on import"),
        ("def broken(:\n", "SyntaxError"),
        (
            HOOK + "def register_pruner(register): ...\n",
            "unknown hook `register_pruner`, did you mean `register_pruners`?",
        ),
        (HOOK + "def on_full_moon(event): ...\n", "unknown hook `on_full_moon`"),
        ("def register_tasks(register): ...\n", "hook `register_tasks` is not marked with `@tokenprune.hookimpl`"),
        (HOOK + "def on_cell_end(event, colour): ...\n", "PluginValidationError"),
        ("TOKENPRUNE_API = 99\n", "made for hook version 99"),
        ("TOKENPRUNE_API = 0\n", "upgrade the plugin"),
        ("TOKENPRUNE_API = 'new'\n", "made for hook version 'new'"),
    ],
    ids=["missing", "raises", "syntax", "misspelt", "invented", "unmarked", "argument", "newer", "older", "no-version"],
)
def test_a_broken_plugin_is_named_and_the_rest_works(site: Site, code: str, reason: str) -> None:
    site.install("tokenprune-broken", code)
    site.install_good("tokenprune-good", "good")
    host = loaded(site)
    report = report_of(host, "broken")
    assert report.outcome == "failed"
    assert reason in report.reason
    assert [failure.name for failure in host.failures()] == ["broken"]
    assert host.pruners.names() == ("good",)
    assert report_of(host, "good").outcome == "loaded"


def test_a_failed_import_keeps_its_traceback(site: Site) -> None:
    site.install("tokenprune-broken", "import a_package_that_is_not_there\n")
    assert "Traceback" in report_of(loaded(site), "broken").details


def test_a_broken_plugin_is_not_half_registered(site: Site) -> None:
    site.install("tokenprune-broken", HOOK + "def on_cell_end(event, colour): raise SystemError\n")
    host = loaded(site)
    assert host.emit("on_cell_end", object()) == []


def test_the_current_hook_version_may_be_declared(site: Site) -> None:
    site.install_good("tokenprune-good", "good", header=f"TOKENPRUNE_API = {hookspecs.API_VERSION}\n")
    assert report_of(loaded(site), "good").outcome == "loaded"


def test_a_duplicate_pruner_is_refused_with_both_owners_and_the_first_stays(site: Site) -> None:
    site.install_good("tokenprune-a", "same")
    site.install_good("tokenprune-b", "same")
    host = loaded(site)
    assert host.pruners.owner("same") == "tokenprune-a"
    report = report_of(host, "b")
    assert report.outcome == "partial"
    assert "`tokenprune-b`" in report.reason
    assert "`tokenprune-a`" in report.reason


def test_a_duplicate_entry_point_is_refused_with_the_first_owner(site: Site) -> None:
    site.install_good("tokenprune-a", "one", entry_point="taken")
    site.install_good("tokenprune-b", "two", entry_point="taken")
    host = loaded(site)
    outcomes = {report.distribution: (report.outcome, report.reason) for report in host.reports}
    assert outcomes["tokenprune-a"][0] == "loaded"
    assert outcomes["tokenprune-b"] == ("failed", "entry point `taken` is already taken by `tokenprune-a`")
    assert host.pruners.names() == ("one",)


def test_an_illegal_name_is_refused_and_the_other_specs_of_the_plugin_count(site: Site) -> None:
    code = (
        HOOK
        + "def register_tasks(register):\n"
        + "    from tokenprune.registry import TaskSpec\n"
        + "    for name in ('No Capitals', 'fine'):\n"
        + "        register(TaskSpec(name=name, target='x:y', summary='', version='1'))\n"
        + "    register('not a spec')\n"
    )
    site.install("tokenprune-names", code)
    host = loaded(site)
    report = report_of(host, "names")
    assert report.outcome == "partial"
    assert "task name `No Capitals` of plugin `tokenprune-names` is not legal" in report.reason
    assert "not a task spec" in report.reason
    assert host.tasks.names() == ("fine",)


def test_a_plugin_that_raises_while_it_registers_is_reported_and_the_rest_works(site: Site) -> None:
    site.install("tokenprune-a", HOOK + "def register_pruners(register): raise OSError('disk')\n")
    site.install_good("tokenprune-b", "good")
    host = loaded(site)
    assert "register_pruners: OSError: disk" in report_of(host, "a").reason
    assert "good" in host.pruners


def test_a_life_cycle_hook_that_raises_is_reported_and_the_others_hear_the_event(site: Site) -> None:
    site.install("tokenprune-a", HOOK + "def on_cell_end(event): raise ValueError('no store')\n")
    site.install("tokenprune-b", HOOK + "def on_cell_end(event): event.append('b heard')\n")
    site.install("tokenprune-c", HOOK + "def on_cell_end(): pass\n")
    heard: list[str] = []
    problems = loaded(site).emit("on_cell_end", heard)
    assert problems == ["plugin `a` failed in `on_cell_end`: ValueError: no store"]
    assert heard == ["b heard"]


def test_a_command_that_cannot_be_added_is_reported_and_the_others_are_added(site: Site) -> None:
    import typer

    site.install("tokenprune-a", HOOK + "def register_commands(app): raise ValueError('no')\n")
    site.install("tokenprune-b", HOOK + "def register_commands(app): app.command('extra')(lambda: None)\n")
    host = loaded(site)
    app = typer.Typer()
    host.add_commands(app)
    assert [command.name for command in app.registered_commands] == ["extra"]
    report = report_of(host, "a")
    assert (report.outcome, report.reason) == ("partial", "register_commands: ValueError: no")


@pytest.mark.parametrize("value", ["tokenprune-good", "other, tokenprune-good", "Tokenprune_Good"])
def test_a_disabled_distribution_is_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    site.install("tokenprune-good", "raise SystemExit('imported')\n")
    monkeypatch.setenv("TOKENPRUNE_DISABLE_PLUGINS", value)
    assert report_of(loaded(site), "good").outcome == "blocked"


def test_only_the_listed_distributions_are_loaded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install_good("tokenprune-a", "a")
    site.install_good("tokenprune-b", "b")
    monkeypatch.setenv("TOKENPRUNE_LOAD_PLUGINS", "tokenprune-b")
    assert loaded(site).pruners.names() == ("b",)
    monkeypatch.setenv("TOKENPRUNE_LOAD_PLUGINS", "")
    assert loaded(site).pruners.names() == ()


def test_our_own_parts_come_in_through_the_hooks() -> None:
    host = load_host(())
    assert host.failures() == ()
    assert [report.name for report in host.reports] == list(DEFAULT_PLUGINS)
    assert {"none", "random", "grid", "avgpool", "downsample"} <= set(host.pruners.names())
    assert "scenes" in host.tasks
    assert "scenes" in host.models
    assert "local" in host.executors
    for spec in host.pruners:
        assert spec.summary
        assert spec.source.title


def test_a_missing_part_of_our_own_is_a_failure_and_not_a_crash() -> None:
    host = load_host((), defaults=("tokenprune.not_a_module",))
    (report,) = host.failures()
    assert "ModuleNotFoundError" in report.reason


# --- what pluggy's marks ask for --------------------------------------------------------------------------------------

MARKED = "from tokenprune import hookimpl\n\n\n@hookimpl({options})\ndef {hook}({arguments}): {body}\n"


def marked(hook: str, options: str, body: str = "pass") -> str:
    arguments = "register" if hook.startswith("register_") else "event"
    return MARKED.format(hook=hook, options=options, arguments=arguments, body=body)


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper"])
@pytest.mark.parametrize("hook", ["on_cell_end", "register_pruners", "write_report"])
def test_a_wrapper_is_refused_because_there_is_nothing_to_wrap(site: Site, hook: str, option: str) -> None:
    site.install("tokenprune-a", marked(hook, f"{option}=True", "yield"))
    report = report_of(loaded(site), "a")
    assert report.outcome == "failed"
    assert f"hook `{hook}` is marked with `{option}`, which does nothing here" in report.reason


@pytest.mark.parametrize("option", ["tryfirst", "trylast"])
def test_an_order_is_refused_when_plugins_register_one_after_the_other(site: Site, option: str) -> None:
    site.install("tokenprune-a", marked("register_pruners", f"{option}=True"))
    assert f"marked with `{option}`, which does nothing here" in report_of(loaded(site), "a").reason


def test_the_order_of_calls_is_that_of_registration_but_for_tryfirst_and_trylast(site: Site) -> None:
    options = {"a": "trylast=True", "b": "", "c": "tryfirst=True", "d": "", "e": "tryfirst=True", "f": "trylast=True"}
    for name, option in options.items():
        site.install(f"tokenprune-{name}", marked("on_cell_end", option, f"event.append('{name}')"))
    heard: list[str] = []
    assert loaded(site).emit("on_cell_end", heard) == []
    assert heard == ["e", "c", "b", "d", "a", "f"]  # as in pluggy, the last that wants to be the first is


def test_a_hook_of_another_version_may_be_optional(site: Site) -> None:
    code = marked("on_full_moon", "optionalhook=True") + marked("on_cell_end", "", "event.append('heard')")
    site.install("tokenprune-a", code)
    host = loaded(site)
    assert report_of(host, "a").outcome == "loaded"
    heard: list[str] = []
    assert host.emit("on_cell_end", heard) == []
    assert heard == ["heard"]


def test_an_implementation_may_have_another_name_than_its_hook(site: Site) -> None:
    site.install("tokenprune-a", marked("ended", "specname='on_cell_end'", "event.append('heard')"))
    host = loaded(site)
    assert (report_of(host, "a").outcome, report_of(host, "a").hooks) == ("loaded", ("on_cell_end",))
    heard: list[str] = []
    host.emit("on_cell_end", heard)
    assert heard == ["heard"]


def test_a_wrong_hook_takes_the_right_ones_of_its_plugin_along(site: Site) -> None:
    """A plugin is in use as a whole or not at all, whichever hook is checked first."""
    right = HOOK + "def on_cell_end(event): event.append('heard')\n"
    site.install("tokenprune-a", right + HOOK + "def on_sweep_end(event, colour): pass\n")
    host = loaded(site)
    heard: list[str] = []
    assert host.emit("on_cell_end", heard) == []
    assert (report_of(host, "a").outcome, heard) == ("failed", [])


def test_the_host_of_a_process_is_loaded_once_and_can_be_forgotten(site: Site) -> None:
    site.install_good("tokenprune-good", "late")
    default_host.cache_clear()
    try:
        host = default_host()
        assert "late" in host.pruners
        assert default_host() is host
        assert load_host(()) is not load_host(())
    finally:
        default_host.cache_clear()
