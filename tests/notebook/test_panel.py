"""The view's widgets: what their buttons do, and that nothing of them is left."""

from __future__ import annotations

from ipywidgets import Button
from ipywidgets.widgets.widget import _instances

from nbsync.kernel.output.sink import Controls
from nbsync.notebook.view.panel import Panel
from nbsync.notebook.view.probe import WidgetProbe


def test_a_panel_leaves_no_widget() -> None:
    """A kernel that runs for days makes one panel a cell."""
    before = set(_instances)
    panel = Panel(Controls(lambda: None, lambda: ""))
    panel.show("<b>state</b>")
    assert len(_instances) > len(before)
    panel.close()
    assert set(_instances) == before


def test_the_buttons_act_on_their_own_run() -> None:
    """The button beside one run does nothing to another."""
    before, pressed = set(_instances), []
    panels = [Panel(Controls(lambda name=name: pressed.append(name), str)) for name in "ab"]  # type: ignore[misc]
    stops = [w for key, w in _instances.items() if key not in before and getattr(w, "description", "") == "Interrupt"]
    for stop in stops[1:]:
        assert isinstance(stop, Button)
        stop.click()
    assert pressed == ["b"]
    for panel in panels:
        panel.close()


def test_a_probe_leaves_no_widget() -> None:
    """Answered, it takes its widgets away."""
    before, probe = set(_instances), WidgetProbe()
    for _ in range(6):
        probe.ask()
    target = [widget for key, widget in _instances.items() if key not in before and hasattr(widget, "width")][1]
    target.width = "1px"  # as the front end's link does
    assert probe.is_proven
    assert set(_instances) == before
