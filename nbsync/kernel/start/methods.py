"""How workers can be started, and which way is right for this notebook now."""

from __future__ import annotations

from dataclasses import dataclass

from nbsync.errors import StartError, UsageError
from nbsync.kernel.start.culprit import initialised
from nbsync.kernel.start.system import check_system

METHODS = ("auto", "fork", "forkserver", "spawn")


@dataclass(frozen=True)
class Choice:
    """A start method, and a line for the user where it is not the usual one."""

    method: str
    note: str = ""


def check_start_method(start_method: str) -> None:
    """Raises UsageError: there is no such start method. StartError: on this system there is none at all."""
    check_system()
    if start_method not in METHODS:
        raise UsageError(f"start_method must be one of {', '.join(METHODS)}, got {start_method!r}")


def choose_method(start_method: str, obstacle: str = "") -> Choice:
    """The method to start workers by, now.

    Args:
        start_method: as the user chose it.
        obstacle: why a fork does not work, as far as it was tried; "" when it was not, or worked.

    Raises:
        StartError: "fork" was asked for, and cannot work.
    """
    if start_method in ("forkserver", "spawn"):
        return Choice(start_method)
    obstacle = obstacle or why_not_fork()
    if start_method == "fork":
        if obstacle:
            raise StartError(
                f"{obstacle}, and a forked process cannot use it then. Use start_method='auto', or restart the "
                "kernel and touch the GPU only in distributed cells or inside the launched function"
            )
        return Choice("fork")
    if obstacle:
        return Choice("forkserver", f"the workers come from a fork server: {obstacle}")
    return Choice("fork")


def why_not_fork() -> str:
    """Why a process forked from this notebook could not work; "" when it could."""
    for runtime, place in initialised().items():
        return f"{runtime} is already initialised in this kernel" + (f" ({place})" if place else "")
    return ""
