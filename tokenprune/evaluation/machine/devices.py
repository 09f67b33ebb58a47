"""Devices: which of those that are listed are here, and what it means when one of them fails."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import torch

from tokenprune.errors import ConfigError, PrerequisiteError

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch's allocator of the CPU
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def device_of(name: str) -> str:
    """A torch device by name; `auto` is the GPU if there is one, otherwise the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_devices(listed: Iterable[str]) -> None:
    """Make sure that this machine has the devices of a sweep; `auto` is what it has.

    Raises:
        ConfigError: One is not a device, or not here.
    """
    for device in listed:
        if device != "auto" and not _is_here(device):
            raise ConfigError(
                f"there is no device `{device}` here", hint=f"this machine has {', '.join(_here())}; or say `auto`"
            )


def try_device(device: str) -> None:
    """Put something on a device and read it back, so that a worker whose device fails never says that it is ready.

    Raises:
        RuntimeError: What the device says.
    """
    torch.zeros(1, device=device).item()


def ran_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch, its libraries and Python say that there is no memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def lost_device(error: BaseException) -> bool:
    """True for errors after which a process can compute nothing more on its device (a failed kernel, a lost GPU)."""
    return isinstance(error, torch.AcceleratorError) and not ran_out_of_memory(error)


def device_error(device: str, error: BaseException) -> PrerequisiteError:
    """What ends a worker whose device is lost; its cells are no worse for it, and go to another one."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return PrerequisiteError(
        f"the device `{device}` is lost: {first}",
        hint="every finished cell is kept; run the same command again, without the device if it stays lost",
    )


def _is_here(device: str) -> bool:
    try:
        wanted = torch.device(device)
    except RuntimeError:  # torch's word for a text that names no device
        return False
    if wanted.type == "cpu":
        return True
    found = torch.accelerator.current_accelerator()
    return found is not None and found.type == wanted.type and (wanted.index or 0) < torch.accelerator.device_count()


def _here() -> list[str]:
    found = torch.accelerator.current_accelerator()
    count = 0 if found is None else torch.accelerator.device_count()
    return ["cpu", *(f"{found.type}:{number}" for number in range(count) if found is not None)]
