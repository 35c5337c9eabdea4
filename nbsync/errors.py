"""Every exception that nbsync raises.

NbsyncError
├── UsageError (ValueError)            an argument, option or rank spec that makes no sense
├── StartError (RuntimeError)          the workers could not be started; nothing is left running
├── NoSession (RuntimeError)           there is no session, or it was stopped
├── RankBusy (RuntimeError)            a rank still runs something else
├── TransferError (TypeError)          a value cannot go from one process to the other
├── WorkerError                        a rank raised; also of the original type where that is possible
│   └── WorkerDied                     a rank's process ended
├── MainProcessFailed (RuntimeError)   the main process raised where the others waited for it
├── StoreWaitEnded                     a wait for a key of a store, when the cell failed on another rank
├── OperationCutOff (RuntimeError)     what was under way when an earlier cell failed
├── CollectiveMismatch (RuntimeError)  the ranks are not in the same collective
├── Deadlock (RuntimeError)            the ranks waited for each other, and would have for ever
├── BarrierTimeout (TimeoutError)      some ranks did not come to a barrier in time
└── RunTimeout (TimeoutError)          a cell or call took longer than its `timeout`

An interrupt is a `KeyboardInterrupt`, as everywhere in Python; `Interrupted` adds where each rank was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from types import MemberDescriptorType
from typing import Any

from nbsync.protocol.words import describe_ranks

__all__ = [
    "BarrierTimeout",
    "CollectiveMismatch",
    "Deadlock",
    "Interrupted",
    "MainProcessFailed",
    "NbsyncError",
    "NoSession",
    "OperationCutOff",
    "RankBusy",
    "RunTimeout",
    "StartError",
    "StoreWaitEnded",
    "TransferError",
    "UsageError",
    "WorkerDied",
    "WorkerError",
]


class NbsyncError(Exception):
    """The base of all errors of nbsync."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows (its documented hook): the user's lines, since of ours the message says all."""
        from nbsync.protocol.userlines import keep_users_lines

        keep_users_lines(self)  # `%debug` then begins in them too
        return self._shown()

    def _shown(self) -> list[str]:
        shell = sys.modules["IPython"].get_ipython()
        return list(shell.InteractiveTB.structured_traceback(type(self), self, self.__traceback__, tb_offset=0))


class UsageError(NbsyncError, ValueError):
    """An argument, option or rank spec that makes no sense; the message names the choices."""


class StartError(NbsyncError, RuntimeError):
    """The workers could not be started. All or nothing: none of them is left running."""


class NoSession(NbsyncError, RuntimeError):
    """There is no running session."""


class RankBusy(NbsyncError, RuntimeError):
    """A rank still runs an earlier cell or call."""


class TransferError(NbsyncError, TypeError):
    """A value cannot be sent between the notebook and a worker."""


class MainProcessFailed(NbsyncError, RuntimeError):
    """The main process raised in a block that the other ranks waited for."""


class StoreWaitEnded(NbsyncError):
    """A wait for a key of a store was ended, since the cell has failed on another rank.

    No `RuntimeError`, which code that waits for a store often takes for the end of its patience, and waits again.
    """


class OperationCutOff(NbsyncError, RuntimeError):
    """What was waited for (`Work.wait`) had been begun before a cell failed, and was cut off with it."""


class CollectiveMismatch(NbsyncError, RuntimeError):
    """The ranks of a group are not in the same collective, or not with the same shapes and types.

    Before a blocking collective every rank of the group raises it, nothing was exchanged, and the group stays usable.
    After other operations those ranks do that saw the difference; the group may then be healed before the next cell.
    """


class Deadlock(NbsyncError, RuntimeError):
    """The ranks waited for each other and could not go on; the message says who waited where, and for whom.

    They were released, and keep their state.
    """

    def _shown(self) -> list[str]:
        return [f"Deadlock: {self}"]


class BarrierTimeout(NbsyncError, TimeoutError):
    """Some ranks did not arrive at a barrier within its timeout."""


class RunTimeout(NbsyncError, TimeoutError):
    """A cell or call took longer than the `timeout` that was asked for. Nothing is lost by it."""

    def _shown(self) -> list[str]:
        return [f"RunTimeout: {self}"]


class Interrupted(KeyboardInterrupt):
    """The user interrupted a cell or call. Nothing is lost by it.

    Attributes:
        ranks_in_lines: where the ranks were, one line for all that were in the same place.
    """

    def __init__(self, ranks_in_lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join(ranks_in_lines))
        self.ranks_in_lines = tuple(ranks_in_lines)

    def _render_traceback_(self) -> list[str]:
        return ["KeyboardInterrupt", *self.ranks_in_lines]


Interrupted.__name__ = "KeyboardInterrupt"  # front ends show the name that everybody knows


_ARGS: Any = vars(BaseException)["args"]
_ATTRIBUTES = ("ranks", "rank", "type_name", "message", "traceback_lines", "others", "original", "after_interrupt")


