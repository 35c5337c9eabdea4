"""Rows 29 to 35: values that cannot travel, reprs that fail, floods of output, code that breaks its process."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from worlds import GUARD, LATER, MODEL, Ranks

from notebooks import Notebook, Outcome, poll

_PULL = "import nbsync\nnbsync.session().pull('value', ranks={ranks!r})"
MEGABYTE = 1 << 20


def _pull(ranks: Ranks, which: str = "all", timeout: float = GUARD) -> Outcome:
    return ranks.notebook.run(_PULL.format(ranks=which), timeout)


def _resident(pid: int) -> int:
    """The process's resident memory, in bytes."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak(pid: int) -> int:
    """The most memory that was resident since the mark was cleared, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def test_row_29_what_cannot_be_pulled(pair: Ranks) -> None:
    """A name that is not there is told without lines that are nobody's; a model that needs the group, with advice."""
    pair.run(f"{MODEL}\ndef divide(): return 1 / 0").ok()
    pull = "import nbsync; nbsync.session().pull({!r})"
    error = pair.notebook.run(pull.format("missing")).failed("NameError")
    assert error.traceback.endswith("NameError: name 'missing' is not defined")
    assert "File" not in error.traceback
    assert "line 4, in divide()" in pair.notebook.run(pull.format("divide()")).failed("ZeroDivisionError").traceback
    assert "pull what is wrapped (`ddp_model.module`)" in pair.notebook.run(pull.format("model")).failed().evalue
    pair.notebook.run(pull.format("model.module")).ok()
    pair.assert_whole()


def test_row_29_unpicklable_return(pair: Ranks) -> None:
    """What cannot be sent is told with rank, path and type; the channel stays in step."""
    pair.run("value = {'model': [1, inject.Unpicklable()]} if rank == 1 else 0").ok()
    error = _pull(pair).failed()
    assert "rank 1" in error.evalue
    assert "value['model'][1].lines of type generator cannot be sent" in error.evalue
    assert _pull(pair, "0").ok().texts == ["[0]"]
    pair.assert_whole()


def test_row_29_unpicklable_argument(pair: Ranks) -> None:
    """An argument that cannot be sent is told before anything is sent to any rank."""
    pair.notebook.run("from nbsync.testing import inject\nvalue = {'a': inject.Unpicklable()}").ok()
    error = pair.notebook.run("%nbsync push value").failed()
    assert "value['a'].lines of type generator cannot be sent" in error.evalue
    assert "value" not in pair.notebook.run("%%distributed\nsentinel").ok().stderr
    pair.assert_whole()


@pytest.mark.parametrize("when", ["pickle", "unpickle"])
def test_row_30_raises(pair: Ranks, when: str) -> None:
    """An object whose pickling or unpickling raises is an error that says which; nothing is lost."""
    pair.run(f"value = inject.Crashing('{when}', 'raise_error') if rank == 1 else 0").ok()
    error = _pull(pair).failed()
    assert "rank 1" in error.evalue
    assert "injected" in error.evalue
    assert ("cannot be sent" if when == "pickle" else "cannot be rebuilt") in error.evalue
    pair.assert_whole()


@pytest.mark.parametrize(("fault", "told"), [("exit_process", "exit code 3"), ("segfault", "SIGSEGV")])
def test_row_30_crashes_when_pickled(pair: Ranks, fault: str, told: str) -> None:
    """An object that ends the process in pickling ends its rank only."""
    pair.run(f"value = inject.Crashing('pickle', '{fault}') if rank == 1 else 0").ok()
    error = _pull(pair).failed("WorkerDied")
    assert error.evalue.startswith("rank 1: ")
    assert told in error.evalue
    assert "while it pickled value, of type Crashing" in error.evalue
    pair.bring_back(1)


@pytest.mark.parametrize(
    ("fault", "told"), [("exit_process", "exit code 3"), ("segfault", "SIGSEGV"), ("kill", "KILL")]
)
def test_row_30_crashes_when_unpickled(pair: Ranks, fault: str, told: str) -> None:
    """An object that ends the process in unpickling does not end the kernel; rank, place and cause are told."""
    cell = (
        "value = {'good': inject.Crashing('never', ''), "
        f"'bad': [1, inject.Crashing('unpickle', '{fault}')]}} if rank == 1 else 0"
    )
    pair.run(cell).ok()
    error = _pull(pair).failed("TransferError").evalue
    assert error.startswith("rank 1: the value[0]['bad'][1] cannot be unpickled: ")
    assert told in error
    assert "objects._rebuild_crashing" in error
    pair.assert_whole()


