"""What to tell of a run that did not end well: who failed first, and one line for each of the others."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nbsync.errors import (
    Deadlock,
    Interrupted,
    RunTimeout,
    TransferError,
    WorkerDied,
    WorkerError,
    new_error,
)
from nbsync.kernel.reaping import UNKNOWN
from nbsync.kernel.supervision.evidence import End, oom_kills
from nbsync.kernel.supervision.memory import memory_table
from nbsync.protocol.messages import Failure, Payload
from nbsync.protocol.serial import Parts
from nbsync.protocol.words import describe_ranks, without_colours

if TYPE_CHECKING:
    from nbsync.kernel.run import Run

Rebuild = Callable[[int, Payload], object]

_IGNORES = "still running, and ignoring the interrupts"


def judge(run: Run, rebuild: Rebuild) -> BaseException | None:
    """The exception that `run` raises in the notebook, or None if it ended well.

    The root is what failed first of its own accord; a peer's "connection closed" that follows is only listed, also
    where the peer's code has caught it and raised an error of its own.

    Args:
        rebuild: gives the exception that a rank has sent; it may raise whatever an object of the user's does.
    """
    failures = {rank: done.failure for rank, done in run.done.items() if done.failure is not None}
    own = {r: f for r, f in failures.items() if not f.is_consequence and not f.interrupted}
    first = min((rank for rank in own if not own[rank].came_of_peer), key=lambda rank: own[rank].time, default=None)
    if run.ends:
        died = min(run.ends, key=lambda rank: run.ends[rank].time)
        # The kernel notices a death a little later than it happened, a failure's time is the worker's own.
        if first is None or own[first].time > run.ends[died].time:
            return _died(run, died, failures)
    if first is not None:
        return _raised(run, first, failures, rebuild)
    if run.stuck is not None:
        return Deadlock("\n".join([f"no rank could go on: {run.stuck}", *_raised_before(run, failures)]))
    if run.timed_out:
        return RunTimeout(_timeout_text(run, failures))
    if run.interrupts and not run.has_outlived_interrupts:
        return Interrupted(others_in_lines(run, failures))
    if run.raised.intersection(run.pending) or (run.abandoned and not failures):
        return _silent(run, failures)
    if failures:  # only consequences: of something outside this run
        told = own or failures
        return _raised(run, min(told, key=lambda rank: told[rank].time), failures, rebuild)
    return None


def _raised_before(run: Run, failures: Mapping[int, Failure]) -> list[str]:
    """What ranks have raised that does not follow from the release of the others: their own, or what came before."""
    told = [(r, f) for r, f in sorted(failures.items()) if not f.is_consequence or f.time < run.stuck_at]
    return [f"{describe_ranks([rank])}: {failure.in_one_line} {failure.place}" for rank, failure in told]


def _silent(run: Run, failures: Mapping[int, Failure]) -> WorkerError:
    """A launch has failed on a rank, and neither that one nor the others have told an error in time."""
    ranks = [rank for rank in run.pending if rank in run.raised] or list(run.pending)
    others = others_in_lines(run, failures, ranks)
    return WorkerError(ranks=ranks, type_name="", message=_silence(run, ranks[0]), others=others)


def _silence(run: Run, rank: int) -> str:
    return "raised an error, but did not tell which in time" if rank in run.raised else _IGNORES


def _raised(run: Run, root: int, failures: Mapping[int, Failure], rebuild: Rebuild) -> WorkerError:
    failure = failures[root]
    same = sorted(rank for rank, other in failures.items() if _is_same(other, failure))
    ranks = [root, *(rank for rank in same if rank != root)] if root in same else [root]
    original = _original(root, failure, rebuild)
    error = new_error(type(original) if original is not None else _find_type(failure))
    WorkerError.__init__(
        error,
        ranks=sorted(ranks) if len(ranks) > 1 else ranks,
        type_name=failure.type_name,
        message=failure.message,
        # One of them has rendered it, and perhaps not the first.
        traceback_lines=next((failures[rank].traceback for rank in ranks if failures[rank].traceback), _place(failure)),
        others=[
            *others_in_lines(run, {r: f for r, f in failures.items() if r not in ranks}, ranks),
            *(memory_table(run.done) if failure.memory_limit is not None else []),
        ],
        original=original,
    )
    if error.traceback_lines:  # for those who do not ask for it: plain Python, pytest, rich
        note = without_colours("\n".join(error.traceback_lines))
        vars(error)["__notes__"] = [*vars(error).get("__notes__", ()), note]
    return error


def _place(failure: Failure) -> tuple[str, ...]:
    """What is known of an error that was taken for one that only follows from others: those are not rendered."""
    doing = f" in {failure.waiting_in}" if failure.waiting_in else ""
    return (f"{failure.type_name}{doing} {failure.place}: {failure.message}",) if failure.where else ()


def _died(run: Run, rank: int, failures: Mapping[int, Failure]) -> WorkerDied:
    end = run.ends[rank]
    code, name = _exit_of(end.status)
    same = sorted(r for r, other in run.ends.items() if other.status == end.status)
    return WorkerDied(
        ranks=same,
        message=f"the process {describe_exit(end.status)}{_circumstances(run, end, name)}",
        exit_code=code,
        signal_name=name,
        others=others_in_lines(run, failures, same),
    )


def _circumstances(run: Run, end: End, signal_name: str | None) -> str:
    """Where the rank was seen last, why it was ended if the system tells, and what that means."""
    text = f" ({end.line})" if end.line else ""
    kills = oom_kills()
    if signal_name == "SIGKILL" and kills is not None and run.oom_kills is not None and kills > run.oom_kills:
        text += " (out of memory: the system ended it)"
    text += "; what was in its memory is lost"
    return text + quote(end.last_words)


def quote(words: Sequence[str], of: str = "its") -> str:
    """The last lines of a rank's stderr, to follow what is told of its end."""
    return "".join([f"\nlast on {of} stderr:", *(f"\n  {word}" for word in words)]) if words else ""


