"""What follows when this rank had too little memory."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import torch

_TOO_LITTLE = re.compile(r"not enough memory|can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed: Python's, torch's on the CPU, or a GPU's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and _TOO_LITTLE.search(str(error)) is not None


def memory_limit() -> int:
    """How many bytes this process may have: of the machine, of its control group, or as `ulimit` says."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    found += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    with suppress(OSError, ValueError):  # no control groups of version 2, or "max"
        group = Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape").rpartition("::")[2].strip()
        found.append(int(Path(f"/sys/fs/cgroup{group}/memory.max").read_text("ascii")))
    return min(limit for limit in found if limit != resource.RLIM_INFINITY)


def give_back() -> None:
    """Return to the system what is not needed any more: the failed cell's frames are gone by now."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
