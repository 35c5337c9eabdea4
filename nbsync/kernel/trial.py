"""Unpickles users' objects without risk for the kernel: what is unfamiliar is tried first, in a process made for it.

An object may end the process that unpickles it, or hold it up for ever, in C code that no interrupt reaches.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from nbsync.errors import Interrupted, TransferError
from nbsync.kernel.reaping import kill_and_reap
from nbsync.kernel.sigint import sigint_later
from nbsync.kernel.start.forker import fork, run_in_forker
from nbsync.kernel.supervision.verdict import describe_exit
from nbsync.protocol.familiar import FamiliarUnpickler, ReportingUnpickler, find_path
from nbsync.protocol.lifeline import die_with
from nbsync.protocol.messages import Payload
from nbsync.protocol.serial import Common, Unfamiliar, unpack

_LONG = 1.0  # seconds until the user is told what takes so long
_END = b"\0"


def unpack_safely(payload: Payload, common: Common, notify: Callable[[str], None]) -> Any:
    """Rebuild an object that a rank has sent.

    Args:
        notify: tells the user something, in one line.

    Raises:
        TransferError: it cannot be rebuilt, or it ends the process that does.
        KeyboardInterrupt: it took long, and the user gave it up.
    """
    try:
        return unpack(payload, common, FamiliarUnpickler)
    except Unfamiliar as strange:
        _try_out(payload, common, str(strange), notify)
    return unpack(payload, common)


def _try_out(payload: Payload, common: Common, first: str, notify: Callable[[str], None]) -> None:
    """Unpickle it in a child of the kernel. That it raises there is no danger here.

    Args:
        first: the first unfamiliar thing in it.
    """
    said = bytearray()
    ends: list[int] = []
    pid = status = 0
    try:
        with sigint_later():  # no child may be started and forgotten
            pid = _start(payload, common, ends)
        if not pid:
            return
        os.close(ends.pop())
        _listen(ends[0], said, notify)
    except KeyboardInterrupt:
        raise Interrupted([f"while a value was unpickled, in {_last(said) or first}"]) from None
    finally:
        if pid:
            status = kill_and_reap(pid)
        for fd in ends:
            os.close(fd)
    if not said.endswith(_END):
        raise TransferError(_describe(payload, common, _last(said) or first, _count(said), status))


def _start(payload: Payload, common: Common, ends: list[int]) -> int:
    """Fork the trial; its pipe goes into `ends`. Returns its process id, 0 when no process can be made."""
    try:
        ends += os.pipe()
        return int(run_in_forker(lambda: fork(partial(_be_trial, payload, common, os.getpid(), *ends))))
    except OSError:  # then without a trial
        return 0


def _describe(payload: Payload, common: Common, name: str, number: int, status: int) -> str:
    path = find_path(payload, common, name, number) or "a part of the value"
    return (
        f"{path} cannot be unpickled: the process that tried it {describe_exit(status)}, in {name}. "
        "That was a copy made for this: the notebook and the rank are unharmed"
    )


def _listen(out: int, said: bytearray, notify: Callable[[str], None]) -> None:
    """Take in what the trial reports, until its end."""
    poll = select.poll()
    poll.register(out)
    while not said.endswith(_END):
        if not poll.poll(1000 * _LONG):
            notify(f"a value takes long to unpickle, in {_last(said) or 'one of its parts'}: an interrupt gives it up")
            poll.poll()
        data = os.read(out, 1 << 16)
        if not data:
            return
        said += data


def _names(said: bytearray) -> list[str]:
    """What was begun, in order."""
    return [name for name in bytes(said).rstrip(_END).decode(errors="replace").split("\n") if name]


def _last(said: bytearray) -> str:
    return (_names(said) or [""])[-1]


def _count(said: bytearray) -> int:
    """How often what was begun last was begun."""
    return _names(said).count(_last(said))


def _be_trial(payload: Payload, common: Common, kernel_pid: int, out: int, into: int) -> None:
    """In the child: it must not outlive the kernel, nor show anything."""
    os.setpgid(0, 0)
    die_with(kernel_pid)
    os.close(out)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115  # as long as the process
    with suppress(TransferError):  # so it will there
        unpack(payload, common, partial(ReportingUnpickler, report=lambda name: _write(into, name)))
    os.write(into, _END)
    os._exit(0)


def _write(into: int, name: str) -> None:
    os.write(into, f"{name}\n".encode())
