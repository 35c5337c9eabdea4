"""Sees to it that an interrupt reaches every rank, also one whose helper thread does not come to run."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from nbsync.kernel.supervision.evidence import unusual_state
from nbsync.protocol.handlers import handled_signals
from nbsync.protocol.spec import INSIST_SIGNAL, STACK_SIGNAL
from nbsync.protocol.words import ranks_do

HEARD_WITHIN = 0.3  # seconds in which a helper thread answers, unless C code holds the GIL
TOLD_AFTER = 1.0  # seconds after which it is said that a rank is in such code


class Insistence:
    """Interrupts a rank that does not answer by a signal of the kernel, and shows its stack if that does not help.

    Args:
        send_signal: sends a signal to the process of a rank.
        pid_of: the rank's process id, None when the session was closed.
        last_line: where the rank was seen last, or "".
        notify: tells the user something, in one line.
    """

    def __init__(
        self,
        send_signal: Callable[[int, int], None],
        pid_of: Callable[[int], int | None],
        last_line: Callable[[int], str],
        notify: Callable[[str], None],
    ) -> None:
        self._send_signal, self._pid_of, self._last_line, self._notify = send_signal, pid_of, last_line, notify
        self._unheard: set[int] = set()
        self._ticket = 0
        self._told: set[int] = set()
        self._signal_at: float | None = None
        self._tell_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When there is something to do next."""
        return self._signal_at if self._signal_at is not None else self._tell_at

    def begin(self, ranks: Iterable[int], ticket: int, now: float) -> None:
        """`ranks` were interrupted, and then asked where they are; the answers will bear `ticket` or a later number."""
        self._unheard, self._ticket = set(ranks), ticket
        self._signal_at, self._tell_at = now + HEARD_WITHIN, now + TOLD_AFTER

    def heard(self, rank: int, ticket: int) -> None:
        """An answer of `rank` has come."""
        if ticket >= self._ticket:
            self._unheard.discard(rank)

    def look(self, pending: Iterable[int], moving: Container[int], now: float) -> None:
        """Do what is due. Of `moving` ranks it is known why they do not answer: a large message is on its way."""
        silent = sorted(self._unheard.intersection(pending))
        if self._signal_at is not None and now >= self._signal_at:
            self._signal_at = None
            for rank in silent:
                if self._handles(rank, INSIST_SIGNAL):
                    self._send_signal(rank, INSIST_SIGNAL)
        if self._tell_at is not None and now >= self._tell_at:
            self._tell_at = None
            self._tell([rank for rank in silent if rank not in moving and self._is_running(rank)])

    def _is_running(self, rank: int) -> bool:
        pid = self._pid_of(rank)
        return pid is not None and unusual_state(pid) is None

    def _handles(self, rank: int, number: int) -> bool:
        """Whether the user's code has left the signal's handler in place: without one the rank would end by it."""
        pid = self._pid_of(rank)
        return pid is not None and number in handled_signals(pid)

    def _tell(self, ranks: Iterable[int]) -> None:
        lines: dict[str, list[int]] = {}
        for rank in ranks:
            if rank not in self._told:
                lines.setdefault(self._last_line(rank), []).append(rank)
        for line, same in lines.items():
            seen = f" (seen last at {line})" if line else ""
            what = f"is in C code that lets no other thread run{seen}, or waiting for a processor"
            way_out = "interrupts wait for that to end, and a third one ends the cell without it"
            shown = [rank for rank in same if self._handles(rank, STACK_SIGNAL)]
            self._notify(f"{ranks_do(same, what)}; {way_out}{'. Stack:' if shown else ''}")
            for rank in shown:
                self._send_signal(rank, STACK_SIGNAL)
        self._told.update(*lines.values())
