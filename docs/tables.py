"""Write the generated blocks of the Markdown files again, or check that they are up to date.

A block stands between `<!-- generated:NAME -->` and `<!-- end -->`.

Usage:
    python docs/tables.py                       write
    python docs/tables.py --check               fail where a block is out of date
    python docs/tables.py --record runs/default keep the leaderboard of a sweep as the one that README shows, and write
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from tokenprune.cli.methods import method_sections, methods_table
from tokenprune.composition import AXES, PARTS, Composed
from tokenprune.composition.parts import EVERYWHERE
from tokenprune.errors import ExitCode
from tokenprune.plugins import ENTRY_POINT_GROUP, Host, load_host
from tokenprune.report.render.escaping import markdown_grid
from tokenprune.site import SITE_KINDS
from tokenprune.view import NEEDS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # its neighbour is found also if a test loads this file

from recorded import PICTURE, SHOWN, digest, draw, drawn_from, rows_by_budget  # noqa: E402

EXAMPLE = ROOT / "docs" / "examples" / "third-party-pruner"
FAMILY_EXAMPLE = ROOT / "docs" / "examples" / "third-party-family"
#: The leaderboard of the recorded sweep that docs/results.md shows, and README in short.
RECORDED = ROOT / "benchmarks" / "scenes" / "recorded" / "leaderboard.md"
#: What README says of the cost of each pruner.
COSTS = ("layer average", "x none")
#: Only what this repository holds is documented, whatever else is installed.
DISTRIBUTIONS = ("tokenprune-iwp", "tokenprune-zoo")

_BLOCK = re.compile(r"(?<=<!-- generated:)(?P<name>[a-z-]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def main() -> int:
    """Write or check all blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a block is out of date")
    parser.add_argument("--record", type=Path, metavar="DIRECTORY", help="sweep whose leaderboard README shows")
    options = parser.parse_args()
    check = options.check
    if options.record:
        RECORDED.parent.mkdir(parents=True, exist_ok=True)
        RECORDED.write_text(recording(options.record), encoding="utf-8")
    makers = block_makers(own_host())
    stale = []
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = filled(before, makers)
        if before != after:
            stale.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    if RECORDED.is_file() and drawn_from(PICTURE) != digest(RECORDED.read_text(encoding="utf-8")):
        stale.append(PICTURE)
        if not check:
            draw(RECORDED.read_text(encoding="utf-8"), PICTURE)
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}: {'out of date, run `make docs-tables`' if check else 'written'}",
            file=sys.stderr,
        )
    return ExitCode.VERDICT if check and stale else ExitCode.OK


def documents() -> list[Path]:
    """The Markdown files that the project speaks through."""
    places = ("docs/*.md", "docs/guides/*.md", "plugins/*/README.md")
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(path for place in places for path in sorted(ROOT.glob(place))),
    ]


def own_host() -> Host:
    """A host with the plugins of this repository, every one of them.

    Raises:
        SystemExit: One of them is not installed, or did not load.
    """
    points = [
        point
        for point in metadata.entry_points(group=ENTRY_POINT_GROUP)
        if point.dist is not None and point.dist.name in DISTRIBUTIONS
    ]
    missing = set(DISTRIBUTIONS) - {point.dist.name for point in points if point.dist is not None}
    if missing:
        raise SystemExit(f"error: not installed: {', '.join(sorted(missing))} (run `make env`)")
    host = load_host(points)
    if host.failures():
        raise SystemExit("error: " + "; ".join(f"{failure.name}: {failure.reason}" for failure in host.failures()))
    return host


def block_makers(host: Host) -> Mapping[str, Callable[[], str]]:
    """What fills each block."""
    return {
        "methods": lambda: methods_table(host.pruners),
        "method-sections": lambda: method_sections(host.pruners),
        "needs": needs_table,
        "sites": lambda: sites_table(host),
        "calibrated": lambda: calibrated_table(host),
        "families": lambda: families_table(host),
        "refused-families": lambda: refused_table(host),
        "family-names": lambda: family_names(host),
        "executors": lambda: executors_table(host),
        "trackers": lambda: trackers_table(host),
        "composition-parts": parts_table,
        "composition-settings": settings_table,
        "exit-codes": exit_codes_table,
        "third-party-module": lambda: _fenced("python", EXAMPLE / "tokenprune_loudest.py"),
        "third-party-pyproject": lambda: _fenced("toml", EXAMPLE / "pyproject.toml"),
        "third-party-family-spec": lambda: _fenced("python", FAMILY_EXAMPLE / "tokenprune_deepseek_vl" / "__init__.py"),
        "third-party-family": lambda: _fenced("python", FAMILY_EXAMPLE / "tokenprune_deepseek_vl" / "description.py"),
        "recorded-leaderboard": recorded_leaderboard,
        "recorded-summary": recorded_summary,
        "all-methods": all_methods,
    }


