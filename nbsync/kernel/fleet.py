"""The workers of one world: started together, sent requests, healed, ended. `Session` is its face to the user."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbsync.errors import NoSession, RankBusy, StartError, WorkerDied, describe_ranks
from nbsync.kernel.devices import Placement, threads_per_rank
from nbsync.kernel.engines.base import Call, Engine, Process
from nbsync.kernel.hub import Exited
from nbsync.kernel.printer import Label, Printer, bracket_label
from nbsync.kernel.rendezvous import LOOPBACK, Rendezvous, loopback_defaults, torchrun_environment
from nbsync.kernel.run import Conductor, Inbox, Run
from nbsync.kernel.sink import Sink
from nbsync.kernel.state import Phase, WorldState
from nbsync.kernel.switchboard import hub
from nbsync.kernel.verdict import describe_exit
from nbsync.protocol.messages import BarrierEvent, Heal, Ready, Request, Stop
from nbsync.protocol.serial import remember_shared
from nbsync.protocol.spec import WorkerSpec

START_LIMIT = 60.0  # seconds until every rank must have come up
STOP_GRACE = 0.5  # seconds for an idle rank to end by itself
HEAL_LIMIT = 20.0
_KEPT_BETWEEN_RUNS = 1000  # pieces of output that came while no cell ran


@dataclass(frozen=True)
class Plan:
    """How to start the workers.

    Attributes:
        init_group: whether workers create the process group at start.
        seed: base of the random states; drawn when None.
        port: of the rendezvous; 0 lets the system choose.
        run_id, restart_count, max_restarts: as torchrun's environment tells them.
    """

    placement: Placement
    init_group: bool = True
    seed: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = LOOPBACK
    port: int = 0
    run_id: str = "none"
    restart_count: int = 0
    max_restarts: int = 0
    label: Label = bracket_label
    fold: bool = True


class Fleet:
    """The running workers of one world."""

    def __init__(self, plan: Plan, engine: Engine, inherited: Call | None = None) -> None:
        self.plan = plan
        self.size = plan.placement.world_size
        self.state = WorldState(plan.placement.backend)
        self.broken: str | None = None  # why the process group cannot be used, if so
        self._engine, self._inherited = engine, inherited
        self._processes: dict[int, Process] = {}
        self._active: dict[int, Run] = {}
        self._between: deque[tuple[int, str, Any]] = deque(maxlen=_KEPT_BETWEEN_RUNS)
        self._lock = threading.Lock()
        self._runs = 0
        self._generation = 0
        self._rendezvous: Rendezvous | None = None

    # ---- starting and ending ----

    def start(self) -> None:
        """Start all workers and wait until they are up.

        Raises:
            StartError: some did not come up; none is left running.
        """
        self._rendezvous = Rendezvous.open(self.size, self.plan.host, self.plan.port)
        seed = secrets.randbits(62) if self.plan.seed is None else self.plan.seed
        remember_shared(vars(sys.modules["__main__"]))
        start = Run(self._next_number(), tuple(range(self.size)))
        self._active = dict.fromkeys(start.ranks, start)
        specs = [self._spec(rank, seed, self._rendezvous) for rank in start.ranks]
        try:
            for process in self._engine.start(specs, self._inherited):
                self._processes[process.rank] = process
                self.state.started(process.rank, process.pid, time.monotonic())
                hub().attach(process, self._route)
            self._wait_until_up(start.inbox)
        except BaseException:  # also an interrupt: all or nothing
            self.close()
            raise
        self._active.clear()

    def close(self) -> None:
        """End all workers, those that do not follow by force. Idempotent."""
        processes = [p for p in self._processes.values() if self.state.phase(p.rank) is not Phase.DEAD]
        for process in processes:
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
        self._engine.stopped(list(self._processes.values()))
        self._processes.clear()
        self._rendezvous = None

    @property
    def is_running(self) -> bool:
        return bool(self._processes)

    def _alive(self, processes: Sequence[Process]) -> list[Process]:
        return [p for p in processes if self.state.phase(p.rank) is not Phase.DEAD]

    def _spec(self, rank: int, seed: int, rendezvous: Rendezvous) -> WorkerSpec:
        environ = torchrun_environment(
            rank,
            self.size,
            rendezvous,
            run_id=self.plan.run_id,
            restart_count=self.plan.restart_count,
            max_restarts=self.plan.max_restarts,
        )
        environ |= loopback_defaults() | {"NBSYNC_BACKEND": self.plan.placement.backend}
        if not self.plan.placement.uses_gpu:
            environ["ACCELERATE_USE_CPU"] = "true"
        threads = threads_per_rank(self.size)
        if threads is not None:
            environ["OMP_NUM_THREADS"] = str(threads)
        return WorkerSpec(
            rank=rank,
            local_rank=rank,
            world_size=self.size,
            local_world_size=self.size,
            backend=self.plan.placement.backend,
            init_group=self.plan.init_group,
            seed=seed,
            threads=threads,
            environ=environ | dict(self.plan.env),
        )

    def _wait_until_up(self, inbox: Inbox) -> None:
        missing = set(range(self.size))
        deadline = time.monotonic() + START_LIMIT
        while missing:
            try:
                rank, kind, what = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise StartError(f"{describe_ranks(sorted(missing))} did not come up in {START_LIMIT:.0f} s") from None
            match what:
                case Ready(_, None):
                    missing.discard(rank)
                    self.state.idle(rank, time.monotonic())
                case Ready(_, failure):
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
                        message=f"is not running: it {self.state.note(rank)}. `%nbsync restart` gives fresh workers",
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

    def heal(self, sink: Sink, run: Run, notify: Callable[[str], None]) -> None:
        """Make the process group whole again after a run that failed, if it is not."""
        if not (run.has_failed or run.interrupts or run.timed_out):
            return
        unfit = [rank for rank in range(self.size) if self.state.phase(rank) is not Phase.IDLE]
        if unfit:
            self.broken = f"{describe_ranks(unfit)} cannot take part"
            return
        if not any(done.group_broken for done in run.done.values()) and _agree(run):
            return
        self._generation += 1
        generation = self._generation
        healed = self.execute(
            lambda number: Heal(number, generation),
            range(self.size),
            sink,
            note="healing the process group",
            timeout=HEAL_LIMIT,
            notify=notify,
        )
        failures = [done.failure for done in healed.done.values() if done.failure]
        self.broken = failures[0].message if failures else None
        if self.broken:
            notify(f"the process group could not be healed: {self.broken}")

    # ---- in the hub's thread ----

    def _route(self, rank: int, kind: str, what: Any) -> None:
        with self._lock:
            now = time.monotonic()
            if isinstance(what, BarrierEvent):
                self.state.barrier(rank, what)
                return
            run = self._active.get(rank)
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

    def _next_number(self) -> int:
        self._runs += 1
        return self._runs


def _agree(run: Run) -> bool:
    """Whether every group has seen equally many collectives on all ranks that answered."""
    seen: dict[str, int] = {}
    return all(
        seen.setdefault(name, count) == count for done in run.done.values() for name, count in done.sequence
    )
