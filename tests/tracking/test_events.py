from __future__ import annotations

import subprocess
import sys
from collections import Counter

from tests.sweep.fixtures import FinishedSweep
from tokenprune.sweep.store.result_store import read_jsonl
from tokenprune.tracking.jsonl_tracker import EVENTS_FILE
from tokenprune.tracking.run_data import legal, sample_table


def test_event_lines(finished: FinishedSweep) -> None:
    events = read_jsonl(finished.directory / EVENTS_FILE)
    assert Counter(event["event"] for event in events) == {
        "sweep_start": 1,
        "cell_start": 15 + 11,  # questions, then what has a cost to measure
        "cell_end": 11,
        "cell_failed": 2,
        "cell_refused": 2,
        "sweep_end": 1,
    }
    assert events[-1]["status"] == "failures"


def test_metric_names_are_legal() -> None:
    assert legal("OCR@text % (hard)") == "OCR_text _ _hard_"


def test_sample_table_groups_by_question_and_compares_predictions() -> None:
    row = {"id": "a", "question": "which?", "answer": "red", "prediction": "blue", "score": 0.0, "family": "colour"}
    table = sample_table([row])
    assert table["columns"][:2] == ["sample", "prediction"]
    assert table["data"] == [["a: which? [red]", "blue", "red", 0.0, "colour", None, None, None]]


def test_loading_the_host_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tokenprune.plugins import load_host; h = load_host(); "
        "assert not [r for r in h.reports if r.outcome == 'failed' and r.distribution == 'tokenprune' "
        "and ('sweep' in r.name or 'tracking' in r.name)], h.reports; "
        "print(sorted({'torch', 'mlflow', 'transformers', 'scipy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