def recording(directory: Path) -> str:
    """The leaderboard of a finished sweep, under a line that says when, where and how long.

    Raises:
        SystemExit: The sweep did not run to its end in one go, so its duration is not known; or its results are of
            several environments, or do not say of which.
    """
    from tokenprune.report import leaderboard, markdown_table
    from tokenprune.report.data.environments import environment_sentence
    from tokenprune.sweep import SweepStore

    header = SweepStore(directory).header()
    board = leaderboard(directory)
    ran = environment_sentence(board.environments)
    if len(board.environments) != 1 or not board.environments[0].facts:
        raise SystemExit(f"error: {directory} cannot be recorded as one sweep; record a fresh one. {ran}")
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [event for event in events if event["event"] == "sweep_end"]
    if len(ends) != 1 or ends[0]["status"] == "interrupted":
        raise SystemExit(f"error: {directory} was not run to its end in one go; record a fresh sweep")
    return (
        f"Recorded on {header.created[:10]}: {ends[0]['done']} cells in {ends[0]['seconds']:.0f} s. {ran}\n\n"
        f"{markdown_table(board)}"
    )


def recorded_summary() -> str:
    """The recorded accuracies of some pruners at every budget, with their intervals."""
    if not RECORDED.is_file():
        return "No sweep is recorded yet; `make sweep` prints this table."
    text = RECORDED.read_text(encoding="utf-8")
    found = rows_by_budget(text)
    budgets = list(found)
    last = found[budgets[-1]]
    rows = [
        [
            name,
            *(_accuracy(found[budget][name]) for budget in budgets),
            *(last[name][column] for column in COSTS),
        ]
        for name in ("none", *SHOWN)
    ]
    head = ["pruner", *budgets, *(f"{column} at {budgets[-1]}" for column in COSTS)]
    questions = re.search(r"kept, (\d+) questions", text)
    first = text.split(".", 1)[0]
    return (
        f"Accuracy in percent on {questions[1] if questions else '?'} questions, by visual tokens kept, with 95 % "
        f"intervals. {first}.\n\n{markdown_grid(head, rows, head[1:])}\n\n"
        "layer average: visual tokens of 256 with which a decoder layer runs on average; methods that cut at layer 2 "
        "let two of the six layers see all. x none: prefill divided by the unpruned model's; \\~1: no difference is "
        "known; ?: not known to within 5 %."
    )


def _accuracy(row: Mapping[str, str]) -> str:
    return f"{row['accuracy %']} {row['interval']}"


def all_methods() -> str:
    """The ranking of all image methods at the smallest budget of the recorded sweep, with the columns that fit."""
    recorded = ROOT / "benchmarks" / "scenes" / "results" / "all-methods.md"
    rows = rows_by_budget(recorded.read_text(encoding="utf-8"))["5.6 %"].values()
    head = ("#", "pruner", "accuracy %", "interval", "vs random", "same answer %", "layer average")
    numbers = [column for column in head if column != "pruner"]
    return markdown_grid(head, [[row[column] for column in head] for row in rows], numbers)


def recorded_leaderboard() -> str:
    """The recorded leaderboard as it is kept."""
    if not RECORDED.is_file():
        return "No sweep is recorded yet; `make sweep` prints this table."
    return RECORDED.read_text(encoding="utf-8").strip()


