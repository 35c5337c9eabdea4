"""What follows when this rank had too little memory."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
from contextlib import suppress

import torch

from nbsync.protocol.cgroups import memory_groups

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
    found += [group.limit for group in memory_groups() if group.limit is not None]
    return min(limit for limit in found if limit != resource.RLIM_INFINITY)


def give_back() -> None:
    """Return to the system what is not needed any more: the failed cell's frames are gone by now."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
