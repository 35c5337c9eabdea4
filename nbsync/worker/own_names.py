"""The names that a worker binds in the user's namespace: what it is, and torch."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist

from nbsync.protocol.spec import OWN_NAMES, PLACE_NAMES
from nbsync.worker.control.world import World


class OwnNames:
    """Binds them.

    Args:
        namespace: the user's.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._place: dict[str, Any] = {}

    def bind(self, world: World, *, in_session: bool) -> None:
        """Bind all. In a launched function, which was not written for them, what the notebook has stays."""
        values = (world, world.rank, world.local_rank, world.size, world.device, torch, dist)
        names = dict(zip(OWN_NAMES, values, strict=True))
        self._namespace.update(
            {name: value for name, value in names.items() if in_session or name not in self._namespace}
        )
        if in_session:
            self._place = {name: names[name] for name in PLACE_NAMES}

    def restore(self) -> None:
        """After a cell: a rank that went on with another number than its own would get wrong results, untold."""
        changed = [name for name, own in self._place.items() if not _is_alike(self._namespace.get(name), own)]
        if changed:
            self._namespace.update({name: self._place[name] for name in changed})
            names = ", ".join(f"`{name}`" for name in changed)
            print(f"nbsync: {names} will be each rank's own again in the next cell: take another name", file=sys.stderr)


def _is_alike(value: Any, own: Any) -> bool:
    """Whether it says the same: the same number, or any `World`."""
    return type(value) is type(own) and (isinstance(own, World) or bool(value == own))
