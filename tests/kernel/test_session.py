"""`Session` from plain Python, and the end of everything when its process ends."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import nbsync
from nbsync import Session
from nbsync.kernel.output.printer import Printer
from notebooks import Belongings, Notebook, alive, family, find_process, poll

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def shared() -> Iterator[Session]:
    """A session of two ranks that the tests of this module share."""
    before = family(os.getpid())
    with Session(2) as session:
        yield session
    assert not alive(family(os.getpid()) - before)


@pytest.fixture
def session(shared: Session) -> Session:
    """The shared session, with both ranks alive and idle."""
    if shared.call(lambda: dist.get_world_size(), timeout=20) != [2, 2]:
        shared.restart()
    return shared


def _works(session: Session) -> bool:
    def total() -> float:
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
        return tensor.item()

    return session.call(total, timeout=20) == [session.world_size] * session.world_size


# ---- calls, variables ----


def test_call(session: Session) -> None:
    """A function runs on every rank, with arguments, and its values come back in the ranks' order."""

    def scale(value: float, *, by: float = 1.0) -> float:
        return value * by + dist.get_rank()

    assert session.call(scale, 2, by=3) == [6, 7]
    assert session.call(scale, 2, ranks="last") == [3]
    assert session.call(scale, 2, ranks=1) == [3]
    assert session.call(scale, 2, ranks=[1, 0]) == [2, 3]
    assert session.call(print) == [None, None]
    assert _works(session)


def test_call_errors(session: Session) -> None:
    """An error is of the original type, names its rank, and leaves the session usable."""
    with pytest.raises(ZeroDivisionError, match="ranks 0-1: ZeroDivisionError") as caught:
        session.call(lambda: 1 / 0)
    assert isinstance(caught.value, nbsync.WorkerError)
    assert caught.value.ranks == (0, 1)
    with pytest.raises(nbsync.TransferError, match="generator"):
        session.call(len, (i for i in range(3)))
    with pytest.raises(nbsync.TransferError, match="generator"):
        session.call(lambda: (i for i in range(3)))
    assert _works(session)


def test_call_releases_the_others_at_once(session: Session) -> None:
    """When a rank raises in a call, the one that waits for it is free within half a second."""

    def fail() -> None:
        if dist.get_rank() == 1:
            raise ValueError("boom")
        dist.barrier()

    session.call(dist.barrier)
    for _ in range(2):  # the first traceback of a process takes its time
        begin = time.monotonic()
        with pytest.raises(ValueError, match="rank 1: ValueError: boom"):
            session.call(fail, timeout=20)
        took = time.monotonic() - begin
        assert _works(session)
    assert took < 0.5


def test_call_timeout(session: Session) -> None:
    """A call that takes too long is interrupted, and the late ranks are named."""
    with pytest.raises(nbsync.RunTimeout, match="rank 1"):
        session.call(lambda: time.sleep(30 * dist.get_rank()), timeout=0.3)
    for timeout in (0, "3"):
        with pytest.raises(nbsync.UsageError, match=f"timeout must be a positive number .* got {timeout!r}"):
            session.call(len, (), timeout=timeout)
    assert _works(session)


