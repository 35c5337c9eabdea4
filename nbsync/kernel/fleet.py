"""The workers of one world: started together, sent requests, healed, ended. `Session` is its face to the user."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nbsync.errors import NoSession, RankBusy, StartError, WorkerDied, describe_ranks
from nbsync.kernel.engines.base import Call, Engine, Process
from nbsync.kernel.hub import Exited
from nbsync.kernel.plan import Plan, make_spec
from nbsync.kernel.printer import Printer
from nbsync.kernel.rendezvous import Rendezvous
from nbsync.kernel.run import Conductor, Run
from nbsync.kernel.sigint import sigint_later
from nbsync.kernel.sink import Sink
from nbsync.kernel.state import Phase, WorldState
from nbsync.kernel.switchboard import hub
from nbsync.kernel.verdict import describe_exit
from nbsync.protocol.messages import BarrierEvent, Begin, Peek, Ready, Request, Stop, Where
from nbsync.protocol.serial import remember_shared

START_LIMIT = 60.0  # seconds until every rank must have come up
STOP_GRACE = 0.5  # seconds for an idle rank to end by itself
_KEPT_BETWEEN_RUNS = 1000  # pieces of output that came while no cell ran


class Fleet:
    """The running workers of one world."""

    def __init__(self, plan: Plan, engine: Engine, inherited: Call | None = None) -> None:
        self.plan = plan
        self.size = plan.placement.world_size
        self.state = WorldState(plan.placement.backend)
        self._engine, self._inherited = engine, inherited
        self._processes: dict[int, Process] = {}
        self._active: dict[int, Run] = {}
        self._between: deque[tuple[int, str, Any]] = deque(maxlen=_KEPT_BETWEEN_RUNS)
        self._lock = threading.Lock()
        self._glances: queue.SimpleQueue[tuple[int, Where]] = queue.SimpleQueue()
        self._glance = 0
        self._runs = 0
        self.life = 0  # how often the process group was made whole again
        self._rendezvous: Rendezvous | None = None

    # ---- starting and ending ----

    def start(self) -> None:
        """Start all workers and wait until they are up.

        Raises:
            StartError: some did not come up; none is left running.
        """
        self._rendezvous = Rendezvous.bind(self.plan.host, self.plan.port)
        try:
            self._bring_up(range(self.size))
        except BaseException:  # also an interrupt: all or nothing
            self.close()
            raise

    def refill(self, ranks: Sequence[int], mend: Callable[[int], None]) -> None:
        """Replace the workers of `ranks` by fresh ones, copies of the notebook as it is now.

        Args:
            mend: makes the other ranks join the given new life of the process group, and returns when they have.

        Raises:
            StartError: they did not come up; the others are untouched.
        """
        self._end([self._processes[rank] for rank in ranks])
        self.life += 1
        life = self.life
        self._bring_up(ranks, meanwhile=lambda: mend(life))

    def _bring_up(self, ranks: Sequence[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the workers of `ranks` and wait until they are up."""
        assert self._rendezvous is not None
        seed = secrets.randbits(62) if self.plan.seed is None else self.plan.seed
        remember_shared(vars(sys.modules["__main__"]))
        start = Run(self._next_number(), tuple(ranks))
        self._active.update(dict.fromkeys(ranks, start))
        specs = [make_spec(self.plan, rank, seed, self._rendezvous, self.life) for rank in ranks]
        try:
            with sigint_later():  # no worker may be started and forgotten
                for process in self._engine.start(specs, self._inherited):
                    self._processes[process.rank] = process
                    self.state.started(process.rank, process.pid, time.monotonic())
                    hub().attach(process, self._route)
            self._rendezvous.serve(self.size)
            for rank in ranks:
                self._send(rank, Begin())
            meanwhile()
            self._wait_until_up(start)
        except BaseException:  # also an interrupt
            self._end([self._processes[rank] for rank in ranks if rank in self._processes])
            raise
        finally:
            for rank in ranks:
                self._active.pop(rank, None)

    def close(self) -> None:
        """End all workers, those that do not follow by force. Idempotent."""
        self._end(list(self._processes.values()))
        self._processes.clear()
        if self._rendezvous is not None:
            self._rendezvous.close()

    def _end(self, processes: Sequence[Process]) -> None:
        """Ask those that are idle; end the others, and what is left, by force."""
        for process in self._alive(processes):
            if self.state.phase(process.rank) is Phase.IDLE:
                hub().send(process, Stop())
            else:
                process.kill()
        deadline = time.monotonic() + STOP_GRACE
        while self._alive(processes) and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in self._alive(processes):
            process.kill()
        while self._alive(processes):  # SIGKILL cannot be ignored
            time.sleep(0.001)
        self._engine.stopped(processes)

    @property
    def is_running(self) -> bool:
        return bool(self._processes)

    def _alive(self, processes: Sequence[Process]) -> list[Process]:
        return [p for p in processes if self.state.phase(p.rank) is not Phase.DEAD]

    def _wait_until_up(self, start: Run) -> None:
        missing = set(start.ranks)
        deadline = time.monotonic() + START_LIMIT
        while missing:
            try:
                rank, kind, what = start.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise StartError(f"{describe_ranks(sorted(missing))} did not come up in {START_LIMIT:.0f} s") from None
            match what:
                case Ready(_, None):
                    missing.discard(rank)
                    self.state.idle(rank, time.monotonic())
                case Ready(_, failure) if failure is not None:
                    raise StartError(f"rank {rank} could not start:\n" + "\n".join(failure.traceback))
                case Exited(_, status):
                    raise StartError(f"rank {rank} {describe_exit(status)} while it started")
                case _:
                    self._between.append((rank, kind, what))

    # ---- runs ----

    def execute(
        self,
        make_request: Callable[[int], Request],
        ranks: Sequence[int],
        sink: Sink,
        *,
        note: str,
        timeout: float | None = None,
        notify: Callable[[str], None],
    ) -> Run:
        """Send a request to `ranks` and wait for all their answers, showing their output in `sink`.

        Raises:
            NoSession, WorkerDied, RankBusy: some of `ranks` cannot take a request; nothing was sent.
        """
        run = self._open(tuple(ranks), note)
        try:
            request = make_request(run.number)
            for rank in run.ranks:
                hub().send(self._processes[rank], request)
            printer = Printer(run.ranks, sink, label=self.plan.label, fold=self.plan.fold)
            Conductor(
                run,
                printer,
                self._send,
                world_size=self.size,
                absent=lambda: self._absent(run),
                timeout=timeout,
                notify=notify,
            ).conduct()
        finally:
            self._close_run(run)
        return run

    def _open(self, ranks: tuple[int, ...], note: str) -> Run:
        with self._lock:
            if not self._processes:
                raise NoSession("there are no workers: `%nbsync start` starts them")
            for rank in ranks:
                if self.state.phase(rank) is Phase.DEAD:
                    raise WorkerDied(
                        ranks=[rank],
                        message=f"is not running: it {self.state.note(rank)}. "
                        f"`%nbsync restart --ranks {rank}` brings it back",
                    )
                if rank in self._active:
                    raise RankBusy(f"rank {rank} is busy: {self.state.note(rank)}. `%nbsync interrupt` interrupts it")
            run = Run(self._next_number(), ranks)
            for item in self._between:
                if item[0] in ranks:
                    run.inbox.put(item)
            self._between.clear()
            for rank in ranks:
                self._active[rank] = run
                self.state.busy(rank, note, time.monotonic())
            return run

    def _absent(self, run: Run) -> dict[int, str] | None:
        """The ranks that nobody should wait for in `run`, and why; None when one of them may still come."""
        absent = {}
        for rank in set(range(self.size)) - set(run.pending):
            if rank in run.done:
                failure = run.done[rank].failure
                absent[rank] = f"raised {failure.type_name}" if failure else "has finished"
            elif self.state.phase(rank) is Phase.DEAD:
                absent[rank] = "is not running"
            elif self.state.phase(rank) is Phase.IDLE:
                absent[rank] = "does not run this cell"
            else:
                return None
        return absent

    def _close_run(self, run: Run) -> None:
        with self._lock:
            for rank in run.ranks:
                if rank in run.pending:  # abandoned: it stays busy until its answer comes
                    continue
                self._active.pop(rank, None)
                if rank not in run.exited:
                    self.state.idle(rank, time.monotonic())

    # ---- in the hub's thread ----

    def _route(self, rank: int, kind: str, what: Any) -> None:
        with self._lock:
            now = time.monotonic()
            if isinstance(what, BarrierEvent):
                self.state.barrier(rank, what)
                return
            run = self._active.get(rank)
            if isinstance(what, Where) and what.ticket < 0:
                self._glances.put((rank, what))
                return
            if isinstance(what, Exited):
                self.state.exited(rank, describe_exit(what.status), now)
            if run is not None and not run.abandoned:
                run.inbox.put((rank, kind, what))
                return
            if run is not None and (isinstance(what, Exited) or getattr(what, "run", None) == run.number):
                del self._active[rank]  # the answer that nobody waited for any more
                if not isinstance(what, Exited):
                    self.state.idle(rank, now)
                return
            if kind != "message":
                self._between.append((rank, kind, what))

    # ---- small parts ----

    def _send(self, rank: int, message: Any) -> None:
        process = self._processes.get(rank)
        if process is not None:
            hub().send(process, message)

    def interrupt(self, make_order: Callable[[int], Any]) -> tuple[int, ...]:
        """Send an order to every rank that is busy, for the run it works on; returns those ranks."""
        with self._lock:
            active = dict(self._active)
        for rank, run in active.items():
            self._send(rank, make_order(run.number))
        return tuple(sorted(active))

    def peek(self, ranks: Sequence[int], timeout: float = 1.0) -> dict[int, Where]:
        """Where the main threads of `ranks` are. A rank that does not answer in time is left out."""
        self._glance -= 1
        for rank in ranks:
            self._send(rank, Peek(self._glance))
        found: dict[int, Where] = {}
        deadline = time.monotonic() + timeout
        while len(found) < len(ranks):
            try:
                rank, where = self._glances.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if where.ticket == self._glance:
                found[rank] = where
        return found

    def process(self, rank: int) -> Process:
        """The process of `rank`, also when it has ended."""
        return self._processes[rank]

    def _next_number(self) -> int:
        self._runs += 1
        return self._runs