def test_row_30_hangs_in_c(pair: Ranks) -> None:
    """What hangs in C code, deaf to interrupts, does not hang the kernel; after a second the user is told."""
    pair.run("value = inject.Crashing('unpickle', 'hold_gil')").ok()
    pair.notebook.start(_PULL.format(ranks="1"))
    pair.notebook.wait_for_output("rank 1: a value takes long to unpickle", GUARD)
    begin = time.monotonic()
    pair.notebook.interrupt()
    error = pair.notebook.wait(GUARD).failed("KeyboardInterrupt")
    assert time.monotonic() - begin < 6
    assert "objects._rebuild_crashing" in error.evalue
    pair.assert_whole()


def test_row_30_own_classes_come_back(pair: Ranks) -> None:
    """Objects that rebuild themselves arrive as they were, and are of the notebook's own classes."""
    pair.notebook.run(
        "class Own:\n    def __init__(self, n): self.n = n\n    def __setstate__(self, state): self.n = state['n'] + 1"
    ).ok()
    pair.notebook.run("%nbsync restart").ok()
    pair.run("from nbsync.testing import inject\nvalue = [Own(rank), lambda n=rank: n + 40]").ok()
    shown = pair.notebook.run("import nbsync\nvalues = nbsync.session().pull('value')").ok()
    assert not shown.stderr
    check = "[(type(own) is Own, own.n, f()) for own, f in values]"
    assert pair.notebook.run(check).ok().texts == ["[(True, 1, 40), (True, 2, 41)]"]
    pair.assert_next()


@pytest.mark.parametrize("when", ["pickle", "unpickle"])
def test_row_30_hangs(pair: Ranks, when: str) -> None:
    """An object that hangs in pickling or unpickling is ended by an interrupt."""
    pair.run(f"value = inject.Crashing('{when}', 'sleep_forever')").ok()
    pair.notebook.start("print('begun')\n" + _PULL.format(ranks="1"))
    pair.notebook.wait_for_output("begun", GUARD)
    time.sleep(0.3)
    pair.notebook.interrupt()
    pair.notebook.wait(GUARD).failed("KeyboardInterrupt")
    pair.assert_whole()


_TRAIN_ERROR = """class TrainError(RuntimeError):
    def __init__(self, text, trainer):
        super().__init__(text)
        self.trainer = trainer
"""
_CARRIED = [
    f"{_TRAIN_ERROR}if rank == 1: raise TrainError('diverged', {{}})",  # takes other arguments than it passes on
    "error = RuntimeError('diverged')\nerror.trainer = {}\nif rank == 1: raise error",
]


@pytest.mark.parametrize("fault", ["segfault", "exit_process", "sys_exit", "raise_error"])
@pytest.mark.parametrize("cell", _CARRIED)
def test_row_30_an_error_carries_what_crashes_when_unpickled(pair: Ranks, cell: str, fault: str) -> None:
    """It is told like any other, also where neither the notebook nor the rank could unpickle what it carries."""
    before = pair.pids()
    error = pair.fail(cell.format(f"inject.Crashing('unpickle', '{fault}')"))
    assert re.match(r"rank 1: (Train|Runtime)Error: diverged", error.evalue)
    assert "raise" in error.traceback
    assert pair.pids() == before
    pair.assert_whole()


def test_row_30_an_error_carries_what_is_unpickled_only_here(pair: Ranks) -> None:
    """What an error carries arrives with it, also of a class that rebuilds itself."""
    pair.fail(f"{_TRAIN_ERROR}raise TrainError('diverged', inject.Crashing('never', ''))")
    shown = pair.notebook.run("import sys\n(type(sys.last_value.trainer).__name__, sys.last_value.original.args)")
    assert shown.ok().texts == ["('Crashing', ('diverged',))"]
    pair.assert_whole()


@pytest.mark.parametrize("cell", _CARRIED)
def test_row_30_an_error_carries_what_hangs_when_unpickled(pair: Ranks, cell: str) -> None:
    """An interrupt gives up the object, not the error."""
    pair.notebook.start("%%distributed\n" + cell.format("inject.Crashing('unpickle', 'hold_gil')"))
    pair.notebook.wait_for_output("a value takes long to unpickle", GUARD)
    pair.notebook.interrupt()
    assert re.match(r"rank 1: (Train|Runtime)Error: diverged", pair.notebook.wait(GUARD).failed().evalue)
    pair.assert_whole()


