"""What the driver of an NVIDIA GPU tells (NVML): energy, use, and who else is there."""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

import torch

from tokenprune.errors import PrerequisiteError


class Gpu:
    """One GPU as its driver sees it.

    Args:
        library: The module `pynvml`, initialised.
        handle: The device.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """The driver's view of a torch device.

        Raises:
            PrerequisiteError: The package `nvidia-ml-py` is missing, or the driver does not answer.
        """
        library = _library()
        try:
            library.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return cls(library, library.nvmlDeviceGetHandleByUUID(name))
        except library.NVMLError as error:
            raise _silent(error) from error

    def joules(self) -> float:
        """Energy that the device has taken since its driver was loaded.

        Raises:
            PrerequisiteError: This device does not tell (it did from Volta on).
        """
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0
        except self._library.NVMLError as error:
            raise _silent(error) from error

    def use(self) -> float:
        """Share of the driver's last sample period in which the device had something to do, 0 to 1.

        Raises:
            PrerequisiteError: This device does not tell.
        """
        try:
            return float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0
        except self._library.NVMLError as error:
            raise _silent(error) from error

    def use_by_others(self, since: float) -> float:
        """Largest share of the device that all other processes together had in one sample, 0 to 1.

        In a container the driver's process ids are not ours. Where ours is not among them, the one that uses the device
        most is taken for this process, because it is the one that measures.

        Args:
            since: From when on, in seconds of `time.time`.

        Raises:
            PrerequisiteError: This device does not tell.
        """
        try:
            samples = self._library.nvmlDeviceGetProcessUtilization(self._handle, int(1e6 * since))
        except self._library.NVMLError as error:
            if type(error).__name__ == "NVMLError_NotFound":  # no process has used the device since then
                return 0.0
            raise _silent(error) from error
        by_process: dict[int, float] = {}
        for sample in samples:
            share = float(sample.smUtil) / 100.0
            by_process[int(sample.pid)] = max(share, by_process.get(int(sample.pid), 0.0))
        if not by_process:
            return 0.0
        ours = os.getpid()
        by_process.pop(ours if ours in by_process else max(by_process, key=lambda pid: by_process[pid]))
        return min(1.0, sum(by_process.values()))


def gpu_of(device: torch.device) -> tuple[Gpu | None, str]:
    """The driver's view of a device, or why there is none."""
    if device.type != "cuda":
        return None, f"no driver tells about the device `{device.type}`"
    try:
        return Gpu.of(device), ""
    except PrerequisiteError as error:
        return None, f"{error.message}; {error.hint}"


def now() -> float:
    """The time in which the driver stamps its samples."""
    return time.time()


def _library() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise PrerequisiteError(
            "the package `nvidia-ml-py` is not installed", hint="pip install 'tokenprune-vlm[gpu]'"
        ) from None


def _silent(error: Exception) -> PrerequisiteError:
    return PrerequisiteError(f"the GPU's driver does not tell: {error}", hint="`nvidia-smi` shows what it knows")
