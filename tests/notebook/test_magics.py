"""The session in a real kernel: cells that live on, rank specs, starting and stopping, push and pull."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebooks import Notebook, find_process, poll


def _pids(notebook: Notebook) -> list[int]:
    cell = "import nbsync; [state.pid for state in nbsync.session().status().ranks]"
    return [int(number) for number in re.findall(r"\d+", notebook.run(cell).ok().texts[0])]


# ---- cells ----


def test_variables_live_on(live: Notebook) -> None:
    """What a cell defines on a rank is there in the next cell."""
    live.run("%%distributed\nx = rank + 1").ok()
    assert live.run("%%distributed\nx * 10").ok().texts == ["[0] 10", "[1] 20"]
    assert live.run("'x' in globals()").ok().texts == ["False"]


def test_bound_names(live: Notebook) -> None:
    """world, rank, local_rank, world_size, device, torch and dist are bound in every worker."""
    cell = (
        "%%distributed\n"
        "import nbsync\n"
        "(rank == world.rank, local_rank, world_size, str(device), torch.__name__, dist.get_world_size(),\n"
        " isinstance(world, nbsync.World))"
    )
    assert live.run(cell).ok().texts == [
        "[0] (True, 0, 2, 'cpu', 'torch', 2, True)",
        "[1] (True, 1, 2, 'cpu', 'torch', 2, True)",
    ]


def test_workers_inherit_the_notebook(notebook: Notebook) -> None:
    """Variables, functions, classes, imports and closures of the notebook are in the workers without any sending."""
    notebook.run("%nbsync stop").ok()
    notebook.run(
        "import collections as c\n"
        "import threading\n"
        "data = {'lock': threading.Lock(), 'n': 3}\n"  # a lock cannot be pickled
        "class Thing:\n    def __init__(self, v): self.v = v\n"
        "thing = Thing(5)\n"
        "def make(k):\n    return lambda v: v * k\n"
        "triple = make(3)"
    ).ok()
    cell = (
        "%%distributed\n"
        "(triple(rank + 1), data['n'], isinstance(thing, Thing), thing.v, c.Counter('aab')['a'], data['lock'].locked())"
    )
    assert notebook.run(cell).ok().texts == ["[0] (3, 3, True, 5, 2, False)", "[1] (6, 3, True, 5, 2, False)"]


def test_workers_do_not_touch_the_notebook(live: Notebook) -> None:
    """A worker is a copy: what it changes stays in it."""
    live.run("owned = [1]").ok()
    live.run("%nbsync restart").ok()
    live.run("%%distributed\nowned.append(rank); new_name = 1").ok()
    assert live.run("owned, 'new_name' in globals()").ok().texts == ["([1], False)"]


def test_last_expression(live: Notebook) -> None:
    """The last expression is shown per rank, equal ones once; None, an assignment and a semicolon show nothing."""
    assert live.run("%%distributed\nrank * 2").ok().texts == ["[0] 0", "[1] 2"]
    assert live.run("%%distributed\n'same'").ok().texts == ["[0-1] 'same'"]
    assert live.run("%%on_rank 1\nrank").ok().texts == ["[1] 1"]
    for silent in ("None", "y = 3", "3;"):
        assert live.run(f"%%distributed\n{silent}").ok().outputs == []


def test_magics_inside(live: Notebook) -> None:
    """Line magics, shell escapes and cell magics work inside a distributed cell."""
    outcome = live.run("%%distributed\n%time y = 41 + rank\ny").ok()
    assert "Wall time" in outcome.stdout  # once or twice: equal times of the ranks are folded
    assert outcome.texts == ["[0] 41", "[1] 42"]
    shown = live.run("%%distributed\n!echo shell").ok().stdout
    assert sorted(shown.splitlines()) in (["[0-1] shell"], ["[0] shell", "[1] shell"])  # folded if at about one time
    assert live.run("%%distributed\nout = !echo captured\nout[0]").ok().texts == ["[0-1] 'captured'"]
    assert "Wall time" in live.run("%%distributed\n%%time\nz = 1").ok().stdout
    assert live.run("%%distributed\nz").ok().texts == ["[0-1] 1"]


def test_top_level_await(live: Notebook) -> None:
    """`await` works at the top of a cell, as in the notebook."""
    cell = "%%distributed\nimport asyncio\nr = await asyncio.gather(asyncio.sleep(0.01, rank), asyncio.sleep(0, 7))\nr"
    assert live.run(cell).ok().texts == ["[0] [0, 7]", "[1] [1, 7]"]


def test_collectives_across_cells(live: Notebook) -> None:
    """torch.distributed is initialised, and collectives join all ranks."""
    live.run("%%distributed\nt = torch.ones(2) * (rank + 1)").ok()
    assert live.run("%%distributed\ndist.all_reduce(t); t").ok().texts == ["[0-1] tensor([3., 3.])"]


def test_traceback_shows_the_cells_lines(live: Notebook) -> None:
    """The traceback has the cell's own source, its number, and the line as the notebook counts it."""
    outcome = live.run("%%distributed\na = 1\nb = 2\n\nraise ValueError('here')  # the culprit\nc = 3")
    error = outcome.failed("ValueError")
    assert f"Cell In[{outcome.number}], line 5" in error.traceback
    assert "----> 5 raise ValueError('here')  # the culprit" in error.traceback
    assert "ValueError: here" in error.traceback
    assert "nbsync/" not in error.traceback


