"""How cells show their ranks: `%nbsync view`."""

from __future__ import annotations

from typing import Literal

Mode = Literal["on", "compact", "off"]
_mode: Mode = "on"


def set_mode(mode: Mode) -> None:
    """How the next cells are shown."""
    global _mode
    _mode = mode


def mode() -> Mode:
    """How cells are shown."""
    return _mode
