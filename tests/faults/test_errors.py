"""Rows 1, 3, 4 and 8: a rank raises, alone or with others. Nobody loses anything."""

from __future__ import annotations

import re
import sys

import pytest
from worlds import GUARD, Ranks, Worlds

from nbsync.kernel.supervision.evidence import resident_bytes
from notebooks import without_colours


@pytest.mark.parametrize("size", [2, 4, 8])
def test_row_01_one_raises_while_others_are_idle(world_of: Worlds, size: int) -> None:
    """The error names the rank and the cell's line, once; the ranks that had finished are not mentioned."""
    ranks = world_of(size)
    outcome = ranks.run("if rank == 1:\n    inject.raise_error('row 1')")
    error = outcome.failed("ValueError")
    assert error.evalue == "rank 1: ValueError: row 1"
    assert error.traceback.count("ValueError: row 1") == 1
    assert f"Cell In[{outcome.number}], line 3" in error.traceback
    assert "----> 3     inject.raise_error('row 1')" in error.traceback
    assert "row 1" not in outcome.stderr + outcome.stdout
    ranks.assert_whole()


def test_row_01_text_that_is_no_unicode(pair: Ranks) -> None:
    """Half of a character, as text that was decoded carelessly has, is shown as an escape."""
    error = pair.fail(r"if rank == 1:" "\n" r"    raise ValueError('half: \ud800')", "ValueError")
    assert error.evalue == r"rank 1: ValueError: half: \ud800"
    assert r"ValueError: half: \ud800" in error.traceback
    pair.assert_whole()


def test_row_01_text_of_megabytes(pair: Ranks) -> None:
    """No page could show it: what is left out of its middle is told."""
    error = pair.fail("raise ValueError('<' + 'x' * 5_000_000 + '>')", "ValueError")
    for text in (error.evalue, error.traceback):
        assert len(text) < 300_000
        assert "ValueError: <xxx" in text
        assert re.search(r"xxx\n… 4,737,\d+ characters left out …\nxxx", text)
        assert "xxx>" in text


@pytest.mark.parametrize("size", [2, 4, 8])
def test_row_03_all_raise_the_same(world_of: Worlds, size: int) -> None:
    """The same error of all ranks is one traceback for all of them."""
    ranks = world_of(size)
    error = ranks.fail("inject.raise_error('row 3')", "ValueError")
    assert error.evalue == f"ranks 0-{size - 1}: ValueError: row 3"
    assert error.traceback.startswith(f"ranks 0-{size - 1} raised ValueError")
    assert error.traceback.count("ValueError: row 3") == 1
    ranks.assert_whole()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_row_03_all_raise_different_errors(world_of: Worlds, size: int) -> None:
    """Different errors are grouped by kind: one whole, one line for each of the other kinds."""
    ranks = world_of(size)
    error = ranks.fail("raise ValueError('even') if rank % 2 == 0 else KeyError('odd')")
    first, *rest = error.evalue.splitlines()
    assert len(rest) == 1, error.evalue
    assert {"ValueError: even" in first, "KeyError: 'odd'" in first} == {True, False}
    assert ("KeyError: 'odd'" if "ValueError" in first else "ValueError: even") in rest[0]
    assert error.traceback.count("Traceback (most recent call last)") == 1
    ranks.assert_whole()


@pytest.mark.parametrize("leave", ["inject.sys_exit(3)", "sys.exit('row 4')", "exit()"])
def test_row_04_sys_exit(pair: Ranks, leave: str) -> None:
    """sys.exit ends the cell with an error that names the rank; its process lives on."""
    before = pair.pids()
    error = pair.fail(f"if rank == 1:\n    {leave}\ndist.barrier()")
    assert error.evalue.startswith("rank 1: SystemExit")
    assert "rank 0: waited in barrier" in error.evalue
    pair.assert_whole()
    assert pair.pids() == before


