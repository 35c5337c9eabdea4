"""Watches this process's operations on its groups: what it waits for, and whether all ranks mean the same one.

When shapes, types or operations differ between ranks, gloo gives an error that tells little, hangs, or gives wrong
numbers. So before a blocking collective the ranks compare what they are about to do; a difference is an error on every
rank, and the group stays usable. The methods of `ProcessGroup` are wrapped, so every Python path is covered: also
functions imported before the start, and groups made by user code.

Operations that do not block (`async_op=True`, `isend`, `irecv`, functional collectives, those of DDP's backward pass),
and those between two ranks, are not compared before: waiting for the others there could stop a program that is right.
They are compared afterwards (see underway.py). The same holds where torch pairs what blocks with what does not: in
`Join`, where ranks that have no more data answer for those that do.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import c10d_logger, distributed_c10d
from torch.distributed.algorithms import join

from nbsync.errors import CollectiveMismatch
from nbsync.worker.groups import functional, futures, reducer
from nbsync.worker.groups.comparison import Comparison
from nbsync.worker.groups.needs import can_compare
from nbsync.worker.groups.operations import (
    COLLECTIVES,
    Collective,
    Intent,
    Message,
    ends_connection,
    intent_of,
    python_name,
)
from nbsync.worker.groups.uncaught import MISMATCH
from nbsync.worker.groups.underway import Begun, Underway
from nbsync.worker.interrupts import Shield
from nbsync.worker.replacing import replace_function

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_CPU = torch.device("cpu")
_BLOCKING = "blocking"
#: Files of the frames between a method of `ProcessGroup` and who wants what it does.
_ON_THE_WAY = (__file__, distributed_c10d.__file__, c10d_logger.__file__)
_MESSAGES = {"send": ("tensors", "dstRank", "tag"), "recv": ("tensors", "srcRank", "tag")}


class CollectiveWatch:
    """Wraps the collectives of this process, and what two ranks send each other.

    Args:
        compare: let the ranks compare what they do.
        shield: a context whose lines no interrupt cuts in two.

    Attributes:
        current: what the main thread waits for, a collective or a message; read by the helper thread.
        underway: what was begun and not yet waited for.
        has_failed: an operation has ended a connection, so the groups must begin a new life, whoever caught the error.
    """

    def __init__(self, compare: bool, shield: Shield) -> None:
        self.current: Collective | Message | None = None
        self.underway = Underway()
        self.has_failed = False
        self._compares, self._shield = compare, shield
        self._numbers: Counter[str] = Counter()  # of a group's collectives
        self._messages: Counter[str] = Counter()  # from one rank to another
        self._from_anybody: set[str] = set()  # groups in which it is not known which message is which
        self._comparison = Comparison()
        self._main = threading.get_ident()
        self._here = threading.local()
        self._counting = threading.Lock()
        self._reducer = reducer.ReducerWatch(self.begin, self.wait, self.is_watched, self.notice, self.underway)

    def install(self) -> None:
        """Wrap the methods of `ProcessGroup`, and of `Work` the one that waits."""
        kind: Any = dist.ProcessGroup
        for method in filter(kind.__dict__.__contains__, COLLECTIVES):  # not every torch has all of them
            replace_function(kind, method, functools.partial(self._collective, method))
        for method in _MESSAGES:
            replace_function(kind, method, functools.partial(self._message, method))
        replace_function(kind, "monitored_barrier", self._unnumbered)
        replace_function(kind, "recv_anysource", self._message_from_anybody)
        replace_function(dist.Work, "wait", self._wait)
        self._install_comparisons()

    def _install_comparisons(self) -> None:
        """What reaches further into torch, and only compares: with a torch that lacks something, that is left out."""
        if can_compare("functional collectives, such as those of DTensor", functional.NEEDS):
            self._functional = functional.watch_functional(self.begin, self.wait, self.is_watched)
        on_future: Callable[[Begun], None] = _forget_future
        if can_compare("what DDP does in C++", reducer.NEEDS):
            self._reducer.install()
            on_future = self._reducer.on_future
        if can_compare("what is waited for by a future", futures.NEEDS):
            futures.FutureWatch(self.wait, on_future, self.underway).install()

    def forget(self) -> None:
        """The groups begin a new life: count from zero again."""
        self.current, self.has_failed = None, False
        self._here = threading.local()
        self.underway.forget()
        self._reducer.forget()
        for known in (self._numbers, self._messages, self._from_anybody):
            known.clear()

    def sequence_numbers(self) -> tuple[tuple[str, int], ...]:
        """How many collectives were begun in each group: equal on all ranks, or the groups must begin a new life."""
        names = [group.group_name for group in c10d._world.pg_map]
        return tuple((f"begun in {name}", self._numbers[name]) for name in names)

    def _collective(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        compared = COLLECTIVES[method]
        needed = 0 if compared is None else compared + 1  # arguments; torch gives them by position

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) < needed or not self.is_watched(group):
                return original(group, *args, **kwargs)
            options = kwargs.get("opts", args[-1] if args else None)
            begin = self.begin if getattr(options, "asyncOp", True) else self._block
            return begin(
                method, group, lambda: intent_of(method, args, options), lambda: original(group, *args, **kwargs)
            )

        return call

    def _block(self, method: str, group: Any, intent: Callable[[], Intent], do: Callable[[], Any]) -> Any:
        """Do what blocks. Its ranks compare what they mean before."""
        number = self._count(self._numbers, group.group_name)
        told = intent().told if self._is_compared(group) else None
        begun = self._note(method, group, number, None if told is None else (_BLOCKING, f"{_BLOCKING} {told}"))

        def compare_and_do() -> Any:
            if told is not None:
                self._comparison.make(group, begun.ranks, told)
            work = do()
            if work is not None:
                work.wait()  # the caller waits once more, which returns at once: this covers the whole wait
            return work

        return self._or_difference(begun, compare_and_do)

    def begin(self, method: str, group: Any, intent: Callable[[], Intent], do: Callable[[], Any]) -> Any:
        """Begin what does not block, in a group that is watched. Its ranks compare what they meant when it has ended.

        Args:
            do: gives the `Work`, or the tensors that will have the data.
        """
        with self._shield(), self._counted(self._numbers, group.group_name) as number:
            meant = intent() if self._is_compared(group) else None
            begun = self._note(method, group, number, meant and (meant.must, meant.told))
            self._here.is_inside = True
            try:
                return self.underway.keep(do(), begun)
            finally:
                self._here.is_inside = False

    def _note(self, method: str, group: Any, number: int, noted: tuple[str, str] | None) -> Begun:
        """Know what is begun, and note for the other ranks what must agree and what is told of it, if that is given."""
        key, ranks = f"{group.group_name}/{number}", _ranks_of(group)
        must = None if noted is None else self.underway.note(key, *noted)
        return Begun(Collective(python_name(method), group.group_name, ranks, number, must), ranks, key, must)

    def _unnumbered(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What torch itself makes of messages, and compares nothing of."""
        return lambda *args, **kwargs: self._wait_in(None, lambda: original(*args, **kwargs))

    def _message(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        names = _MESSAGES[method]

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False), **kwargs)
            if set(given) != set(names) or not self._compares or group not in c10d._world.pg_group_ranks:
                return self.underway.hold(original(group, *args, **kwargs))
            tensors, peer, tag = (given[name] for name in names)
            ends = (group.rank(), peer) if method == "send" else (peer, group.rank())
            way = f"{group.group_name}/{ends[0]}>{ends[1]}:{tag}"
            with self._shield(), self._counted(self._messages, way) as number:
                key = f"{way}/{number}"
                must = self.underway.note(key, Intent("message", tensors).must, Intent(method, tensors).told)
                work = self.underway.hold(original(group, *args, **kwargs))
                if method == "send" or group.group_name in self._from_anybody:  # whoever receives compares
                    must = None
                ranks = _ranks_of(group)
                what = Message(f"i{method}", ranks[peer])
                return self.underway.keep(work, Begun(what, (ranks[peer], ranks[group.rank()]), key, must))

        return call

    def _message_from_anybody(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            self._from_anybody.add(group.group_name)
            return self.underway.hold(original(group, *args, **kwargs))

        return call

    def _wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            return self.wait(work, lambda: original(work, *args, **kwargs))

        return wait

    def wait(self, handle: Any, do: Callable[[], Any]) -> Any:
        """Wait, as `do` does, for what was begun: a `Work`, or the storage of a tensor."""
        if self._is_inside:
            return do()
        begun = self.underway.take(handle)
        done = self._or_difference(begun, do, lambda: self.underway.cut_off(handle))
        self.underway.compare(begun)
        return done

    def _or_difference(
        self, begun: Begun, do: Callable[[], Any], reason: Callable[[], Exception | None] = lambda: None
    ) -> Any:
        """Do what waits. Where it fails and there is a difference or another `reason` to tell, that says more."""
        try:
            return self._wait_in(begun.what, do)
        except RuntimeError:
            better = self.underway.difference(begun) or reason()
            if better is None:
                raise
            raise better from None

    def _wait_in(self, what: Collective | Message | None, do: Callable[[], Any]) -> Any:
        """Do what waits. No generator for this: an interrupt could leave one suspended, with its state."""
        is_main = threading.get_ident() == self._main
        self._here.is_inside = True
        try:
            if is_main:
                self.current = what
            return do()
        except RuntimeError as error:
            if MISMATCH in str(error):  # gloo noticed it, since a message was too long
                raise CollectiveMismatch(str(error)) from None
            self.notice(error)
            raise
        finally:
            self._here.is_inside = False
            if is_main:
                self.current = None

    def notice(self, error: RuntimeError) -> None:
        """An operation has failed: whoever catches that, its connections may have ended."""
        self.has_failed = self.has_failed or ends_connection(str(error))

    @property
    def _is_inside(self) -> bool:
        """Whether this thread is in such an operation already, which makes others."""
        return getattr(self._here, "is_inside", False)

    def is_watched(self, group: Any) -> bool:
        """Whether what this thread begins in this group now is known to all its ranks by a number."""
        return not self._is_inside and group.size() > 1 and group in c10d._world.pg_group_ranks

    def _is_compared(self, group: Any) -> bool:
        return self._compares and _CPU in group._device_types and not _answers_for_others()

    def _count(self, numbers: Counter[str], what: str) -> int:
        with self._counting:
            numbers[what] += 1
            return numbers[what]

    @contextmanager
    def _counted(self, numbers: Counter[str], what: str) -> Iterator[int]:
        """The number of what is begun here. What torch refuses, and no other rank has seen, does not count."""
        number = self._count(numbers, what)
        try:
            yield number
        except Exception:
            with self._counting:
                numbers[what] -= 1
            raise


def _forget_future(begun: Begun) -> None:
    """Nobody looks after the backward passes, which it might be given to."""


def _answers_for_others() -> bool:
    """Whether a rank in `Join` does what the others do who have more data: they may not block where this one does.

    What the hooks of `Join` do they do on all ranks alike, but for the one of DDP that answers what C++ has begun.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename in _ON_THE_WAY:
        frame = frame.f_back
    return frame is not None and (
        frame.f_code.co_filename == join.__file__ or frame.f_code.co_name == "_match_unused_params_allreduce"
    )


def _ranks_of(group: Any) -> tuple[int, ...]:
    """By their numbers in the world."""
    return tuple(c10d.get_process_group_ranks(group))
