"""A cell as plans hold them, for tests that need any."""

from __future__ import annotations

from tokenprune.cells.cell import Cell

CELL = Cell(
    model="scenes",
    model_digest="0123456789abcdef",
    task="scenes",
    task_version="1",
    task_digest="feedbeef",
    task_options={"split": "test"},
    samples=105,
    pruner="iwp",
    label="iwp",
    options={"layer": 2, "weight": 0.5},
    distribution="tokenprune-iwp",
    distribution_version="0.1.0",
    budget_ratio=0.25,
    budget_tokens=None,
    account="kept",
    seed=0,
    dtype="float32",
    attention="sdpa",
    positions=None,
    batch_size=15,
    max_new_tokens=4,
    lens={"samples": 2},
    efficiency={"warmup": 1, "repeats": 5, "new_tokens": 8},
    reference="aaaaaaaaaaaaaaaa",
)