def test_row_30_an_error_carries_what_hangs_when_pickled(pair: Ranks) -> None:
    """The rank says what it does; an interrupt gives up the object, not the error."""
    pair.notebook.start("%%distributed\n" + _CARRIED[1].format("inject.Crashing('pickle', 'sleep_forever')"))
    pair.notebook.wait_for_output("rank 1 takes long: it pickled the error, of type RuntimeError", GUARD)
    pair.notebook.interrupt()
    assert pair.notebook.wait(GUARD).failed("RuntimeError").evalue.startswith("rank 1: RuntimeError: diverged")
    pair.assert_whole()


def test_row_30_an_error_carries_what_crashes_when_pickled(pair: Ranks) -> None:
    """That ends the rank: the message says what it did then."""
    error = pair.fail(_CARRIED[1].format("inject.Crashing('pickle', 'segfault')"), "WorkerDied")
    assert "while it pickled the error, of type RuntimeError" in error.evalue
    pair.bring_back(1)


def test_row_31_large_return(pair: Ranks) -> None:
    """A large value arrives whole, and the kernel needs little more than its size."""
    size = 256 * MEGABYTE
    pair.run(f"value = torch.full(({size},), 7, dtype=torch.uint8)").ok()
    pair.notebook.run("import nbsync\nwith open('/proc/self/clear_refs', 'w') as f: f.write('5')").ok()
    before = _resident(pair.notebook.pid)
    pair.notebook.run("(pulled,) = nbsync.session().pull('value', ranks=[1])").ok()
    grown = _peak(pair.notebook.pid) - before
    assert pair.notebook.run("len(pulled), int(pulled[0]), int(pulled[-1])").ok().texts == [f"({size}, 7, 7)"]
    pair.notebook.run("del pulled").ok()
    pair.run("del value").ok()
    assert grown < 1.2 * size, f"{grown / MEGABYTE:.0f} MB for {size / MEGABYTE:.0f}"
    pair.assert_whole()


#: What makes a process receive slowly, or again as fast as it can.
_SLOW = """
import time
from nbsync.protocol.channel import Channel
fast = Channel.receive
def slow(self):
    time.sleep(0.002)
    return fast(self)
Channel.receive = slow"""
_FAST = "Channel.receive = fast"
HALF = 512 * MEGABYTE  # told as 537 MB
VALUES = {
    "tensor": f"torch.frombuffer(bytearray({HALF}), dtype=torch.uint8)",  # without computing, which starts a thread
    "bytes": f"b'7' * {HALF}",
    "list": f"[['7' * 100_000] for _ in range({HALF} // 100_000)]",
}


@contextmanager
def _slow_kernel(notebook: Notebook) -> Iterator[None]:
    notebook.run(_SLOW).ok()
    try:
        yield
    finally:
        notebook.run(_FAST).ok()


@contextmanager
def _slow_ranks(pair: Ranks) -> Iterator[None]:
    pair.run(_SLOW).ok()
    try:
        yield
    finally:
        pair.run(_FAST).ok()


def _interrupt_in_the_middle(notebook: Notebook, cell: str, moves: str, ranks: int = 2) -> Outcome:
    """Run a cell, and interrupt it when as many ranks have each moved a tenth of a GB or more of a value."""
    notebook.start(cell)
    return _interrupt_when_moved(notebook, moves, ranks)


def _interrupt_when_moved(notebook: Notebook, moves: str, ranks: int = 2) -> Outcome:
    def all_move(shown: Outcome) -> bool:
        told = [bundle.get("text/plain", "") for bundle in shown.history]
        return any(len(re.findall(f"{moves} 0[.][1-9] of", text)) == ranks for text in told)

    notebook.wait_for(all_move, GUARD)
    notebook.interrupt()
    return notebook.wait(GUARD)


def _assert_released(pid: int, before: int) -> None:
    """The process soon has no more memory than before, but for what is not worth a word."""
    poll(lambda: _resident(pid) - before < 64 * MEGABYTE, GUARD)
    assert (grown := _resident(pid) - before) < 64 * MEGABYTE, f"{grown / MEGABYTE:.0f} MB"