@pytest.mark.parametrize(
    ("fault", "name", "told"),
    [
        ("python_out_of_memory", "MemoryError", "MemoryError"),
        ("torch_out_of_memory", "RuntimeError", "1125899906842624 bytes"),
    ],
)
def test_row_08_out_of_memory(pair: Ranks, fault: str, name: str, told: str) -> None:
    """An allocation that fails is an ordinary error with the rank and, where it is known, the size."""
    error = pair.fail(f"if rank == 1:\n    inject.{fault}()\ndist.barrier()", name)
    assert error.evalue.startswith("rank 1: ")
    assert told in error.evalue
    assert "rank 0: waited in barrier" in error.evalue
    pair.assert_whole()


def test_row_08_frames_are_released(pair: Ranks) -> None:
    """What the failed cell's functions held is free again at the next cell."""
    cell = (
        "import gc, weakref\nclass Big: pass\ndef use():\n    global held\n    big = Big(); held = weakref.ref(big)\n"
        "    inject.python_out_of_memory()\nuse()"
    )
    pair.fail(cell, "MemoryError")
    assert pair.run("gc.collect(); held() is None").ok().texts == ["[0-1] True"]
    pair.assert_whole()


_RICH = "from rich import traceback; traceback.install()"
_CUSTOM = "get_ipython().set_custom_exc((Exception,), lambda shell, kind, error, trace, tb_offset=None: ['custom'])"
_BARRIER = "if rank == 1: 1 / 0\ndist.barrier()"


@pytest.mark.parametrize("install", [_RICH, _CUSTOM])
def test_row_02_handlers_of_the_users_own(pair: Ranks, install: str) -> None:
    """Code that shows errors in its own way changes nothing of which rank is told, and which only follows."""
    try:
        for cell in (f"{install}\n{_BARRIER}", _BARRIER):
            error = pair.fail(cell, "ZeroDivisionError")
            first, second = error.evalue.splitlines()
            assert first == "rank 1: ZeroDivisionError: division by zero"
            assert second.startswith("rank 0: waited in barrier")
            assert "1 / 0" in error.traceback
            assert "interactiveshell" not in error.traceback
    finally:
        pair.run("get_ipython().set_custom_exc((), None)").ok()
    pair.assert_whole()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_row_01_in_a_notebook_with_rich_tracebacks(world_of: Worlds) -> None:
    """The rank's traceback is shown also by those who do not ask the error for it."""
    ranks = world_of(2)
    ranks.notebook.run(f"shell = get_ipython(); before = shell.showtraceback, shell._showtraceback\n{_RICH}").ok()
    try:
        outcome = ranks.run("def divide(): return rank / 0\ndivide()")
    finally:
        ranks.notebook.run("shell.showtraceback, shell._showtraceback = before; del shell.showsyntaxerror").ok()
    outcome.failed("ZeroDivisionError")
    shown = without_colours("".join(outcome.texts))
    assert f"Cell In[{outcome.number}], line 2, in divide()" in shown
    assert "ranks 0-1: ZeroDivisionError: division by zero" in shown
    ranks.assert_whole()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
def test_row_01_exception_group(pair: Ranks) -> None:
    """A group of exceptions, as task groups raise it, is told like any other error."""
    error = pair.fail("if rank == 1:\n    raise ExceptionGroup('row 1', [ValueError('one'), KeyError('two')])")
    assert "ExceptionGroup: row 1 (2 sub-exceptions)" in error.evalue
    assert "ValueError: one" in error.traceback
    assert re.search(r"Cell In\[\d+\], line 3, in <module>", error.traceback)
    assert "interactiveshell" not in error.traceback
    call = "import nbsync\ndef several(): raise ExceptionGroup('row 1', [ValueError('one')])\n"
    error = pair.notebook.run(f"{call}nbsync.session().call(several)", GUARD).failed()
    assert "ValueError: one" in error.traceback
    pair.assert_whole()


@pytest.mark.parametrize("then", ["", " from error"])
def test_row_10_an_error_that_came_of_another(pair: Ranks, then: str) -> None:
    """In the traceback of neither are lines that the user has not written and torch not either."""
    cell = "try: dist.all_reduce(torch.ones(2 + rank))\nexcept Exception as error: raise KeyError('row 10')"
    error = pair.fail(cell + then, "KeyError")
    assert "CollectiveMismatch: the ranks are not in the same collective" in error.traceback
    assert "nbsync" not in error.traceback
    pair.assert_whole()