def test_push_and_pull(session: Session) -> None:
    """Variables go over and come back; pull takes any expression, one or several."""
    session.push({"lr": 0.1, "weights": torch.arange(3)})
    session.push({"only": "here"}, ranks="main")
    assert session.pull("lr") == [0.1, 0.1]
    assert session.pull("lr * 2 + rank", ranks=1) == [1.2]
    assert session.pull("rank", "weights.sum().item()") == [[0, 3], [1, 3]]
    assert session.pull("'only' in globals()") == [True, False]
    with pytest.raises(NameError, match="rank 1: NameError: name 'only'"):
        session.pull("only", ranks="last")
    for refused in ({1: 2}, {"a b": 1}, {"class": 1}, {None: 1}, [1], None):
        with pytest.raises(nbsync.UsageError, match="by their names"):
            session.push(refused)  # type: ignore[arg-type]
    for expressions in ((), (5,)):
        with pytest.raises(nbsync.UsageError, match="at least one name"):
            session.pull(*expressions)  # type: ignore[arg-type]
    for expression in ("a b", "", "x = 1", "rank\0"):
        with pytest.raises(nbsync.UsageError, match=f"variables or expressions.* not {re.escape(repr(expression))}: "):
            session.pull("rank", expression)
    assert session.pull(" (rank,\n 1) ", ranks=0) == [(0, 1)]
    with pytest.raises(nbsync.TransferError):
        session.push({"fine": 1, "bad": (i for i in range(2))})
    assert session.pull("'fine' in globals()") == [False, False]


@pytest.mark.parametrize("ranks", [None, 1.5, True, [1.5], [], "first", 2, -1])
def test_ranks_that_are_none(session: Session, ranks: Any) -> None:
    """They are refused with what was given and what may be, and nothing runs."""
    with pytest.raises(nbsync.UsageError, match=r"ranks.*(a range|a rank|several)"):
        session.run_cell("ran = 1", ranks)
    assert session.pull("'ran' in globals()") == [False, False]