def test_traceback_through_earlier_cells(live: Notebook) -> None:
    """Frames in functions of earlier cells, of the notebook or of a distributed cell, show the source of those."""
    live.run("def in_notebook(v):\n    w = v\n    return 1 / w  # divides").ok()
    live.run("%nbsync restart").ok()
    live.run("%%distributed\ndef in_worker(v):\n    # calls on\n    return in_notebook(v)  # on it goes").ok()
    error = live.run("%%on_rank 1\nin_worker(0)").failed("ZeroDivisionError")
    assert "----> 2 in_worker(0)" in error.traceback
    assert "----> 4     return in_notebook(v)  # on it goes" in error.traceback
    assert "----> 3     return 1 / w  # divides" in error.traceback
    assert len(set(re.findall(r"Cell In\[(\d+)\]", error.traceback))) == 3


def test_line_numbers_under_a_nested_cell_magic(live: Notebook) -> None:
    """The source line of an error is shown also where another cell magic follows."""
    error = live.run("%%distributed\n%%time\na = 1\nraise ValueError('timed')").failed("ValueError")
    assert "raise ValueError('timed')" in error.traceback


# ---- which ranks ----


@pytest.mark.parametrize(
    ("spec", "ranks"),
    [
        ("0", [0]),
        ("1", [1]),
        ("0,1", [0, 1]),
        ("1,0", [0, 1]),
        ("0-1", [0, 1]),
        ("main", [0]),
        ("local_main", [0]),
        ("last", [1]),
        ("all", [0, 1]),
        ("main,last", [0, 1]),
        ("0, 1", [0, 1]),
        ("0 1", [0, 1]),
        ("0 - 1", [0, 1]),
        ("main , last", [0, 1]),
    ],
)
def test_rank_specs(live: Notebook, spec: str, ranks: list[int]) -> None:
    """A cell runs on the ranks of its spec, and on no other."""
    expected = [f"[{rank}] {rank}" for rank in ranks]
    assert live.run(f"%%on_rank {spec}\nrank").ok().texts == expected
    assert live.run(f"%%distributed --ranks {spec}\nrank").ok().texts == expected


