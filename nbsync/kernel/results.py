"""What the ranks give back: the values of a cell's last expressions, and what calls return."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from nbsync.errors import TransferError, WorkerError
from nbsync.kernel.output.sink import Sink
from nbsync.kernel.run import Run
from nbsync.kernel.start.plan import Plan
from nbsync.kernel.trial import unpack_safely
from nbsync.protocol.messages import Payload
from nbsync.protocol.serial import Common
from nbsync.protocol.words import describe_ranks, way_back


def show_results(run: Run, sink: Sink, plan: Plan) -> None:
    """Show the last expressions, equal ones once, in the order of the first rank that has them."""
    shown = [(rank, run.done[rank].result) for rank in run.ranks if rank in run.done]
    first: dict[str, int] = {}
    for rank, result in shown:
        first.setdefault(repr(result), rank)
    shown.sort(key=lambda pair: first[repr(pair[1])])
    for _, same in groupby(shown, key=lambda pair: first[repr(pair[1])]):
        pairs = list(same)
        result = pairs[0][1]
        if result is not None:
            sink.display(plan.label(tuple(rank for rank, _ in pairs)), *result, None, False)


def unpack_value(rank: int, value: Payload | None, common: Common, notify: Callable[[str], None]) -> Any:
    """What `rank` has sent.

    Args:
        notify: tells the user something, in one line.

    Raises:
        TransferError: it cannot be rebuilt here.
        KeyboardInterrupt: rebuilding it took long, and was interrupted.
    """
    if value is None:
        return None
    name = describe_ranks([rank])
    try:
        return unpack_safely(value, common, lambda line: notify(f"{name}: {line}"))
    except TransferError as error:
        raise TransferError(f"{name}: {error}") from error


def add_way_back(error: BaseException, dead: Sequence[int]) -> None:
    """What brings the ranks back that have ended."""
    if isinstance(error, WorkerError) and dead:
        error.others += (way_back(dead, describe_ranks(dead)),)


def add_hint(error: BaseException) -> None:
    """What is missing on a rank may be in the notebook since the start: a variable, a folder of `sys.path`."""
    if isinstance(error, WorkerError):
        missing = _MISSING.search(error.message)
        hint = _HINTS.get(error.type_name)
        told = hint(missing[1]) if missing and hint else None
        error.others += (told,) if told else ()


def _variable_hint(name: str) -> str | None:
    if name not in vars(sys.modules["__main__"]):
        return None
    return f"{name} is defined in the notebook: `%nbsync push {name}` sends it to the ranks"


def _module_hint(name: str) -> str | None:
    if "." in name:  # the rank has found the package
        return None
    spec = None if name in sys.modules else find_spec(name)
    origin = getattr(sys.modules.get(name), "__file__", None) or (spec and spec.origin)
    if not origin or not os.path.isabs(origin):
        return None
    folder = os.path.dirname(os.path.dirname(origin) if os.path.basename(origin) == "__init__.py" else origin)
    return (
        f"the notebook finds {name} in {folder}, where the ranks do not look: `sys.path.append({folder!r})` in a "
        "distributed cell, or `%nbsync restart`"
    )


_MISSING = re.compile(r"(?:name|No module named) '([\w.]+)'")
_HINTS = {"NameError": _variable_hint, "ModuleNotFoundError": _module_hint}
