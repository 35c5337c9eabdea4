"""Workers forked from the notebook: every variable, import and dataset is there, nothing pickled."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence

from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.wires import Wires
from nbsync.kernel.sigint import PutOff
from nbsync.kernel.start.forker import fork
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call, Endpoints, WorkerSpec
from nbsync.worker import main as worker  # the one arrow across: the entry point of a worker


def fork_all(
    specs: Sequence[WorkerSpec],
    wires: Sequence[Wires],
    inherited: Call | None,
    common: Common,
    started: list[Process],
    interrupt: PutOff,
) -> None:
    """Fork one worker for each spec, in the forker thread; `started` grows with each.

    Raises:
        OSError: the system refused.
        Interrupted: the user gave it up.
    """
    kernel_pid = os.getpid()
    worker.before_forks()
    gc.freeze()  # the collector in the children then leaves the shared pages alone
    try:
        for spec, wire in zip(specs, wires, strict=True):
            interrupt.check("forking the workers")

            def be_worker(spec: WorkerSpec = spec, mine: Wires = wire) -> None:
                for other in wires:
                    if other is not mine:
                        other.close_worker_ends()
                ends = Endpoints(mine.worker_socket, mine.stdout[1], mine.stderr[1], kernel_pid)
                worker.work(spec, ends, inherited, common)

            started.append(wire.process(spec.rank, fork(be_worker)))
    finally:
        gc.unfreeze()