@pytest.mark.parametrize("spec", ["2", "7", "0-7", "1-0", "first", "0,,1", "-1", "''"])
def test_bad_rank_specs(live: Notebook, spec: str) -> None:
    """A bad spec is a usage error that names the ranks and the choices, and nothing runs."""
    for line in (f"%%on_rank {spec}", f"%%distributed --ranks {spec}", f"%%distributed --ranks={spec}"):
        outcome = live.run(f"{line}\nprint('ran')")
        outcome.failed("UsageError")
        assert "ran\n" not in outcome.stdout
        for word in ("local_main", "last", "all"):
            assert word in outcome.stderr
    assert "ranks 0-1" in live.run("%%on_rank 7\n1").stderr


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%%distributed --rnks 0\n1", ["--rnks", "--ranks", "--timeout", "--push"]),
        ("%%distributed --timeout never\n1", ["--timeout", "never"]),
        ("%%distributed --timeout -1\n1", ["positive"]),
        ("%%distributed -n two\n1", ["-n", "two"]),
        ("%%distributed 0\n1", ["--ranks"]),
        ("%%on_rank\n1", ["SPEC"]),
        ("%%main_process_first --locl\n1", ["--local"]),
        ("%wait_for_everyone --name a", ["--name", "NAME"]),
        ("%nbsync strat", ["start", "status", "wait", "interrupt", "restart", "stop", "push", "pull"]),
        ("%nbsync start --sed 1", ["--seed", "--backend"]),
        ("%nbsync start --start-method thread", ["run already", "--start-method auto", "%nbsync stop"]),
        ("%nbsync push", ["NAME"]),
        ("%nbsync push not_defined", ["not_defined"]),
        ("%%distributed --push not_defined\n1", ["not_defined"]),
        ("%%distributed --ranks '0\n1", ["quotation"]),
    ],
)
def test_usage_errors_name_the_choices(live: Notebook, cell: str, said: list[str]) -> None:
    """What the user mistyped is told in a line or two with what may stand there, without a traceback."""
    outcome = live.run(cell)
    outcome.failed("UsageError")
    text = outcome.stderr + outcome.stdout
    assert "Traceback" not in text
    assert all(word in text for word in said), text


@pytest.mark.parametrize(
    "magic", ["%%distributed", "%%on_rank", "%%main_process_first", "%wait_for_everyone", "%nbsync"]
)
def test_help(live: Notebook, magic: str) -> None:
    """`-h` prints the options, and is no error."""
    cell = f"{magic} -h\n1" if magic.startswith("%%") else f"{magic} -h"
    assert f"usage: {magic}" in live.run(cell).ok().stdout


def test_main_process_first(live: Notebook) -> None:
    """Rank 0 has run the whole cell before the others begin; with --local, the first of each node."""
    for option in ("", " --local"):
        cell = (
            f"%%main_process_first{option}\n"
            "import os, time\n"
            "if rank == 0:\n"
            "    time.sleep(0.1); open('made', 'w').close()\n"
            "found = os.path.exists('made'); world_size, found"
        )
        assert live.run(cell).ok().texts == ["[0] (2, True)", "[1] (2, True)"]
        live.run("import os; os.remove('made')").ok()


def test_main_process_first_stops_at_an_error(live: Notebook) -> None:
    """When rank 0 fails the others do not begin, and nobody hangs."""
    live.run("%%distributed\nbegan = False").ok()
    live.run("%%main_process_first\nbegan = True\n1 / (rank - 0)").failed("ZeroDivisionError")
    assert live.run("%%distributed\nbegan").ok().texts == ["[0] True", "[1] False"]


def test_wait_for_everyone(live: Notebook) -> None:
    """The barrier returns when all ranks came, with and without a name, and shows nothing."""
    assert live.run("%wait_for_everyone").ok().outputs == []
    assert live.run("%wait_for_everyone 'data ready'").ok().outputs == []


def test_timeout(live: Notebook) -> None:
    """A cell that takes longer than its --timeout is interrupted, and its ranks keep their variables."""
    live.run("%%distributed\nkept = rank").ok()
    error = live.run("%%distributed --timeout 0.3\nimport time\nif rank == 1: time.sleep(60)").failed("RunTimeout")
    assert "rank 1" in error.evalue
    assert live.run("%%distributed\nkept").ok().texts == ["[0] 0", "[1] 1"]


# ---- the session's life ----


def test_implicit_start(notebook: Notebook) -> None:
    """The first distributed cell starts two workers on a machine without GPUs; -n chooses how many."""
    notebook.run("%nbsync stop").ok()
    assert notebook.run("%%distributed\nworld_size").ok().texts == ["[0-1] 2"]
    notebook.run("%nbsync stop").ok()
    assert notebook.run("%%distributed -n 3\nworld_size").ok().texts == ["[0-2] 3"]
    assert notebook.run("%%distributed -n 3\nrank").ok().texts == ["[0] 0", "[1] 1", "[2] 2"]
    outcome = notebook.run("%%distributed -n 2\nrank")
    outcome.failed("UsageError")
    assert "3 workers run already" in outcome.stderr
    assert "%nbsync stop" in outcome.stderr
    notebook.run("%nbsync stop").ok()


