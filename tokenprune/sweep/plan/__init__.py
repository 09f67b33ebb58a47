"""The cells of a sweep: their ids, and what changed since the last run."""
