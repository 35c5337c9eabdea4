"""The core of what nbsync does, with workers that were forked, that a fork server forked, and new interpreters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from started import BROKEN, GUARD, METHODS, SORTS, Started

from notebooks import Notebook, poll


def test_the_notebook_is_there(started: Started) -> None:
    """Modules, functions, classes, data and models of the notebook are there, and what they share they still share."""
    cell = """
import os
(
    math.floor(point.length()), check(4), isinstance(point, Point), counts["a"], _private, helper_module.triple(2),
    big.sum().item() == 299_999 * 150_000, tail.untyped_storage().data_ptr() == big.untyped_storage().data_ptr(),
    net.weight is optimizer.param_groups[0]["params"][0], os.getcwd() == helper_module.__file__.rpartition("/")[0],
)"""
    assert started.run(cell).ok().texts == ["[0-1] (10, 8, True, 2, 'mine', 6, True, True, True, True)"]


@pytest.mark.parametrize("change", ["for rank in range(world_size): pass", "rank = 7; world = None", "del world_size"])
def test_names_of_ours_that_a_cell_changes(started: Started, change: str) -> None:
    """The next cell has each rank's own again: one that went on with another number would get wrong results."""
    told = re.search("nbsync: (.*) will be each rank's own again in the next cell", started.run(change).ok().stderr)
    assert told is not None
    assert set(re.findall(r"\w+", told[1])) <= {"rank", "world", "world_size"}
    assert started.run("rank == world.rank == dist.get_rank(), world_size").ok().texts == ["[0-1] (True, 2)"]
    assert not started.run("import nbsync\nrank = dist.get_rank(); world = nbsync.World()").ok().stderr


def test_what_cannot_go_is_told(started: Started) -> None:
    """What cannot be sent was listed with its type at the start; a rank that uses it is told why it is not there."""
    if started.is_copy:
        assert started.run("next(generator)").ok().texts == ["[0-1] 1"]
        assert "cannot be sent" not in started.said
        return
    assert started.said.count("cannot be sent between processes") == 1
    assert "database (sqlite3.Connection), generator (generator)" in started.said
    error = started.run("def use():\n    return database\nuse()").failed("NameError")
    assert "'database' is not on this rank: in the notebook it is a sqlite3.Connection" in error.evalue
    assert "distributed cell" in error.evalue
    assert "NameError" in started.run("never_defined").failed("NameError").traceback


@pytest.mark.parametrize("method", METHODS)
def test_a_variable_that_lies_about_its_class(fresh_notebook: Notebook, method: str) -> None:
    """As web frameworks have: to ask such a proxy for its class outside of a request is an error."""
    fresh_notebook.run(
        "class Proxy:\n    @property\n    def __class__(self): raise RuntimeError('outside of a request')\n"
        f"proxy = Proxy()\n%load_ext nbsync\n%nbsync start -n 2 --start-method {method}",
        GUARD,
    ).ok()
    assert fresh_notebook.run("%%distributed\nclass Own: pass\nrank", GUARD).ok().texts == ["[0] 0", "[1] 1"]


@pytest.mark.parametrize("method", METHODS)
def test_a_first_error_has_nothing_to_load(fresh_notebook: Notebook, method: str) -> None:
    """What IPython renders tracebacks with is there at the start, not loaded by each rank once it has failed."""
    fresh_notebook.run(f"import torch\n%nbsync start -n 2 --start-method {method}", GUARD).ok()
    loaded = "import sys; 'stack_data' in sys.modules, 'pygments.formatters.terminal256' in sys.modules"
    assert fresh_notebook.run(f"%%distributed\n{loaded}").ok().texts == ["[0-1] (True, True)"]
    outcome = fresh_notebook.run("%%distributed\nif rank:\n    raise ValueError('row 1')")
    assert "----> 3     raise ValueError('row 1')" in outcome.failed("ValueError").traceback


