"""Tasks: fixed, versioned questions about pictures, with a scorer."""

from __future__ import annotations

from collections.abc import Callable

from tokenprune.hookspecs import hookimpl
from tokenprune.registry import TaskSpec


@hookimpl
def register_tasks(register: Callable[[TaskSpec], None]) -> None:
    """The shipped tasks, and the one that reads a table of the user."""
    register(
        TaskSpec(
            name="scenes",
            target="tokenprune.tasks.scenes.task:ScenesTask",
            summary="pictures of coloured shapes and handwritten digits, seven families of questions",
            version="scenes-1.0",
            families=("existence", "colour", "shape", "counting", "digit", "position", "comparison"),
        )
    )
    register(
        TaskSpec(
            name="scenes-video",
            target="tokenprune.tasks.scenes.video:ScenesVideoTask",
            summary="four frames with moving objects, questions about one moment and about change",
            version="scenes-video-1.0",
            families=("moment-position", "moment-counting", "movement", "direction", "change"),
            video=True,
        )
    )
    register(
        TaskSpec(
            name="table",
            target="tokenprune.tasks.table.task:TableTask",
            summary="your own questions: a parquet, jsonl, csv or tsv file, or a folder of pictures",
            version="table-1.0",
        )
    )
