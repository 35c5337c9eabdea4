"""Watches this process's operations on its groups: what it waits for, and whether all ranks mean the same one.

When shapes, types or operations differ between ranks, gloo gives an error that tells little, hangs, or gives wrong
numbers. So before a blocking collective the ranks compare what they are about to do; a difference is an error on every
rank, and the group stays usable. The methods of `ProcessGroup` are wrapped, so every Python path is covered: also
functions imported before the start, and groups made by user code. What C++ starts by itself (DDP's backward) is not
compared.

Operations that do not block (`async_op=True`, `isend`, `irecv`), and those between two ranks, are not compared before:
waiting for the others there could stop a program that is right. Each rank notes what it begins (see ledger.py), and
compares when it has waited for it. The same holds where torch pairs what blocks with what does not: in `Join`, where
ranks that have no more data answer for those that do.
"""

from __future__ import annotations

import sys
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.algorithms import join

from nbsync.errors import CollectiveMismatch
from nbsync.worker.groups.comparison import Comparison, tell_difference
from nbsync.worker.groups.ledger import Entry, Ledger
from nbsync.worker.groups.operations import (
    COLLECTIVES,
    Collective,
    Message,
    describe,
    describe_loosely,
    describe_tensors,
    measure_tensors,
    python_name,
)
from nbsync.worker.groups.uncaught import MISMATCH
from nbsync.worker.places import line_of

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_CPU = torch.device("cpu")
_SHORT = 200  # characters of what an operation is, besides its line
_NEAR = 8  # frames from a method of `ProcessGroup` to who wants it, within torch
_HELD = 64  # messages that nobody has waited for
_MESSAGES = {"send": ("tensors", "dstRank", "tag"), "recv": ("tensors", "srcRank", "tag")}


@dataclass(frozen=True)
class _Begun:
    """What this process has begun.

    Attributes:
        what: None if that is not known.
        ranks: whom it concerns.
        key: by which they know it.
        must: what they must have noted of it too; None if that is not compared.
    """

    what: Collective | Message | None
    ranks: tuple[int, ...]
    key: str
    must: str | None


_UNKNOWN = _Begun(None, (), "", None)


