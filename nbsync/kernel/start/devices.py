"""What this machine has, found out without initialising an accelerator in the kernel (which would forbid the fork)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from nbsync.errors import UsageError
from nbsync.kernel.start.loading import load

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
    torch = load("torch")
    if torch.version.cuda is None and torch.version.hip is None:  # built without
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
        UsageError: the number is not a positive integer, or there is no such backend.
    """
    if num_processes is not None and (
        isinstance(num_processes, bool) or not isinstance(num_processes, int) or num_processes < 1
    ):
        raise UsageError(f"num_processes must be a positive integer or None (one per GPU), got {num_processes!r}")
    size = num_processes or gpus or DEFAULT_CPU_RANKS
    if backend is not None:
        return Placement(size, _checked(backend, gpus))
    if gpus == 0:
        return Placement(size, GLOO)
    if size > gpus:
        return Placement(size, GLOO, f"{size} ranks share {gpus} GPU{'s' * (gpus > 1)}: the backend is gloo")
    return Placement(size, GLOO_AND_NCCL)


def _checked(backend: str, gpus: int) -> str:
    """A backend as torch takes it: "gloo", or one per device type, "cpu:gloo,cuda:nccl"."""
    from torch.distributed import Backend

    known = [name for name in Backend.backend_list if name != Backend.UNDEFINED]
    names = [part.rpartition(":")[2] for part in str(backend).lower().split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"backend must be one of {', '.join(known)}, or one per device as in {GLOO_AND_NCCL!r}, got {backend!r}"
        )
    if Backend.NCCL in names and not gpus:
        raise UsageError(f"backend={backend!r} needs GPUs, and there are none here: leave it out, or use 'gloo'")
    return str(backend).lower()


def threads_per_rank(world_size: int, env: Mapping[str, str]) -> int:
    """The user's OMP_NUM_THREADS, from `env` or the notebook's environment; else the cores divided among the ranks."""
    chosen = env.get("OMP_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return max(1, len(os.sched_getaffinity(0)) // world_size)
