"""What a failing rank makes of the cell, and that the next cell works."""

from __future__ import annotations

import re

import pytest

from notebooks import Notebook, without_colours


def _works(notebook: Notebook) -> None:
    """A collective joins all ranks."""
    outcome = notebook.run("%%distributed\nt = torch.tensor(rank + 1); dist.all_reduce(t); t.item()")
    assert outcome.ok().texts == ["[0-1] 3"]


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        ("ValueError('boom')", "ValueError"),
        ("KeyError('missing')", "KeyError"),
        ("FileNotFoundError(2, 'No such file', 'data.csv')", "OSError"),
        ("StopIteration(3)", "StopIteration"),
        ("RuntimeError('')", "RuntimeError"),
        ("UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')", "UnicodeError"),
        ("Own('mine', 7)", "Own"),
        ("torch.OutOfMemoryError('no memory')", "RuntimeError"),
    ],
)
def test_errors_are_of_the_original_type(live: Notebook, raised: str, caught: str) -> None:
    """`except` in the notebook catches a rank's error by its own type and as nbsync.WorkerError."""
    live.run(
        "import nbsync, torch\nclass Own(Exception):\n"
        "    def __init__(self, text, number): super().__init__(text); self.number = number"
    ).ok()
    live.run("%nbsync restart").ok()
    cell = (
        f"try:\n    get_ipython().run_cell_magic('on_rank', '1', '''raise {raised}''')\n"
        f"except {caught} as error:\n"
        "    caught = error\n"
        "print(isinstance(caught, nbsync.WorkerError), caught.rank, caught.ranks, caught.type_name)"
    )
    name = raised.partition("(")[0].rpartition(".")[2]
    assert live.run(cell).ok().stdout.startswith(f"True 1 (1,) {name}")
    _works(live)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("%%capture\nraise ValueError('inner')", "ValueError: inner"),
        ("get_ipython().run_cell('raise ValueError(5)')", "ValueError: 5"),
        ("get_ipython().run_cell('x = (')", "SyntaxError"),
    ],
)
def test_a_cell_in_the_cell(live: Notebook, cell: str, told: str) -> None:
    """Its error is shown and ends nothing, as in Jupyter; that of the outer cell is an error as ever."""
    outcome = live.run(f"%%distributed\n{cell}").ok()
    assert told in without_colours(outcome.stderr)
    if not cell.startswith("%%"):
        error = live.run(f"%%on_rank 1\n{cell}\n1 / 0").failed("ZeroDivisionError")
        assert told not in error.traceback
    _works(live)


def test_one_rank_renders_the_traceback(live: Notebook) -> None:
    """The same error on all ranks is rendered once, by whichever rank comes first or by the lowest."""
    live.run(
        "%%distributed\nimport time\nfrom IPython.core.ultratb import AutoFormattedTB as Tb\n"
        "render, rendered = Tb.structured_traceback, []\n"
        "Tb.structured_traceback = lambda *a, **k: rendered.append(1) or render(*a, **k)"
    ).ok()
    for first in (0, 1):
        cell = f"%%distributed\nif rank != {first}: time.sleep(0.3)\nraise ValueError('same')"
        error = live.run(cell).failed("ValueError")
        assert error.evalue == "ranks 0-1: ValueError: same"
        assert "----> 3 raise ValueError('same')" in error.traceback
    assert live.run("%%distributed\nTb.structured_traceback = render\nlen(rendered)").texts == ["[0] 2", "[1] 1"]


@pytest.mark.parametrize("cell", ["%%distributed\n1 / 0", "import nbsync; nbsync.session().pull()"])
def test_debug_begins_in_the_cell(live: Notebook, cell: str) -> None:
    """What `%debug` looks at after an error ends with the user's own line, not with ours."""
    live.run(cell).failed()
    shown = live.run("import sys, traceback\ntraceback.extract_tb(sys.last_traceback)[-1].name")
    assert shown.ok().texts == ["'<module>'"]


@pytest.mark.parametrize("stop", ["breakpoint()", "%pdb on", "import pdb; pdb.set_trace()\nx = 1"])
def test_a_debugger_on_a_rank(live: Notebook, stop: str) -> None:
    """Nobody could answer it, and that is said; nothing of ours shows."""
    error = live.run(f"%%distributed\n{stop}").failed("UsageError")
    assert "a rank cannot" in error.evalue
    assert "shell.py" not in error.traceback
    _works(live)


