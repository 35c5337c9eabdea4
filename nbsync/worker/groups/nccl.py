"""Getting out of NCCL's collectives, and the groups' next life. Written against torch's API; it has not run on a GPU.

NCCL has no sockets to shut down. Its communicators are aborted instead, which ends their kernels on the GPU: all of
one process inside one group call, since aborts of several would wait for each other (torch issue 119797). torch's own
handling must be off (`TORCH_NCCL_ASYNC_ERROR_HANDLING=0`, which sessions set): it would end the process.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d

c10d: Any = distributed_c10d  # what is private has no types
_CUDA = torch.device("cuda")


def nccl_backends() -> list[tuple[Any, Any]]:
    """Every process group of this process that has an NCCL backend, with that."""
    if not c10d.is_nccl_available():
        return []
    found = [(pg, pg._get_backend(_CUDA)) for pg in list(c10d._world.pg_map) if _CUDA in pg._device_types]
    return [(pg, backend) for pg, backend in found if isinstance(backend, c10d.ProcessGroupNCCL)]


def abort_all() -> None:
    """End every NCCL collective of this process, from any thread. The groups then need `renew`."""
    backends = [backend for _, backend in nccl_backends()]
    if not backends:
        return
    backends[0]._group_start()
    try:
        for backend in backends:
            backend.abort()
    finally:
        backends[0]._group_end()


def renew(pg: Any, backend: Any, store: Any, kind: Any) -> None:
    """Put a fresh NCCL backend under a process group. All ranks of the group must do it together.

    Args:
        backend: the aborted one.
        store: the group's own part of the store, in its new life.
        kind: a backend type that the group has not used yet.
    """
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = getattr(backend.options, "_timeout", timedelta(minutes=10))
    fresh = c10d.ProcessGroupNCCL(store, pg.rank(), pg.size(), options)
    pg._register_backend(_CUDA, kind, fresh)
    if pg.bound_device_id is not None:
        fresh.eager_connect_single_device(pg.bound_device_id)
