"""Collectives that torch's C++ begins and waits for: DDP's reducer for gradients, buffers, and when a model is made.

No method of `ProcessGroup` in Python sees them. But C++ too calls a process group through torch's dispatcher, and these
kernels take the place of torch's for tensors of the CPU. Nor does a method of `Work` see the wait; so what a backward
pass has begun is waited for at its end, just before DDP does so, and compared.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.autograd import Variable
from torch.distributed import distributed_c10d

from nbsync.worker.groups.operations import Intent, python_name, reduction, root, tensors_in
from nbsync.worker.libraries.imports import after_import

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types
#: As `CollectiveWatch.begin`: a method of `ProcessGroup`, the group, what makes the intent, and what gives the `Work`.
Begin: TypeAlias = Callable[[str, Any, Callable[[], Intent], Callable[[], Any]], Any]
#: As `CollectiveWatch.wait`: the `Work`, and what waits for it.
Wait: TypeAlias = Callable[[Any, Callable[[], Any]], Any]

_CPU = torch.device("cpu")
_WAIT_WITHIN = ("_broadcast_coalesced", "_verify_params_across_processes")  # functions of torch.distributed, all in C++
_OVERRIDES = r"(?s).*verriding a previously registered kernel"


@dataclass(frozen=True)
class Call:
    """Of an operator.

    Attributes:
        method: of `ProcessGroup`, which calls it.
        compared: what must agree on all ranks in shape and type.
        details: what else must.
        do: what torch's kernel does with the backend. To call that kernel would keep the lock of the interpreter, for
            which a thread of gloo may wait that it waits for.
    """

    method: str
    group: Any
    compared: Any
    details: Sequence[str]
    do: Callable[[Any], Any]

    @property
    def intent(self) -> Intent:
        return Intent(python_name(self.method), tensors_in(self.compared), [*self.details, "by torch"])


class ReducerWatch:
    """Has these collectives begun and waited for as those of Python are.

    Args:
        is_inside: whether this thread is in a collective that Python has begun, which comes by here as well.
    """

    def __init__(self, begin: Begin, wait: Wait, is_inside: Callable[[], bool]) -> None:
        self._begin, self._wait, self._is_inside = begin, wait, is_inside
        self._here = threading.local()

    def install(self) -> None:
        """Take the place of torch's kernels, and of the functions that wait within."""
        library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
        self._kept = library  # without it, torch's kernels are in place again
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OVERRIDES, UserWarning)
            for call in (allreduce_, broadcast_, allgather_):
                library.impl(call.__name__, self._kernel(call), "CPU", allow_override=True)
        for name in _WAIT_WITHIN:
            setattr(dist, name, self._waiting_within(getattr(dist, name)))
        after_import("torch._dynamo.trace_rules", lambda rules: rules.add(__package__))  # or it would compile them
        kind: Any = dist.Work
        kind.get_future = self._future(kind.get_future)

    def forget(self) -> None:
        """What was begun has been cut off."""
        self._here = threading.local()

    def _kernel(self, describe: Callable[..., Call]) -> Callable[..., Any]:
        def kernel(*args: Any) -> Any:
            call = describe(*args)
            group = dist.ProcessGroup.unbox(call.group)

            def do() -> Any:
                return call.do(group._get_backend(_CPU))

            if self._is_inside():
                work = do()
            else:
                work = self._begin(call.method, group, lambda: call.intent, do)
                self._leave(work)
            return args[0], dist.Work.boxed(work)

        return kernel

    def _future(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Of what a communication hook has begun, its future is waited for in C++."""

        def get_future(work: Any) -> Any:
            if torch._C._current_graph_task_id() >= 0:
                self._leave(work)
            return original(work)

        get_future.__doc__ = original.__doc__
        return get_future

    def _waiting_within(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self._settle()  # after an error too: it can say more

        call.__name__, call.__doc__ = original.__name__, original.__doc__
        return call

    def _leave(self, work: Any) -> None:
        """Know what C++ will wait for. Within a backward pass, see to it at its end."""
        self._left.append(work)
        task = torch._C._current_graph_task_id()
        if task >= 0 and task != getattr(self._here, "task", None):
            self._here.task = task
            Variable._execution_engine.queue_callback(self._settle)

    def _settle(self) -> None:
        works = self._left
        while works:
            work = works.pop(0)
            self._wait(work, work.wait)

    @property
    def _left(self) -> list[Any]:
        """What this thread has begun, and C++ waits for."""
        if not hasattr(self._here, "works"):
            self._here.works = []
        works: list[Any] = self._here.works
        return works


# The operators of torch that are watched.


def allreduce_(tensors: Any, group: Any, op: Any, sparse: Any, is_async: bool = True, timeout: int = -1) -> Call:
    kind = dist.ReduceOp(dist.ReduceOp.RedOpType(op.op()))
    options = _options(c10d.AllreduceOptions(), is_async, timeout)
    options.reduceOp = kind
    return Call("allreduce", group, tensors, [reduction(kind)], lambda backend: backend.allreduce(tensors, options))


def broadcast_(tensors: Any, group: Any, rank: int, tensor: int, is_async: bool = True, timeout: int = -1) -> Call:
    options = _options(c10d.BroadcastOptions(), is_async, timeout)
    options.rootRank, options.rootTensor = rank, tensor
    return Call("broadcast", group, tensors, [root(rank)], lambda backend: backend.broadcast(tensors, options))


def allgather_(outputs: Any, inputs: Any, group: Any, is_async: bool = True, timeout: int = -1) -> Call:
    options = _options(c10d.AllgatherOptions(), is_async, timeout)
    return Call("allgather", group, inputs, [], lambda backend: backend.allgather(outputs, inputs, options))


def _options(options: Any, is_async: bool, timeout: int) -> Any:
    options.asyncOp, options.timeout = is_async, timedelta(milliseconds=timeout)
    return options
