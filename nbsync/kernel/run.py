"""One request to some ranks, from sending it to the last answer: who still works, who failed first, who is released.

This is the kernel's half of the abort ladder. The waiting thread decides and prints; the workers' helper threads act.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbsync.errors import describe_ranks
from nbsync.kernel.evidence import oom_kills
from nbsync.kernel.hub import Exited
from nbsync.kernel.lookout import Lookout
from nbsync.kernel.printer import Printer
from nbsync.kernel.sigint import sigint_to
from nbsync.protocol.messages import ClearOutput, Display, Done, Interrupt, Raised, Release, Where

Inbox = queue.SimpleQueue[tuple[int, str, Any]]
Send = Callable[[int, Any], None]

_INTERRUPT = (-1, "interrupt", None)


@dataclass
class Run:
    """The state of one request.

    Attributes:
        done: the answer of each rank that gave one.
        exited: how the processes ended that did not; last_lines: where they were seen last.
        oom_kills: how many processes had been ended for want of memory when the run began.
        stuck: why no rank could go on, when they were released for that.
        interrupts: how often the user interrupted it.
    """

    number: int
    ranks: tuple[int, ...]
    inbox: Inbox = field(default_factory=queue.SimpleQueue)
    done: dict[int, Done] = field(default_factory=dict)
    exited: dict[int, Exited] = field(default_factory=dict)
    exit_times: dict[int, float] = field(default_factory=dict)
    last_lines: dict[int, str] = field(default_factory=dict)
    oom_kills: int | None = field(default_factory=oom_kills)
    stuck: str | None = None
    interrupts: int = 0
    timed_out: tuple[int, ...] = ()
    abandoned: bool = False

    @property
    def pending(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.ranks if rank not in self.done and rank not in self.exited)

    @property
    def has_failed(self) -> bool:
        return bool(self.exited) or any(done.failure for done in self.done.values())


class Conductor:
    """Waits for a run: prints its output, releases ranks that wait for a failed one, relays interrupts.

    Args:
        send: sends a message to a rank.
        world_size, absent: how many ranks there are, and which do not run, and why (see `Lookout`).
        timeout: seconds after which the run is interrupted, or None.
        notify: tells the user something, in one line.
    """

    def __init__(
        self,
        run: Run,
        printer: Printer,
        send: Send,
        *,
        world_size: int,
        absent: Callable[[], Mapping[int, str] | None],
        timeout: float | None = None,
        notify: Callable[[str], None],
    ) -> None:
        self._run, self._printer, self._send = run, printer, send
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._notify = notify
        self._released = False
        self._lookout = Lookout(world_size, self._order, absent, time.monotonic())

    def conduct(self) -> None:
        """Return when every rank has answered or ended, or when the user has given up on those that do not."""
        with sigint_to(lambda: self._run.inbox.put(_INTERRUPT)):  # an exception here could lose a message
            while self._run.pending and not self._run.abandoned:
                self._step()
            self._printer.close()

    def _step(self) -> None:
        for rank, kind, what in self._receive():
            match kind:
                case "interrupt":
                    self._interrupt()
                case "message":
                    self._take(rank, what)
                case "stdout" | "stderr":
                    self._printer.text(rank, kind, what, time.monotonic())
        now = time.monotonic()
        self._printer.show(now)
        self._look(now)
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self._run.timed_out = self._run.pending
            self._order(Interrupt(self._run.number))

    def _receive(self) -> Iterable[tuple[int, str, Any]]:
        """Everything that has come, after waiting for the first of it as long as there is nothing else to do."""
        times = (self._printer.next_deadline(), self._deadline, self._lookout.next_look)
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
            case Raised(_, type_name):
                self._release(f"rank {rank} raised {type_name}")
            case Where():
                self._lookout.take(rank, message)
            case Done():
                self._run.done[rank] = message
                self._printer.finish(rank, now)
                if message.failure is not None and not message.failure.is_consequence:
                    self._release(f"rank {rank} raised {message.failure.type_name}")
            case Exited():
                self._run.exited[rank] = message
                self._run.exit_times[rank] = now
                self._run.last_lines[rank] = self._lookout.last_line(rank)
                self._printer.finish(rank, now)
                self._release(f"rank {rank} ended")

    def _look(self, now: float) -> None:
        stuck = self._lookout.look(now)
        if stuck is not None and not self._released:
            self._run.stuck = stuck
            self._release(stuck)

    def _release(self, reason: str) -> None:
        """Free the ranks that wait, or will wait, in a collective with a rank that does not come."""
        if not self._released:
            self._released = True
            self._order(Release(self._run.number, reason))

    def _interrupt(self) -> None:
        """The first asks; the second asks again those that swallowed it; the third gives up on them."""
        self._run.interrupts += 1
        pending = self._run.pending
        if self._run.interrupts >= 2:
            self._notify(f"{describe_ranks(pending)} did not follow the interrupt yet; asking again")
        if self._run.interrupts >= 3:
            self._notify(
                f"{describe_ranks(pending)} ignored every interrupt. "
                f"`%nbsync restart --ranks {','.join(map(str, pending))}` replaces "
                f"{'it' if len(pending) == 1 else 'them'}; the variables there are lost by that"
            )
            self._run.abandoned = True
        self._order(Interrupt(self._run.number))

    def _order(self, order: Any) -> None:
        for rank in self._run.pending:
            self._send(rank, order)
