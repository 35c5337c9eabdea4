"""One request to some ranks, from sending it to the last answer: who still works, who failed first, who is released.

This is the kernel's half of the abort ladder. The waiting thread decides and prints; the workers' helper threads act.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from nbsync.kernel.hub import Exited
from nbsync.kernel.output.printer import Printer
from nbsync.kernel.run import Run
from nbsync.kernel.supervision.evidence import last_line
from nbsync.kernel.supervision.handling import Handling
from nbsync.kernel.supervision.headroom import Headroom
from nbsync.kernel.supervision.insist import Insistence
from nbsync.kernel.supervision.limit import Limit
from nbsync.kernel.supervision.lookout import Lookout
from nbsync.kernel.supervision.pulse import Pulse
from nbsync.kernel.supervision.stuck import Verdict
from nbsync.kernel.transfers import Moving, Transfers
from nbsync.kernel.view.live import LiveView, NoView
from nbsync.protocol.blackbox import Statement
from nbsync.protocol.messages import ClearOutput, Display, Done, Interrupt, Raised, Release
from nbsync.protocol.reports import Where
from nbsync.protocol.words import describe_ranks, format_ranks, pronoun

ESCALATE_AFTER = 1.0  # seconds between two interrupts that count; more of them in between are one


class Traffic(Protocol):
    """What a conductor needs of the world (see `Dispatch`)."""

    def send(self, rank: int, message: Any) -> None: ...

    def signal(self, rank: int, number: int) -> None: ...

    def shown(self, rank: int, size: int) -> None: ...

    def displayed(self, rank: int) -> None: ...

    def moving(self, rank: int) -> Moving | None: ...

    def pid(self, rank: int) -> int | None: ...

    def statement(self, rank: int, run: Run) -> Statement | None: ...

    def absent(self, run: Run, size: int) -> Mapping[int, str] | None: ...


class Conductor:
    """Waits for a run: prints its output, releases ranks that wait for a failed one, relays interrupts.

    Args:
        traffic: sends messages to ranks, and knows which do not run.
        world_size: how many ranks there are.
        timeout: seconds after which the run is interrupted, or None.
        ends_with_first: when one rank has failed, the others are interrupted: nobody will use what they have.
        notify: tells the user something, in one line.
    """

    def __init__(
        self,
        run: Run,
        printer: Printer,
        view: LiveView | NoView,
        traffic: Traffic,
        world_size: int,
        *,
        timeout: float | None = None,
        ends_with_first: bool = False,
        notify: Callable[[str], None],
    ) -> None:
        self._run, self._printer, self._view = run, printer, view
        self._ends_with_first = ends_with_first
        self._traffic, self._notify = traffic, notify
        now = time.monotonic()
        self._limit = Limit(timeout, now)
        self._interrupted_at = float("-inf")
        self._released = False
        self._doubted: set[Verdict] = set()
        self._lookout = Lookout(world_size, self._order, lambda: traffic.absent(run, world_size), now)
        self._transfers = Transfers(traffic.moving)
        self._pulse = Pulse(traffic.pid, notify)
        self._headroom = Headroom(traffic.pid, notify)
        self._handling = Handling(lambda rank: traffic.statement(rank, run), notify)
        self._insistence = Insistence(traffic.signal, traffic.pid, self._lookout.last_line, notify)
        printer.on_display = self._displayed

    def conduct(self) -> None:
        """Return when every rank has answered or ended, or when the user has given up on those that do not."""
        while self._run.pending and not self._run.abandoned:
            self._step()
        self._printer.close(time.monotonic())
        self._view.close(time.monotonic())

    def _step(self) -> None:
        for rank, kind, what in self._receive():
            self._heed_interrupt()
            match kind:
                case "message":
                    self._take(rank, what)
                case "stdout" | "stderr":
                    self._view.before_text(time.monotonic())
                    self._printer.text(rank, kind, what, time.monotonic())
                    self._traffic.shown(rank, len(what))
        now = time.monotonic()
        self._view.tick(now)
        self._transfers.look(self._run.pending, now)
        self._printer.also_live(self._transfers.lines())
        self._printer.show(now)
        self._look(now)
        self._insistence.look(self._run.pending, self._transfers.ranks, now)
        self._keep_limit(now)

    def _receive(self) -> Iterable[tuple[int, str, Any]]:
        """Everything that has come, after waiting for the first of it as long as there is nothing else to do."""
        times = (
            self._printer.next_deadline(),
            self._limit.deadline,
            self._lookout.next_look,
            self._insistence.deadline,
            self._view.next_tick,
        )
        wait = min(t for t in times if t is not None) - time.monotonic()
        try:
            items = [self._run.inbox.get(timeout=max(0.0, wait))]
        except queue.Empty:
            return []
        for _ in range(self._run.inbox.qsize()):
            items.append(self._run.inbox.get())
        return items

    def _take(self, rank: int, message: Any) -> None:
        now = time.monotonic()
        match message:
            case Display():
                self._printer.display(rank, message, now)
            case ClearOutput():
                self._printer.clear(rank, message, now)
            case Raised():
                self._run.raised.add(rank)
                self._release()
            case Where():
                self._lookout.take(rank, message)
                self._insistence.heard(rank, message.ticket)
            case Done():
                self._run.done[rank] = message
                self._printer.finish(rank, now)
                if message.failure is not None and not message.failure.is_consequence:
                    self._release()
            case Exited():
                self._release(dead=rank)  # first: what moves among the others now moves in vain
                self._printer.finish(rank, now)
                self._run.note_exit(rank, message, self._last_line(rank), self._printer.last_words(rank))

    def _look(self, now: float) -> None:
        if now >= self._lookout.next_look:
            self._pulse.look(self._run.pending)
            self._headroom.look(self._run.pending)
            self._handling.look(self._run.pending)
        verdict = self._lookout.look(now)
        if verdict is None or self._released:
            return
        if not verdict.doubt:
            self._run.stuck, self._run.stuck_at = verdict.told, now
            self._release()
        elif verdict not in self._doubted:
            self._doubted.add(verdict)
            self._notify(
                f"no rank goes on: {verdict.told}. Another thread of {describe_ranks(verdict.doubt)} may yet do what "
                "is waited for; if not, interrupt the cell"
            )

    def _release(self, dead: int | None = None) -> None:
        """Free the ranks that wait, or will wait, in a collective with a rank that does not come."""
        if self._released and dead is None:
            return
        if self._ends_with_first:
            self._limit.fail(time.monotonic())
        self._released = True
        self._order(Release(self._run.number, dead))

    def _displayed(self, rank: int) -> None:
        """A display of `rank` was shown. To show all that are there takes long: nothing waits for the end of that."""
        self._traffic.displayed(rank)
        self._heed_interrupt()

    def _heed_interrupt(self) -> None:
        if self._run.takes_interrupt():
            self._interrupt()

    def _interrupt(self) -> None:
        """The first asks; the second asks again those that swallowed it; the third gives up on them."""
        now, pending = time.monotonic(), self._run.pending
        if now < self._interrupted_at + ESCALATE_AFTER:
            return
        self._interrupted_at = now
        self._run.interrupts += 1
        if not pending:
            return
        if self._run.interrupts == 2:
            self._notify(f"{describe_ranks(pending)} did not follow the interrupt yet; asking again")
        if self._run.interrupts >= 3:
            self._give_up("ignored every interrupt")
        self._order_interrupt(pending, now)

    def _keep_limit(self, now: float) -> None:
        """At the time limit, or after a failure that ends all, and every second after it, interrupt what still runs."""
        late = self._limit.late(self._run.pending, self._run.raised, now)
        if not late:
            return
        if not self._limit.has_failed:
            self._run.timed_out = self._run.timed_out or late
        if self._limit.is_exhausted(self._run.pending):
            why = "the failure" if self._limit.has_failed else "the time limit"
            self._give_up(f"went on after {why} and every interrupt")
        self._order_interrupt(late, now)

    def _order_interrupt(self, ranks: Sequence[int], now: float) -> None:
        self._order(Interrupt(self._run.number), ranks)
        self._insistence.begin(ranks, self._lookout.ask(now), now)

    def _give_up(self, reason: str) -> None:
        pending = self._run.pending
        self._notify(
            f"{describe_ranks(pending)} {reason}. `%nbsync restart --ranks {format_ranks(pending)}` replaces "
            f"{pronoun(pending, 'them')}; the variables there are lost by that"
        )
        self._run.abandoned = True

    def _last_line(self, rank: int) -> str:
        statement = self._traffic.statement(rank, self._run)
        return last_line(statement, self._lookout.last_line(rank), self._printer.crash_stack(rank))

    def _order(self, order: Any, ranks: Iterable[int] | None = None) -> None:
        for rank in self._run.pending if ranks is None else ranks:
            self._traffic.send(rank, order)
