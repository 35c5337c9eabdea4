"""Which run each rank works on, and where what it sends goes. One lock guards all of it."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from nbsync.errors import NoSession, RankBusy, WorkerDied
from nbsync.kernel.engines.base import Process
from nbsync.kernel.hub import Exited
from nbsync.kernel.run import Run
from nbsync.kernel.start.foresight import note_compiler
from nbsync.kernel.state import Phase, Snapshot, WorldState
from nbsync.kernel.supervision.evidence import last_words
from nbsync.kernel.supervision.stuck import FINISHED
from nbsync.kernel.supervision.verdict import describe_exit, quote
from nbsync.kernel.switchboard import hub
from nbsync.kernel.transfers import Moving
from nbsync.protocol.blackbox import Statement, read_box
from nbsync.protocol.messages import ClearOutput, Display, Done, Interrupt, Peek, Shown
from nbsync.protocol.reports import Progress, Where
from nbsync.protocol.words import pronoun, ranks_do, ranks_each_do, they_do, way_back


class Dispatch:
    """The traffic of one world.

    Args:
        on_exit: called when a process has ended, in the hub's thread.

    Attributes:
        state: what is known of every rank.
        needs_heal: a rank's process group was cut, or the ranks are out of step; cleared by whoever heals.
        folder: where the ranks note what they run, "" when there is none.
    """

    def __init__(self, backend: str, devices: Sequence[str] = (), on_exit: Callable[[], None] = lambda: None) -> None:
        self._on_exit = on_exit
        self.state = WorldState(backend, devices)
        self.needs_heal = False
        self.folder = ""
        self._processes: dict[int, Process] = {}
        self._active: dict[int, Run] = {}
        self._between: list[tuple[int, str, Any]] = []  # output that came while no run was there to show it
        self._lock = threading.Lock()
        self._elders: dict[int, int] = {}  # bytes in `_between` that came from a rank's earlier process
        self._glances: dict[int, queue.SimpleQueue[tuple[int, Where]]] = {}  # by ticket, of those who wait
        self._glance = 0
        self._runs = 0

    # ---- processes ----

    def add(self, process: Process, start: Run) -> None:
        """Take in a worker that was just started; until it is up, what it sends goes to `start`."""
        with self._lock:
            self._processes[process.rank] = process
            self._active[process.rank] = start
            self._elders[process.rank] = sum(len(what) for rank, _, what in self._between if rank == process.rank)
            self.state.started(process.rank, process.pid, time.monotonic())
        hub().attach(process, self._route)

    def pid(self, rank: int) -> int | None:
        """The process id of `rank`, also when it has ended; None when the workers were ended."""
        process = self._processes.get(rank)
        return None if process is None else process.pid

    def processes(self, ranks: Sequence[int] | None = None) -> list[Process]:
        """The processes of `ranks`, or all, that there are."""
        everyone = list(self._processes.values())  # another thread may add some
        return [process for process in everyone if ranks is None or process.rank in ranks]

    def alive(self, processes: Sequence[Process]) -> list[Process]:
        """Those that have not ended."""
        return [p for p in processes if self.state.phase(p.rank) is not Phase.DEAD]

    def clear(self) -> None:
        """Forget all processes, which have ended."""
        with self._lock:
            self._processes.clear()
            self._active.clear()
            self._between.clear()
            self._elders.clear()

    # ---- runs ----

    def new_run(self, ranks: Sequence[int]) -> Run:
        """A run with the next number."""
        with self._lock:
            self._runs += 1
            return Run(self._runs, tuple(ranks))

    def open(self, run: Run, note: str) -> None:
        """Give the ranks of `run` to it.

        Raises:
            NoSession, WorkerDied, RankBusy: some of them cannot take a request; nothing has changed then.
        """
        with self._lock:
            self._check(run.ranks)
            for item in self._between:
                if item[0] in run.ranks:
                    run.inbox.put(item)
            self._between = [item for item in self._between if item[0] not in run.ranks]
            for rank in run.ranks:
                self._active[rank] = run
                self.state.busy(rank, note, time.monotonic())

    def close(self, run: Run) -> None:
        """`run` is over for whoever waited: ranks that have answered are idle, the others answer to nobody."""
        with self._lock:
            left = run.drain()
            self._between[:0] = [item for item in left if _is_text(item)]  # the next run shows it
            run.interrupts += run.takes_interrupt()  # the user has pressed it all the same
            for rank, _, what in left:
                if isinstance(what, Done):
                    run.done[rank] = what
                elif isinstance(what, Exited):
                    run.note_exit(rank, what)
            run.abandoned = bool(run.pending)
            for rank in run.pending:
                self.displayed(rank, sys.maxsize)
            for rank in run.ranks:
                if rank not in run.pending:
                    self._release(rank, run)
            if run.left_groups_broken:
                self.needs_heal = True

    def up(self, rank: int, start: Run) -> None:
        """`rank` has started up: what it says from now on, and what nobody took in yet, is for the next run."""
        with self._lock:
            for item in start.drain():
                if item[0] == rank and _is_text(item):
                    self._between.append(item)
                else:
                    start.inbox.put(item)
            self._release(rank, start)

    def keep(self, item: tuple[int, str, Any]) -> None:
        """Keep output for the next run."""
        with self._lock:
            self._between.append(item)

    def interrupt(self) -> tuple[int, ...]:
        """Interrupt every run as the stop button does; returns the ranks that were busy."""
        with self._lock:
            active = dict(self._active)
        for run in set(active.values()):
            if not run.abandoned:
                run.interrupt()
        for rank, run in active.items():
            if run.abandoned:
                self.send(rank, Interrupt(run.number))
        return tuple(sorted(active))

    def snapshot(self) -> Snapshot:
        """The state of the world now."""
        with self._lock:
            return self.state.snapshot(time.monotonic())

    def look(self, run: Run, title: str, began: float, now: float) -> Snapshot:
        """The state of the world, in which `run` goes on."""
        with self._lock:
            return self.state.snapshot(now, title, run.ranks, began)

    def absent(self, run: Run, size: int) -> dict[int, str] | None:
        """The ranks that nobody should wait for in `run`, and why; None when one of them may still come.

        While a run is waited for in another thread, the next cell may yet give an idle rank something to do.
        """
        absent = {}
        for rank in set(range(size)) - set(run.pending):
            if rank in run.done:
                failure = run.done[rank].failure
                absent[rank] = f"raised {failure.type_name}" if failure else FINISHED
            elif self.state.phase(rank) is Phase.DEAD:
                absent[rank] = "is not running"
            elif self.state.phase(rank) is Phase.IDLE and threading.current_thread() is threading.main_thread():
                absent[rank] = "does not run this cell"
            else:
                return None
        return absent

    def _check(self, ranks: Sequence[int]) -> None:
        if not self._processes:
            raise NoSession("there are no workers: `%nbsync start` starts them")
        dead = self.state.in_phase(Phase.DEAD)
        if set(dead) & set(ranks):
            ends = ", ".join(ranks_each_do({rank: self.state.end(rank) for rank in dead}))
            what = f"{ends}. {way_back(dead, pronoun(dead, 'them'))}"
            raise WorkerDied(ranks=dead, message=what + "".join(map(self._last_words, dead)))
        self.check_idle(ranks)

    def _last_words(self, rank: int) -> str:
        """The end of its stderr, where it ended between two runs: no other run will show it in time."""
        said = b"".join(what for of, kind, what in self._between if (of, kind) == (rank, "stderr"))
        return quote(last_words(said.decode(errors="replace").splitlines()), f"rank {rank}'s")

    def check_idle(self, ranks: Sequence[int]) -> None:
        """Raise `RankBusy` if one of them is not."""
        busy = [rank for rank in ranks if rank in self._active]
        if busy:
            doing = they_do(busy, self.state.note(busy[0]))
            raise RankBusy(ranks_do(busy, f"is busy: {doing}. `%nbsync interrupt` interrupts it"))

    def _release(self, rank: int, run: Run) -> None:
        """`run` has no more to do with `rank`."""
        if self._active.get(rank) is run:
            del self._active[rank]
            self.state.idle(rank, time.monotonic())

    # ---- messages ----

    def send(self, rank: int, message: Any) -> None:
        """Send a message to `rank`; to one that has ended it does nothing.

        An interrupt also gives up what is on its way to the rank: what comes in its place finds the rank interrupted.
        """
        process = self._processes.get(rank)
        if process is not None:
            hub().send(process, message)
            if isinstance(message, Interrupt):
                hub().give_up(process, message.run)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to the process of `rank`."""
        process = self._processes.get(rank)
        if process is not None:
            process.signal(number)

    def statement(self, rank: int, run: Run) -> Statement | None:
        """The statement of its cell that `rank` runs, or ran when it ended; None when that is not known."""
        found = read_box(self.folder, rank) if self.folder else None
        return found if found is not None and found.run == run.number else None

    def moving(self, rank: int) -> Moving | None:
        """The large message that is on its way to or from `rank`, if there is one."""
        process = self._processes.get(rank)
        return None if process is None else hub().moving(process)

    def shown(self, rank: int, size: int) -> None:
        """So many bytes of the output of `rank` were taken in: more may come."""
        with self._lock:
            of_elder = min(size, self._elders.get(rank, 0))  # the hub counts for each process by itself
            if of_elder:
                self._elders[rank] -= of_elder
            process = self._processes.get(rank)
        if process is not None and size > of_elder:
            hub().acknowledge(process, size - of_elder)

    def displayed(self, rank: int, count: int = 1) -> None:
        """So much more of what `rank` has displayed was shown, or never will be: it may display more."""
        self.send(rank, Shown(count))

    def peek(self, ranks: Sequence[int], timeout: float = 1.0, names_of: str | None = None) -> dict[int, Where]:
        """Where the main threads of `ranks` are. A rank that does not answer in time is left out."""
        answers: queue.SimpleQueue[tuple[int, Where]] = queue.SimpleQueue()
        with self._lock:
            self._glance -= 1
            ticket = self._glance
            self._glances[ticket] = answers
            asked = [rank for rank in ranks if rank in self._processes and self.state.phase(rank) is not Phase.DEAD]
        found: dict[int, Where] = {}
        deadline = time.monotonic() + timeout
        try:
            for rank in asked:
                self.send(rank, Peek(ticket, with_stack=True, names_of=names_of))
            while len(found) < len(asked):
                rank, where = answers.get(timeout=max(0.0, deadline - time.monotonic()))
                found[rank] = where
        except queue.Empty:
            pass
        finally:
            with self._lock:  # the hub's thread looks it up
                del self._glances[ticket]
        return found

    def _route(self, rank: int, kind: str, what: Any) -> None:
        """In the hub's thread: what `rank` has sent goes to the run it works on."""
        with self._lock:
            match what:
                case Progress():
                    self.state.progress(rank, what)
                    return
                case Where():
                    self.state.seen(rank, what, time.monotonic())
                    if what.ticket < 0:
                        if what.ticket in self._glances:  # else nobody waits any more
                            self._glances[what.ticket].put((rank, what))
                        return
                case Done():
                    self.state.answered(rank, what, time.monotonic())
                    if what.has_compiler:
                        note_compiler()
                case Exited():
                    self.state.exited(rank, describe_exit(what.status), time.monotonic())
            run = self._active.get(rank)
            if run is not None and not run.abandoned:
                run.inbox.put((rank, kind, what))
            elif run is not None and isinstance(what, Done | Exited):  # the answer that nobody waited for any more
                self.needs_heal |= isinstance(what, Done) and what.group_broken
                self._release(rank, run)
            elif kind != "message":
                self._between.append((rank, kind, what))
            elif isinstance(what, Display | ClearOutput):  # there is nobody to show it
                self.displayed(rank)
        if isinstance(what, Exited):
            self._on_exit()


def _is_text(item: tuple[int, str, Any]) -> bool:
    return item[1] in ("stdout", "stderr")
