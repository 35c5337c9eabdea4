"""Which signals a process has handlers for, as the system tells it: Python knows nothing of those set in C."""

from __future__ import annotations

from pathlib import Path


def has_handler(pid: int, number: int) -> bool:
    """Whether the process would handle this signal, instead of being ended by it; not so if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    handled = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(handled >> (number - 1) & 1)