@pytest.mark.parametrize("kind", VALUES)
def test_row_31_interrupted_return(pair: Ranks, kind: str) -> None:
    """An interrupt in the middle of large values frees the ranks at once; they keep them, and the kernel nothing."""
    notebook = pair.notebook
    pair.run(f"value = {VALUES[kind]}").ok()
    with _slow_kernel(notebook):
        before = _resident(notebook.pid)
        error = _interrupt_in_the_middle(notebook, _PULL.format(ranks="all"), "sends").failed("KeyboardInterrupt")
        assert error.evalue == "ranks 0-1: interrupted while it sent 537 MB"
        pair.run("kept = len(value)").ok()
        assert "ranks 0-1: idle" in notebook.run("%nbsync status").ok().stdout
        _assert_released(notebook.pid, before)
        error = _interrupt_in_the_middle(notebook, _PULL.format(ranks="1"), "sends", 1).failed("KeyboardInterrupt")
        assert error.evalue == "rank 1: interrupted while it sent 537 MB"
    check = "[len(value) for value in nbsync.session().pull('value')] == nbsync.session().pull('kept')"
    assert notebook.run(check, GUARD).ok().texts == ["True"]
    pair.run("del value").ok()
    pair.assert_whole()


def test_row_31_second_interrupt(pair: Ranks) -> None:
    """What a function returns that has caught the first one, a second gives up."""
    pair.run(f"value = {VALUES['tensor']}").ok()
    cell = (
        "import nbsync\ndef catch():\n    print('begun', rank)\n    try: inject.sleep_forever()\n"
        "    except KeyboardInterrupt: return value\nnbsync.session().call(catch)"
    )
    with _slow_kernel(pair.notebook):
        pair.notebook.start(cell)
        pair.wait_for_all("begun")
        pair.notebook.interrupt()
        time.sleep(LATER)
        error = _interrupt_when_moved(pair.notebook, "sends").failed("KeyboardInterrupt")
    assert error.evalue == "ranks 0-1: interrupted while it sent 537 MB"
    pair.run("del value").ok()
    pair.assert_whole()


@pytest.mark.parametrize("cell", ["nbsync.session().push({'value': value})", "nbsync.session().call(len, value)"])
@pytest.mark.parametrize("kind", VALUES)
def test_row_31_interrupted_push(pair: Ranks, kind: str, cell: str) -> None:
    """On the way to the ranks too: nothing is set there, and neither side keeps what has arrived."""
    notebook, pids = pair.notebook, [pair.notebook.pid, *pair.pids()]
    pair.run("value = 'before'").ok()
    notebook.run(f"import nbsync, torch\nvalue = {VALUES[kind]}").ok()
    with _slow_ranks(pair):
        before = [_resident(pid) for pid in pids]
        error = _interrupt_in_the_middle(notebook, cell, "receives").failed("KeyboardInterrupt")
        assert error.evalue == "ranks 0-1: interrupted while it received 537 MB"
        assert pair.run("value").ok().texts == ["[0-1] 'before'"]
        assert "ranks 0-1: idle" in notebook.run("%nbsync status").ok().stdout
        for pid, size in zip(pids, before, strict=True):
            _assert_released(pid, size)
    assert notebook.run("len(value) == nbsync.session().call(len, value)[0]\n").ok().texts == ["True"]
    notebook.run("del value").ok()
    pair.assert_whole()


def test_row_31_interrupted_launch(pair: Ranks) -> None:
    """What a launched function returns is given up with its workers."""
    notebook = pair.notebook
    notebook.run(f"import torch\nfrom nbsync import notebook_launcher\ndef make(): return {VALUES['tensor']}").ok()
    with _slow_kernel(notebook):
        before = _resident(notebook.pid)
        error = _interrupt_in_the_middle(notebook, "notebook_launcher(make, num_processes=2)", "sends")
        assert "while it sent 537 MB" in error.failed("KeyboardInterrupt").evalue
        _assert_released(notebook.pid, before)
    notebook.run("assert notebook_launcher(lambda: 7, num_processes=2) == [7, 7]").ok()
    pair.assert_whole()


def test_row_31_time_limit(pair: Ranks) -> None:
    """A time limit that comes while the value is on its way frees the rank as an interrupt does."""
    pair.run(f"value = {VALUES['tensor']}").ok()
    with _slow_kernel(pair.notebook):
        call = "import nbsync\nnbsync.session().call(lambda: value, ranks=[1], timeout=1)"
        error = pair.notebook.run(call, GUARD).failed("RunTimeout")
        assert "rank 1: interrupted while it sent 537 MB" in error.evalue
        pair.run("del value").ok()
    pair.assert_whole()


