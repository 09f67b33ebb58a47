"""Fixtures shared by the tests that need a sweep."""

from tests.sweep.fixtures import directory, migrated_store, tiny_model

__all__ = ["directory", "migrated_store", "tiny_model"]