def others_in_lines(run: Run, failures: Mapping[int, Failure], leave_out: list[int] | None = None) -> list[str]:
    """One line for all ranks of which the same is to be said."""
    lines: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        lines.setdefault(_in_one_line(failure), []).append(rank)
    for rank, end in sorted(run.ends.items()):
        if rank not in (leave_out or ()):
            lines.setdefault(describe_exit(end.status), []).append(rank)
    finished = [rank for rank in run.ranks if rank in run.done and run.done[rank].failure is None]
    if finished and (run.interrupts or run.timed_out):
        lines.setdefault("had finished", []).extend(finished)
    if run.abandoned:
        for rank in run.pending:
            if rank not in (leave_out or ()):
                lines.setdefault(_silence(run, rank), []).append(rank)
    return [f"{describe_ranks(ranks)}: {text}" for text, ranks in lines.items() if ranks]


def _in_one_line(failure: Failure) -> str:
    where = f" {failure.place}".rstrip()
    if failure.interrupted:
        doing = f" in {failure.waiting_in}" if failure.waiting_in else ""
        return f"interrupted{doing}{where}"
    if failure.is_consequence:
        return f"waited in {failure.waiting_in or 'a collective'}{where}"
    return f"{failure.in_one_line}{where}"


def _timeout_text(run: Run, failures: Mapping[int, Failure]) -> str:
    late = describe_ranks(run.timed_out)
    return "\n".join([f"the time limit was reached; {late} had not finished", *others_in_lines(run, failures)])


def _is_same(one: Failure, other: Failure) -> bool:
    """Of a message that tells itself where the ranks are, as that of a mismatch does, their lines may differ."""
    are_told = one.where in one.message and other.where in one.message
    return (one.type_name, one.message) == (other.type_name, other.message) and (one.where == other.where or are_told)


def _original(rank: int, failure: Failure, rebuild: Rebuild) -> BaseException | None:
    if failure.exception is None:
        return None
    try:
        value = rebuild(rank, failure.exception)
        if isinstance(value, Parts):
            value = value.assemble()
    except (TransferError, TypeError, ValueError, KeyboardInterrupt, SystemExit):  # it is shown by name and text
        return None
    return value if isinstance(value, BaseException) else None


def _find_type(failure: Failure) -> type[BaseException] | None:
    found = getattr(sys.modules.get(failure.module), failure.type_name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def describe_exit(status: int) -> str:
    """`was ended by SIGKILL`, `ended with exit code 3`."""
    if status == UNKNOWN:
        return "ended, how is not known: something in the notebook waits for all its children"
    code, name = _exit_of(status)
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def _exit_of(status: int) -> tuple[int | None, str | None]:
    """(exit code, None) or (None, signal name) of a `waitpid` status; twice None when it is not known."""
    if status == UNKNOWN:
        return None, None
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status), None
    try:
        return None, signal.Signals(os.WTERMSIG(status)).name
    except ValueError:  # a real-time signal
        return None, f"signal {os.WTERMSIG(status)}"
