"""The workers' output in a notebook cell, or in a terminal IPython."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython import get_ipython

from nbsync.kernel.aftermath import leave_notes_beside
from nbsync.kernel.output.sink import Controls, Stream, set_front_end
from nbsync.kernel.view.terminal import TerminalView
from nbsync.notebook.view.mode import mode

if TYPE_CHECKING:
    from nbsync.kernel.state import Snapshot
    from nbsync.notebook.view.cell import CellView

_MOST_FLUSHES = 100  # in a second: each is a message, of which a server drops what is above 1,000 in a second
_LABEL_STYLE = "color: gray; font-family: monospace"


class NotebookSink:
    """Shows output in the cell that runs. See `nbsync.kernel.output.sink.Sink`."""

    def __init__(self) -> None:
        self._shell: Any = get_ipython()
        self.is_limited = hasattr(self._shell, "kernel")
        self._live_id: str | None = None
        self._last: Any = None
        self._flushes = (0.0, 0)  # since when, how many
        self._terminal = TerminalView()
        self._view: CellView | None = None

    @property
    def shows_bars(self) -> bool:
        return mode() != "off"

    def view(self, snapshot: Snapshot, final: bool, controls: Controls) -> None:
        if not self.is_limited:
            self._terminal.draw(snapshot, final)
            return
        if self._view is None:
            from nbsync.notebook.view.cell import CellView

            self._view = CellView(self._shell.display_pub, controls)
        self._view.draw(snapshot, final)

    def text(self, stream: Stream, text: str) -> None:
        self._terminal.erase()
        file = sys.stdout if stream == "stdout" else sys.stderr
        if self._last not in (None, file) and self._may_flush():  # ipykernel sends each stream in its own time
            self._last.flush()
        self._last = file
        file.write(text)

    def _may_flush(self) -> bool:
        """Where the streams take turns too often, their order gives way."""
        now, (since, count) = time.monotonic(), self._flushes
        self._flushes = (since, count + 1) if now < since + 1 else (now, 1)
        return self._flushes[1] <= _MOST_FLUSHES

    def display(
        self, label: str, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, update: bool
    ) -> None:
        self._terminal.erase()
        if not update and set(data) - {"text/plain", "text/html"}:
            print(label)  # a front end shows an image without its text
        transient = {"display_id": display_id} if display_id is not None else {}
        self._shell.display_pub.publish(_labelled(label, data), metadata, transient=transient, update=update)

    def clear(self, wait: bool) -> None:
        self._shell.display_pub.clear_output(wait)
        self._live_id = None  # an update of what is gone would show nothing
        if self._view is not None:
            self._view.forget()

    def live(self, lines: Sequence[str]) -> None:
        if not self.is_limited:  # a terminal has no place for it
            return
        update = self._live_id is not None
        self._live_id = self._live_id or f"nbsync-live-{os.urandom(8).hex()}"
        self._shell.display_pub.publish(
            {"text/plain": "\n".join(lines)}, transient={"display_id": self._live_id}, update=update
        )


def _labelled(label: str, data: dict[str, Any]) -> dict[str, Any]:
    """The same bundle with the ranks' label in its text and HTML."""
    labelled = dict(data)
    if "text/plain" in data:
        text = data["text/plain"]
        labelled["text/plain"] = f"{label}\n{text}" if "\n" in text else f"{label} {text}"
    if "text/html" in data:
        head = f'<div style="{_LABEL_STYLE}">{html.escape(label)}</div>'
        labelled["text/html"] = f"<div>{head}{data['text/html']}</div>"
    return labelled


def install() -> None:
    """Show the output of all workers through IPython from now on."""
    set_front_end(NotebookSink)
    if hasattr(get_ipython(), "kernel"):
        from ipykernel.connect import get_connection_file

        leave_notes_beside(Path(get_connection_file()))
