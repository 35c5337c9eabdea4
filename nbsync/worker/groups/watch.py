"""Watches this process's operations on its groups: what it waits for, and whether all ranks mean the same one.

Gloo ends the process when shapes or types differ between ranks, and hangs or gives wrong numbers when operations do.
So before a blocking collective the ranks compare what they are about to do; a difference is an error on every rank,
and the group stays usable. The methods of `ProcessGroup` are wrapped, so every Python path is covered: also functions
imported before the start, and groups made by user code. What C++ starts by itself (DDP's backward) is not compared.

Operations that do not block (`async_op=True`, `isend`, `irecv`), and those between two ranks, are not compared before:
waiting for the others there could stop a program that is right. Each rank notes what it begins (see ledger.py), and
compares when it has waited for it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nbsync.errors import CollectiveMismatch
from nbsync.worker.groups.comparison import Comparison, tell_difference
from nbsync.worker.groups.ledger import Entry, Ledger
from nbsync.worker.groups.operations import COLLECTIVES, describe, describe_tensors, python_name, type_name
from nbsync.worker.groups.uncaught import MISMATCH
from nbsync.worker.places import line_of

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Collective:
    """A collective that this process waits for: its name, its group, and its number in that group."""

    name: str
    group: str
    ranks: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class _Begun:
    """What this process has begun: the collective, if it is one, and how the `ranks` concerned know it."""

    collective: Collective | None
    key: str
    ranks: tuple[int, ...]
    must: str


class CollectiveWatch:
    """Wraps the collectives of this process, and what two ranks send each other.

    Args:
        compare: let the ranks compare what they do.

    Attributes:
        current: the collective that the main thread waits for; read by the helper thread.
        ledger: where the ranks note what they begin, if there is such a place.
    """

    def __init__(self, compare: bool) -> None:
        self.current: Collective | None = None
        self.ledger: Ledger | None = None
        self._compares = compare
        self._numbers: Counter[str] = Counter()  # of a group's collectives, and of the messages from rank to rank
        self._from_anybody: set[str] = set()
        self._begun: WeakKeyDictionary[Any, _Begun] = WeakKeyDictionary()  # by their `Work`
        self._comparison = Comparison()
        self._main = threading.get_ident()

    def install(self) -> None:
        """Wrap the methods of `ProcessGroup`, and of `Work` the one that waits."""
        for method in COLLECTIVES:
            original = getattr(dist.ProcessGroup, method, None)
            if original is not None:  # not every torch has all of them
                setattr(dist.ProcessGroup, method, self._collective(method, original))
        dist.ProcessGroup.send = self._message("send", dist.ProcessGroup.send)  # type: ignore[method-assign]
        dist.ProcessGroup.recv = self._message("recv", dist.ProcessGroup.recv)  # type: ignore[method-assign]
        dist.ProcessGroup.recv_anysource = self._message_from_anybody(  # type: ignore[method-assign]
            dist.ProcessGroup.recv_anysource
        )
        dist.Work.wait = self._wait(dist.Work.wait)  # type: ignore[method-assign]

    def forget(self) -> None:
        """The groups begin a new life: count from zero again."""
        self.current = None
        self._numbers.clear()
        self._from_anybody.clear()

    def _collective(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            if self.current is not None or threading.get_ident() != self._main or group.size() == 1:
                return original(group, *args, **kwargs)
            name, ranks = group.group_name, _ranks_of(group)
            self._numbers[name] += 1
            collective = Collective(python_name(method), name, ranks, self._numbers[name])
            options = kwargs.get("opts", args[-1] if args else None)
            if not getattr(options, "asyncOp", True):
                with self._waiting_for(collective):
                    if self._compares and _CPU in group._device_types:
                        self._comparison.make(group, ranks, describe(method, args, options))
                    work = original(group, *args, **kwargs)
                    if work is not None:
                        work.wait()  # the caller waits once more, which returns at once: this covers the whole wait
                    return work
            what = describe(method, args, options)
            begun = self._begin(_Begun(collective, f"{name}/{collective.number}", ranks, what), what)
            with _counted(self._numbers, name):
                work = original(group, *args, **kwargs)
            return self._keep(work, begun)

        call.__name__, call.__doc__ = method, original.__doc__
        return call

    def _message(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, tensors: Any, peer: int, tag: int = 0) -> Any:
            name, ranks = group.group_name, _ranks_of(group)
            ends = (group.rank(), peer) if method == "send" else (peer, group.rank())
            way = f"{name}/{ends[0]}>{ends[1]}:{tag}"
            self._numbers[way] += 1
            must = " ".join(f"{tensor.numel() * tensor.element_size()} {type_name(tensor)}" for tensor in tensors)
            both = tuple(ranks[end] for end in ends if 0 <= end < len(ranks))
            begun = _Begun(None, f"{way}/{self._numbers[way]}", both, must)
            self._begin(begun, f"{method} {' '.join(describe_tensors(tensors))}")
            with _counted(self._numbers, way):
                work = original(group, tensors, peer, tag)
            is_known = method == "recv" and name not in self._from_anybody
            return self._keep(work, begun) if is_known else work  # whoever receives compares

        call.__name__, call.__doc__ = method, original.__doc__
        return call

    def _message_from_anybody(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            self._from_anybody.add(group.group_name)  # from now on it is not known which message is which
            return original(group, *args, **kwargs)

        call.__name__, call.__doc__ = "recv_anysource", original.__doc__
        return call

    def _wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if self.current is not None or threading.get_ident() != self._main:
                return original(work, *args, **kwargs)
            begun = self._begun.pop(work, None)
            if begun is None:
                return original(work, *args, **kwargs)
            try:
                with self._waiting_for(begun.collective):
                    done = original(work, *args, **kwargs)
            except CollectiveMismatch:
                self._check(begun)  # which can say more
                raise
            self._check(begun)
            return done

        wait.__doc__ = original.__doc__
        return wait

    @contextmanager
    def _waiting_for(self, collective: Collective | None) -> Iterator[None]:
        self.current = collective
        try:
            yield
        except RuntimeError as error:
            if MISMATCH in str(error):  # gloo noticed it, since a message was too long
                raise CollectiveMismatch(str(error)) from None
            raise
        finally:
            self.current = None

    def _begin(self, begun: _Begun, told: str) -> _Begun:
        """Note it, before anything of it can reach another rank."""
        if self._compares and self.ledger is not None:
            self.ledger.note(begun.key, Entry(begun.must, f"{told} at {line_of(sys._getframe())}"))
        return begun

    def _keep(self, work: Any, begun: _Begun) -> Any:
        if work is not None:
            self._begun[work] = begun
        return work

    def _check(self, begun: _Begun) -> None:
        """It has ended: see whether all meant the same.

        Raises:
            CollectiveMismatch: they did not.
        """
        noted = self.ledger.read(begun.ranks, begun.key) if self._compares and self.ledger is not None else {}
        if any(entry.must != begun.must for entry in noted.values()):
            raise CollectiveMismatch(tell_difference(noted))


@contextmanager
def _counted(numbers: Counter[str], what: str) -> Iterator[None]:
    """What is refused here, and so never seen by another rank, does not count."""
    try:
        yield
    except Exception:
        numbers[what] -= 1
        raise


def _ranks_of(group: Any) -> tuple[int, ...]:
    """By their numbers in the world."""
    return tuple(c10d.get_process_group_ranks(group))
