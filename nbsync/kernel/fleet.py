"""The workers of one world: started together, sent requests, replaced, ended. `Session` is its face to the user."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from nbsync.errors import NoSession, StartError
from nbsync.kernel import aftermath
from nbsync.kernel.conductor import Conductor
from nbsync.kernel.dispatch import Dispatch
from nbsync.kernel.engines.base import Engine, Process
from nbsync.kernel.guard import Guard
from nbsync.kernel.output.logs import Logs
from nbsync.kernel.output.printer import Printer
from nbsync.kernel.output.sink import Controls, Sink
from nbsync.kernel.run import Run
from nbsync.kernel.scratch import Scratch, sweep
from nbsync.kernel.sigint import sigint_later, sigint_to
from nbsync.kernel.start.own_names import tell_hidden
from nbsync.kernel.start.plan import Plan, make_spec
from nbsync.kernel.start.rendezvous import Rendezvous
from nbsync.kernel.start.startup import NotAlive, Startup
from nbsync.kernel.state import Phase
from nbsync.kernel.supervision.glance import describe_stacks
from nbsync.kernel.switchboard import hub
from nbsync.kernel.view.live import LiveView, NoView
from nbsync.protocol.idents import identify
from nbsync.protocol.messages import Begin, Request, RunCell, Stop, Work
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call

STOP_GRACE = 2.0  # seconds for an idle rank to end by itself, with what its code has registered for that
KILL_LIMIT = 30.0  # seconds; only a process in uninterruptible sleep outlives SIGKILL


class Fleet:
    """The running workers of one world.

    Attributes:
        traffic: which run each rank works on, and what is known of it.
        common: what the notebook and all its workers have in common, to be sent by name.
        life: how often the process group was made whole again.
    """

    def __init__(self, plan: Plan, engine: Engine, inherited: Call | None = None) -> None:
        self.plan = plan
        self.size = plan.placement.world_size
        devices = [f"cuda:{rank}" if plan.placement.uses_gpu else "cpu" for rank in range(self.size)]
        self.traffic = Dispatch(plan.placement.backend, devices, self._watch)
        self.state = self.traffic.state
        self.common = Common()
        self.life = 0
        self._engine, self._inherited = engine, inherited
        self._rendezvous: Rendezvous | None = None
        self._scratch = Scratch()
        self._logs = Logs(None)
        self._guard: Guard | None = None
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Whether there are workers."""
        return bool(self.traffic.processes())

    # ---- starting and ending ----

    def start(self) -> None:
        """Start all workers and wait until they are up. When that fails, whoever has called it closes the fleet.

        Raises:
            StartError: some did not come up; none is left running.
            Interrupted: the user gave it up; none is left running.
        """
        with sigint_later():  # what is made here must be known to `close`
            self._rendezvous = Rendezvous.bind(self.plan.host, self.plan.port)
            self._take_precautions()
        with suppress(OSError):  # only tidiness
            sweep()
        variables = vars(sys.modules["__main__"])
        if self.plan.init_group:
            tell_hidden(variables)
        self.common = Common.of(variables)
        self._bring_up(range(self.size))

    def refill(self, ranks: Sequence[int], mend: Callable[[int], None]) -> None:
        """Replace the workers of `ranks` by fresh ones, copies of the notebook as it is now.

        Args:
            mend: makes the other ranks join the given new life of the process group, and returns when they have.

        Raises:
            NoSession: the workers were ended meanwhile.
            StartError: they did not come up; the others go on without them.
        """
        if self._closed:
            raise NoSession("the workers were ended")
        self._end(self.traffic.processes(ranks))
        self.life += 1
        self.common &= Common.of(vars(sys.modules["__main__"]))
        self._bring_up(ranks, meanwhile=lambda: mend(self.life))

    def close(self) -> None:
        """End all workers, those that do not follow by force. An interrupt waits until that is done. Idempotent."""
        with sigint_later():
            self._close()

    def abandon(self) -> None:
        """Close what has failed, or was interrupted. Another interrupt changes nothing."""
        with sigint_to(lambda: None):
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._end(self.traffic.processes())
        self.traffic.clear()
        if self._logs.are_kept and self.plan.is_one_run:
            self._scratch.leave()
        else:
            self._scratch.remove()
        if self._guard is not None:  # the last to go: the kernel may be killed at any moment
            self._guard.dismiss()
            self._guard = None
        if self._rendezvous is not None:
            self._rendezvous.close()

    def _take_precautions(self) -> None:
        """Have whatever serves the workers, and a guard over them and their folder, before there are any."""
        try:
            hub().ensure_running()
        except RuntimeError as error:
            raise StartError(f"no thread for the workers: {error}. Raise the limit (ulimit -u)") from error
        try:
            self._guard = Guard(self._scratch.path, aftermath.note())
        except OSError as error:
            raise StartError(f"no process for the guard: {error.strerror}. Raise the limit (ulimit -u, -n)") from error
        with suppress(OSError):  # a full disk: then there are no logs, and the workers use the common folder
            self._scratch.make()
            self._logs = Logs(self._scratch.path)

    def _watch(self) -> None:
        """Let the guard end those that live, and only those: an ended one's number may come to be a stranger's."""
        guard = self._guard  # another thread may dismiss it
        if guard is not None:
            guard.watch(process.pid for process in self.traffic.alive(self.traffic.processes()))

    def _bring_up(self, ranks: Sequence[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the workers of `ranks` and wait until they are up; if forked ones hang, once more without a fork."""
        try:
            self._start_workers(ranks, meanwhile)
        except NotAlive as error:
            if not self._engine.avoid_fork(str(error)):
                raise StartError(str(error)) from None
            self.life += 1  # those that lived have left their addresses in this one
            self._start_workers(ranks, meanwhile)

    def _start_workers(self, ranks: Sequence[int], meanwhile: Callable[[], None]) -> None:
        assert self._rendezvous is not None
        seed = secrets.randbits(62) if self.plan.seed is None else self.plan.seed
        scratch = self.traffic.folder = str(self._scratch.path) if self._scratch.is_made else ""
        specs = [make_spec(self.plan, rank, seed, self._rendezvous, self.life, scratch) for rank in ranks]
        start = self.traffic.new_run(ranks)
        try:
            identify(vars(sys.modules["__main__"]))
            self._engine.prepare(specs, self._inherited, self.common)
            with sigint_later() as interrupt:  # no worker may be started and forgotten
                for process in self._engine.start(specs, self._inherited, self.common, interrupt):
                    self.traffic.add(process, start)
                self._watch()
                self._rendezvous.serve(self.size)
            for rank in ranks:
                self.traffic.send(rank, Begin())
            startup = Startup(start, self.traffic, self._engine.method)
            startup.wait_until_alive()
            meanwhile()
            startup.wait_until_up()
        except BaseException:  # also an interrupt
            with sigint_to(lambda: None):  # another one changes nothing
                self._end(self.traffic.processes(ranks))
            raise

    def _end(self, processes: Sequence[Process]) -> None:
        """Ask those that are idle; end the others, and what is left, by force."""
        alive = self.traffic.alive
        for process in alive(processes):
            if self.state.phase(process.rank) is Phase.IDLE:
                hub().send(process, Stop())
            else:
                process.kill()
        deadline = time.monotonic() + STOP_GRACE
        while alive(processes) and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in alive(processes):
            process.kill()
        deadline = time.monotonic() + KILL_LIMIT
        while alive(processes) and time.monotonic() < deadline:
            time.sleep(0.001)

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
        run = self.traffic.new_run(ranks)
        printer = Printer(run.ranks, sink, label=self.plan.label, fold=self.plan.fold, logs=self._logs)
        request = make_request(run.number)
        view = self._view(run, request, sink, note)
        ends_with_first = not self.plan.init_group  # fresh workers, which end with the function
        conductor = Conductor(
            run,
            printer,
            view,
            self.traffic,
            self.size,
            timeout=timeout,
            ends_with_first=ends_with_first,
            notify=notify,
        )
        with sigint_to(run.interrupt):  # an exception at any moment could lose a message
            self.traffic.open(run, note)
            try:
                for rank in run.ranks:
                    self.traffic.send(rank, request)
                conductor.conduct()
            finally:
                self.traffic.close(run)  # first: whatever else fails, the ranks answer to nobody any more
                printer.put_away()
        return run

    def _view(self, run: Run, request: Request, sink: Sink, note: str) -> LiveView | NoView:
        if not isinstance(request, Work) or not request.show_bars:
            return NoView()
        title = f"Cell In[{request.execution_count}]" if isinstance(request, RunCell) else note.removeprefix("runs ")
        began = time.monotonic()
        controls = Controls(run.interrupt, partial(describe_stacks, self, run.ranks))
        return LiveView(sink, partial(self.traffic.look, run, title, began), controls, began)
