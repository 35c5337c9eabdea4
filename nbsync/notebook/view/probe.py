"""Finds out whether the front end shows widgets, by one that only answers where they work.

A front end tells nothing of itself. But one that runs widgets keeps two linked ones equal by itself, and sends the
kernel the value that it has set: that is the proof. It is heard while a cell runs where the front end gives widgets a
subshell, and elsewhere after the cell, in time for the next.
"""

from __future__ import annotations

from typing import Any

from nbsync.notebook.view.subshell import hear_in_subshell

_TICKS = 5  # between the widgets and their link: a front end's first answer must not come before its subshell is there
_SIGN = "1px"


class WidgetProbe:
    """Asks once; `is_proven` is true from the answer on."""

    def __init__(self) -> None:
        self.is_proven = False
        self._widgets: list[Any] = []
        self._ticks = 0

    def ask(self) -> None:
        """Ask, in steps: called again and again until there is an answer. Nothing is shown."""
        if self.is_proven:
            return
        import ipywidgets

        self._ticks += 1
        if self._ticks == 1:  # the smallest widgets there are
            self._widgets = [ipywidgets.Layout(width=_SIGN), ipywidgets.Layout()]
            self._widgets[1].observe(self._hear, "width")
            hear_in_subshell(*self._widgets)
        elif self._ticks == _TICKS:
            source, target = self._widgets
            self._widgets.append(ipywidgets.jslink((source, "width"), (target, "width")))

    @property
    def is_silent(self) -> bool:
        """Whether it was asked, and there was no answer yet."""
        return self._ticks >= _TICKS and not self.is_proven

    def _hear(self, change: Any) -> None:
        self.is_proven = self.is_proven or change["new"] == _SIGN
        for widget in self._widgets:
            widget.close()
        self._widgets = []
