"""The helper thread of a worker: it does the channel's I/O and answers while the main thread is busy.

It is the only thread that can act when the main thread is blocked in a collective: an interrupt or release that the
main thread does not follow within a short grace is enforced by cutting the group's sockets.
"""

from __future__ import annotations

import linecache
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import CodeType
from typing import Any

from nbsync.protocol.cells import describe_file
from nbsync.protocol.channel import Channel, ChannelClosed
from nbsync.protocol.messages import Interrupt, Peek, Release, Shown
from nbsync.protocol.reports import ASYNCHRONOUS, Where
from nbsync.protocol.userlines import is_users
from nbsync.worker.collector import Collector
from nbsync.worker.feed import Feed
from nbsync.worker.groups.group import GroupKeeper
from nbsync.worker.groups.operations import Collective, Message
from nbsync.worker.groups.stillness import Stillness
from nbsync.worker.groups.tasks import processor_demand
from nbsync.worker.groups.watch import CollectiveWatch
from nbsync.worker.inbox import Inbox
from nbsync.worker.interrupts import Interrupts
from nbsync.worker.memory import MemoryGauge
from nbsync.worker.names import names_of
from nbsync.worker.pace import Pace
from nbsync.worker.places import collective_in, ends_backward_pass, is_alone, peer_in, users_line
from nbsync.worker.stacks import stack_of
from nbsync.worker.tracebacks import is_own

RELEASE_GRACE = 0.02  # seconds: a collective whose peers have all arrived is done by then
STORE_GRACE = 0.15  # seconds after the cut: what is still blocked then waits for the store, not for a peer
INTERRUPT_GRACE = 0.1  # seconds in which a main thread in Python runs its signal handler
CHECK_EVERY = 0.01  # seconds
_FILE = re.compile(r'File "([^"]+)", line (\d+)')


