"""The live view of a run in a notebook cell.

The HTML is a display that is updated in place, which every front end can do, and whose last state is saved with the
notebook. Where widgets are proven to work it is a widget while the run goes on: that survives a reload of the page,
and has buttons. At the end the plain HTML takes its place, so that no page ever looks for a widget that is gone.
"""

from __future__ import annotations

import os
from typing import Any

from nbsync.kernel.output.sink import Controls
from nbsync.kernel.state import Snapshot
from nbsync.kernel.view.barlines import lines_of
from nbsync.notebook.view.mode import mode
from nbsync.notebook.view.panel import Panel
from nbsync.notebook.view.probe import WidgetProbe
from nbsync.notebook.view.render import render, room_called_out
from nbsync.notebook.view.standing import is_worth_keeping, overall

_probe = WidgetProbe()
_ROOM_FOR_BUTTONS = '<div style="height:36px"></div>'  # they may come in the first cell: nothing is to jump then


class CellView:
    """The view of one run in one cell.

    Args:
        publisher: IPython's, which puts displays into the cell.
        controls: act on the run.
    """

    def __init__(self, publisher: Any, controls: Controls) -> None:
        self._publisher, self._controls = publisher, controls
        self._display_id: str | None = None
        self._panel: Panel | None = None
        self._called_out = 0  # the most pixels so far: what is below is not to jump
        self._room = "" if _probe.is_silent else _ROOM_FOR_BUTTONS

    def draw(self, snapshot: Snapshot, final: bool) -> None:
        """Show the state of the world. After the `final` one comes no other."""
        if final:
            self._finish(snapshot)
            return
        compact = mode() == "compact"
        self._called_out = max(self._called_out, room_called_out(snapshot, compact=compact))
        html = render(snapshot, compact=compact, room=self._called_out)
        if self._panel is not None and self._display_id is not None:
            self._panel.show(html)
            return
        _probe.ask()
        if self._panel is None and _probe.is_proven:
            self._panel = Panel(self._controls)
        if self._panel is not None:
            self._panel.show(html)
            self._publish(html, _text(snapshot), self._panel.bundle)
        else:
            self._publish(html + self._room, _text(snapshot), {})

    def forget(self) -> None:
        """The cell's output was cleared: the next state is shown anew."""
        self._display_id = None

    def _finish(self, snapshot: Snapshot) -> None:
        if is_worth_keeping(snapshot):
            self._publish(render(snapshot, compact=mode() == "compact", final=True), _text(snapshot), {})
        elif self._display_id is not None:
            self._publish("", "", {})
        if self._panel is not None:
            self._panel.close()
            self._panel = None

    def _publish(self, html: str, text: str, more: dict[str, Any]) -> None:
        update = self._display_id is not None
        self._display_id = self._display_id or f"nbsync-view-{os.urandom(8).hex()}"
        data = {"text/html": html, "text/plain": text, **more}
        self._publisher.publish(data, transient={"display_id": self._display_id}, update=update)


def _text(snapshot: Snapshot) -> str:
    return "\n".join([f"{len(snapshot.ranks)} ranks, {overall(snapshot)}", *lines_of(snapshot)])