@pytest.mark.parametrize("fault", ["python_out_of_memory", "torch_out_of_memory"])
def test_row_08_memory_of_the_ranks_is_shown(pair: Ranks, fault: str) -> None:
    """Beside an out-of-memory error stands how much memory each rank holds, and how much it may have."""
    cell = (
        f"def use():\n    big = inject.leak_memory(300)\n    inject.{fault}()\nif rank == 1:\n    use()\ndist.barrier()"
    )
    error = pair.fail(cell)
    assert re.search(r"memory of the ranks:\n  rank 0: .*\n  rank 1: RSS \d+ MiB of [\d.]+ GiB", error.traceback)
    held = [int(size) for size in re.findall(r"rank \d: RSS (\d+) MiB", error.traceback)]
    assert len(held) == pair.size, error.traceback
    assert held[1] > held[0] + 200
    pair.assert_whole()
    assert "memory of the ranks" not in pair.fail("inject.raise_error()").traceback


def test_row_08_memory_is_given_back(pair: Ranks) -> None:
    """What the failed cell held is the system's again when the error is shown, cycles of references included."""
    held = "int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20"
    (before,) = pair.notebook.run(f"%%on_rank 1\n{held}").ok().texts
    cell = (
        "class Node: pass\ndef use():\n    node = Node(); node.me = node; node.big = inject.leak_memory(300)\n"
        "    node.small = [bytearray(1000) for _ in range(100_000)]\n"
        "    inject.torch_out_of_memory()\nif rank == 1:\n    use()"
    )
    pair.fail(cell)
    (after,) = pair.notebook.run(f"%%on_rank 1\n{held}").ok().texts
    assert int(after.split()[-1]) < int(before.split()[-1]) + 60
    pair.assert_whole()


_CALL = "import nbsync\ndef fail(): raise RuntimeError('nan loss', x)\nnbsync.session().call(fail)"


@pytest.mark.parametrize("cell", ["%%distributed\nraise RuntimeError('nan loss', x)", _CALL])
@pytest.mark.parametrize("megabytes", [12, 100])
def test_row_42_errors_with_large_objects(pair: Ranks, cell: str, megabytes: int) -> None:
    """What the errors of earlier cells carried is free again in the notebook, without a garbage collection."""
    pair.run(f"x = torch.ones({megabytes} << 18)").ok()
    pair.notebook.run("import gc; gc.disable()").ok()
    try:
        pair.notebook.run(cell, GUARD).failed("RuntimeError")
        before = resident_bytes(pair.notebook.pid)
        for _ in range(6):
            assert "nan loss" in pair.notebook.run(cell, GUARD).failed("RuntimeError").evalue
        after = resident_bytes(pair.notebook.pid)
    finally:
        pair.notebook.run("gc.enable()").ok()
    assert before is not None
    assert after is not None
    assert (after - before) >> 20 < 30
    pair.run("del x").ok()
    pair.assert_whole()


def test_row_02_an_error_that_looks_like_a_lost_connection(pair: Ranks) -> None:
    """A connection of the user's own may be lost: that is the error, also once the raising rank itself is released."""
    lost = """def f(n):
    if n == 0: raise ConnectionResetError(104, 'Connection reset by peer')
    f(n - 1)
if rank == 1: f(200)
dist.barrier()"""
    error = pair.fail(lost, "ConnectionResetError")
    first, second = error.evalue.splitlines()
    assert first.startswith("rank 1: ConnectionResetError")
    assert second.startswith("rank 0: waited in barrier")
    assert "Traceback" in error.traceback
    pair.assert_whole()


_SAYS_MORE = """
class Slow(ValueError):
    def __str__(self): return time.sleep(0.2) or "no answer"
def ask(): raise RuntimeError("Connection reset by peer")
if rank == 1:
    try: ask()
    except RuntimeError as error: raise Slow from error
time.sleep(0.5)
raise KeyError("later")"""


def test_row_03_an_error_that_came_of_the_users_own_connection(pair: Ranks) -> None:
    """It is the first, however long its rank describes it: by then that one is released, as all are."""
    error = pair.fail(_SAYS_MORE, "Slow")
    assert error.evalue.startswith("rank 1: Slow: no answer")
    assert "rank 0: KeyError: 'later'" in error.evalue
    pair.assert_whole()
