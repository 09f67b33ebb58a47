"""Peak memory of a run, and the bytes of a cache."""

from __future__ import annotations

import subprocess
import sys

import torch

from tokenprune.evaluation.machine.memory import MIB, cache_bytes, peak_memory

CPU = torch.device("cpu")


def test_peak_memory_of_known_allocations() -> None:
    def run() -> str:
        first = torch.ones(256, 1024)  # 1 MiB
        second = first + 1  # 2 MiB held
        del first
        third = second + 1  # 2 MiB again
        del second, third
        return "made"

    peak, made = peak_memory(CPU, run)
    assert 2 * MIB <= peak < 2.1 * MIB
    assert made == "made"


def test_measuring_memory_writes_nothing() -> None:
    """The profiler of torch writes past Python, so the process is a new one and its stderr a pipe."""
    code = (
        "import torch; from tokenprune.evaluation.machine.memory import peak_memory;"
        "print(peak_memory(torch.device('cpu'), lambda: torch.ones(1000))[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout.strip(), ran.stderr) == ("4000", "")


def test_cache_bytes_counts_keys_and_values() -> None:
    class Layer:
        keys = torch.zeros(1, 2, 3, 4)
        values = torch.zeros(1, 2, 3, 4, dtype=torch.float16)

    class Cache:
        layers = (Layer, Layer)

    assert cache_bytes(Cache) == 2 * (24 * 4 + 24 * 2)
