"""The view as a widget: the HTML, and two buttons that work while the cell runs where the front end has subshells."""

from __future__ import annotations

from html import escape
from typing import Any

from nbsync.kernel.output.sink import Controls
from nbsync.notebook.view.subshell import hear_in_subshell

_HINT = "also: Jupyter's own stop button"


class Panel:
    """One widget for one run.

    Args:
        controls: what the buttons do.
    """

    def __init__(self, controls: Controls) -> None:
        import ipywidgets

        self._controls = controls
        self._body, self._below = ipywidgets.HTML(), ipywidgets.HTML()
        stop = ipywidgets.Button(description="Interrupt", icon="stop", tooltip=_HINT)
        look = ipywidgets.Button(description="Stack", icon="search", tooltip="Where every rank is")
        stop.on_click(self._on_interrupt)
        look.on_click(self._on_stack)
        buttons = ipywidgets.HBox([stop, look])
        self._box = ipywidgets.VBox([self._body, buttons, self._below])
        self._all = [self._box, self._body, buttons, self._below, stop, look]
        hear_in_subshell(stop, look)

    @property
    def bundle(self) -> dict[str, Any]:
        """What displays the widget."""
        data: dict[str, Any] = self._box._repr_mimebundle_()
        return {kind: value for kind, value in data.items() if kind.startswith("application/")}

    def show(self, html: str) -> None:
        """Replace the HTML."""
        self._body.value = html

    def close(self) -> None:
        """Take the widget away."""
        for widget in self._all:
            for part in (widget.layout, getattr(widget, "style", None), widget):
                if part is not None:
                    part.close()

    def _on_interrupt(self, button: Any) -> None:
        self._controls.interrupt()

    def _on_stack(self, button: Any) -> None:
        self._below.value = f"<pre>{escape(self._controls.stack())}</pre>"