def test_what_cannot_begin_in_the_background(live: Notebook) -> None:
    """It is an error of the cell that wants it, not told by one that ended well."""
    live.run("%%distributed --background\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)").ok()
    assert "ranks 0-1 are busy: they run a cell" in live.run("%%distributed --background\npass").stderr
    live.run("%%distributed --background --ranks 7\npass").failed()
    live.run("open('go', 'w').close()").ok()
    assert poll(lambda: live.run("%%distributed --background\npass").status == "ok", 10)
    assert poll(lambda: live.run("%%distributed\nos.path.exists('go')").texts == ["[0-1] True"], 10)
    live.run("import os; os.remove('go')").ok()


def test_second_start_says_what_runs(live: Notebook) -> None:
    """Another start leaves the workers alone and says which run, also where it names how they were started."""
    pids = _pids(live)
    for options in ("", "-n 2", "-n 2 --backend gloo --start-method auto"):
        said = live.run(f"%nbsync start {options}").ok().stdout
        assert "runs already" in said
        assert "2 ranks, gloo" in said
        assert "restart" in said
    assert _pids(live) == pids


def test_second_start_with_other_options(notebook: Notebook) -> None:
    """It is an error that names what differs and the way out, and the workers are left alone."""
    notebook.run("%nbsync stop").ok()
    notebook.run("%nbsync start -n 2 --refill --env A=1 --env B=1").ok()
    pids = _pids(notebook)
    notebook.run("%nbsync start -n 2 --refill --env B=1").ok()
    outcome = notebook.run("%nbsync start -n 4 --refill --seed 0 --no-compare --threads 1 --env A=2")
    outcome.failed("UsageError")
    have = "-n 2, no --seed, no --threads, no --no-compare, --env A=1"
    want = "-n 4, --seed 0, --threads 1, --no-compare, --env A=2"
    assert f"with {have} instead of {want}: `%nbsync stop`" in outcome.stderr
    assert "`%nbsync start ...`" in outcome.stderr
    assert _pids(notebook) == pids
    notebook.run("%nbsync stop").ok()


def test_status(live: Notebook) -> None:
    """The status names ranks, backend, what they do and their processes; `%nbsync` alone is the same."""
    said = live.run("%nbsync status").ok().stdout
    assert said.startswith("2 ranks, gloo\n  ranks 0-1: idle")
    assert len(_pids(live)) == 2
    assert all(find_process(pid) and str(pid) in said for pid in _pids(live))
    assert live.run("%nbsync").ok().stdout.startswith("2 ranks, gloo\n  ranks 0-1: idle")


def test_stack_of_ranks_that_do_nothing(live: Notebook) -> None:
    """Who has nothing to do is idle: what nbsync itself does then is nobody's business."""
    assert live.run("%nbsync stack").ok().stdout == "ranks 0-1 are idle\n"


def test_stacks_are_folded(live: Notebook) -> None:
    """Ranks that are in the same place are shown once, from the user's line on and without our own lines."""
    cell = "%%distributed --background\ndist.distributed_c10d._get_default_store().get('never')"
    number = live.run(cell).ok().number

    def stack() -> str:
        return live.run("%nbsync stack").ok().stdout

    folded = f"ranks 0-1:\n  Cell In[{number}], line 2, in <module>\n    {cell.splitlines()[-1]}\n"
    assert poll(lambda: stack() == folded, 20), stack()
    live.run("%nbsync interrupt").ok()
    assert poll(lambda: live.run("%%distributed\nrank").status == "ok", 20)


def test_stop(live: Notebook) -> None:
    """After stop no worker process is left, the status says so, and a second stop does nothing."""
    pids = _pids(live)
    assert len(pids) == 2
    live.run("%nbsync stop").ok()
    assert not [pid for pid in pids if find_process(pid)]
    assert "no workers" in live.run("%nbsync").ok().stdout
    live.run("%nbsync stop").ok()


