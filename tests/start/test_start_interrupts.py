"""An interrupt ends a start at any moment, says what was going on, leaves nothing behind, and the next start works."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from holdings import Holdings, assert_no_more
from started import GUARD

from notebooks import CellError, Notebook, poll, processes

SOON = 1.0  # seconds from the interrupt to the cell's end

#: An import hook, for a kernel or (as a `sitecustomize`) a new interpreter: the import of `name` waits for a file.
HOOK = """
import os, sys, time
class Waits:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            open({begun!r}, "a").write("x")
            while not os.path.exists({go!r}):
                time.sleep(0.01)
sys.meta_path.insert(0, Waits())
"""
#: A variable that takes as long as it likes to be packed or rebuilt.
SLOW = """
import os, signal, time
def act(begun, seconds, number):
    open(begun, "a").write("x")
    time.sleep(seconds)
    if number: signal.raise_signal(number)
class Slow:
    packing, rebuilding, crash = 0, 0, 0
    def __reduce__(self):
        if self.packing: act(begun, self.packing, 0)
        return act, (begun, self.rebuilding, self.crash)
"""


class Starts:
    """Starts of a kernel that are interrupted. `begun` is made when what is waited for has begun."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.begun = notebook.folder / "begun"
        notebook.run(f"import os, nbsync\nbegun = {str(self.begun)!r}").ok()
        notebook.run("%nbsync start -n 2\n%nbsync stop", GUARD).ok()  # what is made once is there
        notebook.run("print('x' * 2_000_000)").ok()  # pyzmq starts a thread for the first large message
        self.look()

    def look(self) -> None:
        """Remember what the kernel holds."""
        self.notebook.run("pass").ok()  # IPython ends the thread of its history at a fork, and starts it at a cell
        self.before, self.children = Holdings.of(self.notebook.pid), self._children()

    def interrupted(self, cell: str, by: int = 1) -> CellError:
        """Run a cell in which `by` processes wait for ever, and interrupt it when they do."""
        self.begun.unlink(missing_ok=True)
        self.notebook.start(cell)
        assert poll(lambda: self.begun.exists() and self.begun.stat().st_size == by, GUARD)
        time.sleep(0.1)  # they are in the middle of it
        asked = time.monotonic()
        self.notebook.interrupt()
        error = self.notebook.wait(GUARD).failed("KeyboardInterrupt")
        assert time.monotonic() - asked < SOON
        return error

    def assert_clean(self) -> None:
        """The kernel holds what it held before, and has no other children, not even dead ones."""
        assert_no_more(self.notebook.pid, self.before)
        assert self._children() <= self.children

    def assert_works(self, method: str) -> None:
        """Workers can be started, and compute together; they are ended again."""
        self.notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
        cell = "%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item()"
        assert self.notebook.run(cell).ok().texts == ["[0-1] 2.0"]
        self.notebook.run("%nbsync stop").ok()

    def _children(self) -> set[int]:
        return {p.pid for p in processes() if p.ppid == self.notebook.pid}


@pytest.fixture
def starts(fresh_notebook: Notebook) -> Starts:
    """A kernel of this test's own that has started and stopped workers before."""
    return Starts(fresh_notebook)


@pytest.mark.parametrize(
    ("method", "by", "told"),
    [("forkserver", 1, "loading torch in the fork server"), ("spawn", 2, "ranks 0-1 were loading torch")],
)
def test_while_new_interpreters_load_torch(starts: Starts, tmp_path: Path, method: str, by: int, told: str) -> None:
    """The fork server, or the workers, load torch: they end at once."""
    hook = HOOK.format(name="torch", begun=str(starts.begun), go=str(tmp_path / "never"))
    (tmp_path / "sitecustomize.py").write_text(hook)
    cell = f"os.environ['PYTHONPATH'] = {str(tmp_path)!r} + os.pathsep + os.environ.get('PYTHONPATH', '')"
    starts.notebook.run(f"usual = os.environ.get('PYTHONPATH', '')\n{cell}").ok()
    error = starts.interrupted(f"%nbsync start -n 2 --start-method {method}", by)
    assert error.traceback.splitlines() == ["KeyboardInterrupt", f"while {told}"]
    starts.assert_clean()
    starts.notebook.run("os.environ['PYTHONPATH'] = usual").ok()
    starts.assert_works(method)


