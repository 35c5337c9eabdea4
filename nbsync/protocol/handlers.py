"""Which signals a process has handlers for, as the system tells it: Python knows nothing of those set in C."""

from __future__ import annotations

from pathlib import Path


def handled_signals(pid: int) -> frozenset[int]:
    """Those that the process would handle, instead of being ended by them; none if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return frozenset(bit + 1 for bit in range(mask.bit_length()) if mask >> bit & 1)