@pytest.mark.parametrize(
    "cell",
    [
        "%nbsync restart",
        "%nbsync pull x",
        "x = 1\n%nbsync push x",
        "%nbsync interrupt",
        "%nbsync wait",
        "%wait_for_everyone",
    ],
)
def test_without_a_session(notebook: Notebook, cell: str) -> None:
    """What needs workers says that there are none, and how to start them."""
    notebook.run("%nbsync stop").ok()
    outcome = notebook.run(cell)
    outcome.failed("UsageError")
    assert "%nbsync start" in outcome.stderr


def test_restart_gives_fresh_workers(live: Notebook) -> None:
    """After a restart, old variables are gone and what the notebook defined since is there."""
    live.run("%%distributed\nold = 1").ok()
    live.run("def newly_defined(): return 'new'").ok()
    pids = _pids(live)
    live.run("%nbsync restart").ok()
    assert not [pid for pid in pids if find_process(pid)]
    assert not set(pids) & set(_pids(live))
    assert live.run("%%distributed\n'old' in globals(), newly_defined()").ok().texts == ["[0-1] (False, 'new')"]
    assert live.run("%%distributed\nt = torch.ones(1); dist.all_reduce(t); t").ok().texts == ["[0-1] tensor([2.])"]


def test_an_interrupted_restart(live: Notebook) -> None:
    """It says that the workers are gone, and what starts others; no line of ours shows."""
    cell = (
        "import signal\nfrom nbsync.kernel.fleet import Fleet\nclose = Fleet._close\n"
        "def interrupted(self):\n    signal.raise_signal(signal.SIGINT)\n    close(self)\n"
        "Fleet._close = interrupted\ntry:\n    %nbsync restart\nfinally:\n    Fleet._close = close"
    )
    told = ["KeyboardInterrupt", "the workers are gone: `%nbsync start -n 2` starts others"]
    assert live.run(cell).failed("KeyboardInterrupt").traceback.splitlines() == told
    live.run("%nbsync start").ok()


def test_restart_of_some_names_all_that_came_back(live: Notebook) -> None:
    """Also a rank that had ended, whatever was asked for."""
    assert live.run("%nbsync restart --ranks 1").ok().stdout == "nbsync: rank 1 is fresh, gloo\n"
    live.run("%%on_rank 0\nimport os; os._exit(3)").failed("WorkerDied")
    assert live.run("%nbsync restart --ranks last").ok().stdout == "nbsync: ranks 0-1 are fresh, gloo\n"


def test_start_options(notebook: Notebook) -> None:
    """Number of ranks, backend and variables can be chosen at the start."""
    notebook.run("%nbsync stop").ok()
    said = notebook.run("%nbsync start -n 1 --backend gloo --env FLAVOUR=sweet --env EMPTY=").ok().stdout
    assert "gloo" in said
    cell = "%%distributed\nimport os\nos.environ['FLAVOUR'], os.environ['EMPTY'], dist.get_backend(), world_size"
    assert notebook.run(cell).ok().texts == ["[0] ('sweet', '', 'gloo', 1)"]
    notebook.run("%nbsync stop").ok()
    for bad in ("-n 0", "-n -2", "--env FLAVOUR", "--start-method thread"):
        notebook.run(f"%nbsync start {bad}").failed("UsageError")
    assert "no workers" in notebook.run("%nbsync").ok().stdout


def test_unload_ends_the_workers(fresh_notebook: Notebook) -> None:
    """`%unload_ext nbsync` takes the magics away and ends the workers; loading it again works."""
    fresh_notebook.run("%nbsync start -n 2").ok()
    pids = _pids(fresh_notebook)
    fresh_notebook.run("%unload_ext nbsync").ok()
    assert not [pid for pid in pids if find_process(pid)]
    fresh_notebook.run("%nbsync").failed("UsageError")
    fresh_notebook.run("%load_ext nbsync").ok()
    assert fresh_notebook.run("%%distributed\nrank").ok().texts == ["[0] 0", "[1] 1"]


# ---- push and pull ----


