"""Loggers that know their rank: messages of the main process only, of all ranks, or of one rank after the other."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import stat
import sys
import termios
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nbsync.errors import UsageError
from nbsync.worker.control.report import reporter
from nbsync.worker.control.world import World

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

_OUTPUT = (1, 2)
_MOST_WAIT = 1.0  # seconds for a reader that does not read
_PAUSE = 0.0005


class RankLogger(_Adapter):
    """A `logging.Logger` whose messages begin with `[RANK i]`, and whose calls take two more arguments.

    As `accelerate.logging.MultiProcessAdapter`, without its need for a state that was made before.

    Args of each call (`info`, `warning`, `log`, ...):
        main_process_only: only rank 0 logs it. The default.
        in_order: all ranks log it, rank 0 first; `main_process_only` then does not count. All ranks must make the
            call, as for a barrier; those at whose level it is not logged only wait. With Accelerate such a rank does
            not wait, and the others do for ever.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self._once: set[str] = set()

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """`msg` with this process's rank before it."""
        return f"[RANK {World().rank}] {msg}", kwargs

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log on the ranks that the arguments name; see the class."""
        self._give(self.isEnabledFor(level), level, msg, args, kwargs)

    def warning_once(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """As `warning`, but the same message and arguments only once in each process."""
        key = f"{msg!r} {args!r}"
        is_new = key not in self._once
        self._once.add(key)
        self._give(is_new and self.isEnabledFor(logging.WARNING), logging.WARNING, msg, args, kwargs)

    def _give(
        self, enabled: bool, level: int, msg: object, args: tuple[Any, ...], kwargs: MutableMapping[str, Any]
    ) -> None:
        main_process_only = kwargs.pop("main_process_only", True)
        in_order = kwargs.pop("in_order", False)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 2  # the user's line, and neither `log` nor this one
        world = World()
        turns = _turns(world, enabled) if in_order else [world.is_main_process or not main_process_only]
        failure: Exception | None = None
        for is_mine in turns:
            if enabled and is_mine:
                try:
                    text, kwargs = self.process(msg, kwargs)
                    self.logger.log(level, text, *args, **kwargs)
                except Exception as error:  # a handler of the user's: the other ranks have their turns all the same
                    failure = error
        if failure is not None:
            raise failure


def _turns(world: World, enabled: bool) -> Iterator[bool]:
    """Goes through the ranks that log: whether it is this one's turn. Between turns all ranks meet.

    The ranks that do not log take part all the same, and rank 0's name is that of the meetings everywhere.
    """
    answers = world.gather_object({"logs": enabled, "name": time.monotonic_ns()})
    for rank, answer in enumerate(answers):
        if not answer["logs"]:
            continue
        is_mine = rank == world.rank
        yield is_mine
        meeting = f"{answers[0]['name']}-{rank}"
        if is_mine:
            reporter().all_have_met(meeting)
            _wait_until_read()
        world.wait_for_everyone("log in order")
        if not is_mine:
            reporter().all_have_met(meeting)


def get_logger(name: str, log_level: str | int | None = None) -> RankLogger:
    """The logger `name` for code that runs on several ranks. As `accelerate.logging.get_logger`.

    Handlers, formats and levels are those of `logging.getLogger(name)`; plain `logging` works on every rank too, and
    what it prints is labelled like all output.

    Args:
        name: of the logger, such as `__name__`.
        log_level: for this logger and the root logger, e.g. "INFO"; by default ACCELERATE_LOG_LEVEL in the
            environment, or none, which leaves the levels alone.

    Returns:
        A logger whose messages are logged on rank 0 only, or with `main_process_only=False` on every rank, or with
        `in_order=True` on every rank, one after the other.

    Raises:
        UsageError: there is no such level.

    Examples:
        >>> import logging, sys
        >>> from nbsync import get_logger
        >>> logger = get_logger("train")
        >>> logger.logger.addHandler(handler := logging.StreamHandler(sys.stdout))
        >>> logger.warning("an epoch took %d s", 7, main_process_only=False)
        [RANK 0] an epoch took 7 s
        >>> logger.logger.removeHandler(handler)
    """
    logger = logging.getLogger(name)
    level = os.environ.get("ACCELERATE_LOG_LEVEL") if log_level is None else log_level
    if level is not None:
        try:
            for each in (logger, logger.root):
                each.setLevel(level.upper() if isinstance(level, str) else level)
        except (TypeError, ValueError) as error:
            names = "DEBUG, INFO, WARNING, ERROR, CRITICAL"
            raise UsageError(f"log_level is {level!r}: expected a number or one of {names}") from error
    return RankLogger(logger)


def _wait_until_read() -> None:
    """Wait until the readers of this process's output have taken it in.

    Each rank writes to pipes of its own: who reads them all would otherwise find the next rank's line beside this
    one's, and not know which came first.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # closed by the user
            stream.flush()
    unread = array.array("i", [0])
    deadline = time.monotonic() + _MOST_WAIT
    for fd in _OUTPUT:
        with suppress(OSError):  # closed by the user
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                while not fcntl.ioctl(fd, termios.FIONREAD, unread) and unread[0] and time.monotonic() < deadline:
                    time.sleep(_PAUSE)
