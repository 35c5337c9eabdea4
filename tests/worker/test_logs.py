"""get_logger: which rank logs, in which order, in whose words; beside Accelerate's on the same ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.logging import get_logger as accelerates

from nbsync import get_logger
from nbsync.errors import UsageError
from nbsync.worker.control.world import World

NAME = "tests.logs"
CALLS: list[dict[str, Any]] = [{}, {"main_process_only": True}, {"main_process_only": False}, {"in_order": True}]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """The levels and handlers of the loggers in use stay what they were."""
    loggers = [logging.getLogger(NAME), logging.getLogger()]
    before = [(each.level, list(each.handlers)) for each in loggers]
    yield
    for each, (level, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:] = handlers


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {Path(record.pathname).name} {record.funcName}: {record.getMessage()}")


def listen(level: int = logging.DEBUG) -> Lines:
    logger, handler = logging.getLogger(NAME), Lines()
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


def test_it_logs_where_accelerates_does(run_ranks: Any) -> None:
    """The same ranks, levels, texts and lines of code, whatever the call says."""

    def rank_main() -> Any:
        PartialState(cpu=True)
        handler = listen()
        found = []
        for logger in (get_logger(NAME), accelerates(NAME)):
            handler.lines.clear()
            for kwargs in CALLS:
                logger.info("%s and %d", "a", 1, **kwargs)
                logger.log(logging.ERROR, kwargs, **kwargs)
            logger.debug("late", main_process_only=False)
            found.append(list(handler.lines))
        return found

    for rank, (mine, theirs) in enumerate(run_ranks(rank_main)):
        assert mine == theirs
        assert len(mine) == (9 if rank == 0 else 5)
        assert all(line.split()[1:3] == ["test_logs.py", "rank_main:"] for line in mine)
        assert mine[-1] == f"DEBUG test_logs.py rank_main: [RANK {rank}] late"


def test_in_order_is_in_order(run_ranks: Any, tmp_path: Path) -> None:
    """Rank 0's line is written before rank 1's, and so on; the next message comes after all of them."""

    def rank_main() -> None:
        logger = logging.getLogger(NAME)
        logger.addHandler(logging.FileHandler(tmp_path / "log"))
        logger.setLevel(logging.INFO)
        for number in range(20):
            get_logger(NAME).info("%d", number, in_order=True)

    run_ranks(rank_main, 3)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"[RANK {rank}] {number}" for number in range(20) for rank in range(3)]


@pytest.mark.parametrize("loud", [0, 1, None])
def test_ranks_with_other_levels_wait_too(run_ranks: Any, loud: int | None, group_works: Any) -> None:
    """A rank where the message is not logged does not leave the others alone, as it does with Accelerate."""

    def rank_main() -> Any:
        world = World()
        handler = listen(logging.DEBUG if world.rank == loud else logging.WARNING)
        get_logger(NAME).debug("quiet", in_order=True)
        return [line.split(": ")[1] for line in handler.lines], group_works(world)

    expected = [([f"[RANK {rank}] quiet"] if rank == loud else [], True) for rank in range(2)]
    assert run_ranks(rank_main) == expected


def test_a_handler_that_raises_leaves_nobody_waiting(run_ranks: Any, group_works: Any) -> None:
    """The error is that rank's own; the others have logged, and the group works."""

    class Broken(Lines):
        def emit(self, record: logging.LogRecord) -> None:
            if World().rank == 1:
                raise OSError("disk full")
            super().emit(record)

    def rank_main() -> Any:
        handler = Broken()
        logging.getLogger(NAME).addHandler(handler)
        try:
            get_logger(NAME).error("all", in_order=True)
        except OSError as error:
            handler.lines.append(str(error))
        return len(handler.lines), group_works(World())

    assert run_ranks(rank_main, 3) == [(1, True)] * 3


def test_a_warning_once_is_given_once(run_ranks: Any) -> None:
    """The same message and arguments warn once, on the ranks that the call names, with the line that called."""

    def rank_main() -> Any:
        handler, logger = listen(), get_logger(NAME)
        for number in (1, 2, 1):
            logger.warning_once("old %d", number, main_process_only=False)
            logger.warning_once(["unhashable"])
            logger.warning_once("in order", in_order=True)
        return [line.partition("rank_main: ")[2] for line in handler.lines]

    first, second = run_ranks(rank_main)
    assert first == [f"[RANK 0] {text}" for text in ("old 1", "['unhashable']", "in order", "old 2")]
    assert second == [f"[RANK 1] {text}" for text in ("old 1", "in order", "old 2")]


def test_it_needs_nothing_before_it(plain: pytest.MonkeyPatch) -> None:
    """In a plain process it logs as rank 0, without a process group; Accelerate wants its state made first."""
    handler = listen()
    for kwargs in CALLS:
        get_logger(NAME).warning("alone", **kwargs)
    assert [line.partition(": ")[2] for line in handler.lines] == ["[RANK 0] alone"] * 4


def test_the_level_is_the_arguments_then_the_environments(plain: pytest.MonkeyPatch) -> None:
    """As in Accelerate it is set on the logger and on the root; without either, levels are left alone."""
    logger, root = logging.getLogger(NAME), logging.getLogger()
    before = root.level
    get_logger(NAME)
    assert (logger.level, root.level) == (logging.NOTSET, before)
    plain.setenv("ACCELERATE_LOG_LEVEL", "error")
    get_logger(NAME)
    assert (logger.level, root.level) == (logging.ERROR, logging.ERROR)
    get_logger(NAME, log_level="debug")
    assert (logger.level, root.level) == (logging.DEBUG, logging.DEBUG)
    get_logger(NAME, log_level=logging.INFO)
    assert logger.level == logging.INFO
    with pytest.raises(UsageError, match="log_level is 'loud': expected a number or one of DEBUG, INFO"):
        get_logger(NAME, "loud")
