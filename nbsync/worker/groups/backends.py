"""Puts fresh backends under a process group that is in use, and lets the earlier ones go.

DDP, FSDP2 and DeviceMesh hold a `ProcessGroup` object, which passes every operation on to a backend. Python can add a
backend to a group, and has no way to take one out: a gloo backend would stay with its threads until the group goes.
C++ has one, `release_resources`, by which a group is emptied when it goes; torch's library exports it. It drops the
group's store too, on which `split_group` builds: that is put back.

Where this torch cannot be handled so, a fresh backend comes under a type that the group has not used yet, and the
earlier one stays.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch._C._distributed_c10d import Store
from torch.distributed import distributed_c10d

from nbsync.errors import NbsyncError
from nbsync.worker.groups import nccl
from nbsync.worker.groups.native import torch_library
from nbsync.worker.groups.sockets import Socket
from nbsync.worker.groups.stranded import Stranded

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types
Backends: TypeAlias = dict[torch.device, Any]

_GLOO: Any = _distributed_c10d.ProcessGroupGloo
_RELEASE = "_ZN4c10d12ProcessGroup17release_resourcesEv"
_MEMBERS = range(8, 64, 8)  # offsets in a C++ object, after its table of methods
_WAKING = 10.0  # seconds for threads that may be stranded
_SPARE_TYPES = range(7, 256, 2)  # torch names the types 0 to 6; the enum holds one byte


def make_fresh(pg: Any, ranks: Sequence[int], store: Store) -> Backends:
    """Fresh backends for a process group, of the kinds that it has. All its ranks must make them together.

    Args:
        ranks: the group's, by their numbers in the world.
        store: the group's own part of the store, in its new life.
    """
    made: dict[int, Any] = {}
    earlier = _backends(pg)
    for backend in earlier.values():
        if id(backend) not in made:
            made[id(backend)] = _like(backend, pg, ranks, store)
    return {device: made[id(backend)] for device, backend in earlier.items()}


def replace(pg: Any, fresh: Mapping[torch.device, Any], life: int) -> list[Any]:
    """Let `pg` use `fresh` from now on. In the moment that this takes nobody else may ask it for its backends.

    Args:
        life: which life of the groups begins with it, from 1.

    Returns:
        The earlier backends, for `let_go`.

    Raises:
        NbsyncError: earlier backends stay in this torch, and there is no type left.
    """
    earlier, name, description = _backends(pg), pg.group_name, pg.group_desc
    kind_of = _own_type if _empty(pg) else functools.partial(_spare_type, life)
    for device, backend in fresh.items():
        pg._register_backend(device, kind_of(backend), backend)
    pg._set_group_name(name)
    pg._set_group_desc(description)
    return list(earlier.values())


def use_store(pg: Any, store: Store) -> None:
    """Let a group hand out this store, if this torch can be told so; what its backends use stays."""
    other = dist.ProcessGroup(store, pg.rank(), pg.size())
    place, place_of_other = _place_of_store(pg), _place_of_store(other)
    if place is not None and place_of_other is not None:
        place.value, place_of_other.value = place_of_other.value, place.value


def let_go(earlier: list[Any], connections: Set[Socket], threads: frozenset[int]) -> None:
    """Let go of backends, in a thread of its own: one that goes waits for its threads.

    Args:
        earlier: the list is emptied, and must hold the last references.
        connections: theirs, which have been shut down.
        threads: gloo's that these backends had, of which some may be stranded.
    """

    def run() -> None:
        Stranded(connections, threads).wake_all(_WAKING)
        earlier.clear()

    threading.Thread(target=run, name="nbsync-earlier-backends", daemon=True).start()


def _backends(pg: Any) -> Backends:
    return {device: pg._get_backend(device) for device in pg._device_types}


def _like(backend: Any, pg: Any, ranks: Sequence[int], store: Store) -> Any:
    """A fresh backend of the same kind, with the same options."""
    if isinstance(backend, _GLOO):
        options = backend.options
        options.global_ranks_in_group = list(ranks)  # else `split_group` ends the process
        return c10d.ProcessGroupGloo(store, pg.rank(), pg.size(), options)
    return nccl.make_fresh(backend, pg, store) if nccl.is_nccl(backend) else backend


def _own_type(backend: Any) -> Any:
    types = dist.ProcessGroup.BackendType
    return types.__members__.get(backend.name().upper(), types.CUSTOM)


def _spare_type(life: int, backend: Any) -> Any:
    if life > len(_SPARE_TYPES):
        raise NbsyncError(
            "it was healed as often as this torch allows. `%nbsync restart` gives fresh workers "
            "(fetch what you need first: `%nbsync pull NAME`)"
        )
    return dist.ProcessGroup.BackendType(_SPARE_TYPES[life - 1] + nccl.is_nccl(backend))


def _empty(pg: Any) -> bool:
    """Take all backends out of a group. Returns whether that was possible; if not, nothing was done."""
    release, store = _release_resources(), _place_of_store(pg)
    if release is None or store is None:
        return False
    kept, store.value = store.value, None
    release(pg._id())
    store.value = kept
    return True


@functools.cache
def _release_resources() -> Callable[[int], None] | None:
    try:
        function = torch_library("torch_cpu")[_RELEASE]
    except (OSError, AttributeError):  # another build of torch
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


def _place_of_store(pg: Any) -> ctypes.c_void_p | None:
    """Where a group has the pointer to its store; None if that cannot be told for sure."""
    store = pg.get_group_store()
    if store is None or _address(pg) != pg._id():
        return None
    members = [ctypes.c_void_p.from_address(pg._id() + offset) for offset in _MEMBERS]
    found = [member for member in members if member.value == _address(store)]
    return found[0] if len(found) == 1 else None


def _address(thing: Any) -> int | None:
    """Of a C++ object: pybind11 keeps it right after the head of the Python object."""
    return ctypes.c_void_p.from_address(id(thing) + object.__basicsize__).value
