"""What holds for every test: no network, no telemetry, no stranger's plugins, one thread per process."""

from __future__ import annotations

import os

import pytest

from tests.plugins import ALLOWED, LOAD

os.environ.update(HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", TOKENIZERS_PARALLELISM="false")
os.environ[LOAD] = ALLOWED  # what else is installed must not change what is tested
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file run in one process (`--dist loadgroup`), as they share what they build; folders may differ."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