def filled(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """The text with every block replaced by what its maker gives.

    Raises:
        KeyError: A block has a name that nobody makes.
    """
    return _BLOCK.sub(lambda block: f"{block['name']} -->\n{makers[block['name']]()}\n", text)


def needs_table() -> str:
    """What a pruner may declare, and what it opens."""
    return markdown_grid(["need", "opens"], [[f"`{name}`", meaning] for name, meaning in NEEDS.items()])


def sites_table(host: Host) -> str:
    """The kinds of sites, with the pruners and the number of families that have each."""
    meanings = {
        "pixels": "the picture, before the vision encoder",
        "tower": "inside the vision encoder, at one of its layers",
        "encoder": "between encoder and projector",
        "input": "at the input of the language model",
        "layer": "at a decoder layer",
        "decode": "at every decoding step: what the token being decoded sees of the KV cache",
    }
    rows = []
    for kind in SITE_KINDS:
        pruners = ", ".join(f"`{spec.name}`" for spec in host.pruners if kind in spec.sites)
        families = sum(kind in spec.sites for spec in host.families)
        rows.append([f"`{kind}`", meanings[kind], pruners, f"{families} of {len(host.families)}"])
    return markdown_grid(["site", "where", "pruners", "families"], rows)


def calibrated_table(host: Host) -> str:
    """The pruners with options that a calibration finds."""
    rows = [
        [f"`{spec.name}`", ", ".join(f"`{name}`" for name in spec.calibrates)]
        for spec in host.pruners
        if spec.calibrates
    ]
    return markdown_grid(["pruner", "options found"], rows)


def families_table(host: Host) -> str:
    """The families of which something can be cut."""
    rows = [
        [
            f"`{spec.name}`",
            ", ".join(f"`{name}`" for name in spec.model_types),
            ", ".join(spec.sites),
            "yes" if spec.video else "no",
            spec.summary.partition(": ")[2],
        ]
        for spec in host.families
        if spec.sites
    ]
    return markdown_grid(["family", "model types", "sites", "videos", "what it is"], rows)


def refused_table(host: Host) -> str:
    """What is refused, with the families by reason."""
    families: dict[tuple[str, str], list[str]] = {}
    for spec in host.families:
        kinds: dict[str, list[str]] = {}
        for kind, reason in spec.refused.items():
            kinds.setdefault(reason.replace(f"family `{spec.name}`", "it"), []).append(kind)
        for reason, refused in kinds.items():
            what = ", ".join(refused) if spec.sites else "everywhere"
            families.setdefault((what, reason), []).append(f"`{spec.name}`")
    rows = [[", ".join(names), what, reason] for (what, reason), names in families.items()]
    return markdown_grid(["family", "no cut at", "why"], rows)


def family_names(host: Host) -> str:
    """Names of the families that can be pruned, in one sentence."""
    names = [spec.summary.partition(": ")[0] for spec in host.families if spec.sites]
    return f"{len(names)} families are described: {', '.join(names[:-1])} and {names[-1]}."


def executors_table(host: Host) -> str:
    """The ways to run the cells of a sweep."""
    return markdown_grid(["executor", "how"], [[f"`{spec.name}`", spec.summary] for spec in host.executors])


def trackers_table(host: Host) -> str:
    """What hears of a sweep."""
    return markdown_grid(["tracker", "what it writes"], [[f"`{spec.name}`", spec.summary] for spec in host.trackers])


def parts_table() -> str:
    """The parts of every axis of a composition."""
    rows = [
        [
            axis,
            f"`{part.name}`",
            _formula(part.meaning),
            _formula(part.text),
            ", ".join(part.needs),
            "any" if part.sites == EVERYWHERE else ", ".join(part.sites),
        ]
        for axis, parts in PARTS.items()
        for part in parts.values()
    ]
    return markdown_grid(["axis", "part", "meaning", "term", "needs", "sites"], rows)


def settings_table() -> str:
    """The settings of a composition, and the parts that read them."""
    rows = []
    for name, default in Composed.spec.defaults.items():
        readers = [f"`{part.name}`" for parts in PARTS.values() for part in parts.values() if name in part.reads]
        if name not in AXES:
            rows.append([f"`{name}`", f"`{default}`", ", ".join(readers) or "every composition"])
    return markdown_grid(["setting", "default", "read by"], rows)


def _formula(text: str) -> str:
    """A text as Markdown, set as code if it has signs of a formula."""
    return f"`{text}`" if "|" in text or "_" in text else text


def exit_codes_table() -> str:
    """The exit codes of the command line."""
    return markdown_grid(["code", "meaning"], [[str(code.value), code.meaning] for code in ExitCode])


def _fenced(language: str, path: Path) -> str:
    return f"```{language}\n{path.read_text(encoding='utf-8').strip()}\n```"


if __name__ == "__main__":
    sys.exit(main())
