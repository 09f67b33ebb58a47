"""Fixtures shared by the tests that need a sweep."""

from tests.sweep.fixtures import directory, finished, migrated_store, sweep, tiny_model, workshop

__all__ = ["directory", "finished", "migrated_store", "sweep", "tiny_model", "workshop"]
