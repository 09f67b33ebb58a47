"""Descriptions of families, one file each."""