def test_row_31_dies_while_it_sends(pair: Ranks) -> None:
    """The value of the other rank arrives; of the one that has ended nothing is kept."""
    notebook = pair.notebook
    pids = pair.pids()
    pair.run(f"value = {VALUES['tensor']}").ok()
    before = _resident(notebook.pid)
    with _slow_kernel(notebook):
        notebook.start(_PULL.format(ranks="all"))
        notebook.wait_for(lambda shown: "[1] sends 0.1 of" in str(shown.history), GUARD)
        os.kill(pids[1], signal.SIGKILL)
        assert "rank 1" in notebook.wait(3 * GUARD).failed("WorkerDied").evalue
    _assert_released(notebook.pid, before)
    pair.bring_back(1)
    notebook.run("%%on_rank 0\ndel value").ok()


def test_row_31_progress(pair: Ranks) -> None:
    """How far a large value is, and how fast, shows."""
    pair.run(f"value = {VALUES['tensor']}").ok()
    with _slow_kernel(pair.notebook):
        pair.notebook.start(_PULL.format(ranks="1"))
        pair.notebook.wait_for_output("MB/s", GUARD)
        pair.notebook.interrupt()
        outcome = pair.notebook.wait(GUARD)
    outcome.failed("KeyboardInterrupt")
    assert any("MB/s" in bundle.get("text/plain", "") for bundle in outcome.history)
    pair.run("del value").ok()
    pair.assert_whole()


def test_row_31_what_is_told_meanwhile(fresh_notebook: Notebook) -> None:
    """What the status says of a rank that sends is true, and the advice for a busy one works."""
    notebook, pair = fresh_notebook, Ranks(fresh_notebook, 2)
    notebook.run("%nbsync start -n 2").ok()
    pair.mark()
    pair.run(f"value = {VALUES['tensor']}").ok()
    fetch = """
import nbsync
from threading import Thread
ended = []
def fetch():
    try: nbsync.session().pull('value')
    except BaseException as error: ended.append(type(error).__name__)
thread = Thread(target=fetch)
thread.start()"""
    with _slow_kernel(notebook):
        notebook.run(fetch).ok()
        status = poll(lambda: (s := notebook.run("%nbsync status").ok().stdout).count(": sends 0.") == 2 and s, GUARD)
        assert "C code" not in str(status)
        assert re.search(r"^ranks? \S+ sends? 0\.", notebook.run("%nbsync stack").ok().stdout)
        assert "`%nbsync interrupt` interrupts it" in pair.run("rank").failed("UsageError").evalue
        notebook.run("%nbsync interrupt").ok()
        assert notebook.run("thread.join()\nended").ok().texts == ["['KeyboardInterrupt']"]
        pair.run("del value").ok()
    pair.assert_whole()


def test_row_32_repr_raises(pair: Ranks) -> None:
    """A repr that raises is told with the rank; no rank is hurt."""
    outcome = pair.run("inject.FailingRepr() if rank == 1 else 0")
    told = outcome.stdout + outcome.stderr + str(outcome.displays) + str(outcome.error)
    assert "injected in repr" in told
    assert "[1]" in told or "rank 1" in told
    pair.assert_whole()


def test_row_32_repr_hangs(pair: Ranks) -> None:
    """A repr that never ends is ended by an interrupt."""
    pair.interrupted("inject.HangingRepr()").failed("KeyboardInterrupt")
    pair.assert_whole()


def test_row_32_repr_is_huge(pair: Ranks) -> None:
    """Of a huge repr a part is shown, and the kernel's memory stays what it was."""
    before = _resident(pair.notebook.pid)
    outcome = pair.run("inject.HugeRepr(megabytes=32)", timeout=60)
    shown = sum(len(text) for text in outcome.texts)
    assert shown < MEGABYTE
    assert _resident(pair.notebook.pid) - before < 64 * MEGABYTE


def test_row_33_traceback_after_a_flood(pair: Ranks) -> None:
    """After a flood of output the error is there, whole, and names the rank."""
    outcome = pair.run("if rank == 1:\n    inject.flood_stdout(megabytes=2)\ninject.raise_error('row 33')", timeout=60)
    error = outcome.failed("ValueError")
    assert error.evalue == "ranks 0-1: ValueError: row 33"
    assert "inject.raise_error('row 33')" in error.traceback
    pair.assert_whole()


