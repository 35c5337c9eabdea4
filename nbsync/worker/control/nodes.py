"""The process group of this node's ranks."""

from __future__ import annotations

import torch.distributed as dist

# The default group and this node's group in it. Of the process and not of a World, as the default group is.
_group: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def group_of_node(members: range) -> dist.ProcessGroup:
    """The group of this node's ranks; the first call makes it, together on all of them."""
    global _group
    world = dist.group.WORLD
    assert world is not None
    if _group is None or _group[0] is not world:
        group = dist.new_group(list(members), backend="gloo", use_local_synchronization=True)
        _group = world, group
    return _group[1]