class CollectiveWatch:
    """Wraps the collectives of this process, and what two ranks send each other.

    Args:
        compare: let the ranks compare what they do.
        shield: a context whose lines no interrupt cuts in two.

    Attributes:
        current: what the main thread waits for, a collective or a message; read by the helper thread.
        ledger: where the ranks note what they begin, if there is such a place.
    """

    def __init__(self, compare: bool, shield: Callable[[], AbstractContextManager[None]]) -> None:
        self.current: Collective | Message | None = None
        self.ledger: Ledger | None = None
        self._compares, self._shield = compare, shield
        self._numbers: Counter[str] = Counter()  # of a group's collectives
        self._messages: Counter[str] = Counter()  # from one rank to another
        self._from_anybody: set[str] = set()  # groups in which it is not known which message is which
        self._begun: WeakKeyDictionary[Any, _Begun] = WeakKeyDictionary()  # by their `Work`
        self._earlier: WeakKeyDictionary[Any, _Begun] = WeakKeyDictionary()  # begun before the groups were healed
        # A message whose `Work` is dropped before it has flowed would block what comes after it on its connection.
        self._held: deque[Any] = deque(maxlen=_HELD)
        self._comparison = Comparison()
        self._main = threading.get_ident()
        self._here = threading.local()
        self._counting = threading.Lock()

    def install(self) -> None:
        """Wrap the methods of `ProcessGroup`, and of `Work` the one that waits."""
        kind: Any = dist.ProcessGroup
        for method in filter(kind.__dict__.__contains__, COLLECTIVES):  # not every torch has all of them
            setattr(kind, method, _like(getattr(kind, method), self._collective(method, getattr(kind, method))))
        for method in _MESSAGES:
            setattr(kind, method, _like(getattr(kind, method), self._message(method, getattr(kind, method))))
        kind.recv_anysource = _like(kind.recv_anysource, self._message_from_anybody(kind.recv_anysource))
        dist.Work.wait = _like(dist.Work.wait, self._wait(dist.Work.wait))  # type: ignore[method-assign]

    def forget(self) -> None:
        """The groups begin a new life: count from zero again."""
        self.current = None
        self._earlier.update(self._begun)
        for known in (self._numbers, self._messages, self._from_anybody, self._begun, self._held):
            known.clear()

    def sequence_numbers(self) -> tuple[tuple[str, int], ...]:
        """How many collectives were begun in each group: equal on all ranks, or the groups must begin a new life."""
        names = [group.group_name for group in c10d._world.pg_map]
        return tuple((f"begun in {name}", self._numbers[name]) for name in names)

    def _collective(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        compared = COLLECTIVES[method]
        needed = 0 if compared is None else compared + 1  # arguments; torch gives them by position

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            is_ours = not self._is_inside and len(args) >= needed
            if not is_ours or group.size() == 1 or group not in c10d._world.pg_group_ranks:
                return original(group, *args, **kwargs)
            options = kwargs.get("opts", args[-1] if args else None)
            is_compared = self._compares and _CPU in group._device_types
            if not getattr(options, "asyncOp", True):
                with self._waiting_for(self._next(method, group)) as collective:
                    if is_compared and not _answers_for_others():
                        self._comparison.make(group, collective.ranks, describe(method, args, options))
                    work = original(group, *args, **kwargs)
                    if work is not None:
                        work.wait()  # the caller waits once more, which returns at once: this covers the whole wait
                    return work
            with self._shield():
                collective = self._next(method, group)
                key, must = f"{collective.group}/{collective.number}", None
                with _counted(self._numbers, collective.group):
                    if is_compared:
                        must = self._note(key, describe_loosely(method, args, options), describe(method, args, options))
                    work = original(group, *args, **kwargs)
                return self._keep(work, _Begun(collective, collective.ranks, key, must))

        return call

    def _message(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        names = _MESSAGES[method]

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False), **kwargs)
            if set(given) != set(names) or not self._compares or group not in c10d._world.pg_group_ranks:
                return self._hold(original(group, *args, **kwargs))
            tensors, peer, tag = (given[name] for name in names)
            ends = (group.rank(), peer) if method == "send" else (peer, group.rank())
            way = f"{group.group_name}/{ends[0]}>{ends[1]}:{tag}"
            with self._shield(), _counted(self._messages, way):
                self._messages[way] += 1
                key = f"{way}/{self._messages[way]}"
                told = " ".join([method, *describe_tensors(tensors)])
                must = self._note(key, " ".join(measure_tensors(tensors)), told)
                work = self._hold(original(group, *args, **kwargs))
                if method == "send" or group.group_name in self._from_anybody:  # whoever receives compares
                    must = None
                ranks = _ranks_of(group)
                what = Message(f"i{method}", ranks[peer])
                return self._keep(work, _Begun(what, (ranks[peer], ranks[group.rank()]), key, must))

        return call

    def _message_from_anybody(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            self._from_anybody.add(group.group_name)
            return self._hold(original(group, *args, **kwargs))

        return call

    def _wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_inside:
                return original(work, *args, **kwargs)
            begun = self._begun.pop(work, _UNKNOWN)
            with suppress(ValueError):  # not a message, or an old one
                self._held.remove(work)
            try:
                with self._waiting_for(begun.what):
                    done = original(work, *args, **kwargs)
            except (RuntimeError, CollectiveMismatch):
                better = self._difference(begun) or self._cut_off(work)  # which can say more
                if better is None:
                    raise
                raise better from None
            difference = self._difference(begun)
            if difference is not None:
                raise difference
            return done

        return wait

    @contextmanager
    def _waiting_for(self, collective: Any) -> Iterator[Any]:
        is_main = threading.get_ident() == self._main
        if is_main:
            self.current = collective
        self._here.is_inside = True
        try:
            yield collective
        except RuntimeError as error:
            if MISMATCH in str(error):  # gloo noticed it, since a message was too long
                raise CollectiveMismatch(str(error)) from None
            raise
        finally:
            self._here.is_inside = False
            if is_main:
                self.current = None

    @property
    def _is_inside(self) -> bool:
        """Whether this thread is in such an operation already, which makes others."""
        return getattr(self._here, "is_inside", False)

    def _next(self, method: str, group: Any) -> Collective:
        name = group.group_name
        with self._counting:
            self._numbers[name] += 1
            return Collective(python_name(method), name, _ranks_of(group), self._numbers[name])

    def _note(self, key: str, must: str, told: str) -> str | None:
        """Note what is begun, before anything of it can reach another rank. Returns what they must have noted too."""
        if self.ledger is None:
            return None
        checksum = f"{zlib.crc32(must.encode()):x}"
        self.ledger.note(key, Entry(checksum, f"{told[:_SHORT]} at {line_of(sys._getframe())}"))
        return checksum

    def _hold(self, work: Any) -> Any:
        """Keep the `Work` of a message until somebody has waited for it."""
        if work is not None:
            self._held.append(work)
        return work

    def _keep(self, work: Any, begun: _Begun) -> Any:
        if work is not None:
            self._begun[work] = begun
        return work

    def _cut_off(self, work: Any) -> RuntimeError | None:
        """What to tell of what was under way when an earlier cell failed: gloo tells of a connection only."""
        begun = self._earlier.get(work)
        if begun is None or begun.what is None:
            return None
        return RuntimeError(
            f"this {begun.what.name} was cut off when a cell failed before it had ended. Begin it again"
        )

    def _difference(self, begun: _Begun) -> CollectiveMismatch | None:
        """What there is to tell of what has ended, if not all its ranks meant the same."""
        if begun.must is None or self.ledger is None:
            return None
        noted = self.ledger.read(begun.ranks, begun.key)
        is_same = all(entry.must == begun.must for entry in noted.values())
        return None if is_same else CollectiveMismatch(tell_difference(noted))


def _like(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """`replacement`, under the name and with the words of `original`."""
    replacement.__name__, replacement.__doc__ = original.__name__, original.__doc__
    return replacement


@contextmanager
def _counted(numbers: Counter[str], what: str) -> Iterator[None]:
    """What is refused here, and so never seen by another rank, does not count."""
    try:
        yield
    except Exception:
        numbers[what] -= 1
        raise


def _answers_for_others() -> bool:
    """Whether a rank in `Join` does what the others do who have more data: they may not block where this one does."""
    frame: FrameType | None = sys._getframe()
    near: list[str] = []
    while frame is not None and len(near) < _NEAR:
        near.append(frame.f_code.co_filename)
        frame = frame.f_back
    return join.__file__ in near


def _ranks_of(group: Any) -> tuple[int, ...]:
    """By their numbers in the world."""
    return tuple(c10d.get_process_group_ranks(group))
