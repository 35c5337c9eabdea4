"""Starts interpreters that have nothing of the notebook: the fork server, and the workers of "spawn"."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.spawn import get_executable

from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.wires import Wires
from nbsync.kernel.sigint import PutOff
from nbsync.protocol.spec import WorkerSpec


def run_interpreter(
    function: str,
    arguments: Sequence[int],
    fds: Sequence[int],
    *,
    environ: Mapping[str, str] | None = None,
    stderr: int = subprocess.DEVNULL,
) -> int:
    """Start a new interpreter that calls `function`, e.g. "nbsync.worker.fresh.serve". In the forker thread.

    It is in a session of its own: Jupyter's interrupt, a SIGINT to the kernel's process group, must not reach it.

    Args:
        arguments: plain numbers.
        fds: descriptors that it inherits under the same numbers.

    Returns:
        Its process id. It is for the caller to reap it.

    Raises:
        OSError: the system refused.
    """
    module, _, name = function.rpartition(".")
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {name}; {name}{tuple(arguments)}"
    process = subprocess.Popen(
        [get_executable(), *_flags(), "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environ,
        pass_fds=tuple(fds),
        start_new_session=True,
    )
    process.returncode = 0  # whoever asks for its status is not this object, which would take it when it is deleted
    return process.pid


def spawn_all(
    specs: Sequence[WorkerSpec],
    wires: Sequence[Wires],
    luggage: int,
    kernel_pid: int,
    environ: Mapping[str, str],
    started: list[Process],
    interrupt: PutOff,
) -> None:
    """Start one interpreter for each spec, in the forker thread; `started` grows with each.

    Raises:
        OSError: the system refused.
        Interrupted: the user gave it up.
    """
    for index, (spec, wire) in enumerate(zip(specs, wires, strict=True)):
        interrupt.check("starting the workers' interpreters")
        ends = wire.worker_ends
        pid = run_interpreter(
            "nbsync.worker.fresh.start",
            (luggage, index, *ends, kernel_pid),
            (luggage, *ends),
            environ={**environ, **spec.environ},  # also for what is read when torch is loaded
        )
        started.append(wire.process(spec.rank, pid))


def _flags() -> list[str]:
    """The options of this interpreter, as -X and -W."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]  # as multiprocessing does
