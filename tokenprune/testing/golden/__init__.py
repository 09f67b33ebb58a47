"""Pruners against golden vectors: inputs and the outputs that the published implementations give on them.

`python -m tokenprune.testing.golden DIR` checks every file `DIR/<method>/<case>.safetensors` and exits 4 if one differs
or no adapter covers it. An adapter is the file `tests/golden/<method>/adapter.py` in the source of an installed plugin.
Its function `check(case)` turns the tensors into a recording, runs the registered pruner by name through the same
public code that a sweep uses, and lists what differs.
"""

from __future__ import annotations

from tokenprune.testing.golden.folder import Verdict, check_file, check_folder, covered_methods

__all__ = ["Verdict", "check_file", "check_folder", "covered_methods"]
