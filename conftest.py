"""What holds for every test, of the core and of the plugins: no network, no telemetry, no stranger's plugins."""

from __future__ import annotations

import os

import pytest

from tests.plugins import ALLOWED, LOAD

os.environ.update(HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", TOKENIZERS_PARALLELISM="false")
os.environ[LOAD] = ALLOWED  # what else is installed must not change what is tested
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, tests that share what takes long to build run in one process.

    These are the tests of a file, and those that look at the finished sweep. Folders may say otherwise: their hooks run
    before this one, and xdist reads the marks after it.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = "finished" if "finished" in getattr(item, "fixturenames", ()) else item.location[0]
            item.add_marker(pytest.mark.xdist_group(shared))
