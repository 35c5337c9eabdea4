"""The default process group in programs that make and destroy it themselves.

In a launched function they may, as often as they like. The group of a session stands from its start to its end,
whatever the code in its cells was written for: making it is an error there that says what to write, and destroying it
does nothing, as `Accelerator.end_training` may do that far from the user's eye.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from nbsync.errors import UsageError

c10d: Any = distributed_c10d

# Kept for good: a DDP model that holds the last reference to a group waits for gloo's threads when it goes, and has the
# GIL, which such a thread may need to let go of the tensors of the last collective. Both would wait for ever.
_destroyed: list[Any] = []

_EXISTS = (
    "the process group exists already: nbsync made it when the workers started. Leave this line out, or write "
    "`if not dist.is_initialized(): dist.init_process_group(...)`, which is right everywhere. "
    "Another backend: `%nbsync stop`, then `%nbsync start --backend NAME`"
)
_STAYS = "the process group belongs to the session and stays: `%nbsync stop` ends it with the workers"


def look_after_groups(namespace: dict[str, Any], *, in_session: bool) -> None:
    """From now on the user's code can make and destroy groups without harm to itself, or to a session.

    Args:
        namespace: the user's variables, among which may be torch's functions under names of their own.
        in_session: the default group is there, and is to stay.
    """
    _meet_anew_each_time()
    if in_session:
        _replace(c10d.init_process_group, _refuse(c10d.init_process_group), namespace)
    _replace(c10d.destroy_process_group, _destroy_safely(c10d.destroy_process_group, in_session), namespace)


def _replace(original: Any, replacement: Any, namespace: dict[str, Any]) -> None:
    for holder in (vars(c10d), vars(dist), namespace):
        for name in [name for name, value in holder.items() if value is original]:
            holder[name] = replacement


def _meet_anew_each_time() -> None:
    """Give each default group that the user's code makes a namespace of its own in the store.

    torch gives all of them the same names: a rank that makes its second group before the others do would find the
    addresses of their first.
    """
    rendezvous, numbers = c10d.rendezvous, itertools.count()

    @functools.wraps(rendezvous)
    def meet(*args: Any, **kwargs: Any) -> Iterator[tuple[Store, int, int]]:
        number = next(numbers)
        for store, rank, size in rendezvous(*args, **kwargs):
            yield PrefixStore(f"nbsync/group-{number}", store) if number else store, rank, size

    c10d.rendezvous = meet


def _refuse(init_process_group: Any) -> Any:
    @functools.wraps(init_process_group)
    def init(*args: Any, **kwargs: Any) -> None:
        if dist.is_initialized():
            raise UsageError(_EXISTS)
        init_process_group(*args, **kwargs)

    return init


def _destroy_safely(destroy_process_group: Any, in_session: bool) -> Any:
    @functools.wraps(destroy_process_group)
    def destroy(group: Any = None) -> None:
        is_default = dist.is_initialized() and group in (None, dist.group.WORLD)
        if is_default and in_session:
            print(_STAYS, file=sys.stderr)
            return
        _destroyed.extend(c10d._world.pg_map if is_default else (group,))
        destroy_process_group(group)

    return destroy