def test_push(live: Notebook) -> None:
    """Variables, functions and classes defined after the start go over by name, to all ranks or to those named."""
    live.run(
        "import torch\n"
        "late = {'t': torch.arange(3)}\n"
        "class Late:\n    def __init__(self, v): self.v = v\n    def twice(self): return 2 * self.v\n"
        "def late_function(v): return Late(v).twice()\n"
        "late_object = Late(4)"
    ).ok()
    live.run("%nbsync push late Late late_function late_object").ok()
    cell = (
        "%%distributed\n"
        "late['t'].sum().item(), late_function(rank + 1), late_object.twice(), isinstance(late_object, Late)"
    )
    assert live.run(cell).ok().texts == ["[0] (3, 2, 8, True)", "[1] (3, 4, 8, True)"]
    live.run("only = 1\n%nbsync push only --ranks 1").ok()
    assert live.run("%%distributed\n'only' in globals()").ok().texts == ["[0] False", "[1] True"]
    live.run("a, b = 1, 2").ok()
    for names in ("a,b", "a, b"):
        assert live.run(f"%%distributed --push {names}\na + b").ok().texts == ["[0-1] 3"]
    live.run("c, d = 3, 4\n%nbsync push c, d --ranks 0, 1\n%nbsync push --ranks 0 1 c d").ok()
    assert live.run("%%distributed --ranks 0 1 --timeout 60\nc + d").ok().texts == ["[0-1] 7"]
    assert live.run("%nbsync stack 0 1").ok().stdout == "ranks 0-1 are idle\n"


def test_pull(live: Notebook) -> None:
    """Variables come back as a list with one value per rank, or as the value itself from one rank."""
    live.run("class Known:\n    def __init__(self, v): self.v = v").ok()
    live.run("%nbsync restart").ok()
    live.run("%%distributed\nx = torch.ones(2) * rank; n = rank; k = Known(rank); p = torch.nn.Parameter(x)").ok()
    live.run("%nbsync pull x n").ok()
    assert live.run("x, n").ok().texts == ["([tensor([0., 0.]), tensor([1., 1.])], [0, 1])"]
    live.run("%nbsync pull n --ranks last").ok()
    assert live.run("n").ok().texts == ["1"]
    live.run("%nbsync pull k").ok()
    assert live.run("[isinstance(v, Known) for v in k], k[1].v").ok().texts == ["([True, True], 1)"]
    live.run("%nbsync pull p --ranks 1").ok()
    assert live.run("type(p).__name__, p.requires_grad, p.tolist()").ok().texts == ["('Parameter', True, [1.0, 1.0])"]


@pytest.mark.parametrize("name", ["class", "None", "x.y"])
def test_pull_of_no_variable(live: Notebook, name: str) -> None:
    """Only what can be a variable of the notebook is made one."""
    outcome = live.run(f"%nbsync pull {name}")
    outcome.failed("UsageError")
    assert f"{name!r} is not a variable's name" in outcome.stderr
    assert live.run(f"{name!r} in globals()").ok().texts == ["False"]


def test_push_of_a_name_that_is_each_ranks_own(live: Notebook) -> None:
    """A rank that took itself for another would get wrong results."""
    said = live.run("rank = 7\n%nbsync push rank").stderr
    assert "`rank` is each rank's own in a distributed cell: push it by another name" in said
    assert live.run("%%distributed\nrank == world.rank").ok().texts == ["[0-1] True"]
    live.run("del rank").ok()


def test_push_and_pull_of_what_cannot_travel(live: Notebook) -> None:
    """A value that cannot be sent is named with its path and type, and both sides go on."""
    live.run("import threading\ndef _gen():\n    yield\nstuck = {'deep': [_gen()]}").ok()
    outcome = live.run("%nbsync push stuck")
    outcome.failed("UsageError")
    assert "stuck['deep'][0] of type generator" in outcome.stderr
    assert "generator" in outcome.stderr
    live.run("%%distributed\nbad = {'f': (i for i in range(3))}").ok()
    said = live.run("%nbsync pull bad")
    text = said.failed().evalue + said.failed().traceback + said.stderr
    assert "['f']" in text
    assert "generator" in text
    live.run("%nbsync pull never_defined").failed("NameError")
    assert live.run("%%distributed\nrank").ok().texts == ["[0] 0", "[1] 1"]


# ---- random states ----


def _draws(notebook: Notebook) -> list[tuple[float, float, float]]:
    cell = (
        "%%distributed\nimport random, numpy\ndrawn = torch.rand(1).item(), float(numpy.random.rand()), random.random()"
    )
    notebook.run(cell).ok()
    notebook.run("%nbsync pull drawn").ok()
    return list(eval(notebook.run("drawn").ok().texts[0]))


