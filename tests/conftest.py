"""The fixtures of which a session has one each; it does so only if one conftest names them."""

from __future__ import annotations

from tests.sweep.fixtures import directory, finished, migrated_store, sweep, tiny_model, workshop

__all__ = ["directory", "finished", "migrated_store", "sweep", "tiny_model", "workshop"]
