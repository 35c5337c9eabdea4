"""Workers on this machine: forked from the notebook, by a fork server, or as new interpreters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

from nbsync.errors import StartError
from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.forked import fork_all
from nbsync.kernel.engines.fresh import spawn_all
from nbsync.kernel.engines.served import serve_all
from nbsync.kernel.engines.wires import Wires, refused
from nbsync.kernel.output.sink import make_sink, tell
from nbsync.kernel.reaping import kill_and_reap
from nbsync.kernel.sigint import PutOff, sigint_later
from nbsync.kernel.start.foresight import load_what_was_used
from nbsync.kernel.start.forker import run_in_forker
from nbsync.kernel.start.luggage import pack_notebook
from nbsync.kernel.start.methods import choose_method
from nbsync.protocol.luggage import anonymous_file
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call, WorkerSpec


class LocalEngine:
    """Starts workers on this machine. One engine serves one session.

    Args:
        start_method: "fork", "forkserver", "spawn", or "auto", which is decided anew at each start.

    Attributes:
        method: how the last workers were started.
    """

    def __init__(self, start_method: str = "auto") -> None:
        self.method = ""
        self._start_method = start_method
        self._obstacle = ""  # found by trying
        self._luggage: BinaryIO | None = None

    def prepare(self, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common) -> None:
        """Decide how to start, and pack what forks need not. See `Engine.prepare`."""
        choice = choose_method(self._start_method, self._obstacle)
        if choice.note and choice.method != self.method:
            tell(make_sink(), choice.note)
        self.method = choice.method
        self._drop_luggage()
        if self.method == "fork":
            load_what_was_used()
        else:
            try:
                with sigint_later():
                    self._luggage = anonymous_file()
                pack_notebook(self._luggage, specs, inherited, common)
            except OSError as error:  # no room in shared memory, no descriptor, the working directory was removed
                self._drop_luggage()
                raise StartError(f"the notebook could not be packed for the workers: {error}") from error
            except BaseException:  # also an interrupt
                self._drop_luggage()
                raise

    def start(
        self, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common, interrupt: PutOff
    ) -> list[Process]:
        """Start one worker for each spec, all or none. See `Engine.start`."""
        wires: list[Wires] = []
        started: list[Process] = []
        try:
            wires.extend(Wires.make() for _ in specs)
            self._start_all(specs, wires, inherited, common, started, interrupt)
        except OSError as error:
            self._undo(wires, started)
            raise refused(specs, len(started), error) from error
        except BaseException:  # also an interrupt
            self._undo(wires, started)
            raise
        finally:
            self._drop_luggage()
        for wire in wires:
            wire.close_worker_ends()
        return started

    def avoid_fork(self, reason: str) -> bool:
        """Let "auto" take the fork server from now on. See `Engine.avoid_fork`."""
        if self._start_method != "auto" or self.method != "fork":
            return False
        self._obstacle = reason.splitlines()[0].partition(":")[0]
        return True

    def _start_all(
        self,
        specs: Sequence[WorkerSpec],
        wires: Sequence[Wires],
        inherited: Call | None,
        common: Common,
        started: list[Process],
        interrupt: PutOff,
    ) -> None:
        if self._luggage is None:
            run_in_forker(partial(fork_all, specs, wires, inherited, common, started, interrupt))
        elif self.method == "forkserver":
            serve_all(specs, wires, self._luggage.fileno(), started, interrupt)
        else:
            luggage = self._luggage.fileno()
            run_in_forker(partial(spawn_all, specs, wires, luggage, os.getpid(), os.environ, started, interrupt))

    def _drop_luggage(self) -> None:
        if self._luggage is not None:
            self._luggage.close()
            self._luggage = None

    def _undo(self, wires: Sequence[Wires], started: Sequence[Process]) -> None:
        for process in started:
            kill_and_reap(process.pid)
            process.release()
        for wire in wires:
            wire.close_kernel_ends()
            wire.close_worker_ends()
