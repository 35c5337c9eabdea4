"""What this machine has, found out without initialising an accelerator in the kernel (which would forbid the fork)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nbsync.errors import StartError, UsageError

DEFAULT_CPU_RANKS = 2
GLOO = "gloo"
GLOO_AND_NCCL = "cpu:gloo,cuda:nccl"


@dataclass(frozen=True)
class Placement:
    """How many ranks, over which backend, and a line for the user where that is not what one would expect."""

    world_size: int
    backend: str
    note: str | None = None

    @property
    def uses_gpu(self) -> bool:
        return "nccl" in self.backend


def count_gpus() -> int:
    """The number of visible GPUs."""
    import torch

    if torch.version.cuda is None:  # built without
        return 0
    before = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # ask the driver's library, not the CUDA runtime
    try:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    finally:
        if before is None:
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
        else:
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = before


def place(num_processes: int | None, backend: str | None, gpus: int) -> Placement:
    """Choose the number of ranks and the backend.

    Args:
        num_processes: as asked for; None for one per GPU, or 2 without GPUs.
        backend: as asked for; None for gloo with NCCL where every rank has a GPU of its own, else gloo.

    Raises:
        UsageError: the number is not a positive integer.
    """
    if num_processes is not None and (
        isinstance(num_processes, bool) or not isinstance(num_processes, int) or num_processes < 1
    ):
        raise UsageError(f"num_processes must be a positive integer or None (one per GPU), got {num_processes!r}")
    size = num_processes or gpus or DEFAULT_CPU_RANKS
    if backend is not None:
        return Placement(size, backend)
    if gpus == 0:
        return Placement(size, GLOO)
    if size > gpus:
        return Placement(size, GLOO, f"{size} ranks share {gpus} GPU{'s' * (gpus > 1)}: the backend is gloo")
    return Placement(size, GLOO_AND_NCCL)


def threads_per_rank(world_size: int) -> int | None:
    """The cores divided among the ranks; None when the user has set OMP_NUM_THREADS, which wins."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, len(os.sched_getaffinity(0)) // world_size)


def check_start_method(start_method: str) -> None:
    """Refuse what cannot work.

    Raises:
        UsageError: an unknown start method, or one that is not there yet.
        StartError: the kernel has initialised CUDA, which does not survive a fork.
    """
    import torch

    if start_method in ("forkserver", "spawn"):
        raise UsageError(f"start_method={start_method!r} is not available yet: use 'auto' or 'fork'")
    if start_method not in ("auto", "fork"):
        raise UsageError(f"start_method must be 'auto' or 'fork', got {start_method!r}")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise StartError(
            "CUDA is already initialised in this kernel, and a forked process cannot use it then. Restart the "
            "kernel, and touch the GPU only in distributed cells or inside the launched function"
        )