def test_random_states_differ(live: Notebook) -> None:
    """torch, numpy and random draw other numbers on every rank, and others after a restart."""
    first, second = _draws(live)
    live.run("%nbsync restart").ok()
    third, fourth = _draws(live)
    for source in range(3):
        assert len({draws[source] for draws in (first, second, third, fourth)}) == 4


def test_seed_reproduces(notebook: Notebook) -> None:
    """With --seed every run draws the same numbers, still others on each rank."""
    runs = []
    for _ in range(2):
        notebook.run("%nbsync stop").ok()
        notebook.run("%nbsync start -n 2 --seed 7").ok()
        runs.append(_draws(notebook))
    assert runs[0] == runs[1]
    assert not set(runs[0][0]) & set(runs[0][1])
    notebook.run("%nbsync stop").ok()


# ---- Run All ----


@pytest.mark.parametrize("failing", ["%%distributed\nif rank == 1: raise ValueError('stop here')", "%%on_rank 9\n1"])
def test_run_all_stops_at_a_failing_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """nbclient, as nbconvert and `Run All`, stops at a distributed cell that fails."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    cells = ["%load_ext nbsync", "%nbsync start -n 2", "print('before')", failing, "print('after')"]
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    document.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    client = NotebookClient(document, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError, match="stop here" if "stop" in failing else "UsageError"):
        client.execute()
    assert [bool(cell.outputs) for cell in document.cells[2:]] == [True, True, False]


def test_terminal_ipython(tmp_path: Path) -> None:
    """The magics work in a plain terminal IPython, whose end ends the workers."""
    import os
    import subprocess

    script = tmp_path / "cells.ipy"
    script.write_text(
        "%load_ext nbsync\n"
        "get_ipython().run_cell_magic('distributed', '-n 2', 'print(\"hello\"); rank')\n"
        "import nbsync; print('pids', [s.pid for s in nbsync.session().status().ranks])\n"
    )
    env = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        cwd=tmp_path,
        check=True,
    )
    assert "[0-1] hello\n" in done.stdout
    assert "[0] 0\n" in done.stdout
    assert "[1] 1\n" in done.stdout
    pids = [int(n) for n in re.findall(r"\d+", done.stdout.partition("pids")[2])]
    assert len(pids) == 2
    assert poll(lambda: not [pid for pid in pids if find_process(pid)], 1.0)


def test_a_session_made_in_python_is_the_magics_own(live: Notebook) -> None:
    """`nbsync.Session()` is what the magics use when there is no other; a second one stands beside it."""
    live.run("%nbsync stop\nimport nbsync\nown = nbsync.Session(2)\nother = nbsync.Session(2)").ok()
    assert live.run("nbsync.session() is own").ok().texts == ["True"]
    live.run("%%distributed\nmark = 'here'").ok()
    assert live.run("own.pull('mark')").ok().texts == ["['here', 'here']"]
    live.run("other.close(); own.close()\n%nbsync start -n 2").ok()


def test_what_only_the_notebook_has(live: Notebook, tmp_path: Path) -> None:
    """A variable, or a folder of modules, that came after the start: the error says how it comes to the ranks."""
    package = tmp_path / "of_the_notebook"
    package.mkdir()
    (package / "__init__.py").touch()
    live.run(f"import sys; sys.path.append({str(tmp_path)!r}); later = 1").ok()
    told = live.run("%%distributed\nlater").failed("NameError").traceback
    assert "later is defined in the notebook: `%nbsync push later` sends it to the ranks" in told
    told = live.run("%%distributed\nimport of_the_notebook").failed("ModuleNotFoundError").traceback
    assert f"the notebook finds of_the_notebook in {tmp_path}, where the ranks do not look" in told
    live.run(f"%%distributed\nimport sys; sys.path.append({str(tmp_path)!r})\nimport of_the_notebook").ok()
    for name in ("of_the_notebook.missing", "nowhere"):
        assert "the notebook" not in live.run(f"%%distributed\nimport {name}").failed().traceback
    live.run("sys.path.pop()").ok()
