"""Train one model in several processes of one thread each.

Threads of one process wait for each other in every operation, processes once a step: where other work shares the
cores, that is the difference between half and all of what is left of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def rank() -> int:
    """Number of this process, 0 for the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the mean of all gradients, where there are several."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def run_together(count: int, work: Callable[[], None]) -> None:
    """Run `work` in `count` processes that share their gradients, and wait for all.

    Args:
        count: How many.
        work: A picklable function; it asks `rank` who it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_enter, (count, Path(folder) / "meeting", work), nprocs=count)


def _enter(number: int, count: int, meeting: Path, work: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=number, world_size=count)
    try:
        work()
    finally:
        distributed.destroy_process_group()