class Attendant:
    """Serves the channel until the process ends.

    Attributes:
        inbox: the requests for the main thread, in order.
        memory: tells what this process holds.
        pace: how fast the user's code may display.
    """

    def __init__(
        self, channel: Channel, interrupts: Interrupts, groups: GroupKeeper, watch: CollectiveWatch, feed: Feed
    ) -> None:
        self.inbox = Inbox()
        self._released: Release | None = None
        self._channel, self._interrupts, self._groups = channel, interrupts, groups
        self._watch, self._feed = watch, feed
        self.memory = MemoryGauge()
        self.pace = Pace(lambda: self.is_here)
        self._collector = Collector()
        self._main = threading.main_thread().ident
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        channel.wake = feed.wake = groups.uncaught.tell = self._wake
        self._interrupted: int | None = None
        self._interrupted_at = 0.0
        self._release_at = 0.0
        self._stillness = Stillness(groups)
        self._idle = threading.Event()
        self._thread: int | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        self._collector.install()
        threading.Thread(target=self._serve, name="nbsync-attendant", daemon=True).start()

    def drain(self, timeout: float) -> None:
        """Wait until everything that was sent has left this process."""
        deadline = time.monotonic() + timeout
        while self._channel.has_output and time.monotonic() < deadline:
            self._idle.clear()
            self._wake()
            self._idle.wait(0.01)

    def _wake(self) -> None:
        if os.getpid() != self._pid:  # a child of this worker must not speak on its channel
            return
        with suppress(BlockingIOError):  # enough wake-ups are waiting already
            os.write(self._wake_in, b"\0")

    @property
    def is_here(self) -> bool:
        """Whether this is the helper thread: the garbage collector may run the user's code in it."""
        return threading.get_ident() == self._thread

    def _serve(self) -> None:
        self._thread = threading.get_ident()
        try:
            while True:
                self._turn()
        except ChannelClosed:  # the kernel is gone
            os.killpg(0, signal.SIGKILL)
        except BaseException:  # without this thread the rank would hang: better it ends, and says why
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.has_output else 0))
        patience = self._patience()
        self._collector.resume()
        events = poll.poll(patience)
        self._collector.pause()
        ready = dict(events)
        if self._wake_out in ready:
            os.read(self._wake_out, 4096)
        for message in self._channel.receive():
            self._take(message)
        self._feed.send(self._channel, time.monotonic())
        self._channel.transmit()
        if not self._channel.has_output:
            self._idle.set()
        self._enforce()

    def _patience(self) -> float | None:
        """How long there is nothing to do unless somebody calls, in milliseconds."""
        waits = [self._feed.due(time.monotonic()), CHECK_EVERY if self._is_enforcing else None]
        return min((wait * 1000 for wait in waits if wait is not None), default=None)

    def _take(self, message: Any) -> None:
        match message:
            case Interrupt(run):
                if self._interrupts.ask(run):
                    self._interrupted, self._interrupted_at = run, time.monotonic()
                    self._stillness.begin(run, self._interrupted_at)
                else:
                    self._channel.give_up(run)
            case Release(run):
                if run > self._interrupts.over:  # it may not have begun yet
                    now = time.monotonic()
                    self._released, self._release_at = message, now + RELEASE_GRACE
                    self._stillness.begin(run, now)
            case Peek():
                self._channel.send(self._where(message))
            case Shown(count):
                self.pace.shown(count)
            case request:
                self.pace.begin()
                self.inbox.put(request)

    def _enforce(self) -> None:
        """See to it that a main thread that is to stop does not stay in a collective."""
        now, run = time.monotonic(), self._interrupts.run
        self._interrupts.ask_again()
        if self._interrupted is not None and self._interrupts.was_missed:
            self._channel.give_up(self._interrupted)
            self._interrupted = None
        if self._groups.uncaught.count and not self._groups.was_cut:
            self._groups.cut()  # nobody else tells the main thread that nothing more will come
        if not self._is_enforcing:
            return
        self._groups.wake_stranded()
        release = self._released if self.was_released(run) else None
        is_in_vain = release is not None and self._waits_for(release.dead)
        if not (is_in_vain or self._stillness.is_so(now)):
            return
        if release is not None and now >= self._release_at:
            # The first cut also spoils what this rank has not entered yet; later ones free waits for the store.
            if not self._groups.was_cut:
                self._cut(run)
                self._release_at = now  # what flowed had its time: the grace for the store begins with the cut
            elif now >= self._release_at + STORE_GRACE and self._may_wait_for_store():
                self._cut(run, with_store=True)
        is_late = now >= self._interrupted_at + INTERRUPT_GRACE
        if is_late and run is not None and run == self._interrupted:
            # A handler that did not run means C code: a collective, a wait for the store, or a long computation.
            in_c = not self._interrupts.was_noticed
            if in_c or collective_in(self._main_stack()) is not None:
                self._cut(run, with_store=in_c)

    def _cut(self, run: int | None, *, with_store: bool = False) -> None:
        """Cut what the main thread is in, if it still works on `run`."""
        self._groups.cut(lambda: self._interrupts.run == run, with_store)

    def _may_wait_for_store(self) -> bool:
        """Whether the main thread is in an operation that may ask the store; one that was begun earlier does not."""
        return collective_in(self._main_stack()) not in (None, ASYNCHRONOUS)

    def _waits_for(self, dead: int | None) -> bool:
        """Whether the main thread is in an operation with a rank that is no more: what flows in it flows in vain."""
        current = self._watch.current
        return current is not None and dead in current.ranks

    def was_released(self, run: int | None) -> bool:
        """Whether this rank was told that `run` has failed elsewhere."""
        return self._released is not None and self._released.run == run

    def has_failed_elsewhere(self) -> bool:
        """Whether the run at work has: its collectives can end no more, and others wait for its end."""
        return self.was_released(self._interrupts.run) and self._groups.was_cut

    @property
    def _is_enforcing(self) -> bool:
        run, over = self._interrupts.run, self._interrupts.over
        is_released = self._released is not None and self._released.run > over
        has_to_end = run is not None and (run == self._interrupted or self._groups.uncaught.count > 0)
        return is_released or has_to_end

    def _main_stack(self) -> list[tuple[CodeType, int]]:
        return stack_of(self._main)

    def _where(self, asked: Peek) -> Where:
        frames = self._main_stack()
        current = self._watch.current
        collective = current if isinstance(current, Collective) else None
        name = collective.name if collective else collective_in(frames)
        peer = peer_in(self._main, frames)
        if name == ASYNCHRONOUS and isinstance(current, Message):
            name, peer = current
        demand = processor_demand(threading.get_native_id(), with_loops=True) if name else None
        return Where(
            ticket=asked.ticket,
            run=self._interrupts.run,
            line=users_line(frames),
            waiting_in=name,
            number=collective.number if collective else None,
            group=collective.ranks if collective else (),
            group_name=collective.group if collective else "",
            peer=peer,
            cpu=time.process_time(),
            queued=demand.waited if demand else 0.0,
            is_queued=demand is not None and demand.is_made,
            is_alone=is_alone(self._main, threading.get_ident()) if name else True,
            memory=self.memory.read(),
            stack=tuple(_format_stack(frames)) if asked.with_stack else (),
            must=collective.must if collective else None,
            is_ddp=ends_backward_pass(frames),
            names=names_of(asked.names_of) if asked.names_of is not None else (),
        )


def _format_stack(frames: Sequence[tuple[CodeType, int]]) -> list[str]:
    """A stack as text, without the frames that led to the user's code, nor those of ours in operations of torch."""
    linecache.checkcache()
    first = next((i for i, (code, _) in enumerate(frames) if is_users(code)), 0)
    shown = [
        traceback.FrameSummary(code.co_filename, line, code.co_name)
        for code, line in frames[first:]
        if not is_own(code.co_filename)
    ]
    lines = traceback.StackSummary.from_list(shown).format()
    return [_FILE.sub(_name_cell, line) for line in lines]


def _name_cell(match: re.Match[str]) -> str:
    """`Cell In[3], line 7` in place of the file that IPython pretends a cell to be."""
    name = describe_file(match[1])
    return f"{name}, line {match[2]}" if name.startswith("Cell ") else match[0]