def test_run_cell(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell runs through IPython; output and values go to this process's stdout and stderr."""
    session.run_cell("import sys\nx = rank\nprint('out')\nprint('err', file=sys.stderr)\nx + 1")
    said = capsys.readouterr()
    assert said.out == "[0-1] out\n[0] 1\n[1] 2\n"
    assert said.err == "[0-1] err\n"
    session.run_cell("x", ranks="last")
    assert capsys.readouterr().out == "[1] 1\n"
    with pytest.raises(ValueError, match="cell"):
        session.run_cell("raise ValueError('in a cell')")


def test_large_values(session: Session) -> None:
    """200 MB go over and come back whole."""
    large = torch.arange(25_000_000, dtype=torch.int64)
    (back,) = session.call(lambda t: t + 1, large, ranks=0)
    assert torch.equal(back, large + 1)


def test_bad_arguments() -> None:
    """A session that cannot be is refused before anything starts."""
    for arguments, said in (
        ({"num_processes": 0}, "positive integer"),
        ({"num_processes": "two"}, "positive integer"),
        ({"start_method": "thread"}, "spawn"),
        ({"env": {"NUMBER": 5}}, "NUMBER"),
        ({"env": "NUMBER=5"}, "map names to strings"),
        ({"seed": "x"}, "seed must be an integer or None .* got 'x'"),
        ({"seed": 1.5}, "got 1.5"),
    ):
        with pytest.raises(nbsync.UsageError, match=said):
            Session(**{"num_processes": 2, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "environment", [{"MASTER_PORT": "nonsense"}, {"WORLD_SIZE": "0"}, {"GLOO_SOCKET_IFNAME": "no0"}]
)
def test_start_is_all_or_nothing(environment: dict[str, str]) -> None:
    """When a worker cannot come up the reason is told, and none is left running."""
    with pytest.raises(nbsync.StartError, match=r"ranks? [\d-]+ could not start") as caught:
        Session(2, env=environment)
    assert "\x1b" not in str(caught.value)
    with pytest.raises((nbsync.StartError, nbsync.UsageError), match="nonsense"):
        Session(2, backend="nonsense")


# ---- its life ----


def test_context_manager() -> None:
    """After the block the workers are gone; closing again does nothing; everything else says that it is closed."""
    with Session(2) as session:
        pids = [state.pid for state in session.status().ranks]
        assert session.is_running
        assert session.world_size == 2
        assert session.backend == "gloo"
        assert "2 ranks, gloo" in repr(session)
        assert session.pull("rank") == [0, 1]
    assert not [pid for pid in pids if find_process(pid)]
    assert not session.is_running
    assert "closed" in repr(session)
    session.close()
    session.close()
    for use in (
        lambda: session.call(len, ()),
        lambda: session.push({"a": 1}),
        lambda: session.pull("a"),
        lambda: session.run_cell("1"),
    ):
        with pytest.raises(nbsync.NoSession, match="start"):
            use()
    assert session.interrupt() == ()


def test_close_ends_busy_ranks() -> None:
    """Closing does not wait for what runs, nor for processes that the ranks have started."""
    session = Session(2)
    started = "import subprocess\nchild = subprocess.Popen(['sleep', '600'])"
    session.run_cell(started)
    children = session.pull("child.pid")
    caught: list[BaseException] = []
    busy = threading.Thread(target=_catch, args=(caught, session.run_cell, "while True: pass"))
    busy.start()
    assert poll(lambda: "busy" in session.status().describe(), 5)
    begin = time.monotonic()
    session.close()
    assert time.monotonic() - begin < 10
    busy.join(5)
    assert isinstance(caught[0], nbsync.WorkerDied)
    assert poll(lambda: not [pid for pid in children if _runs(pid)], 1.0)


def _catch(caught: list[BaseException], function: Any, *args: Any) -> None:
    try:
        function(*args)
    except BaseException as error:
        caught.append(error)


def _runs(pid: int) -> bool:
    process = find_process(pid)
    return process is not None and process.state not in "ZX"


def test_status_and_busy_ranks(session: Session) -> None:
    """While a rank runs a cell the status says so, another request is refused, and an interrupt from here ends it."""
    caught: list[BaseException] = []
    busy = threading.Thread(target=_catch, args=(caught, session.run_cell, "import time; time.sleep(60)", 1))
    busy.start()
    try:
        assert poll(lambda: "rank 1: busy, runs a cell" in session.status().describe(), 5)
        assert "rank 0: idle" in session.status().describe()
        with pytest.raises(nbsync.RankBusy, match="rank 1 is busy: it runs a cell"):
            session.call(len, ())
        assert session.pull("rank", ranks=0) == [0]
    finally:
        deadline = time.monotonic() + 10
        while busy.is_alive() and time.monotonic() < deadline:
            session.interrupt()
            busy.join(0.5)
    assert isinstance(caught[0], KeyboardInterrupt | nbsync.WorkerError)
    assert _works(session)


def test_ranks_are_idle_whatever_fails_at_the_end(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be closed is an error of this run; the next one finds the ranks idle."""

    def fail(printer: Printer) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(Printer, "put_away", fail)
        with pytest.raises(OSError, match="Stale"):
            session.run_cell("pass")
    assert _works(session)


def test_the_helper_thread_collects_no_garbage(session: Session) -> None:
    """A `__del__` of the user's runs in the user's threads, however busy the other one is."""
    session.run_cell(
        "import gc, threading, time\n"
        "class Told:\n    def __del__(self): told.append(threading.current_thread() is threading.main_thread())\n"
        "def wait():\n"
        "    gc.collect(); gc.disable()\n"
        "    thing = Told(); thing.itself = thing; del thing\n"
        "    [[(i, i)] for i in range(9)]  # what `poll` returns is made of these: it is new only after a collection\n"
        "    gc.set_threshold(gc.get_count()[0] + 10)  # a look at the stack allocates more than that\n"
        "    time.sleep(0.1); gc.enable()  # what is chosen in a pause ends that\n"
        "    time.sleep(60)\n"
        "told = []; before = gc.get_threshold()"
    )
    busy = threading.Thread(target=_catch, args=([], session.run_cell, "wait()"))
    busy.start()
    try:
        assert poll(lambda: all(where and "line 10" in where.line for where in session.peek().values()), 10)
        for _ in range(5):
            session.stack()
    finally:
        session.interrupt()
        busy.join(10)
    session.run_cell("gc.collect(); gc.set_threshold(*before)")
    assert session.pull("told, gc.isenabled()") == [([True], True)] * 2
    assert _works(session)


@pytest.mark.parametrize(
    "waits", ["work()", "threading.Thread(target=work).start()\ndist.recv(torch.ones(1), 1 - dist.get_rank())"]
)
def test_the_helper_thread_ends_no_variables(session: Session, waits: str) -> None:
    """Those of a function that returns while its thread is looked at: the main one, or one beside it."""
    session.run_cell(
        "import threading, torch, torch.distributed as dist\n"
        "class Told:\n    def __del__(self): told.add(threading.current_thread().name)\n"
        "def short():\n    thing = Told()\n    for _ in range(3000): pass\n"
        "def work():\n    while goes_on: short()\n"
        "told = set(); goes_on = True"
    )
    busy = threading.Thread(target=_catch, args=([], session.run_cell, waits))
    busy.start()
    try:
        assert poll(lambda: all(where and where.line for where in session.peek().values()), 10)
        for _ in range(20):
            session.stack()
    finally:
        session.interrupt()
        busy.join(10)
    session.run_cell("goes_on = False")
    assert all(names and "nbsync-attendant" not in names for names in session.pull("told"))
    assert _works(session)


def test_restart(session: Session) -> None:
    """Restart gives new processes, without the old ones' variables."""
    session.push({"old": 1})
    pids = session.pull("__import__('os').getpid()")
    session.restart()
    assert not set(pids) & set(session.pull("__import__('os').getpid()"))
    assert session.pull("'old' in globals()") == [False, False]
    assert _works(session)


def test_two_sessions_at_once(session: Session) -> None:
    """Two sessions are worlds of their own: collectives in both at the same time do not meet."""
    with Session(3) as other:
        results: dict[str, Any] = {}

        def sums(one: Session, name: str) -> None:
            def many() -> float:
                tensor = torch.ones(1)
                for _ in range(50):
                    dist.all_reduce(tensor)
                    tensor /= dist.get_world_size()
                return tensor.item()

            results[name] = one.call(many, timeout=30)

        threads = [threading.Thread(target=sums, args=pair) for pair in ((session, "two"), (other, "three"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results["two"] == pytest.approx([1.0] * 2)
        assert results["three"] == pytest.approx([1.0] * 3)
    assert _works(session)


def test_an_idle_rank_that_ends_is_watched_no_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard ends nothing by a number that may be a stranger's by then."""
    assert session._fleet._guard is not None
    watched: list[list[int]] = []
    monkeypatch.setattr(session._fleet._guard, "watch", lambda groups: watched.append(list(groups)))
    first, second = (state.pid for state in session.status().ranks)
    os.kill(second, signal.SIGKILL)
    assert poll(lambda: watched, 20)
    assert watched == [[first]]
    session.restart(1)


def test_dead_rank(session: Session) -> None:
    """A rank that ends is named; what needs only the others goes on; restart brings it back."""
    with pytest.raises(nbsync.WorkerDied, match="exit code 9") as caught:
        session.call(lambda: os._exit(9), ranks=1)
    assert (caught.value.ranks, caught.value.exit_code, caught.value.signal_name) == ((1,), 9, None)
    assert session.dead_ranks == (1,)
    assert session.pull("rank", ranks=0) == [0]
    with pytest.raises(nbsync.WorkerDied, match="rank 1"):
        session.pull("rank")
    session.restart()
    assert _works(session)


# ---- when the process ends ----

_BUSY = {
    "idle": "",
    "in a barrier": "if rank: dist.barrier()\nelse: time.sleep(600)",
    "computing": "while True: torch.ones(100, 100) @ torch.ones(100, 100)",
    "ignoring signals": "import signal\nfor s in (2, 15, 1): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)",
}


@pytest.mark.parametrize("doing", list(_BUSY))
def test_kernel_killed(fresh_notebook: Notebook, doing: str) -> None:
    """When the kernel dies by SIGKILL, workers, their children and DataLoader workers, and ports are gone in 1 s."""
    fresh_notebook.run("%nbsync start -n 2").ok()
    fresh_notebook.run(
        "%%distributed\n"
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "shell = subprocess.Popen('sleep 600; true', shell=True)\n"
        "loader = torch.utils.data.DataLoader(range(8), num_workers=1, multiprocessing_context='fork')\n"
        "batches = iter(loader); next(batches)"
    ).ok()
    if _BUSY[doing]:
        fresh_notebook.start(f"%%distributed\nprint('busy')\n{_BUSY[doing]}")
        fresh_notebook.wait_for_output("[0-1] busy", timeout=10)
    mine = fresh_notebook.belongings()
    names = sorted(process.name for process in mine.processes)
    assert names.count("sleep") == 4, names
    assert names.count("pt_data_worker") == 2, names
    assert mine.listeners
    fresh_notebook.kill()
    mine.assert_gone()


def test_kernel_killed_during_a_launch(fresh_notebook: Notebook) -> None:
    """The same holds for the workers of a launch."""
    fresh_notebook.start(
        "import subprocess, time\nfrom nbsync import World, notebook_launcher\n"
        "def inside():\n"
        "    subprocess.Popen(['sleep', '600']); World().wait_for_everyone(); print('up'); time.sleep(600)\n"
        "notebook_launcher(inside, (), 2)"
    )
    fresh_notebook.wait_for_output("[0-1] up", timeout=30)
    mine = fresh_notebook.belongings()
    fresh_notebook.kill()
    mine.assert_gone()


def test_kernel_shut_down_while_busy(fresh_notebook: Notebook) -> None:
    """Jupyter's own shutdown or restart of the kernel in the middle of a cell leaves nothing either."""
    fresh_notebook.run("%nbsync start -n 2").ok()
    fresh_notebook.start(
        "%%distributed\nimport subprocess\nc = subprocess.Popen(['sleep', '600'])\nprint('up')\nc.wait()"
    )
    fresh_notebook.wait_for_output("[0-1] up", timeout=10)
    mine = fresh_notebook.belongings()
    fresh_notebook.shutdown()
    mine.assert_gone()


@pytest.mark.parametrize("end", ["", "import os; os._exit(1)", "os.kill(os.getpid(), 15)"])
def test_script_ends(tmp_path: Path, end: str) -> None:
    """A script that ends, in whatever way, without closing its session leaves nothing behind."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom nbsync import Session\nsession = Session(2)\n"
        "session.run_cell(\"import subprocess; child = subprocess.Popen(['sleep', '600'])\")\n"
        "print(*session.pull('child.pid'), *(state.pid for state in session.status().ranks), flush=True)\n" + end
    )
    done = subprocess.run(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, text=True
    )
    pids = [int(number) for number in done.stdout.split()]
    assert len(pids) == 4
    mine = Belongings(frozenset(p for pid in pids if (p := find_process(pid))), frozenset())
    mine.assert_gone()


def test_what_ranks_have_loaded_is_loaded_once(fresh_notebook: Notebook) -> None:
    """Torch's compiler, which a first model loads on each rank: the next ranks are forked with it."""
    loaded = "import sys\n'torch._dynamo' in sys.modules"
    fresh_notebook.run("%load_ext nbsync\n%nbsync start -n 2").ok()
    assert fresh_notebook.run(f"%%distributed\n{loaded}").ok().texts == ["[0-1] False"]
    fresh_notebook.run("%nbsync restart").ok()
    assert fresh_notebook.run(loaded).ok().texts == ["False"]
    fresh_notebook.run("%%on_rank 1\nimport torch._dynamo").ok()
    fresh_notebook.run("%nbsync restart").ok()
    assert fresh_notebook.run(f"%%distributed\n{loaded}").ok().texts == ["[0-1] True"]
