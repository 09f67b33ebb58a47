"""The phases that made the shipped models, in order.

They were set by looking at the validation accuracy of every family: what lagged was asked more often.
Weights are in the order of the task's families: existence, colour, shape, counting, digit, position,
comparison. The last two phases see every visual token, and the rate falls in the last one.
"""

from __future__ import annotations

from typing import Final

from benchmarks.scenes.films import VISUAL
from benchmarks.scenes.train_language import Phase

VISION_STEPS: Final = 1150
VISION_DECAY: Final = 0.35
PHASES: Final = (
    ("p1", Phase(steps=500, kept=40, easy=0.6)),
    (
        "p2",
        Phase(steps=500, kept=48, easy=0.35, warmup=20, weights=(2.0, 0.5, 2.0, 0.7, 1.6, 2.0, 0.4)),
    ),
    (
        "p3",
        Phase(steps=750, kept=80, easy=0.1, warmup=20, weights=(0.7, 0.4, 0.7, 2.0, 1.0, 3.0, 0.7)),
    ),
    (
        "p4",
        Phase(steps=500, kept=256, easy=0.05, warmup=20, weights=(1.0, 0.5, 0.8, 2.0, 1.2, 2.0, 1.0)),
    ),
    (
        "p5",
        Phase(
            steps=1300,
            kept=256,
            easy=0.05,
            warmup=20,
            weights=(1.0, 0.6, 0.8, 3.0, 1.3, 1.5, 1.0),
            decay_from=0.35,
        ),
    ),
)

VIDEO_WEIGHTS: Final = (1.5, 1.5, 1.0, 1.5, 1.0)
"""In the order of moment-position, moment-counting, movement, direction, change."""
VIDEO_PHASES: Final = (
    ("v1", Phase(steps=900, kept=64, batch=8, warmup=30, every=100, weights=VIDEO_WEIGHTS)),
    (
        "v2",
        Phase(
            steps=130,
            kept=VISUAL,
            batch=4,
            questions=16,
            warmup=10,
            weights=VIDEO_WEIGHTS,
            decay_from=0.3,
            every=45,
        ),
    ),
)
