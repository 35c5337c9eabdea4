"""Logging in a real notebook: from every rank, labelled, once, whatever was configured where."""

from __future__ import annotations

from notebooks import Notebook

CONFIGURE = "import logging\nlogging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s: %(message)s'{})"


def labelled(text: str) -> list[str]:
    return sorted(text.splitlines())


def test_handlers_of_the_notebook_log_on_the_ranks(fresh_notebook: Notebook) -> None:
    """The root handler that the fork inherited writes to the rank's own output: each record once, in one place."""
    notebook = fresh_notebook
    assert notebook.run(CONFIGURE.format("") + "\nlogging.info('before')").stderr == "INFO root: before\n"
    cell = notebook.run("%%distributed -n 2\nlogging.info('same')\nlogging.getLogger('a').warning('rank %d', rank)")
    assert labelled(cell.ok().stderr) == ["[0-1] INFO root: same", "[0] WARNING a: rank 0", "[1] WARNING a: rank 1"]
    assert cell.stdout == ""
    launched = """
from nbsync import World, notebook_launcher
def train():
    logging.info("launched")
    logging.getLogger("a").error("%d", World().rank)
notebook_launcher(train, num_processes=2)"""
    assert labelled(notebook.run(launched).ok().stderr) == [
        "[0-1] INFO root: launched",
        "[0] ERROR a: 0",
        "[1] ERROR a: 1",
    ]
    assert notebook.run("logging.info('after')").stderr == "INFO root: after\n"


def test_logging_configured_in_a_distributed_cell(notebook: Notebook) -> None:
    """`basicConfig`, handlers of one's own, `warnings` captured: each record once, on the stream of its handler."""
    code = """%%distributed -n 2
import logging, sys, warnings
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="root %(message)s", force=True)
logging.debug("one")
own = logging.getLogger("own")
own.addHandler(logging.StreamHandler())
own.propagate = False
own.error("two %d", rank)
logging.captureWarnings(True)
warnings.warn("three")
logging.captureWarnings(False)
"""
    cell = notebook.run(code).ok()
    assert cell.stdout.startswith("[0-1] root one\n[0-1] root ")
    assert cell.stdout.count("UserWarning: three") == 1
    assert labelled(cell.stderr) == ["[0] two 0", "[1] two 1"]


def test_without_a_configuration_warnings_are_seen(notebook: Notebook) -> None:
    """Python's handler of last resort writes to the rank's output too."""
    notebook.run("%%distributed -n 2\nimport logging\nlogging.getLogger().handlers.clear()").ok()
    cell = notebook.run("%%distributed\nlogging.getLogger('x').warning('careful')\nlogging.getLogger('x').info('no')")
    assert cell.ok().stderr == "[0-1] careful\n"


def test_get_logger_in_cells(notebook: Notebook) -> None:
    """The main process alone, every rank, or every rank in order: as they are shown, also after one-sided output."""
    code = """%%distributed -n 2
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
from nbsync import get_logger
log = get_logger("train")
log.info("main")
log.info("all", main_process_only=False)"""
    cell = notebook.run(code).ok()
    assert labelled(cell.stderr) == ["[0] [RANK 0] all", "[0] [RANK 0] main", "[1] [RANK 1] all"]
    in_order = """%%distributed
for number in range(40):
    if number % 3:
        log.info("main")
    else:
        print(f"rank {rank}", number)
    log.info("%d", number, in_order=True)"""
    cell = notebook.run(in_order).ok()
    numbered = [line for line in cell.stderr.splitlines() if "main" not in line]
    assert numbered == [f"[{rank}] [RANK {rank}] {number}" for number in range(40) for rank in range(2)]
    assert "meeting" not in cell.stdout + cell.stderr
