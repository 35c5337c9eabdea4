"""The worker's process groups: made at the start, cut to free a blocked collective, healed in place.

Gloo offers no way out of a blocked collective, but the collective raises when its sockets are shut down, and a
`ProcessGroup` object takes fresh backends (`nbsync.worker.groups.backends`). So after a failure the same group objects,
and DDP, FSDP2 and DeviceMesh built on them, go on working.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from nbsync.worker.groups import nccl
from nbsync.worker.groups.backends import let_go, make_fresh, replace, use_store
from nbsync.worker.groups.events import end_connections
from nbsync.worker.groups.meeting import MeetingPoint
from nbsync.worker.groups.native import torch_library
from nbsync.worker.groups.reserve import Reserve
from nbsync.worker.groups.sockets import Flow, Socket, connected_sockets, flow, open_sockets, shut_down
from nbsync.worker.groups.stranded import Stranded
from nbsync.worker.groups.tasks import gloo_threads
from nbsync.worker.groups.training import Training
from nbsync.worker.groups.uncaught import Uncaught
from nbsync.worker.interrupts import Shield

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_GROUPS_PER_LIFE = 10_000
_DEFAULT_GROUP = "0"  # the name that torch gives to the first group
_CPU = torch.device("cpu")
_ERRORS_ONLY = 2  # a level of torch's C++ log
_OWN_DESCRIPTORS = 16  # that a heal may need beside one for each peer


class GroupKeeper:
    """Knows the sockets of every gloo backend of this process, and of its connection to the store.

    Args:
        shield: a context whose lines no interrupt cuts in two.

    Attributes:
        was_cut: a collective was freed by force.
        is_healing: the groups are made whole, with the other ranks.
        uncaught: what gloo's event loops have thrown.
        training: what the user trains with.
    """

    def __init__(self, meeting: MeetingPoint, rank: int, size: int, shield: Shield) -> None:
        self.was_cut = self.is_healing = False
        self.uncaught, self.training = Uncaught(), Training()
        self._meeting, self._rank, self._size, self._shield = meeting, rank, size, shield
        self._reserve = Reserve(_OWN_DESCRIPTORS + size)
        self._users_level: int | None = None
        self._sockets: set[Socket] = set()
        self._before: set[Socket] | None = None  # what was open when the backend under construction was begun
        self._stranded = Stranded(self._sockets)
        self._lost: dict[str, tuple[int, ...]] = {}
        self._connection: Store | None = None
        self._ended_stores: set[Socket] = set()  # connections to the store that were shut down
        self._life_store: Store | None = None
        self._lock = threading.Lock()

    def install(self) -> None:
        """Record the sockets of each gloo backend made from now on, also by user code."""
        self._meeting.install()
        self.training.install()
        self.uncaught.install()
        keeper = self
        original = c10d.ProcessGroupGloo

        class Kind(type(original)):  # type: ignore[misc]  # of a C++ class
            def __instancecheck__(cls, thing: object) -> bool:
                return isinstance(thing, original)  # also one that C++ made, as for RPC

        class ProcessGroupGloo(original, metaclass=Kind):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                keeper._before = open_sockets()
                try:
                    super().__init__(*keeper._arguments(*args), **kwargs)
                    keeper._record()
                finally:
                    keeper._before = None

        ProcessGroupGloo.__qualname__ = ProcessGroupGloo.__name__ = original.__name__
        c10d.ProcessGroupGloo = ProcessGroupGloo
        c10d._create_process_group_wrapper = _leave_bare

    def _arguments(self, store: Store, *rest: Any) -> tuple[Any, ...]:
        """A worker that joins a world later meets the others where they heal their default group."""
        if self._life_store is None:
            return store, *rest
        return PrefixStore(_DEFAULT_GROUP, self._life_store), *rest

    def _record(self) -> None:
        with self._lock:
            self._sockets |= connected_sockets(besides=self._before or set())

    def cut(self, is_meant: Callable[[], bool] = lambda: True, with_store: bool = False) -> None:
        """Free every collective that is blocked in this process, from any thread; the groups then need healing.

        Listening sockets stay: gloo ends the process when one of them is shut down.

        Args:
            is_meant: asked once nobody can look at `are_broken` any more: the run that it is for may be over.
            with_store: also free a wait for the store, as in a group that is being created.
        """
        with self._lock:
            if not is_meant():
                return
            if not self.was_cut:
                self.was_cut, self._stranded = True, Stranded(self._sockets)
            self._end_connections()
            if with_store:
                self._hush(True)  # it would print its own stack trace of what is done on purpose here
                doomed = connected_sockets(peer_port=self._meeting.port)
                self._ended_stores |= doomed
                for sock in doomed:
                    shut_down(sock)
            nccl.abort_all()

    def _end_connections(self) -> set[Socket]:
        """End those of all backends, also of one that is being made, and return them."""
        doomed = set(self._sockets)
        if self._before is not None:
            doomed |= connected_sockets(besides=self._before)
        end_connections(doomed)
        return doomed

    def wake_stranded(self) -> None:
        """After a cut: wake threads that gloo has forgotten."""
        with self._lock:
            if self.was_cut:
                self._stranded.wake()

    def flow(self) -> Flow:
        """What flows through the connections of all backends."""
        with self._lock:
            return flow(self._sockets)

    @property
    def are_broken(self) -> bool:
        """Whether the groups need healing before they are used again."""
        with self._lock:  # a cut that has begun counts
            return self.was_cut or self.uncaught.count > 0 or self.training.is_uneven

    def end_run(self, *, well: bool) -> None:
        """After each run but a heal: see to the models of which it has cut a pass short."""
        self.training.end_run(well and not self.are_broken)

    def use_nccl(self) -> bool:
        """Whether some group has its data on GPUs."""
        with self._lock:
            return bool(nccl.nccl_backends())

    def _hush(self, quiet: bool) -> None:
        """Have torch's C++ log errors only, or again what the user wants it to."""
        level = _log_level()
        if level is not None and quiet != (self._users_level is not None):
            self._users_level, level.value = (level.value, _ERRORS_ONLY) if quiet else (None, self._users_level or 0)

    def join(self, backend: str, device: torch.device, life: int) -> None:
        """Create the default process group from the torchrun environment.

        Args:
            life: how often the world was made whole again before: the other ranks wait in that life's namespace.
        """
        store = self._new_store(life)
        if life:
            self._tell(store, [_DEFAULT_GROUP])
            self._life_store = store
        bound = device if device.type == "cuda" and "nccl" in backend else None
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._size, device_id=bound)
        if life:
            self._settle(life, store)
            self._life_store = None
            use_store(dist.group.WORLD, PrefixStore(f"{_DEFAULT_GROUP}/", self._new_store(0)))  # as the others do

    def heal(self, life: int) -> list[tuple[int, ...]]:
        """Put a fresh backend under each process group of this process. All ranks must do it together.

        Args:
            life: number of the groups' new life.

        Returns:
            The ranks of each group that must be made again, since not all its members know it: a rank was started
            afresh, or the group's creation was cut off. Each is returned once.
        """
        self.is_healing = True
        try:
            with self._reserve.opened():
                return self._heal(life)
        finally:
            self.is_healing = False

    def _heal(self, life: int) -> list[tuple[int, ...]]:
        with self._lock:
            ended = self._end_connections()
            self._sockets.clear()
        store = self._new_store(life)
        known = self._known_to_all(store)
        threads, earlier = gloo_threads(), list[Any]()
        try:
            for pg in list(c10d._world.pg_map):
                if pg.group_name in known:
                    self._renew(pg, known[pg.group_name], store, life, earlier)
        finally:
            let_go(earlier, ended, threads)
        with self._shield():
            self.training.agree(store, self._rank, range(dist.get_world_size()), known)
        self._settle(life, store)
        self.was_cut, self.uncaught.count = False, 0
        self.training.healed()
        self._hush(False)
        mine = {pg.group_name: tuple(c10d.get_process_group_ranks(pg)) for pg in c10d._world.pg_map}
        lost = {name: ranks for name, ranks in mine.items() if name not in known and name not in self._lost}
        self._lost.update(lost)
        return list(lost.values())

    def _renew(self, pg: Any, ranks: list[int], store: Store, life: int, earlier: list[Any]) -> None:
        """Give a group fresh backends; `earlier` takes those that it had. All its ranks do it together."""
        fresh = make_fresh(pg, ranks, PrefixStore(pg.group_name, store))
        with self._shield(), self._lock:  # a cut asks the groups for their backends
            earlier += replace(pg, fresh, life)
        nccl.connect(pg)

    def _known_to_all(self, store: Store) -> dict[str, list[int]]:
        """The names of the groups of this process that all their members know, with these."""
        mine = {pg.group_name: list(c10d.get_process_group_ranks(pg)) for pg in c10d._world.pg_map}
        self._tell(store, sorted(mine))
        others = {rank: json.loads(store.get(f"groups/{rank}")) for rank in range(dist.get_world_size())}
        return {name: ranks for name, ranks in mine.items() if all(name in others[rank] for rank in ranks)}

    def _tell(self, store: Store, groups: list[str]) -> None:
        """Tell the other ranks what this one knows, before they heal together."""
        self.training.tell(store, self._rank)
        store.set(f"groups/{self._rank}", json.dumps(groups))

    def _settle(self, life: int, store: Store) -> None:
        """Let all groups use the new connection to the store, and later groups have one name on all ranks.

        Ranks may disagree about groups whose creation was cut off, and so about the next group's number.
        """
        for pg, (name, _) in list(c10d._world.pg_map.items()):
            c10d._world.pg_map[pg] = (name, PrefixStore(pg.group_name, store))
        c10d._world.group_count = life * _GROUPS_PER_LIFE

    def _new_store(self, life: int) -> Store:
        """The store's namespace for one life of the groups."""
        return PrefixStore(f"nbsync/life-{life}", self._connect())

    def _connect(self) -> Store:
        """The connection to the kernel's store, made anew if it was cut, also for those who hold on to the store."""
        if self._connection is None:
            self._connection = self._meeting.connect()
        for ended in tuple(self._ended_stores):
            self._meeting.renew(ended)
            self._ended_stores.discard(ended)
        return self._connection

    def sequence_numbers(self) -> tuple[tuple[str, int], ...]:
        """How many collectives each group has seen, its models changes, optimizers steps: the same on all ranks."""
        seen: list[tuple[str, int]] = []
        for group in c10d._world.pg_map:
            if _CPU in group._device_types:
                with suppress(RuntimeError):  # a backend of another kind than gloo, which does not count
                    seen.append((group.group_name, group._get_backend(_CPU)._get_sequence_number_for_group()))
        return (*seen, *self.training.changes())


def _leave_bare(wrapped_pg: Any, **_: Any) -> Any:
    """In place of what TORCH_DISTRIBUTED_DEBUG=DETAIL puts around backends, to compare collectives as nbsync does.

    It does so by a barrier on connections of its own, in which a fresh rank would wait for those that have healed.
    """
    return wrapped_pg


def _log_level() -> ctypes.c_int | None:
    """The level of torch's C++ log, which TORCH_CPP_LOG_LEVEL only sets when torch is loaded."""
    try:
        return ctypes.c_int.in_dll(torch_library("c10"), "FLAGS_caffe2_log_level")
    except (OSError, ValueError):  # another build of torch: its warning shows, and does no harm
        return None