def test_variables_go_and_come(started: Started) -> None:
    """Pushed and pulled values keep the notebook's classes, and tensors their values."""
    notebook = started.notebook
    notebook.run("pushed = [Point(1.0), torch.ones(3)]").ok()
    notebook.run("%nbsync push pushed").ok()
    assert started.run("isinstance(pushed[0], Point), pushed[1].sum().item()").ok().texts == ["[0-1] (True, 3.0)"]
    started.run("mine = Point(float(rank))").ok()
    notebook.run("%nbsync pull mine").ok()
    assert notebook.run("[type(p) is Point for p in mine], mine[1].x").ok().texts == ["([True, True], 1.0)"]


def test_enumerations_go_and_come(started: Started) -> None:
    """Enumerations, named tuples, typed dictionaries and new types go by value, both ways; members stay the same."""
    notebook = started.notebook
    notebook.run(SORTS).ok()
    pushed = notebook.run("%nbsync push Mode Planet\n%nbsync push mode planet both pair options look_up").ok()
    assert "Warning" not in pushed.stderr
    cell = "(mode is Mode.FAST, planet is Planet.EARTH, planet.ratio(), both.name, pair.total(), options.__total__)"
    assert started.run(cell).ok().texts == ["[0-1] (True, True, 0.5, 'R|W', 3, False)"]
    cell = "look_up(3), look_up.__annotations__['user'](4), look_up.__annotations__['user'].__name__"
    assert started.run(cell).ok().texts == ["[0-1] (3, 4, 'UserId')"]
    started.run("import enum\nclass Mine(enum.IntEnum):\n    ONE = 1\nback, mine = [mode, planet], Mine.ONE").ok()
    notebook.run("%nbsync pull back mine").ok()
    cell = (
        "back[1] == [Mode.FAST, Planet.EARTH], mine[0].name, mine == [1, 1], nbsync.session().call(str, Mode.SLOW)[0]"
    )
    assert notebook.run(cell).ok().texts == ["(True, 'ONE', True, 'slow')"]
    notebook.run(SORTS.replace("FAST", "FASTER")).ok()
    notebook.run("%nbsync push Mode\n%nbsync push mode").ok()
    assert started.run("mode is Mode.FASTER, len(Mode)").ok().texts == ["[0-1] (True, 2)"]


def test_ranks_end_as_programs_do(started: Started, tmp_path: Path) -> None:
    """What a rank has written and registered for its end is written and run; what the notebook has is left to it."""
    started.notebook.run(
        f"import atexit, pathlib, tempfile\nfolder = pathlib.Path({str(tmp_path)!r})\n"
        "mine = tempfile.TemporaryDirectory(dir=folder, prefix='kept')\n"
        "own = open(folder / 'own', 'w'); own.write('pending')\n"
        "atexit.register((folder / 'notebook').touch)"
    ).ok()
    started.notebook.run("%nbsync restart", GUARD).ok()
    started.run(
        f"import atexit, pathlib, tempfile\nfolder = pathlib.Path({str(tmp_path)!r})\n"
        "gone = tempfile.TemporaryDirectory(dir=folder, prefix='gone')\n"
        "file = open(folder / f'file{rank}', 'w'); file.write('buffered')\n"
        "def leave():\n    late = open(folder / f'late{rank}', 'w'); late.write('late'); globals()['late'] = late\n"
        "atexit.register(leave)"
    ).ok()
    started.notebook.run("%nbsync restart", GUARD).ok()
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    expected = {f"file{rank}": "buffered" for rank in range(2)} | {f"late{rank}": "late" for rank in range(2)}
    assert found == expected | {"own": ""}
    assert [path.name[:4] for path in tmp_path.iterdir() if path.is_dir()] == ["kept"]
    started.notebook.run("own.close(); mine.cleanup(); del own, mine").ok()
    assert (tmp_path / "own").read_text() == "pending"


