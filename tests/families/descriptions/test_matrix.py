"""The table of pruners and families: whole as far as it was recorded, true for the pairs that are tried here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from benchmarks.matrix.run import PAGE, RESULTS, End, Entry, asked, page, recorded_ends
from tests.families.conftest import transformers_version
from tests.families.zoo import FAMILIES, Family, Sample
from tokenprune import load_host
from tokenprune.families.supported import TESTED

PRUNERS = load_host().pruners.names()
#: One method per kind of site, on families that differ in what they are like.
AGAIN = {
    "llava": ("none", "random", "fastv", "visionzip", "downsample", "cdpruner"),
    "gemma3": ("grid", "vtw"),
    "qwen2_5_vl": ("divprune", "iwp"),
    "mllama": ("none", "random"),
}


@pytest.fixture(scope="module")
def recorded() -> Mapping[tuple[str, str, str], Entry]:
    entries = [Entry(**entry) for entry in json.loads(RESULTS.read_text(encoding="utf-8"))]
    return {(entry.pruner, entry.family, entry.input): entry for entry in entries}


def test_rows_are_pruners_and_columns_are_families() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    heading = next(line for line in lines if line.startswith("| pruner |"))
    assert set([cell.strip() for cell in heading.strip("|").split("|")][1:]) <= set(FAMILIES)
    assert set(re.findall(r"^\| `([^`]+)` \|", "\n".join(lines), re.MULTILINE)) <= set(PRUNERS)


def test_the_page_is_what_was_recorded(recorded: Mapping[tuple[str, str, str], Entry]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(list(recorded.values()), recorded_ends())


def test_every_recorded_pruner_was_tried_with_every_input_of_every_recorded_family(
    recorded: Mapping[tuple[str, str, str], Entry],
) -> None:
    """What came after the recorded run is not asked for here: `make matrix` takes minutes, and `make nightly` asks."""
    pruners, families = {pruner for pruner, _, _ in recorded}, {family for _, family, _ in recorded}
    assert set(recorded) == inputs_of(pruners, families)


@pytest.mark.slow
def test_every_pruner_was_tried_with_every_family(recorded: Mapping[tuple[str, str, str], Entry]) -> None:
    assert set(recorded) == inputs_of(PRUNERS, FAMILIES), "run `make matrix`"


def inputs_of(pruners: Iterable[str], families: Iterable[str]) -> set[tuple[str, str, str]]:
    return {
        (pruner, name, kind)
        for pruner in pruners
        for name in families
        for kind, takes in (("picture", FAMILIES[name].images), ("video", FAMILIES[name].videos))
        if takes
    }


@pytest.mark.parametrize("family", AGAIN)
def test_some_pairs_again(family: str, recorded: Mapping[tuple[str, str, str], Entry]) -> None:
    for entry in asked(family, AGAIN[family]):
        assert entry == recorded[entry.pruner, entry.family, entry.input]


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family.stock_fails], ids=lambda family: family.name
)
def test_a_stock_model_that_is_said_to_fail_does(family: Family, tmp_path: Path) -> None:
    if transformers_version() not in family.stock_fails:
        pytest.skip(f"said of other releases than {transformers_version()}")
    built = family.build(tmp_path)
    with pytest.raises(AttributeError):
        built.model(**built.inputs(Sample(images=1)))


def test_reasons_share_a_number_and_failures_stand_out() -> None:
    text = page(
        [
            Entry("a", "f", "picture", "refused", "`a` needs a grid"),
            Entry("b", "f", "picture", "refused", "`b` needs a grid"),
            Entry("b", "f", "video", "failed", "IndexError: | (x.py:1)"),
            Entry("c", "f", "picture", "yes"),
            Entry("d", "f", "picture", "stock", "AttributeError"),
        ]
    )
    assert "| `a` | r1 |" in text
    assert "| `b` | r1 / **FAILED 2** |" in text
    assert "| `c` | yes |" in text
    assert "| `d` | s3 |" in text
    assert "1. refused: the pruner needs a grid\n2. failed: IndexError: \\| (x.py:1)\n" in text


def test_the_ends_of_the_range_stand_below_the_reasons() -> None:
    end = End("5.1.0", "2.9.0", "abc", 7, 2, 0, 5, 1, 40, 3, 0)
    text = page([Entry("a", "f", "picture", "yes")], [end])
    assert "## Tested with" in text.split("## Reasons")[1]
    assert text.rsplit("\n\n", 1)[1] == f"Not recorded here yet: {', '.join(TESTED)}.\n"
    assert text.rsplit("\n\n", 1)[0].endswith("| 5.1.0 | 2.9.0 | abc | 7 | 2 | 0 | 5 | 1 | 40 | 3 | 0 |")


def test_nothing_failed_at_the_recorded_ends() -> None:
    ends = recorded_ends()
    if not ends:
        pytest.skip("no end of the range is recorded: make range")
    assert {end.transformers for end in ends} <= set(TESTED)
    assert [(end.failed, end.unlike_recorded, end.tests_failed) for end in ends] == [(0, 0, 0)] * len(ends)
