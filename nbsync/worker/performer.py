"""What the kernel asks of a rank, done: a cell, a call, variables that come and go, a new life of the groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbsync.errors import NbsyncError
from nbsync.protocol.given_up import NoRoom
from nbsync.protocol.idents import identify_alike
from nbsync.protocol.messages import Heal, Payload, Pull, Push, Request, RunCall, RunCell
from nbsync.protocol.serial import pack, unpack
from nbsync.protocol.spec import Call, WorkerSpec
from nbsync.worker import process
from nbsync.worker.groups.group import GroupKeeper
from nbsync.worker.groups.watch import CollectiveWatch
from nbsync.worker.pages import share_pages
from nbsync.worker.recorder import Recorder
from nbsync.worker.shell import CellOutcome, WorkerShell


class Performer:
    """Does it, and raises whatever the user's code does.

    Args:
        inherited: the function that a launch carries along.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        inherited: Call | None,
        shell: WorkerShell,
        recorder: Recorder,
        groups: GroupKeeper,
        watch: CollectiveWatch,
    ) -> None:
        self._spec, self._inherited = spec, inherited
        self._shell, self._recorder, self._groups, self._watch = shell, recorder, groups, watch

    def perform(self, request: Request) -> tuple[CellOutcome, Payload | None]:
        """What came of a cell, and the value of anything else."""
        match request:
            case RunCell(run, code, count):
                return self._run(run, lambda: self._shell.run_cell(code, count)), None
            case RunCall(run, call, sources):
                self._shell.learn(sources)
                function, args, kwargs = self._callable(call)
                self._recorder.note_function(function)
                value = self._run(run, lambda: process.call_as_program(function, args, kwargs))
                with self._recorder.pickling("what the call returned", [value]):
                    return CellOutcome(), pack(value)
            case Push(_, values, sources):
                self._shell.learn(sources)
                with self._recorder.handling("unpickled what was pushed"):
                    arrived = unpack(values)
                self._shell.namespace.update(arrived)
                return CellOutcome(), None
            case Pull(_, names):
                wanted = [self._shell.look_up(name) for name in names]
                with self._recorder.pickling(", ".join(names), wanted):
                    return CellOutcome(), pack(wanted, named=dict(zip(names, wanted, strict=True)))
            case NoRoom(_, size):
                raise MemoryError(f"there is no memory for the {size} that were sent to this rank")
            case Heal(_, life):
                self._watch.forget()
                share_pages(self._spec, self._watch, life)
                return CellOutcome(), pack(self._groups.heal(life))
        raise NbsyncError(f"unknown request {type(request).__name__}")

    def _run(self, run: int, run_users: Callable[[], Any]) -> Any:
        try:
            return run_users()
        finally:
            identify_alike(self._shell.namespace, f"{self._spec.secret}/{run}")

    def _callable(self, call: Payload | None) -> Call:
        if call is not None:
            with self._recorder.handling("unpickled the function or its arguments"):
                function, args, kwargs = unpack(call)
            return function, args, kwargs
        if self._inherited is None:
            raise NbsyncError("this worker inherited no function to call")
        return self._inherited
