"""The worker's process groups: made at the start, cut to free a blocked collective, healed in place.

Gloo offers no way out of a blocked collective, but the collective raises when its sockets are shut down, and a
`ProcessGroup` object takes a fresh backend under a backend type it has not used yet. So after a failure the same
group objects, and DDP, FSDP2 and DeviceMesh built on them, go on working.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from nbsync.errors import NbsyncError

_FIRST_SPARE_TYPE = 7  # torch names the backend types 0 to 6; the enum holds one byte
_LAST_SPARE_TYPE = 255


@dataclass
class _Backend:
    """A gloo backend and the connected sockets that came with it, as (fd, inode)."""

    backend: weakref.ReferenceType[Any]
    sockets: tuple[tuple[int, str], ...]


class GroupKeeper:
    """Knows every gloo backend of this process."""

    def __init__(self) -> None:
        self._backends: list[_Backend] = []
        self._spare_type = _FIRST_SPARE_TYPE
        self._lock = threading.Lock()
        self.was_cut = False

    def install(self) -> None:
        """Record the sockets of each gloo backend made from now on, also by user code."""
        keeper = self
        original = c10d.ProcessGroupGloo

        class ProcessGroupGloo(original):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                before = _open_sockets()
                super().__init__(*args, **kwargs)
                keeper._record(self, _open_sockets() - before)

        ProcessGroupGloo.__qualname__ = ProcessGroupGloo.__name__ = original.__name__
        c10d.ProcessGroupGloo = ProcessGroupGloo  # type: ignore[misc]

    def _record(self, backend: Any, sockets: set[tuple[int, str]]) -> None:
        connected = tuple(s for s in sockets if _is_connected(s[0]))
        with self._lock:
            self._backends.append(_Backend(weakref.ref(backend), connected))

    def cut(self) -> None:
        """Free every collective that is blocked in this process, from any thread; the group then needs healing.

        Listening sockets stay: gloo ends the process when one of them is shut down.
        """
        with self._lock:
            self.was_cut = True
            for record in self._backends:
                for fd, inode in record.sockets:
                    _shut_down(fd, inode)

    def heal(self, store: dist.Store, generation: int) -> None:
        """Put a fresh backend under each process group of this process. All ranks must do it together.

        Raises:
            NbsyncError: there is no backend type left to register it under.
        """
        if self._spare_type > _LAST_SPARE_TYPE:
            raise NbsyncError(
                "the process group was healed as often as torch allows: `%nbsync restart` gives fresh workers "
                "(save models first with `%nbsync pull`)"
            )
        kind = dist.ProcessGroup.BackendType(self._spare_type)
        self._spare_type += 1
        with self._lock:
            self._backends.clear()
        for pg, (_, _) in list(c10d._world.pg_map.items()):
            if torch.device("cpu") not in pg._device_types:
                continue
            prefix = dist.PrefixStore(f"nbsync/heal-{generation}/{pg.group_name}", store)
            timeout = pg._get_backend(torch.device("cpu")).options._timeout
            fresh = c10d.ProcessGroupGloo(prefix, pg.rank(), pg.size(), timeout)
            pg._register_backend(torch.device("cpu"), kind, fresh)
        self.was_cut = False

    def sequence_numbers(self) -> tuple[tuple[str, int], ...]:
        """How many collectives each group has seen, by its name: equal on all ranks when nothing is missing."""
        return tuple(
            (pg.group_name, pg._get_sequence_number_for_group())
            for pg in c10d._world.pg_map
            if torch.device("cpu") in pg._device_types
        )


def init_process_group(backend: str, device: torch.device) -> None:
    """Create the default process group from the torchrun environment."""
    bound = {"device_id": device} if device.type == "cuda" and "nccl" in backend else {}
    dist.init_process_group(backend, **bound)  # type: ignore[arg-type]


def _open_sockets() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of this very listing
            continue
        if target.startswith("socket:"):
            found.add((int(name), target))
    return found


def _is_connected(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.getpeername()
        except OSError:
            return False
        return True


def _shut_down(fd: int, inode: str) -> None:
    """Shut down a socket unless its descriptor has come to mean something else."""
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != inode:
            return
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed, or the peer went first
        return