def test_row_33_flood_is_cut(pair: Ranks) -> None:
    """Of 64 MB the front end gets head and end, and is told of the rest and of its log; others are shown whole."""
    pair.notebook.run("with open('/proc/self/clear_refs', 'w') as f: f.write('5')").ok()
    before = _resident(pair.notebook.pid)
    cell = (
        "if rank == 1:\n    print('head')\n    inject.flood_stdout(megabytes=64)\n    print('end')\nelse: print('calm')"
    )
    outcome = pair.run(cell, timeout=60).ok()
    grown = _peak(pair.notebook.pid) - before
    lines = outcome.stdout.splitlines()
    assert {"[0] calm", "[1] head", "[1] end"} < set(lines)
    assert lines[-1] == "[1] end" or lines[-2] == "[1] end"
    assert len(outcome.stdout) < 2 * MEGABYTE
    assert outcome.messages < 50 + 100 * outcome.seconds
    assert grown < 64 * MEGABYTE, f"{grown / MEGABYTE:.0f} MB"
    (log,) = [Path(line.split()[-1]) for line in lines if "lines hidden; the full log is" in line]
    assert log.stat().st_size == 1025 * 819 * 80 + len("head\nend\n")  # whole lines, in blocks of 64 KB
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    pair.notebook.run("%nbsync restart").ok()
    assert not log.parent.exists()


def test_row_33_log_of_a_launch(fresh_notebook: Notebook) -> None:
    """The log of a launched function outlives its workers, and goes with the kernel."""
    flood = "def flood():\n    from nbsync.testing import inject\n    inject.flood_stdout(megabytes=4)"
    fresh_notebook.run(f"from nbsync import notebook_launcher\n{flood}").ok()
    outcome = fresh_notebook.run("notebook_launcher(flood, num_processes=2)", 60).ok()
    log = re.search(r"lines hidden; the full logs? (?:is|are) (\S+)", outcome.stdout)
    assert log is not None
    assert Path(log[1]).stat().st_size >= 4 * MEGABYTE - 80
    fresh_notebook.run("notebook_launcher(lambda: None, num_processes=2)").ok()
    fresh_notebook.shutdown()
    assert not Path(log[1]).exists()


def test_row_33_errors_are_whole(pair: Ranks) -> None:
    """In and after a flood, what went to stderr and the error are shown whole, and the last lines."""
    cell = (
        "import sys\nfor i in range(4):\n    inject.flood_stdout(megabytes=2)\n    print('at', i, file=sys.stderr)\n"
        "for i in range(100): print(i)\ninject.raise_error('row 33')"
    )
    outcome = pair.run(cell, timeout=60)
    error = outcome.failed("ValueError")
    assert "inject.raise_error('row 33')" in error.traceback
    assert "lines hidden; the full log" in outcome.stdout
    for rank in (0, 1):
        mine = re.compile(rf"^\[(?:0-1|{rank})\] (.*)$", re.MULTILINE)
        assert mine.findall(outcome.stderr) == [f"at {i}" for i in range(4)]
        assert mine.findall(outcome.stdout)[-20:] == [str(i) for i in range(80, 100)]
    pair.assert_whole()


def test_row_33_streams_take_turns(pair: Ranks) -> None:
    """A flood that alternates between the two streams does not become a flood of messages."""
    cell = "import sys\nif rank == 1:\n    for i in range(10_000):\n        print(i); print(i, file=sys.stderr)"
    outcome = pair.run(cell, timeout=60).ok()
    everything = [f"[1] {i}" for i in range(10_000)]
    assert outcome.stdout.splitlines() == outcome.stderr.splitlines() == everything
    assert outcome.messages < 50 + 200 * outcome.seconds


def test_row_33_endless_line(pair: Ranks) -> None:
    """Output without any newline is bounded too, while it comes and at its end."""
    outcome = pair.run("import os\nif rank == 1:\n    for _ in range(500): os.write(1, b'x' * 65536)", timeout=60).ok()
    assert "bytes hidden; the full log is" in outcome.stdout
    assert len(outcome.stdout) < 2 * MEGABYTE
    assert sum(len(str(bundle)) for bundle in outcome.history) < MEGABYTE
    pair.assert_whole()


def test_row_35_disk_is_full_for_the_log(pair: Ranks) -> None:
    """When the log of a flood cannot be written on, that is said once, and the cell goes on."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
    pair.notebook.run(limit.format(MEGABYTE)).ok()
    try:
        outcome = pair.run("if rank == 1:\n    inject.flood_stdout(megabytes=16)\nrank", timeout=60).ok()
    finally:
        pair.notebook.run(limit.format("resource.RLIM_INFINITY")).ok()
    assert {"[0] 0", "[1] 1"} <= set(outcome.texts)
    (told,) = [line for line in outcome.stderr.splitlines() if "nbsync" in line]
    assert "rank1" in told
    assert "cannot be written: File too large" in told
    assert re.search(r"[MG]B free", told)
    assert "ends early" in outcome.stdout
    pair.assert_whole()


_LOGS_STAY = """
import errno, pathlib
unlink = pathlib.Path.unlink
def refuse(path, *args, **kwargs):
    if path.suffix == ".log": raise OSError(errno.EROFS, "Read-only file system", str(path))
    unlink(path, *args, **kwargs)
