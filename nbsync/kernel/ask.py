"""Asks ranks to do something: the one way of all requests, of cells, calls, pushes and pulls alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from keyword import iskeyword
from typing import Any

from nbsync.errors import NoSession, RankBusy, StartError, UsageError, WorkerError, describe_ranks
from nbsync.kernel.fleet import Fleet
from nbsync.kernel.output.sink import Sink, make_sink, tell
from nbsync.kernel.ranks import parse_ranks
from nbsync.kernel.results import add_hint, unpack_value
from nbsync.kernel.run import Run
from nbsync.kernel.sigint import interrupted_while
from nbsync.kernel.start.plan import check_timeout
from nbsync.kernel.state import Phase
from nbsync.kernel.supervision.mend import heal, refill
from nbsync.kernel.supervision.verdict import judge
from nbsync.protocol.messages import Request, Work

Ranks = str | int | Iterable[int]


def choose(fleet: Fleet, ranks: Ranks) -> tuple[int, ...]:
    """The ranks of `fleet` that `ranks` names.

    Raises:
        NoSession: the workers have been ended.
        UsageError: it names none of this world.
    """
    if not fleet.is_running:
        raise NoSession("this session is closed: `%nbsync start` or nbsync.Session() starts workers")
    if not isinstance(ranks, str):
        ranks = ",".join(str(rank) for rank in ([ranks] if isinstance(ranks, int) else ranks))
    return parse_ranks(ranks, fleet.size)


def checked_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by their names.

    Raises:
        UsageError: a name is none that a variable can have.
    """
    wrong = values if not isinstance(values, Mapping) else next((n for n in values if not _is_name(n)), None)
    if wrong is not None:
        raise UsageError(f"variables come by their names, as in push({{'lr': 0.1}}), not {wrong!r}")
    return dict(values)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not iskeyword(name)


def ask(
    fleet: Fleet,
    make_request: Callable[[int], Request],
    ranks: Ranks,
    sink: Sink,
    *,
    note: str,
    timeout: float | None = None,
) -> Run:
    """Send a request to `ranks`, show their output, and wait for their answers; the world is mended before and after.

    Args:
        make_request: gives the request its number.
        note: what the ranks do meanwhile, for the status.
        timeout: seconds after which they are interrupted.
    """
    check_timeout(timeout)
    chosen = choose(fleet, ranks)
    notify = partial(tell, sink)
    _mend(fleet, sink, notify)
    shows_bars = fleet.plan.progress and sink.shows_bars

    def make(number: int) -> Request:
        request = make_request(number)
        return replace(request, show_bars=shows_bars) if isinstance(request, Work) else request

    run = fleet.execute(make, chosen, sink, note=note, timeout=timeout, notify=notify)
    try:
        _mend(fleet, sink, notify)
    except KeyboardInterrupt:  # what the run has to tell comes first
        run.interrupts += 1
    return run


def ask_for_values(
    fleet: Fleet,
    make_request: Callable[[int], Request],
    ranks: Ranks,
    *,
    note: str,
    timeout: float | None = None,
) -> list[Any]:
    """Ask, and return what the ranks answered with, one value each.

    Raises:
        WorkerError, WorkerDied, RunTimeout, KeyboardInterrupt: as `raise_for`.
        TransferError: a value cannot be rebuilt here.
    """
    sink = make_sink()
    notify = partial(tell, sink)
    run = ask(fleet, make_request, ranks, sink, note=note, timeout=timeout)
    del make_request  # the traceback of an error would keep what is packed in it
    raise_for(fleet, run)
    try:
        with interrupted_while("a value was unpickled"):
            return [unpack_value(rank, run.done.pop(rank).value, fleet.common, notify) for rank in run.ranks]
    finally:
        run.forget_values()


def raise_for(fleet: Fleet, run: Run) -> None:
    """Raise what `run` came to, if it did not end well on all its ranks."""
    error = judge(run, partial(unpack_value, common=fleet.common, notify=partial(tell, make_sink())))
    if error is not None:
        run.forget_values()
        add_hint(error)
        if isinstance(error, WorkerError):
            error.after_interrupt = run.interrupts > 0
        try:
            raise error from None
        finally:  # its traceback holds this frame: a circle would keep what the error carries
            del error, run


def _mend(fleet: Fleet, sink: Sink, notify: Callable[[str], None]) -> None:
    """Before and after each run: what does not succeed now is tried again before the next one."""
    if not fleet.plan.init_group:
        return
    try:
        if fleet.plan.refill and fleet.state.in_phase(Phase.DEAD):
            fresh = refill(fleet, (), sink, notify)
            notify(f"{describe_ranks(fresh)} came back as a fresh copy of the notebook")
        heal(fleet, sink, notify)
    except (RankBusy, StartError, NoSession) as error:
        notify(f"the world could not be made whole: {error}")
