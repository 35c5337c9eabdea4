"""Finds out whether the front end shows widgets, by one that only answers where they work.

A front end tells nothing of itself. But one that runs widgets keeps two linked ones equal by itself, and sends the
kernel the value that it has set: that is the proof. It comes while a cell runs only where comm messages are served
by a subshell; elsewhere after the cell, in time for the next.
"""

from __future__ import annotations

from typing import Any

_SIGN = "1px"


class WidgetProbe:
    """Asks once; `is_proven` is true from the answer on."""

    def __init__(self) -> None:
        self.is_proven = False
        self._widgets: list[Any] = []

    def ask(self) -> None:
        """Send the linked widgets, if that was not done yet. They are not shown."""
        if self._widgets or self.is_proven:
            return
        import ipywidgets

        source, target = ipywidgets.Layout(width=_SIGN), ipywidgets.Layout()  # the smallest widgets there are
        target.observe(self._hear, "width")
        self._widgets = [source, target, ipywidgets.jslink((source, "width"), (target, "width"))]

    def forget(self) -> None:
        """The session is over: leave nothing behind in the notebook."""
        for widget in self._widgets:
            widget.close()
        self._widgets = []

    def _hear(self, change: Any) -> None:
        self.is_proven = self.is_proven or change["new"] == _SIGN
