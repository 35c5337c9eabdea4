"""Getting out of NCCL's collectives, and the groups' next life. Written against torch's API; it has not run on a GPU.

NCCL has no sockets to shut down. Its communicators are aborted instead, which ends their kernels on the GPU: all of
one process inside one group call, since aborts of several would wait for each other (torch issue 119797). torch's own
handling must be off (`TORCH_NCCL_ASYNC_ERROR_HANDLING=0`, which sessions set): it would end the process.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d

c10d: Any = distributed_c10d  # what is private has no types
_CUDA = torch.device("cuda")


def nccl_backends() -> list[Any]:
    """The NCCL backends of all process groups of this process."""
    if not c10d.is_nccl_available():
        return []
    found = [pg._get_backend(_CUDA) for pg in list(c10d._world.pg_map) if _CUDA in pg._device_types]
    return [backend for backend in found if is_nccl(backend)]


def abort_all() -> None:
    """End every NCCL collective of this process, from any thread. The groups then need fresh ones."""
    backends = nccl_backends()
    if not backends:
        return
    backends[0]._group_start()
    try:
        for backend in backends:
            backend.abort()
    finally:
        backends[0]._group_end()


def is_nccl(backend: Any) -> bool:
    """Whether this is a backend of NCCL."""
    return c10d.is_nccl_available() and isinstance(backend, c10d.ProcessGroupNCCL)


def make_fresh(backend: Any, pg: Any, store: Any) -> Any:
    """A backend for the next life of a process group.

    Args:
        backend: the aborted one.
        store: the group's own part of the store, in its new life.
    """
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = getattr(backend.options, "_timeout", timedelta(minutes=10))
    # A rank that joins this life makes its own by `init_process_group`, which names the keys so.
    return c10d.ProcessGroupNCCL(PrefixStore("/cuda/", store), pg.rank(), pg.size(), options)


def connect(pg: Any) -> None:
    """Make the communicator of a group that is bound to a device. All ranks of the group must do it together."""
    if pg.bound_device_id is not None and is_nccl(backend := pg._get_backend(_CUDA)):
        backend.eager_connect_single_device(pg.bound_device_id)