@pytest.mark.parametrize(
    ("method", "by", "told"),
    [("forkserver", 1, "rebuilding 'slow' for the workers"), ("spawn", 2, "ranks 0-1 were rebuilding 'slow'")],
)
def test_while_variables_are_rebuilt(starts: Starts, method: str, by: int, told: str) -> None:
    """A variable takes for ever to be rebuilt for the workers: it is named, and whoever rebuilds it ends at once."""
    starts.notebook.run(f"{SLOW}\nslow = Slow()\nslow.rebuilding = 1000").ok()
    error = starts.interrupted(f"%nbsync start -n 2 --start-method {method}", by)
    assert error.traceback.splitlines() == ["KeyboardInterrupt", f"while {told}"]
    starts.assert_clean()
    error = starts.interrupted(f"nbsync.notebook_launcher(lambda: 1, num_processes=2, start_method={method!r})", by)
    assert error.traceback.splitlines() == ["KeyboardInterrupt", f"while {told}"]
    starts.assert_clean()
    starts.notebook.run("slow.rebuilding = 0").ok()
    starts.assert_works(method)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_while_variables_are_packed(starts: Starts, method: str) -> None:
    """A variable takes for ever to be packed in the notebook."""
    starts.notebook.run(f"{SLOW}\nslow = Slow()\nslow.packing = 1000").ok()
    error = starts.interrupted(f"%nbsync start -n 2 --start-method {method}")
    assert error.traceback.splitlines() == ["KeyboardInterrupt", "while packing 'slow' for the workers"]
    starts.assert_clean()
    starts.notebook.run("slow.packing = 0").ok()
    starts.assert_works(method)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("forkserver", "its helper was ended by SIGSEGV while rebuilding 'slow' for the workers"),
        # Each loads torch in its own time.
        ("spawn", "(rank (0|1) was|ranks 0-1 were) ended by SIGSEGV while rebuilding 'slow'"),
    ],
)
def test_a_variable_that_crashes_who_rebuilds_it(starts: Starts, method: str, told: str) -> None:
    """It is named, nothing is left, and the start works without it."""
    starts.notebook.run(f"{SLOW}\nslow = Slow()\nslow.crash = signal.SIGSEGV").ok()
    error = starts.notebook.run(f"nbsync.Session(2, start_method={method!r})", GUARD).failed("StartError")
    assert re.search(told, error.evalue)
    starts.assert_clean()
    starts.notebook.run("del slow").ok()
    starts.assert_works(method)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_while_one_rank_is_replaced(starts: Starts, method: str) -> None:
    """The restart of one rank is interrupted: the others keep what they have, and it comes in the next time."""
    notebook = starts.notebook
    notebook.run(f"{SLOW}\nslow = Slow()").ok()
    notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
    notebook.run("%%distributed\nkept = rank").ok()
    notebook.run("slow.rebuilding = 1000").ok()
    error = starts.interrupted("%nbsync restart --ranks 1")
    assert "rebuilding 'slow'" in error.traceback
    assert notebook.run("%%on_rank 0\nkept").ok().texts == ["[0] 0"]
    notebook.run("slow.rebuilding = 0\n%nbsync restart --ranks 1", GUARD).ok()
    cell = "%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item(), 'kept' in globals()"
    assert notebook.run(cell).ok().texts == ["[0] (2.0, True)", "[1] (2.0, False)"]
    notebook.run("%nbsync stop\nfrom nbsync.kernel.engines import served\nserved.close()").ok()
    starts.assert_clean()


@pytest.mark.parametrize("part", ["torch", "torch._C", "torch.functional", "torch.fx"])
def test_while_the_notebook_loads_torch(fresh_notebook: Notebook, part: str) -> None:
    """Torch is not left half loaded, which would break this kernel: its import goes on, and the next start has it."""
    begun, go = fresh_notebook.folder / "begun", fresh_notebook.folder / "go"
    fresh_notebook.run(HOOK.format(name=part, begun=str(begun), go=str(go))).ok()
    for _ in range(2):
        fresh_notebook.start("%nbsync start -n 2")
        assert poll(begun.exists, GUARD)
        time.sleep(0.1)
        asked = time.monotonic()
        fresh_notebook.interrupt()
        error = fresh_notebook.wait(GUARD).failed("KeyboardInterrupt")
        assert time.monotonic() - asked < SOON
        told = "while loading torch in the notebook, which goes on: the next start waits for it"
        assert error.traceback.splitlines() == ["KeyboardInterrupt", told]
    go.touch()
    fresh_notebook.run("%nbsync start -n 2", GUARD).ok()
    assert fresh_notebook.run("%%distributed\nworld.reduce(torch.ones(1))").ok().texts == ["[0-1] tensor([2.])"]


#: Interrupts at these moments, one after the other, while workers are started and ended.
PRESSED = """
import signal, threading, time
def press(moments):
    for moment in moments:
        time.sleep(moment)
        os.kill(os.getpid(), signal.SIGINT)
def start_and_stop():
    with nbsync.Session(2, start_method={method!r}): pass
presser = threading.Thread(target=press, args=({moments},))
presser.start()
while presser.is_alive():
    try: start_and_stop()
    except KeyboardInterrupt as error: pass
presser.join()
"""


#: Python itself may raise between a constructor's end and the `with` block: such a session is whole, and can be closed.
LEFT_OPEN = """
from nbsync.kernel.current import open_sessions
for session in open_sessions():
    assert session.is_running
    session.close()
assert not open_sessions()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_at_any_moment(starts: Starts, method: str) -> None:
    """Interrupts come at random moments of starts and ends, alone and several at once: nothing is left of any."""
    notebook, chance = starts.notebook, random.Random(7)
    cell = f"with nbsync.Session(2, start_method={method!r}): pass"
    notebook.run(cell, GUARD).ok()
    took = notebook.run(cell, GUARD).ok().seconds
    starts.look()
    for _ in range(5 if method == "spawn" else 20):
        moments = [chance.uniform(0, took), *(chance.uniform(0, 0.01) for _ in range(chance.choice((0, 2))))]
        notebook.run(PRESSED.format(method=method, moments=moments), GUARD)
        notebook.run(LEFT_OPEN).ok()
        starts.assert_clean()
    starts.assert_works(method)
