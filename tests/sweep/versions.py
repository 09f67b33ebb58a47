"""Other versions than those that are installed."""

from __future__ import annotations

import pytest

from tokenprune.evaluation.environment import version_of


def upgrade(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """From now on, other versions are installed."""

    def version(name: str) -> str:
        return versions.get(name) or version_of(name)

    monkeypatch.setattr("tokenprune.evaluation.environment.version_of", version)