@pytest.mark.parametrize("method", METHODS[1:])
def test_what_cannot_be_rebuilt_costs_only_what_holds_it(fresh_notebook: Notebook, method: str) -> None:
    """After a variable that cannot be rebuilt the others arrive, and share what they shared; at a restart too."""
    fresh_notebook.run(BROKEN).ok()
    fresh_notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
    cell = (
        "%%distributed\n(f(), tail.data_ptr() - t.data_ptr(), colour is Colour.RED, "
        "net.weight is optimizer.param_groups[0]['params'][0])"
    )
    outcome = fresh_notebook.run(cell).ok()
    assert outcome.texts == ["[0-1] (5, 4, True, True)"]
    told = re.findall(r"'(\w+)' could not be rebuilt on the ranks: ValueError: not here", outcome.stderr)
    assert told == ["first", "ring", "broken"]
    assert "could not be rebuilt" in fresh_notebook.run("%%distributed\nring").failed("NameError").evalue
    fresh_notebook.run("%nbsync restart --ranks 1", GUARD).ok()
    assert fresh_notebook.run(cell).ok().texts == ["[0-1] (5, 4, True, True)"]


def test_an_error_is_told_and_healed(started: Started) -> None:
    """One rank raises the notebook's own exception while the other waits: told with its lines, caught by its class."""
    outcome = started.run("if rank == 1:\n    check(-1)\nt = torch.ones(1); dist.all_reduce(t)")
    error = outcome.failed("NotNegative")
    assert f"Cell In[{outcome.number}], line 3" in error.traceback
    assert 'raise NotNegative(f"{value} is negative")' in error.traceback
    assert re.search(r"Cell In\[2\], line \d+, in check", error.traceback)
    assert "rank 0: waited in all_reduce" in error.evalue
    assert started.run("t = torch.ones(1); dist.all_reduce(t); t.item()").ok().texts == ["[0-1] 2.0"]
    cell = """try:
    nbsync.session().run_cell("check(-2)")
except NotNegative as error:
    print("caught", error.rank)"""
    assert "caught 0" in started.notebook.run(cell).ok().stdout


def test_output_is_shown(started: Started) -> None:
    """Output of Python and of the process itself comes in its order; figures and displays come too."""
    outcome = started.run("import os\nprint('one'); os.system('echo two'); print('three', rank)\nfrom IPython.display "
                          "import HTML, display; display(HTML('<b>bold</b>'))").ok()  # fmt: skip
    assert outcome.stdout == "[0-1] one\n[0-1] two\n[0] three 0\n[1] three 1\n"
    assert any("<b>bold</b>" in bundle.get("text/html", "") for bundle in outcome.displays)


def test_magics_and_await_work_on_ranks(started: Started) -> None:
    """Line magics, nbsync's own among them, and top-level await run in a rank's cell."""
    cell = "import asyncio\nawait asyncio.sleep(0)\n%wait_for_everyone\n%timeit -n1 -r1 pass\nrank"
    assert started.run(cell).ok().texts == ["[0] 0", "[1] 1"]
    assert "on a rank already" in started.run("%nbsync status").failed("UsageError").evalue


def test_interrupt_frees_a_collective(started: Started) -> None:
    """An interrupt ends a wait in a collective; everything is kept, and the next collective works."""
    started.run("kept = rank").ok()
    started.notebook.start(
        "%%distributed\nprint('begun')\nif rank == 0:\n    dist.barrier()\nimport time; time.sleep(60)"
    )
    started.notebook.wait_for_output("begun", GUARD)
    started.notebook.interrupt()
    assert started.notebook.wait(GUARD).failed("KeyboardInterrupt")
    assert started.run("t = torch.ones(1); dist.all_reduce(t); kept, t.item()").ok().texts == [
        "[0] (0, 2.0)",
        "[1] (1, 2.0)",
    ]


