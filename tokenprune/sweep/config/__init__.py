"""Sweep files: YAML with positions, checked as a whole."""