class WorkerError(NbsyncError):
    """A rank raised an exception.

    It is also an instance of the original type where that is possible, so `except ValueError:` works.

    Attributes:
        rank: the rank that failed first.
        ranks: all ranks that raised this same error.
        type_name: name of the original exception type; "" if the rank did not tell it in time.
        message: the original exception's text.
        original: the exception itself, rebuilt in this process, or None when it could not be sent.
        traceback_lines: the rank's traceback, with the source lines of the cell, as IPython renders it.
        others: one line for each other rank that did not finish normally.
        after_interrupt: the user had interrupted the run before it ended.
    """

    def __init__(
        self,
        *,
        ranks: Sequence[int],
        type_name: str,
        message: str,
        traceback_lines: Sequence[str] = (),
        others: Sequence[str] = (),
        original: BaseException | None = None,
    ) -> None:
        Exception.__init__(self, message)
        self.ranks = tuple(ranks)
        self.rank = self.ranks[0]
        self.type_name = type_name
        self.message = message
        self.traceback_lines = tuple(traceback_lines)
        self.others = tuple(others)
        self.original, self.after_interrupt = original, False
        if original is not None:
            self._take_over(original)

    def _take_over(self, original: BaseException) -> None:
        """Have what code reads from the original, as `error.args` and `error.errno`, also where it lives in C."""
        self.args = _ARGS.__get__(original)
        for name, value in vars(original).items():
            self.__dict__.setdefault(name, value)
        members = {
            name: member
            for cls in type(original).__mro__
            for name, member in vars(cls).items()
            if isinstance(member, MemberDescriptorType) and not name.startswith("__")
        }
        for name in (members.keys() & set(dir(self))) - vars(self).keys():
            with suppress(AttributeError, TypeError):  # read-only, or without a value
                setattr(self, name, getattr(original, name))

    @property
    def summary(self) -> str:
        """`rank 1: ValueError: boom`, as the last line of a traceback shows it."""
        return ": ".join(filter(None, (describe_ranks(self.ranks), self.type_name, self.message)))

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.others])

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__ | {"original": None}
        return (_rebuild_worker_error, (_plain_class(type(self)), self.args, state))

    def _shown(self) -> list[str]:
        """The rank's traceback in place of this process's."""
        self.__traceback__ = None  # behind it a frame of IPython's holds the error: a circle would keep what it carries
        heading = f"{describe_ranks(self.ranks)} raised {self.type_name}"
        return [heading, *self.traceback_lines, *self.others] if self.traceback_lines else [str(self)]


class WorkerDied(WorkerError):
    """A rank's process ended: killed by a signal, or by an exit that Python does not see.

    Attributes (in addition to those of WorkerError):
        exit_code: the process's exit code, or None when a signal ended it, or it is not known.
        signal_name: e.g. "SIGKILL", or None.
    """

    def __init__(
        self,
        *,
        ranks: Sequence[int],
        message: str,
        exit_code: int | None = None,
        signal_name: str | None = None,
        others: Sequence[str] = (),
    ) -> None:
        super().__init__(ranks=ranks, type_name="WorkerDied", message=message, others=others)
        self.exit_code = exit_code
        self.signal_name = signal_name

    @property
    def summary(self) -> str:
        """`rank 1: the process was ended by SIGKILL`, at later requests `rank 1 is not running (ended by SIGKILL)`."""
        who = describe_ranks(self.ranks)
        return self.message if self.message.startswith(who) else f"{who}: {self.message}"

    def _shown(self) -> list[str]:
        return [f"WorkerDied: {self}"]


def error_of_type(original: type[BaseException] | None) -> type[WorkerError]:
    """The WorkerError class that is also an `original`, or WorkerError itself.

    As Ray's task errors are: `except ValueError` in the notebook catches a rank's ValueError.
    """
    if original is None or not issubclass(original, Exception) or issubclass(original, WorkerError):
        return WorkerError
    if issubclass(original, SyntaxError):  # IPython would point it at the code of this process
        return WorkerError
    # What we set must not meet the original's properties, or its refusal to be changed (a frozen dataclass).
    namespace = dict.fromkeys(_ATTRIBUTES) | {"__module__": "nbsync", "__setattr__": Exception.__setattr__}
    try:
        return type(f"WorkerError({original.__name__})", (WorkerError, original), namespace)
    except Exception:  # its memory layout or metaclass does not allow a second base, or its __init_subclass__
        return WorkerError


def new_error(original: type[BaseException] | None) -> WorkerError:
    """An uninitialised error of `error_of_type(original)`; a plain WorkerError where such a one cannot be made."""
    error_class = error_of_type(original)
    for make in (error_class.__new__, Exception.__new__):
        with suppress(Exception):  # MemoryError takes only the second way, ExceptionGroup none; or the user's code
            return make(error_class)
    return WorkerError.__new__(WorkerError)


def _plain_class(cls: type[WorkerError]) -> type[WorkerError]:
    return WorkerDied if issubclass(cls, WorkerDied) else WorkerError


def _rebuild_worker_error(cls: type[WorkerError], args: tuple[Any, ...], state: dict[str, Any]) -> WorkerError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error