def test_dead_rank_comes_back(started: Started) -> None:
    """A rank that dies is named with its signal, and comes back as it would at a start; the other keeps its state."""
    started.run("kept = rank").ok()
    error = started.run("import os, signal\nif rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ndist.barrier()")
    assert error.failed("WorkerDied").evalue.startswith("rank 1: the process was ended by SIGKILL")
    started.notebook.run("%nbsync restart --ranks 1", GUARD).ok()
    assert started.run("dist.barrier(); globals().get('kept'), check(1)").ok().texts == ["[0] (0, 2)", "[1] (None, 2)"]


def test_exit_code_is_told(started: Started) -> None:
    """A process that ends by itself is told with its exit code, however it was started."""
    error = started.run("import os\nif rank == 1:\n    os._exit(3)").failed("WorkerDied")
    assert error.evalue.startswith("rank 1: the process ended with exit code 3")
    started.notebook.run("%nbsync restart --ranks 1", GUARD).ok()


def test_launcher(started: Started) -> None:
    """`notebook_launcher` takes function and arguments along, and brings values and errors back."""
    cell = f"""
shift = 100
def train(point, *, _self=None):
    world = nbsync.World()
    return shift + world.rank, point.length(), os.environ["WORLD_SIZE"]
how = dict(num_processes=2, start_method={started.method!r})
nbsync.notebook_launcher(train, (Point(0.0, 1.0),), **how)"""
    assert "[(100, 2.0, '2'), (101, 2.0, '2')]" in started.notebook.run(cell, GUARD).ok().stdout
    error = started.notebook.run("nbsync.notebook_launcher(check, (-5,), **how)", GUARD).failed("NotNegative")
    assert "-5 is negative" in error.evalue
    outcome = started.notebook.run("nbsync.notebook_launcher(lambda g: next(g), (numbers(),), **how)", GUARD)
    if started.is_copy:
        assert "[1, 1]" in outcome.ok().stdout
    else:
        assert "of type generator cannot be sent" in outcome.failed("TransferError").evalue


def test_nothing_is_left_of_a_session(started: Started) -> None:
    """After a stop the workers and their descriptors are gone; the fork server stays, for the next start."""
    pid = started.notebook.pid
    before = _descriptors(pid)
    cell = f"with nbsync.Session(2, start_method={started.method!r}) as other:\n    other.call(os.getpid)"
    for _ in range(2):
        started.notebook.run(cell, GUARD).ok()
    assert poll(lambda: _descriptors(pid) <= before + 1, 2.0), (before, _descriptors(pid))


def test_workers_die_with_the_kernel(started: Started) -> None:
    """A killed kernel takes its workers with it, and its fork server. (The last test: it ends the kernel.)"""
    started.run("rank").ok()
    mine = started.notebook.belongings()
    assert len(mine.processes) >= 3
    started.notebook.kill()
    mine.assert_gone()


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("method", METHODS)
def test_names_of_the_notebook_that_we_have_too(fresh_notebook: Notebook, method: str) -> None:
    """A launched function sees its own; that a distributed cell does not is told at the first start."""
    start = f"%nbsync start -n 2 --start-method {method}"
    cell = "%load_ext nbsync\nrank, dist = 8, 0.5\nimport torch\ndef use(): return rank, dist, torch.__name__"
    fresh_notebook.run(cell).ok()
    launch = f"import nbsync\nnbsync.notebook_launcher(use, num_processes=2, start_method={method!r})"
    assert fresh_notebook.run(launch, GUARD).ok().stdout == "[(8, 0.5, 'torch'), (8, 0.5, 'torch')]\n"
    told = "nbsync: in distributed cells `rank`, `dist` will be each rank's own, not the notebook's\n"
    assert told in fresh_notebook.run(start, GUARD).ok().stderr
    assert fresh_notebook.run("%%distributed\nrank, dist.__name__").ok().texts == [
        "[0] (0, 'torch.distributed')",
        "[1] (1, 'torch.distributed')",
    ]
    fresh_notebook.run("%nbsync stop").ok()
    assert told not in fresh_notebook.run(start, GUARD).ok().stderr