def test_the_notebooks_debugger_is_not_the_ranks(live: Notebook) -> None:
    """Of a notebook in which `%pdb on` holds, the ranks' errors are as ever."""
    live.run("%pdb on").ok()
    live.run("%nbsync restart").ok()
    live.run("%pdb off").ok()
    error = live.run("%%distributed\n1 / 0").failed("ZeroDivisionError")
    assert "During handling" not in error.traceback
    _works(live)


def test_attributes_of_the_original(live: Notebook) -> None:
    """The error tells what the original told: its arguments, attributes and errno; the original itself is at hand."""
    live.run(
        "def catch(code):\n    try:\n        get_ipython().run_cell_magic('on_rank', '1', code)\n"
        "    except Exception as error:\n        return error"
    ).ok()
    assert live.run("catch('open(\"/nowhere\")').original.errno").ok().texts == ["2"]
    assert live.run("catch('{}[\"k\"]').args").ok().texts == ["('k',)"]
    assert live.run("'k' in str(catch('{}[\"k\"]'))").ok().texts == ["True"]


def test_attributes_on_the_error_itself(live: Notebook) -> None:
    """What `except OSError as e` reads, e.errno, is on the error itself."""
    cell = (
        "try:\n    get_ipython().run_cell_magic('on_rank', '1', 'open(\"/nowhere\")')\n"
        "except OSError as error:\n    found = error.errno, error.filename\nfound"
    )
    assert live.run(cell).ok().texts == ["(2, '/nowhere')"]


def test_original_with_an_own_signature(live: Notebook) -> None:
    """An exception whose __init__ takes other arguments than it passes on arrives with its attributes."""
    live.run("class Own(Exception):\n    def __init__(self, a, b): super().__init__(a); self.b = b").ok()
    live.run("%nbsync restart").ok()
    cell = (
        "try:\n    get_ipython().run_cell_magic('on_rank', '1', 'raise Own(1, 2)')\n"
        "except Own as error:\n    found = error.original\nfound.b"
    )
    assert live.run(cell).ok().texts == ["2"]


def test_key_error_message(live: Notebook) -> None:
    """A KeyError's missing key is shown as Python shows it."""
    error = live.run("%%on_rank 0\n{'a': 1}['b']").failed("KeyError")
    assert error.evalue == "rank 0: KeyError: 'b'"
    assert error.traceback.splitlines()[-1] == "KeyError: 'b'"


def test_unpicklable_error(live: Notebook) -> None:
    """An error that cannot be sent is shown by its type and text all the same."""
    cell = (
        "%%on_rank 1\n"
        "class Odd(ValueError):\n"
        "    def __init__(self, a, b): super().__init__('odd one'); self.g = (i for i in a)\n"
        "raise Odd([], 1)"
    )
    error = live.run(cell).failed()
    assert "rank 1: Odd: odd one" in error.evalue
    assert "----> 4 raise Odd([], 1)" in error.traceback
    _works(live)


def test_chained_errors(live: Notebook) -> None:
    """The cause of an error is part of its traceback."""
    cell = "%%on_rank 0\ntry:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('from it') from e"
    error = live.run(cell).failed("ValueError")
    assert "ZeroDivisionError: division by zero" in error.traceback
    assert "direct cause" in error.traceback


def test_heading_names_the_rank(live: Notebook) -> None:
    """The front end's name and value of the error say type, rank and text."""
    error = live.run("%%on_rank 1\nraise ValueError('boom')").failed()
    assert "ValueError" in error.ename
    assert error.evalue == "rank 1: ValueError: boom"
    assert error.traceback.startswith("rank 1 raised ValueError")


@pytest.mark.parametrize(
    ("magic", "told"),
    [
        ("%nope", "Line magic function `%nope` not found"),
        ("%%nope", "Cell magic `%%nope` not found"),
        ("%timeit -x", "option -x not recognized"),
    ],
)
def test_magics_that_fail(live: Notebook, magic: str, told: str) -> None:
    """What a magic refuses is the error of all ranks, and nothing that one of them prints."""
    outcome = live.run(f"%%distributed\n{magic}\n1")
    error = outcome.failed()
    assert error.evalue.startswith("ranks 0-1: UsageError")
    assert error.traceback.startswith("ranks 0-1 raised UsageError")
    assert told in error.traceback
    assert outcome.stderr == ""
    _works(live)


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("wait", ["dist.barrier()", "dist.all_reduce(t)", "world.wait_for_everyone('end')"])
def test_root_cause_is_never_the_peer(live: Notebook, culprit: int, wait: str) -> None:
    """The rank that failed first is blamed; the one that waited for it is released and named in one line."""
    cell = f"%%distributed\nt = torch.ones(1)\nif rank == {culprit}:\n    raise ValueError('root')\n{wait}"
    error = live.run(cell, timeout=10).failed("ValueError")
    assert error.evalue.splitlines()[0] == f"rank {culprit}: ValueError: root"
    (line,) = error.evalue.splitlines()[1:]
    assert re.match(rf"rank {1 - culprit}: waited in \w+ at Cell In\[\d+\], line 5", line)
    assert error.traceback.count("Traceback (most recent call last)") == 1
    assert "Connection closed" not in error.traceback
    _works(live)


