"""What the ranks give back: the values of a cell's last expressions, and what calls return."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any

from nbsync.errors import TransferError, WorkerError, describe_ranks
from nbsync.kernel.output.sink import Sink
from nbsync.kernel.run import Run
from nbsync.kernel.start.plan import Plan
from nbsync.kernel.trial import unpack_safely
from nbsync.protocol.messages import Payload
from nbsync.protocol.serial import Common


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


def add_hint(error: BaseException) -> None:
    """A name that is missing on a rank may have been defined in the notebook since the start."""
    if not isinstance(error, WorkerError) or error.type_name != "NameError":
        return
    name = re.search(r"name '(\w+)' is not defined", error.message)
    if name is not None and name[1] in vars(sys.modules["__main__"]):
        error.others += (f"{name[1]} is defined in the notebook: `%nbsync push {name[1]}` sends it to the ranks",)
