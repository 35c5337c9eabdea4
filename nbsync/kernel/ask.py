"""Asks ranks to do something: the one way of all requests, of cells, calls, pushes and pulls alike."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from keyword import iskeyword
from typing import Any

from nbsync.errors import NoSession, RankBusy, StartError, UsageError, WorkerDied, WorkerError
from nbsync.kernel.fleet import Fleet
from nbsync.kernel.output.sink import Sink, make_sink, tell
from nbsync.kernel.ranks import parse_ranks
from nbsync.kernel.results import add_hint, add_way_back, unpack_value
from nbsync.kernel.run import Run
from nbsync.kernel.sigint import interrupted_while
from nbsync.kernel.state import Phase
from nbsync.kernel.supervision.mend import heal, refill
from nbsync.kernel.supervision.verdict import judge
from nbsync.protocol.limits import check_timeout
from nbsync.protocol.messages import Request, Work
from nbsync.protocol.spec import PLACE_NAMES
from nbsync.protocol.words import describe_ranks

Ranks = str | int | Iterable[int]


def choose(fleet: Fleet, ranks: Ranks) -> tuple[int, ...]:
    """The ranks of `fleet` that `ranks` names.

    Raises:
        NoSession: the workers have been ended.
        UsageError: it names none of this world.
    """
    if not fleet.is_running:
        raise NoSession("this session is closed: `%nbsync start` or nbsync.Session() starts workers")
    if not isinstance(ranks, str | int | Iterable):
        raise UsageError(f"ranks must be a spec ('0,2-3', 'all'), a rank (1) or several ([0, 1]), got {ranks!r}")
    if not isinstance(ranks, str):
        ranks = ",".join(str(rank) for rank in ([ranks] if isinstance(ranks, int) else ranks))
    return parse_ranks(ranks, fleet.size)


def checked_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by their names.

    Raises:
        UsageError: a name is none that a variable can have, or is each rank's own.
    """
    wrong = [name for name in values if not _is_name(name)] if isinstance(values, Mapping) else [values]
    if wrong:
        raise UsageError(f"variables come by their names, as in push({{'lr': 0.1}}), not {wrong[0]!r}")
    for name in set(PLACE_NAMES).intersection(values):
        raise UsageError(f"`{name}` is each rank's own in a distributed cell: push it by another name")
    return dict(values)


def check_expressions(expressions: Sequence[str]) -> None:
    """Raises UsageError: there is none, or what is given is none."""
    if not expressions or not all(isinstance(each, str) for each in expressions):
        raise UsageError(f"pull needs at least one name, each a string, e.g. session.pull('loss'), got {expressions}")
    for each in expressions:
        try:
            ast.parse(each.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            what = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UsageError(
                f"pull takes variables or expressions, as in pull('loss', 'x + 1'), not {each!r}: {what}"
            ) from None


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
        if run.ends and not fleet.plan.is_one_run:
            add_way_back(error, fleet.state.in_phase(Phase.DEAD))
        if isinstance(error, WorkerError):
            error.after_interrupt = run.interrupts > 0
        try:
            raise error from None
        finally:  # its traceback holds this frame: a circle would keep what the error carries
            del error, run


def _mend(fleet: Fleet, sink: Sink, notify: Callable[[str], None]) -> None:
    """Before and after each run: what does not succeed now is tried again before the next one.

    Whatever comes of it, what the run has come to is not lost: also where another rank ends meanwhile.
    """
    if not fleet.plan.init_group:
        return
    try:
        if fleet.plan.refill and fleet.state.in_phase(Phase.DEAD):
            fresh = refill(fleet, (), sink, notify)
            notify(f"{describe_ranks(fresh)} came back as a fresh copy of the notebook")
        heal(fleet, sink, notify)
    except (RankBusy, StartError, NoSession, WorkerDied) as error:
        notify(f"the world could not be made whole: {error}")
