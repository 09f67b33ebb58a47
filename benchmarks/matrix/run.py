"""Every installed pruner on every family: does it run, is it refused, does it fail.

Each family of the tests' zoo of small models is made in a process of its own and asked for four greedy tokens, with a
picture and, where it takes them, with a video, under every pruner at keep ratio 0.25.

Usage:
    python -m benchmarks.matrix.run                  all families; writes matrix.json and docs/matrix.md
    python -m benchmarks.matrix.run --family llava   one family, as JSON lines; writes nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenprune.families.supported import TESTED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("matrix.json")
ENDS = Path(__file__).with_name("ends.json")
PAGE = ROOT / "docs" / "matrix.md"
RATIO = 0.25
NEW_TOKENS = 4
TIMEOUT_S = 1800
#: Seconds after which a pair counts as endless; these models answer in less than one.
PATIENCE_S = 60


@dataclass(frozen=True)
class Entry:
    """What came of one pruner on one family and one kind of input.

    Args:
        pruner: Name.
        family: Name.
        input: `picture` or `video`.
        outcome: `yes`, `refused`, `failed`, or `stock` if the stock model itself does not run.
        reason: Message of the refusal or the failure.
    """

    pruner: str
    family: str
    input: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class End:
    """What came of one end of the tested range of transformers.

    Args:
        transformers: Its release.
        torch: Release of torch beside it.
        commit: Of this project, `-dirty` where files had been changed since.
        ran: Pairs of the matrix that ran.
        refused: Pairs that were refused.
        failed: Pairs that failed.
        stock: Pairs of a stock model that does not run in this release, pruned or not.
        unlike_recorded: Pairs with another outcome or reason than the table above, if the stock model ran for both.
        tests_passed: Tests of the families that passed.
        tests_skipped: Tests of the families that were skipped.
        tests_failed: Tests of the families that failed.
    """

    transformers: str
    torch: str
    commit: str
    ran: int
    refused: int
    failed: int
    stock: int
    unlike_recorded: int
    tests_passed: int
    tests_skipped: int
    tests_failed: int


def recorded_ends() -> list[End]:
    """The ends that were run last; none where none were."""
    if not ENDS.exists():
        return []
    return [End(**end) for end in json.loads(ENDS.read_text(encoding="utf-8"))]


def asked(family: str, pruners: Sequence[str] = ()) -> Iterator[Entry]:
    """The entries of one family."""
    from tests.families.zoo import FAMILIES
    from tests.families.zoo.base import Sample

    described = FAMILIES[family]
    from tokenprune import load_host

    names = pruners or load_host().pruners.names()
    with tempfile.TemporaryDirectory() as folder:
        built = described.build(Path(folder))
        samples = [Sample(images=1)] if described.images else []
        samples += [Sample(images=0, videos=1)] if described.videos else []
        for sample in samples:
            kind = "video" if sample.videos else "picture"
            inputs = built.inputs(sample)
            failure = _stock_failure(built.model, inputs)
            for name in names:
                outcome, reason = ("stock", failure) if failure else _ran(built.model, inputs, name)
                yield Entry(name, family, kind, outcome, reason)


def _generated(model: Any, inputs: Any) -> int:
    """How many new tokens the model makes when asked for a few greedy ones."""
    import torch

    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return int(made.shape[1] - inputs["input_ids"].shape[1])


def _stock_failure(model: Any, inputs: Any) -> str:
    """Why the stock model does not answer; an empty text if it does."""
    try:
        _generated(model, inputs)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises
        return f"the stock model does not run in this transformers: {type(error).__name__}: {error}"
    return ""


def _ran(model: Any, inputs: Any, name: str) -> tuple[str, str]:
    """Four greedy tokens under a pruner."""
    import signal

    from tokenprune.engine import pruned
    from tokenprune.errors import BudgetError, IncompatibleError

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {PATIENCE_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        with pruned(model, name, ratio=RATIO) as session:
            new = _generated(model, inputs)
        if new != NEW_TOKENS:
            return "failed", f"{new} tokens were generated"
        if name != "none" and session.last.layer_average() == tuple(map(float, session.last.original_visual_tokens)):
            return "failed", "nothing was pruned"
    except (IncompatibleError, BudgetError) as error:
        return "refused", error.message
    except Exception as error:  # noqa: BLE001 - a failure is what this table is about
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        signal.alarm(0)
    return "yes", ""


def measured(families: Iterable[str], jobs: int, python: str | Path = sys.executable) -> list[Entry]:
    """The entries of families, each in a process of its own, several at a time.

    Args:
        families: Names.
        jobs: Families at a time.
        python: Interpreter, which decides about the release of transformers.

    Raises:
        SystemExit: A family could not be asked at all.
    """
    with ThreadPoolExecutor(jobs) as pool:
        return [entry for found in pool.map(lambda family: _measured(family, python), families) for entry in found]


def _measured(family: str, python: str | Path) -> list[Entry]:
    command = [python, "-m", "benchmarks.matrix.run", "--family", family]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"error: {family}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = [Entry(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    failed = sum(entry.outcome == "failed" for entry in found)
    print(f"{family}: {len(found)} asked, {failed} failed", file=sys.stderr, flush=True)
    return found


def page(entries: Sequence[Entry], ends: Sequence[End] = ()) -> str:
    """The table as Markdown, with the reasons and the releases of transformers below it."""
    families = list(dict.fromkeys(entry.family for entry in entries))
    pruners = list(dict.fromkeys(entry.pruner for entry in entries))
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.reason:
            reasons.setdefault(f"{entry.outcome}: {_general(entry)}", []).append(entry)
    numbers = {reason: number for number, reason in enumerate(reasons, start=1)}
    cells: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        code = "yes"
        if entry.reason:
            number = numbers[f"{entry.outcome}: {_general(entry)}"]
            code = f"**FAILED {number}**" if entry.outcome == "failed" else f"{entry.outcome[0]}{number}"
        cells.setdefault((entry.pruner, entry.family), []).append(code)
    outcomes = ("yes", "refused", "failed", "stock")
    counts = {outcome: sum(entry.outcome == outcome for entry in entries) for outcome in outcomes}
    lines = [
        "# Which pruner runs on which family",
        "",
        f"Small random models of every family, {NEW_TOKENS} greedy tokens at a keep ratio of {RATIO:.0%}, with a "
        "picture and, after the stroke, with a video. `yes`: it ran and pruned; `r` and a number: refused, for the "
        "reason with that number; `s` and a number: the stock model itself does not run in this release of "
        f"transformers. {counts['yes']} ran, {counts['refused']} were refused, {counts['failed']} failed, and for "
        f"{counts['stock']} there is no stock model that runs. "
        "`make matrix` writes this page.",
        "",
        "| pruner | " + " | ".join(families) + " |",
        "|" + " --- |" * (len(families) + 1),
    ]
    for pruner in pruners:
        row = [" / ".join(cells.get((pruner, family), ["not asked"])) for family in families]
        lines.append(f"| `{pruner}` | " + " | ".join(row) + " |")
    lines += ["", "## Reasons", ""]
    for reason, number in numbers.items():
        lines.append(f"{number}. {reason}")
    if ends:
        lines += _ends(ends)
    return "\n".join(lines) + "\n"


def _ends(ends: Sequence[End]) -> list[str]:
    lines = [
        "",
        "## Tested with",
        "",
        "The whole table again, and the tests of all families, at both ends of the range of transformers "
        "(`make range`). *Stock*: pairs of a stock model that does not run in that release. *Unlike*: pairs with "
        "another outcome or reason than above, if the stock model ran for both.",
        "",
        "| transformers | torch | commit | ran | refused | failed | stock | unlike | tests passed | skipped | failed |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    lines += ["| " + " | ".join(map(str, asdict(end).values())) + " |" for end in ends]
    unrecorded = [release for release in TESTED if release not in {end.transformers for end in ends}]
    if unrecorded:
        lines += ["", f"Not recorded here yet: {', '.join(unrecorded)}."]
    return lines


def _general(entry: Entry) -> str:
    """The reason without the name of the pruner, so that equal reasons share a number."""
    return entry.reason.replace(f"`{entry.pruner}`", "the pruner").replace("\n", " ").replace("|", "\\|")


def main() -> int:
    """Ask one family, or all of them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", help="only this one; prints JSON lines")
    parser.add_argument("--jobs", type=int, default=2, help="families at a time")
    options = parser.parse_args()
    if options.family:
        for entry in asked(options.family):
            print(json.dumps(asdict(entry)), flush=True)
        return 0
    from tests.families.zoo import FAMILIES

    entries = measured(FAMILIES, options.jobs)
    RESULTS.write_text(json.dumps([asdict(entry) for entry in entries], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(entries, recorded_ends()), encoding="utf-8")
    return int(any(entry.outcome == "failed" for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
