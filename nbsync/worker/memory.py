"""What this process holds, on the host and on its GPU."""

from __future__ import annotations

import os

import torch

from nbsync.protocol.reports import Memory


class MemoryGauge:
    """Reads this process's memory. It opens its file once, so it also works when no descriptor is left."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> Memory:
        """What is held now."""
        resident = int(os.pread(self._statm, 256, 0).split()[1]) * self._page
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return Memory(resident)
        return Memory(resident, torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