pathlib.Path.unlink = refuse
"""


def test_row_35_log_cannot_be_removed(pair: Ranks) -> None:
    """A log that has to stay where it is costs nothing: the cell ends well, and the next one runs."""
    pair.notebook.run(_LOGS_STAY).ok()
    try:
        pair.run("print('x' * 300_000)").ok()
        pair.assert_whole()
    finally:
        pair.notebook.run("pathlib.Path.unlink = unlink").ok()


def test_row_33_flood_is_interrupted(pair: Ranks) -> None:
    """An interrupt ends a flood, and what was printed before the cell's end does not appear in the next one."""
    pair.interrupted("if rank == 1:\n    inject.flood_lines()", timeout=60).failed("KeyboardInterrupt")
    assert pair.run("print('after')").ok().stdout == "[0-1] after\n"
    pair.assert_whole()


def test_row_33_displays_are_interrupted(pair: Ranks) -> None:
    """An interrupt ends a flood of displays; they come in order, and the kernel's memory stays what it was."""
    pair.notebook.run("with open('/proc/self/clear_refs', 'w') as f: f.write('5')").ok()
    before = _resident(pair.notebook.pid)
    shown = '{"text/plain": f"{rank} {made}", "image/png": "x" * 200_000}'
    pair.begin(
        f"from IPython.display import display\nmade = 0\nwhile True:\n    made += 1\n    display({shown}, raw=True)"
    )
    pair.notebook.wait_for(lambda outcome: len(outcome.displays) > 500, GUARD)
    pair.notebook.interrupt()
    outcome = pair.notebook.wait(GUARD)
    outcome.failed("KeyboardInterrupt")
    assert _peak(pair.notebook.pid) - before < 128 * MEGABYTE
    numbers = [re.findall(rf"^\[{rank}\] {rank} (\d+)$", "\n".join(outcome.texts), re.M) for rank in pair.everyone]
    for mine in numbers:
        assert mine[:100] == [str(number) for number in range(1, 101)]
        assert mine == sorted(mine, key=int)
    pair.assert_whole()


def test_row_33_displays_go_on_for_ever(pair: Ranks) -> None:
    """In a flood of displays too the third interrupt gives up on ranks that ignore them all."""
    pair.begin(
        "from IPython.display import display\nwhile True:\n    try: display({'text/plain': 'x'}, raw=True)\n"
        "    except KeyboardInterrupt: pass"
    )
    for _ in range(3):
        pair.notebook.interrupt()
        time.sleep(LATER)
    error = pair.notebook.wait(GUARD).failed("KeyboardInterrupt")
    assert "ranks 0-1" in error.traceback
    pair.notebook.run("%nbsync restart").ok()
    pair.assert_next()


def test_row_33_bad_bytes_without_newline(pair: Ranks) -> None:
    """Bytes that are no UTF-8 are shown escaped, also without a newline at the end."""
    assert pair.run("inject.write_garbage()").ok().stdout == "[0-1] bad \\xff\\xfe bytes\n"
    assert pair.run("inject.write_garbage(2)").ok().stderr == "[0-1] bad \\xff\\xfe bytes\n"
    pair.assert_whole()


def test_row_34_closed_stdio(pair: Ranks) -> None:
    """A rank that closed its descriptors 1 and 2 still answers and takes part; the others print as before."""
    pair.run("if rank == 1:\n    inject.close_stdio()", timeout=GUARD)
    pair.assert_whole()
    assert pair.notebook.run("%%on_rank 0\nprint('still there')").ok().stdout == "[0] still there\n"
    error = pair.notebook.run("%%on_rank 1\ninject.raise_error('row 34')", GUARD).failed("ValueError")
    assert error.evalue == "rank 1: ValueError: row 34"
    pair.notebook.run("%nbsync restart").ok()


