"""Cells in the background: waited for, failed, interrupted; what is told of them."""

from __future__ import annotations

from notebooks import Notebook, poll

UNTIL_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
GO = "open('go', 'w').close()"
BACKGROUND = "%%distributed --background\n"


PRESS = """
import os, signal, threading, time
before = signal.getsignal(signal.SIGINT)
def press():
    while signal.getsignal(signal.SIGINT) is before: time.sleep(0.01)  # it does not wait yet
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
%nbsync wait"""


def test_wait(live: Notebook) -> None:
    """It returns when the background run has ended, and the next cell finds the ranks idle."""
    live.run(f"{BACKGROUND}import time; time.sleep(0.5); x = rank").ok()
    assert live.run("%nbsync wait").ok().outputs == []
    assert live.run("%%distributed\nx").ok().texts == ["[0] 0", "[1] 1"]
    assert live.run("%nbsync wait").ok().stdout == "nothing runs in the background\n"
    assert ", in the background, has ended\n" in live.run("%nbsync status").ok().stdout


def test_wait_raises_the_error_once(live: Notebook) -> None:
    """It is of the type that the rank raised, with the line of the cell, also when the run had ended before."""
    outcome = live.run(f"{BACKGROUND}if rank == 1: raise ValueError('in the back')")
    error = live.run("%nbsync wait").failed("ValueError")
    assert f"Cell In[{outcome.number}], line 2" in error.traceback
    assert "nbsync/" not in error.traceback
    live.run("%nbsync wait").ok()
    told = f"Cell In[{outcome.number}], in the background, has failed: rank 1: ValueError: in the back"
    assert told in live.run("%nbsync status").ok().stdout


def test_an_error_of_before_is_not_that_of_the_next(live: Notebook) -> None:
    """A run on the same ranks takes the place of one that failed and was not waited for; so do fresh workers."""
    live.run(f"{BACKGROUND}1 / 0").ok()
    assert poll(lambda: "has failed" in live.run("%nbsync status").stdout, 10)
    live.run(f"{BACKGROUND}pass").ok()
    live.run("%nbsync wait").ok()
    live.run(f"{BACKGROUND}1 / 0").ok()
    assert poll(lambda: "has failed" in live.run("%nbsync status").stdout, 10)
    live.run("%nbsync restart").ok()
    live.run("%nbsync wait").ok()
    assert "background" not in live.run("%nbsync status").stdout


def test_wait_for_several(live: Notebook) -> None:
    """Each rank may have a cell of its own in the background; each error is raised."""
    live.run("%%on_rank 0 --background\nraise KeyError('zero')").ok()
    live.run("%%on_rank 1 --background\nimport time; time.sleep(0.3); raise ValueError('one')").ok()
    live.run("%nbsync wait").failed("KeyError")
    live.run("%nbsync wait").failed("ValueError")
    live.run("%nbsync wait").ok()


def test_wait_has_a_limit(live: Notebook) -> None:
    """After it the run goes on. That, and a cell meanwhile, say what waits for it, and what interrupts it."""
    number = live.run(f"{BACKGROUND}{UNTIL_GO}").number
    assert poll(lambda: "ranks 0-1: busy" in live.run("%nbsync status").stdout, 10)
    for cell in ("%nbsync wait --timeout 0.2", "%%distributed\npass"):
        outcome = live.run(cell)
        outcome.failed("UsageError")
        assert "`%nbsync interrupt` interrupts it, `%nbsync wait` waits for it" in outcome.stderr
    assert f"Cell In[{number}] runs in the background\n" in live.run("%nbsync status").ok().stdout
    live.run(GO).ok()
    live.run("%nbsync wait --timeout 60").ok()
    live.run("import os; os.remove('go')").ok()


def test_an_interrupt_of_the_wait(live: Notebook) -> None:
    """It interrupts the run, as that of a cell does, and says where each rank was; the variables are kept."""
    number = live.run(f"{BACKGROUND}kept = rank\nimport time\ntime.sleep(600)").number
    assert poll(lambda: f"ranks 0-1: at Cell In[{number}], line 4" in live.run("%nbsync status").stdout, 10)
    error = live.run(PRESS).failed("KeyboardInterrupt")
    assert f"ranks 0-1: interrupted at Cell In[{number}], line 4" in error.traceback
    assert live.run("%%distributed\nkept").ok().texts == ["[0] 0", "[1] 1"]
    assert f"Cell In[{number}], in the background, was interrupted" in live.run("%nbsync status").ok().stdout