def test_caught_errors_do_not_end_the_cell(live: Notebook) -> None:
    """An error that the user's code catches is the user's business."""
    cell = "%%distributed\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    print('caught')\ndist.barrier()"
    assert live.run(cell).ok().stdout == "[0-1] caught\n"


def test_same_error_on_all_ranks(live: Notebook) -> None:
    """The same error on all ranks is shown once, for `ranks 0-1`."""
    error = live.run("%%distributed\nraise ValueError('everywhere')").failed("ValueError")
    assert error.evalue == "ranks 0-1: ValueError: everywhere"
    assert error.traceback.startswith("ranks 0-1 raised ValueError")
    assert error.traceback.count("everywhere") == 2  # its source line and its text
    _works(live)


def test_different_errors(live: Notebook) -> None:
    """Of different errors the first is shown whole, each other in one line with its place."""
    cell = (
        "%%distributed\nimport os, time\n"
        "if rank == 0:\n    open('failed', 'w').close(); raise ValueError('first')\n"
        "while not os.path.exists('failed'): time.sleep(0.01)\n"
        "time.sleep(0.05); raise KeyError('second')"
    )
    outcome = live.run(cell)
    error = outcome.failed("ValueError")
    assert error.evalue.splitlines()[0] == "rank 0: ValueError: first"
    assert error.evalue.splitlines()[1:] == [f"rank 1: KeyError: 'second' at Cell In[{outcome.number}], line 6"]
    assert error.traceback.splitlines()[-1] == error.evalue.splitlines()[1]
    live.run("import os; os.remove('failed')").ok()
    _works(live)


def test_the_first_line_of_another_error(live: Notebook) -> None:
    """Of an error that is told in one line, dots stand for the rest."""
    cell = (
        "%%distributed\nif rank == 0: raise ValueError('first')\n"
        "try: dist.barrier()\nexcept RuntimeError: raise TypeError('it takes one of these:\\n  a') from None"
    )
    outcome = live.run(cell)
    told = f"rank 1: TypeError: it takes one of these... at Cell In[{outcome.number}], line 4"
    assert outcome.failed("ValueError").evalue.splitlines()[1:] == [told]


def test_syntax_error(live: Notebook) -> None:
    """A syntax error is shown with the cell's line, once for all ranks."""
    outcome = live.run("%%distributed\nx = 1\ndef f(:\n    pass")
    error = outcome.failed()
    assert error.evalue.startswith("ranks 0-1: SyntaxError: invalid syntax")
    assert f"Cell In[{outcome.number}], line 3" in error.traceback
    assert "def f(:" in error.traceback
    indent = live.run("%%distributed\nif True:\nx = 1").failed()
    assert "IndentationError" in indent.traceback
    _works(live)


def test_name_error_of_a_late_definition(live: Notebook) -> None:
    """A name that the notebook defined after the start is a NameError on the ranks."""
    live.run("defined_too_late = 1").ok()
    assert "defined_too_late" in live.run("%%distributed\ndefined_too_late").failed("NameError").evalue


@pytest.mark.parametrize("leave", ["import sys; sys.exit(3)", "raise SystemExit('bye')", "exit()", "quit()"])
def test_exit(live: Notebook, leave: str) -> None:
    """sys.exit and its like end the cell with an error, not the worker or the notebook."""
    live.run("%%distributed\nkept = 1").ok()
    error = live.run(f"%%on_rank 1\n{leave}").failed()
    assert "SystemExit" in error.evalue
    assert live.run("%%distributed\nkept").ok().texts == ["[0-1] 1"]
    _works(live)


