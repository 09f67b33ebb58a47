"""The families' tests and the matrix at both ends of the tested range of transformers.

Each end gets a thin environment under `.venv-range/`: this one's packages, and its own transformers before them. What
came of it is kept in ends.json, and shown at the end of docs/matrix.md.

Usage:
    python -m benchmarks.matrix.ends                   both ends
    python -m benchmarks.matrix.ends --end 5.20.0      one of them; the other's entry stays
    python -m benchmarks.matrix.ends --build           only make the environments
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from benchmarks.matrix.run import ENDS, PAGE, RESULTS, ROOT, End, Entry, measured, page, recorded_ends
from tokenprune.families.supported import TESTED

ENVIRONMENTS = ROOT / ".venv-range"

RECORDED = "tests/families/descriptions/test_matrix.py::test_nothing_failed_at_the_recorded_ends"
"""Looks at what is only being recorded here."""


def environment(release: str) -> Path:
    """The Python of an environment with a release of transformers; made where it is not there yet."""
    folder = ENVIRONMENTS / release
    python = folder / "bin" / "python"
    if (folder / "made").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    below = sysconfig.get_paths()["purelib"]
    own = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    # behind the environment's own packages, with the links to this project that lie there
    Path(own, "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")
    install = ["install", "--quiet", f"transformers=={release}"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), *install]
    subprocess.run(pip, check=True)
    (folder / "made").touch()
    return python


def tested(python: Path, jobs: int) -> Counter[str]:
    """Outcomes of the families' tests.

    Args:
        python: Interpreter, which decides about the release of transformers.
        jobs: Processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [
            "-m",
            "pytest",
            "-q",
            "-n",
            str(jobs),
            "--dist",
            "loadgroup",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            "tests/families",
            "--deselect",
            RECORDED,
        ]
        done = subprocess.run([python, *command, f"--junitxml={report}"], cwd=ROOT, env=_environ(), check=False)
        if not report.exists():
            raise SystemExit(f"error: the tests ended with code {done.returncode} and without a report")
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return Counter(passed=passed, failed=failed, skipped=counts["skipped"])


def ran(release: str, jobs: int, commit: str) -> End:
    """Everything at one end."""
    python = environment(release)
    installed = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('transformers'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if installed != release:
        raise SystemExit(f"error: {ENVIRONMENTS / release} holds transformers {installed}; remove it")
    from tests.families.zoo import FAMILIES

    os.environ.update(_environ())
    entries = measured(FAMILIES, jobs, python)
    known = {
        (entry.pruner, entry.family, entry.input): entry
        for entry in (Entry(**entry) for entry in json.loads(RESULTS.read_text(encoding="utf-8")))
    }
    pairs = [(entry, known.get((entry.pruner, entry.family, entry.input))) for entry in entries]
    others = sum(
        entry != before
        for entry, before in pairs
        if entry.outcome != "stock" and (before is None or before.outcome != "stock")
    )
    matrix = Counter(entry.outcome for entry in entries)
    tests = tested(python, jobs)
    return End(
        transformers=release,
        torch=metadata.version("torch"),
        commit=commit,
        ran=matrix["yes"],
        refused=matrix["refused"],
        failed=matrix["failed"],
        stock=matrix["stock"],
        unlike_recorded=others,
        tests_passed=tests["passed"],
        tests_skipped=tests["skipped"],
        tests_failed=tests["failed"],
    )


def keep(end: End) -> None:
    """Put an end into ends.json, in place of its older entry, and write the page again."""
    ends = {known.transformers: known for known in recorded_ends()} | {end.transformers: end}
    kept = [ends[release] for release in TESTED if release in ends]
    ENDS.write_text(json.dumps([asdict(each) for each in kept], indent=1) + "\n", encoding="utf-8")
    entries = [Entry(**entry) for entry in json.loads(RESULTS.read_text(encoding="utf-8"))]
    PAGE.write_text(page(entries, kept), encoding="utf-8")


def _environ() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def main(words: Sequence[str] | None = None) -> int:
    """Run one end or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--end", choices=TESTED, help="only this release of transformers")
    parser.add_argument("--build", action="store_true", help="only make the environments")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(words)
    describe = ["git", "describe", "--always", "--dirty"]  # now: what is recorded below makes the tree dirty
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    bad = 0
    for release in [options.end] if options.end else dict.fromkeys(TESTED):
        if options.build:
            environment(release)
            continue
        end = ran(release, options.jobs, commit)
        keep(end)
        bad += end.failed + end.tests_failed + end.unlike_recorded
        print(json.dumps(asdict(end)))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
