"""Evaluation of one pruner on one model: prepare, generate, decode, score; and what it costs."""