def test_row_34_closed_by_hand(pair: Ranks) -> None:
    """To print to a closed descriptor is an error; nothing else gets its number, and the next cell prints again."""
    pair.run("import os, errno, socket\ndist.barrier()").ok()
    for fd in (1, 2):
        cell = f"""
            os.close({fd})
            taken = socket.socket().fileno()
            try: print("lost", file=sys.{"stdout" if fd == 1 else "stderr"})
            except OSError as error: found = error.errno == errno.EBADF
            dist.barrier()"""
        pair.run("import sys\nif True:" + cell).ok()
        assert pair.run("print('here'); found, taken > 2").ok().stdout == "[0-1] here\n"
        assert pair.run("found, taken > 2").ok().texts == ["[0-1] (True, True)"]
        assert pair.run("print('there', file=sys.stderr)").ok().stderr == "[0-1] there\n"
    pair.assert_whole()


def test_row_34_prints_to_what_takes_nothing(pair: Ranks) -> None:
    """It is an error in the cell; the rank lives on."""
    pair.fail(
        "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nif rank == 1: print('lost')\nelse: raise OSError",
        "OSError",
    )
    pair.assert_whole()
    outcome = pair.run("os.dup2(2, 1)\nprint('still there')").ok()
    assert outcome.stderr == "[0-1] still there\n"
    pair.notebook.run("%nbsync restart").ok()


def test_row_34_surroundings(pair: Ranks) -> None:
    """A changed folder and a closed umask do not keep a rank from anything, and are its own."""
    before = pair.notebook.run("import os; os.getcwd()").ok().texts
    pair.run("import os; os.chdir('/'); os.umask(0o777)").ok()
    pair.assert_whole()
    error = pair.fail("if rank == 1:\n    inject.raise_error('row 34')\ndist.barrier()", "ValueError")
    assert error.evalue.splitlines()[0] == "rank 1: ValueError: row 34"
    pair.assert_whole()
    assert pair.notebook.run("os.getcwd()").ok().texts == before
    pair.notebook.run("%nbsync restart").ok()


def test_row_34_emptied_environment(pair: Ranks) -> None:
    """Code that empties the environment does not keep the process group from being healed."""
    pair.run("inject.change_surroundings('/')").ok()
    pair.assert_whole()
    pair.fail("if rank == 1:\n    inject.raise_error('row 34')\ndist.barrier()", "ValueError")
    try:
        pair.assert_whole()
    finally:
        pair.notebook.run("%nbsync restart").ok()


def test_row_34_grandchildren(pair: Ranks) -> None:
    """A child that user code forked does not speak for its rank, and ends with it."""
    pair.run("child = inject.fork_child()").ok()
    pair.assert_whole()
    pair.notebook.run("%nbsync restart").ok()
    pair.assert_next()


_HANGS = """
import time
class Hangs:
    def __init__(self, there): self.there = there
    def __reduce__(self):
        if not self.there: time.sleep(1000)
        return wait, (self.there,)
def wait(there): time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("cell", "doing"),
    [
        ("%nbsync pull value", "pickled value, of type Hangs"),
        ("nbsync.session().call(lambda: value)", "pickled what the call returned, of type Hangs"),
        ("pushed = Hangs(True)\n%nbsync push pushed", "unpickled what was pushed"),
        ("nbsync.session().call(print, Hangs(True))", "unpickled the function or its arguments"),
    ],
)
def test_row_30_hangs_when_packed_or_unpacked_by_a_rank(pair: Ranks, cell: str, doing: str) -> None:
    """Within a second or two it is told what takes so long, and an interrupt gives it up; nothing is lost."""
    notebook = pair.notebook
    notebook.run(f"import nbsync\n{_HANGS}").ok()
    pair.run(f"{_HANGS}\nvalue = Hangs(False) if rank == 1 else 0").ok()
    notebook.start(cell)
    notebook.wait_for_output("takes long", GUARD)
    assert f"it {doing}" in notebook.so_far.stderr
    notebook.interrupt()
    error = notebook.wait(GUARD).failed("KeyboardInterrupt")
    assert f"while it {doing}" in error.traceback
    pair.assert_whole()


def test_row_30_an_error_of_a_call_that_hangs_when_pickled(pair: Ranks) -> None:
    """Describing an error runs the user's code: an interrupt ends that too, and the error is told."""
    cell = (
        "import nbsync\ndef raises():\n    import time\n    class Slow(Exception):\n        def __reduce__(self):\n"
        "            print('begun')\n            time.sleep(600)\n    raise Slow\nnbsync.session().call(raises)"
    )
    pair.notebook.start(cell)
    pair.notebook.wait_for_output("begun", GUARD)
    pair.notebook.interrupt()
    assert "Slow" in pair.notebook.wait(GUARD).failed("WorkerError").evalue
    pair.assert_whole()
