"""What a worker must not take over from the notebook that it is a copy of."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

_kept: list[Any] = []


def forget_inherited_fork_server() -> None:
    """That of multiprocessing is the notebook's child: nobody else can wait for what it starts."""
    known: Any = sys.modules.get("multiprocessing.forkserver")
    if known is not None:
        server = known._forkserver
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


def forget_inherited_worlds() -> None:
    """Forget a world that was made in the notebook: a process group of one, or Accelerate's state.

    The objects are kept alive: their destructors would speak with threads that the fork did not copy.
    """
    if dist.is_initialized():
        world: Any = c10d._world
        _kept.append((c10d.GroupMember.WORLD, dict(world.pg_map)))
        c10d._update_default_pg(None)
        for table in (
            world.pg_map,
            world.pg_names,
            world.pg_group_ranks,
            world.pg_backend_config,
            world.tags_to_pg,
        ):
            table.clear()
        for table in (world.pg_to_tag, world.pg_coalesce_state):
            table.clear()
        world.group_count = 0
        c10d._unregister_all_process_groups()  # type: ignore[attr-defined]
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None:
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.GradientState._reset_state()
