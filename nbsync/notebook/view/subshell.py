"""Widgets that are heard while the cell runs."""

from __future__ import annotations

from typing import Any


def hear_in_subshell(*widgets: Any) -> None:
    """Serve what the front end sends to these widgets in the subshell that it asks for, where it knows of subshells.

    ipykernel from 7.4 on routes it to the shell that has opened the widget instead, which is the one that the cell
    keeps busy. Called after the widget has last sent something; on other kernels it does nothing.
    """
    for widget in widgets:
        vars(widget.comm).pop("_reply_subshell_id", None)
