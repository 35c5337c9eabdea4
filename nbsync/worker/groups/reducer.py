"""Collectives that torch's C++ begins and waits for: DDP's reducer for gradients, buffers, and when a model is made.

No method of `ProcessGroup` in Python sees them. But C++ too calls a process group through torch's dispatcher, and these
kernels take the place of torch's for tensors of the CPU. Nor does a method of `Work` see the wait. So what a backward
pass has begun is waited for at its end, just before DDP does so, and then compared; the rest is compared when the C++
function that began it returns.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.autograd import Variable

from nbsync.worker.groups.operations import Intent, intent_of
from nbsync.worker.groups.underway import Begun, Underway
from nbsync.worker.libraries.imports import after_import
from nbsync.worker.replacing import replace_function

c10d: Any = _distributed_c10d  # what is used here has no types
#: As `CollectiveWatch.begin`: a method of `ProcessGroup`, the group, what makes the intent, and what gives the `Work`.
Begin: TypeAlias = Callable[[str, Any, Callable[[], Intent], Callable[[], Any]], Any]
#: As `CollectiveWatch.wait`: the `Work`, and what waits for it.
Wait: TypeAlias = Callable[[Any, Callable[[], Any]], Any]

_CPU = torch.device("cpu")
#: Functions of torch.distributed, and methods of DDP's reducer, that are all in C++; as names in torch.
_WAIT_WITHIN = (
    "distributed._broadcast_coalesced",
    "distributed._verify_params_across_processes",
    "_C._distributed_c10d.Reducer._rebuild_buckets",
    "_C._distributed_c10d.Reducer._delay_all_reduce",
)
_OVERRIDES = r"(?s).*verriding a previously registered kernel"


class Call(NamedTuple):
    """Of a method of a process group, as an operator makes it: with its tensors and its options."""

    method: str
    group: Any
    args: tuple[Any, ...]
    options: Any

    def intent(self) -> Intent:
        """What it is about to do."""
        meant = intent_of(self.method, self.args, self.options)
        return meant._replace(details=[*meant.details, "by torch"])

    def do(self, backend: Any) -> Any:
        """What torch's kernel does with the backend.

        To call that kernel would keep the lock of the interpreter, for which a thread of gloo may wait that it waits
        for.
        """
        return getattr(backend, self.method)(*self.args, self.options)


class Pass(NamedTuple):
    """Of a backward pass: what DDP will wait for, and what a communication hook gave it the future of.

    Attributes:
        task: its number in the engine of torch; negative for none.
    """

    task: int
    works: list[Any]
    hooked: list[Begun]

    def take_over(self, inner: Pass) -> None:
        """What is left of a pass within this one, as those of checkpoints are: DDP waits when all is begun."""
        self.works.extend(inner.works)
        self.hooked.extend(inner.hooked)


class ReducerWatch:
    """Has these collectives begun and waited for as those of Python are.

    Args:
        is_watched: as `CollectiveWatch.is_watched`. What Python has begun comes by here as well, and is not.
        notice: as `CollectiveWatch.notice`.
    """

    def __init__(
        self,
        begin: Begin,
        wait: Wait,
        is_watched: Callable[[Any], bool],
        notice: Callable[[RuntimeError], None],
        underway: Underway,
    ) -> None:
        self._begin, self._wait, self._is_watched = begin, wait, is_watched
        self._notice, self._underway = notice, underway
        self._here = threading.local()

    def install(self) -> None:
        """Take the place of torch's kernels, and of the functions that wait within."""
        library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
        self._kept = library  # without it, torch's kernels are in place again
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OVERRIDES, UserWarning)
            for describe, keys in _WATCHED.items():
                for key in keys:
                    library.impl(describe.__name__, self._kernel(describe), key, allow_override=True)
        for place in _WAIT_WITHIN:
            owner, _, name = place.rpartition(".")
            replace_function(attrgetter(owner)(torch), name, self._waiting_within)
        after_import("torch._dynamo.trace_rules", lambda rules: rules.add(__package__))  # or it would compile them
        for module in (torch.autograd.graph, torch.autograd):
            replace_function(module, "_engine_run_backward", self._telling)

    def forget(self) -> None:
        """The groups begin a new life: what was begun in the last one is not compared in this one."""
        self._here = threading.local()

    def _kernel(self, describe: Callable[..., Call]) -> Callable[..., Any]:
        def kernel(*args: Any) -> Any:
            call = describe(*args)
            group = dist.ProcessGroup.unbox(call.group)

            def do() -> Any:
                return call.do(group._get_backend(_CPU))

            if self._is_watched(group):
                work = self._begin(call.method, group, call.intent, do)
                self._see_to(work)
            else:
                work = do()
            return args[0], dist.Work.boxed(work)

        return kernel

    def _see_to(self, work: Any) -> None:
        """Know what was begun until C++ has waited for it."""
        within = getattr(self._here, "within", None)
        if within is not None:
            within.append(self._underway.known(work))  # not the work, which keeps the data
            return
        works = self._find_pass().works
        works.append(work)
        while works and works[0].is_completed():
            self._wait_for_first(works)

    def on_future(self, begun: Begun) -> None:
        """A future was given out: a communication hook may give it to DDP, which waits for it in C++."""
        self._find_pass().hooked.append(begun)

    def _waiting_within(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun: list[Begun] = []
            before, self._here.within = getattr(self._here, "within", None), begun
            try:
                done = original(*args, **kwargs)
            except RuntimeError as error:
                self._notice(error)
                self._underway.compare(*begun)
                raise
            finally:
                self._here.within = before
            self._underway.compare(*begun)
            return done

        return call

    def _telling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Of what a communication hook has begun, an error of its wait in C++ can be told better."""

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            around = self._current, self._is_nested
            is_nested = torch._C._current_graph_task_id() >= 0
            self._here.current, self._here.is_nested = None, is_nested
            try:
                done = original(*args, **kwargs)
                ended = self._current
            except RuntimeError as error:
                self._notice(error)
                if self._current is not None:
                    begun = map(self._underway.known, self._current.works)
                    self._underway.compare(*begun, *self._current.hooked)
                raise
            finally:
                self._here.current, self._here.is_nested = around
            if is_nested and ended is not None:
                self._find_pass().take_over(ended)
            return done

        return run_backward

    @property
    def _current(self) -> Pass | None:
        """The backward pass of this thread of which something is known."""
        return getattr(self._here, "current", None)

    @property
    def _is_nested(self) -> bool:
        """Whether it is within another one, which sees to its end."""
        return getattr(self._here, "is_nested", False)

    def _find_pass(self) -> Pass:
        """That which this thread is in, if it is in one; its end is seen to, here or by the one around it."""
        task, known = torch._C._current_graph_task_id(), self._current
        if known is not None and known.task == task:
            return known
        found = Pass(task, [], [])
        if task >= 0:
            self._here.current = found
        if task >= 0 and not self._is_nested:
            Variable._execution_engine.queue_callback(functools.partial(self._end, found))
        return found

    def _end(self, backward_pass: Pass) -> None:
        """Just before DDP waits, which was queued later."""
        while backward_pass.works:
            self._wait_for_first(backward_pass.works)
        if backward_pass.hooked:
            Variable._execution_engine.queue_callback(lambda: self._underway.compare(*backward_pass.hooked))

    def _wait_for_first(self, works: list[Any]) -> None:
        work = works.pop(0)
        self._wait(work, work.wait)


# The operators of torch that are watched.


def allreduce_(tensors: Any, group: Any, op: Any, sparse: Any, is_async: bool = True, timeout: int = -1) -> Call:
    options = _options(c10d.AllreduceOptions(), is_async, timeout)
    options.reduceOp = dist.ReduceOp(dist.ReduceOp.RedOpType(op.op()))
    return Call("allreduce", group, (tensors,), options)


def broadcast_(tensors: Any, group: Any, rank: int, tensor: int, is_async: bool = True, timeout: int = -1) -> Call:
    options = _options(c10d.BroadcastOptions(), is_async, timeout)
    options.rootRank, options.rootTensor = rank, tensor
    return Call("broadcast", group, (tensors,), options)


def allgather_(outputs: Any, inputs: Any, group: Any, is_async: bool = True, timeout: int = -1) -> Call:
    return Call("allgather", group, (outputs, inputs), _options(c10d.AllgatherOptions(), is_async, timeout))


def _options(options: Any, is_async: bool, timeout: int) -> Any:
    options.asyncOp, options.timeout = is_async, timedelta(milliseconds=timeout)
    return options


#: With the kinds of tensors that torch has kernels for and gloo works with.
_WATCHED: dict[Callable[..., Call], Sequence[str]] = {
    allreduce_: ("CPU", "SparseCPU"),
    broadcast_: ("CPU",),
    allgather_: ("CPU",),
}
#: What must be there to watch them, as names in torch.
NEEDS = (
    *_WAIT_WITHIN,
    *(f"ops.c10d.{describe.__name__}" for describe in _WATCHED),
    "distributed.ProcessGroup.unbox",
    "distributed.Work.boxed",
    "autograd.graph._engine_run_backward",
    "autograd._engine_run_backward",
    "autograd.Variable._execution_engine.queue_callback",
    "_C._current_graph_task_id",
)