def test_keyboard_interrupt_raised_by_a_rank(live: Notebook) -> None:
    """A KeyboardInterrupt that the code itself raises is told as what it is."""
    error = live.run("%%on_rank 0\nraise KeyboardInterrupt").failed()
    assert "KeyboardInterrupt" in error.evalue + error.ename
    _works(live)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os._exit(0)", "exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
    ],
)
def test_dead_rank(live: Notebook, end: str, told: str) -> None:
    """A rank that ends is named with its signal or exit code; the others are released and keep their state."""
    live.run("%%distributed\nkept = rank").ok()
    cell = f"%%distributed\nimport ctypes, os, signal\nif rank == 1: {end}\ndist.barrier()"
    error = live.run(cell, timeout=10).failed("WorkerDied")
    assert error.evalue.startswith(f"rank 1: the process {'ended with' if 'exit' in told else 'was ended by'} {told}")
    assert "rank 0: waited in barrier" in error.evalue
    assert live.run("%%on_rank 0\nkept").ok().texts == ["[0] 0"]
    again = live.run("%%distributed\nkept").failed("WorkerDied")
    assert "restart" in again.evalue
    assert told in live.run("%nbsync status").ok().stdout
    live.run("%nbsync restart").ok()
    _works(live)


def test_segfault_shows_where(live: Notebook) -> None:
    """Of a crash in C code, the Python line is shown."""
    outcome = live.run("%%on_rank 1\nimport ctypes\ndef crash():\n    ctypes.string_at(0)\ncrash()")
    outcome.failed("WorkerDied")
    assert "Segmentation fault" in outcome.stderr
    assert "crash" in outcome.stderr
    live.run("%nbsync restart").ok()
    _works(live)


def test_all_ranks_die(live: Notebook) -> None:
    """When all ranks end alike it is told once, and restart brings them back."""
    error = live.run("%%distributed\nimport os\nos._exit(7)").failed("WorkerDied")
    assert error.evalue.startswith("ranks 0-1: the process")
    live.run("%nbsync restart").ok()
    _works(live)


def test_death_between_cells(live: Notebook) -> None:
    """A rank that ends while no cell runs is named at the next cell."""
    live.run("%%on_rank 1\nimport os, threading\nt = threading.Timer(0.05, os._exit, [5]); t.start()").ok()
    live.run("%%on_rank 1\nt.join()").failed("WorkerDied")
    error = live.run("%%distributed\nrank").failed("WorkerDied")
    assert "rank 1" in error.evalue
    assert "exit code 5" in error.evalue
    live.run("%nbsync restart").ok()
    _works(live)


def test_error_in_display(live: Notebook) -> None:
    """A repr that raises on a rank does not break the worker."""
    live.run("%%distributed\nclass Bad:\n    def __repr__(self): raise ValueError('in repr')").ok()
    live.run("%%on_rank 0\nBad()")
    _works(live)
    live.run("%%on_rank 0\nimport time\ndisplay(Bad()); time.sleep(0.3)")
    _works(live)


def test_traceback_without_a_failure(live: Notebook) -> None:
    """A cell that catches its error and only shows its traceback has not failed: the world stays whole."""
    cell = (
        "%%distributed\nimport time\nif rank == 0:\n    try:\n        1 / 0\n"
        "    except ZeroDivisionError:\n        get_ipython().showtraceback(); time.sleep(0.3)\n"
        "t = torch.tensor(rank + 1); dist.all_reduce(t); t.item()"
    )
    assert live.run(cell, timeout=10).ok().texts == ["[0-1] 3"]
    _works(live)


def test_errors_many_times(live: Notebook) -> None:
    """Ten failures in a row leave the session as good as new."""
    for number in range(10):
        cell = f"%%distributed\nif rank == {number % 2}: raise ValueError('round {number}')\ndist.barrier()"
        assert (
            f"rank {number % 2}: ValueError: round {number}" in live.run(cell, timeout=10).failed("ValueError").evalue
        )
        _works(live)


def test_interrupt(live: Notebook) -> None:
    """Jupyter's interrupt ends the cell on all ranks with KeyboardInterrupt, and their variables stay."""
    live.run("%%distributed\nkept = rank").ok()
    for busy in ("time.sleep(60)", "while True: pass", "dist.barrier() if rank else time.sleep(60)"):
        live.start(f"%%distributed\nimport time\nprint('busy')\n{busy}")
        live.wait_for_output("[0-1] busy", timeout=10)
        live.interrupt()
        live.wait(timeout=10).failed("KeyboardInterrupt")
        assert live.run("%%distributed\nkept").ok().texts == ["[0] 0", "[1] 1"]
        _works(live)


def test_interrupt_of_the_idle_notebook(live: Notebook) -> None:
    """An interrupt while nothing runs hurts no worker."""
    live.interrupt()
    _works(live)
