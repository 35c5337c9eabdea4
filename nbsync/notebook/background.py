"""Cells that go on while the notebook is used: their output still goes to the cell that started them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nbsync.errors import Interrupted, NbsyncError, RankBusy, WorkerError
from nbsync.kernel.output.sink import Sink
from nbsync.kernel.sigint import PutOff, sigint_to
from nbsync.notebook.outlet import NotebookSink

LOOK_EVERY = 0.1  # seconds between two looks for an interrupt of whoever waits


@dataclass(eq=False)
class _Background:
    """One such cell.

    Attributes:
        error: how it ended, if not well.
        is_told: whether somebody who waited for it has got the error.
    """

    title: str
    ranks: Sequence[int]
    thread: threading.Thread
    error: NbsyncError | KeyboardInterrupt | None = None
    is_told: bool = False

    @property
    def goes_on(self) -> bool:
        return self.thread.is_alive()

    def __str__(self) -> str:
        if self.goes_on:
            return f"{self.title} runs in the background"
        if self.error is None:
            return f"{self.title}, in the background, has ended"
        if isinstance(self.error, KeyboardInterrupt):
            return f"{self.title}, in the background, was interrupted"
        summary = self.error.summary if isinstance(self.error, WorkerError) else str(self.error)
        first, _, _ = summary.partition("\n")
        return f"{self.title}, in the background, has failed: {first}"


_cells: list[_Background] = []  # in the order they began; of each rank that ended, the last


def run_in_background(shell: Any, job: Callable[[Sink], None], title: str, ranks: Sequence[int]) -> None:
    """Run `job` in a thread whose output belongs to the current cell. Its error is printed there.

    Args:
        title: of the cell.
        ranks: where it runs.
    """
    parent = shell.get_parent() if hasattr(shell, "get_parent") else None

    def run() -> None:
        if parent is not None and hasattr(shell, "set_thread_parent"):
            shell.set_thread_parent(parent)
        sink = NotebookSink()
        try:
            job(sink)
        except (NbsyncError, KeyboardInterrupt) as error:
            cell.error = error
            render = getattr(error, "_render_traceback_", None)
            lines = render() if render else [f"{type(error).__name__}: {error}"]
            sink.text("stderr", "\n".join(lines) + "\n")

    cell = _Background(title, ranks, threading.Thread(target=run, name="nbsync-background", daemon=True))
    _cells[:] = [other for other in _cells if other.goes_on or not set(ranks).intersection(other.ranks)]
    _cells.append(cell)
    cell.thread.start()


def describe() -> list[str]:
    """What runs in the background, or the last that did."""
    return [str(cell) for cell in _cells if cell.goes_on] or [str(cell) for cell in _cells[-1:]]


def is_running() -> bool:
    """Whether anything does."""
    return any(cell.goes_on for cell in _cells)


def wait(timeout: float | None, interrupt: Callable[[], object]) -> bool:
    """Return when nothing runs in the background any more; False when nothing did.

    Args:
        timeout: seconds; what runs goes on after them. None for no limit.
        interrupt: what an interrupt does; what it has interrupted is still waited for.

    Raises:
        RankBusy: the time is over.
        KeyboardInterrupt: it was interrupted.
        What the first cell that failed has raised, each error once.
    """
    found = is_running()
    deadline = None if timeout is None else time.monotonic() + timeout
    asked, is_interrupted = PutOff(), False
    with sigint_to(asked.ask):
        while running := [cell for cell in _cells if cell.goes_on]:
            running[0].thread.join(LOOK_EVERY)
            if asked.is_asked:  # not in the signal's handler, which may come in the midst of another
                asked.is_asked, is_interrupted = False, True
                interrupt()
            if deadline is not None and time.monotonic() > deadline:
                raise RankBusy(f"{running[0]} still, after {timeout:g} s: `%nbsync interrupt` interrupts it")
    for cell in _cells:
        if cell.error is not None and not cell.is_told:
            cell.is_told = True
            raise cell.error
    if is_interrupted:  # they had ended already
        raise Interrupted
    return found


def forget() -> None:
    """The workers are gone, and with them what ran there."""
    _cells.clear()
