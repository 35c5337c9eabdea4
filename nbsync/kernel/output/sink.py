"""Where the workers' output goes: the seam between the kernel side and a front end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nbsync.kernel.view.terminal import TerminalView

if TYPE_CHECKING:
    from nbsync.kernel.state import Snapshot

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Controls:
    """What may be done with one run from its view, from any thread.

    Attributes:
        interrupt: interrupts it, and no other.
        stack: the Python stack of each of its ranks.
    """

    interrupt: Callable[[], object]
    stack: Callable[[], str]


class Sink(Protocol):
    """Shows output of workers. Its methods are called by the thread that waits for the run.

    Attributes:
        is_limited: a flood would drown it.
    """

    is_limited: bool

    def text(self, stream: Stream, text: str) -> None:
        """Whole lines, labelled already."""
        ...

    def display(
        self, label: str, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, update: bool
    ) -> None:
        """A rich display, or the value of a cell, of the ranks that `label` names."""
        ...

    def clear(self, wait: bool) -> None:
        """Clear the cell's output."""
        ...

    @property
    def shows_bars(self) -> bool:
        """Whether `view` shows progress bars. They are the ranks' text where it does not."""
        ...

    def view(self, snapshot: Snapshot, final: bool, controls: Controls) -> None:
        """The state of the world during a run, replacing the earlier one; the last time with `final`."""
        ...

    def live(self, lines: Sequence[str]) -> None:
        """The lines that ranks are still writing (progress bars), replacing the earlier ones."""
        ...


class TextSink:
    """Plain text to this process's stdout and stderr: scripts, terminals, tests."""

    is_limited = False
    shows_bars = True

    def __init__(self) -> None:
        self._view = TerminalView()

    def text(self, stream: Stream, text: str) -> None:
        self._view.erase()
        (sys.stdout if stream == "stdout" else sys.stderr).write(text)

    def display(
        self, label: str, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, update: bool
    ) -> None:
        self._view.erase()
        print(f"{label} {data.get('text/plain', '(no text)')}")

    def clear(self, wait: bool) -> None:
        pass

    def view(self, snapshot: Snapshot, final: bool, controls: Controls) -> None:
        self._view.draw(snapshot, final)

    def live(self, lines: Sequence[str]) -> None:
        pass


def tell(sink: Sink, line: str) -> None:
    """Tell the user something about the workers, in one line."""
    sink.text("stderr", f"nbsync: {line}\n")


_factory: Callable[[], Sink] = TextSink


def set_front_end(factory: Callable[[], Sink]) -> None:
    """Let a front end (nbsync.notebook) show all output from now on."""
    global _factory
    _factory = factory


def make_sink() -> Sink:
    """A sink of the current front end."""
    return _factory()
