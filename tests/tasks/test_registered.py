"""What the registry says of a task is what the task says of itself."""

from __future__ import annotations

import pytest

from tokenprune import load_host

HOST = load_host()


@pytest.mark.parametrize("name", [name for name in HOST.tasks.names() if name != "table"])  # it needs a user's file
def test_spec_and_task_agree(name: str) -> None:
    spec = HOST.tasks.get(name)
    task = spec.build()
    assert (task.name, task.version, tuple(task.families)) == (spec.name, spec.version, spec.families)
    assert task[0].video is spec.video
