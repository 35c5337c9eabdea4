"""`notebook_launcher`: what Accelerate's does, and the defects of that one that this one must not have."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import nbsync
from nbsync import World, notebook_launcher
from nbsync.kernel import launcher
from nbsync.kernel.supervision import limit
from notebooks import Notebook, poll, without_colours

pytestmark = pytest.mark.usefixtures("nothing_left")


def _rank() -> int:
    return int(os.environ["RANK"])


def _reduce() -> float:
    """Joins the world by hand and sums 1 + 2."""
    dist.init_process_group()
    tensor = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return tensor.item()


# ---- values and arguments ----


def test_returns_every_ranks_value() -> None:
    """The list holds one value per rank, in the order of the ranks."""
    assert notebook_launcher(lambda a, b: (_rank(), a + b), (1, 2), 3) == [(0, 3), (1, 3), (2, 3)]
    assert notebook_launcher(lambda *args: args, num_processes=1) == [()]
    assert notebook_launcher(lambda *args: len(args), [1, 2], 1) == [2]


def test_signature_is_accelerates() -> None:
    """Every parameter of Accelerate's launcher is there, in its place and with its default, but for the port."""
    from accelerate import notebook_launcher as theirs

    ours = list(inspect.signature(notebook_launcher).parameters.values())
    for mine, other in zip(ours, inspect.signature(theirs).parameters.values(), strict=False):
        assert mine.name == other.name
        assert mine.default == (None if mine.name == "use_port" else other.default)


def test_default_number() -> None:
    """Without num_processes there are two ranks on a machine without GPUs."""
    expected = torch.cuda.device_count() or 2
    assert notebook_launcher(lambda: os.environ["WORLD_SIZE"]) == [str(expected)] * expected


def test_values_of_many_kinds() -> None:
    """Tensors, parameters, modules and nested data come back as what they were."""

    def make() -> dict[str, Any]:
        base = torch.arange(6.0).reshape(2, 3)
        return {
            "view": base.t(),
            "parameter": torch.nn.Parameter(base),
            "half": base.bfloat16(),
            "empty": torch.empty(0),
            "module": torch.nn.Linear(2, 1),
            "nested": [({"a": {1, 2}},)],
            "large": torch.ones(3_000_000),
        }

    first, second = notebook_launcher(make, (), 2)
    base = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(first["view"], base.t())
    assert isinstance(first["parameter"], torch.nn.Parameter)
    assert first["half"].dtype == torch.bfloat16
    assert first["empty"].shape == (0,)
    assert first["large"].sum() == 3_000_000
    assert first["nested"] == [({"a": {1, 2}},)]
    assert not torch.equal(first["module"].weight, second["module"].weight)


def test_nothing_is_shown_for_none(notebook: Notebook) -> None:
    """As a cell's last line it shows nothing when all values are None, else the list."""
    notebook.run("from nbsync import notebook_launcher").ok()
    assert notebook.run("notebook_launcher(lambda: None, (), 2)").ok().outputs == []
    outcome = notebook.run("notebook_launcher(lambda: 5, (), 2)").ok()
    assert outcome.stdout + "".join(outcome.texts) in ("[5, 5]\n", "[5, 5]")


def test_notebook_definitions(notebook: Notebook) -> None:
    """Closures, lambdas, and classes and data of the notebook work, also what no pickle can carry."""
    notebook.run(
        "import threading\nfrom nbsync import notebook_launcher\n"
        "class Box:\n    def __init__(self, v): self.v = v\n"
        "lock = threading.Lock()\nstream = (i for i in range(9))\n"
        "def outer(k):\n"
        "    def inner(a):\n"
        "        with lock: return Box(a * k + next(stream))\n"
        "    return inner\n"
        "boxes = notebook_launcher(outer(10), (2,), 2)"
    ).ok()
    assert notebook.run("[(isinstance(b, Box), b.v) for b in boxes]").ok().texts == ["[(True, 20), (True, 20)]"]
    assert notebook.run("next(stream)").ok().texts == ["0"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"function": 3}, nbsync.UsageError, "callable"),
        ({"args": 5}, nbsync.UsageError, "tuple"),
        ({"args": "text"}, nbsync.UsageError, "tuple"),
        ({"num_processes": 0}, nbsync.UsageError, "positive integer"),
        ({"num_processes": -1}, nbsync.UsageError, "positive integer"),
        ({"num_processes": "2"}, nbsync.UsageError, "positive integer"),
        ({"num_processes": 2.0}, nbsync.UsageError, "positive integer"),
        ({"num_processes": True}, nbsync.UsageError, "positive integer"),
        ({"mixed_precision": "bf17"}, nbsync.UsageError, "no, fp16, bf16, fp8"),
        ({"mixed_precision": None}, nbsync.UsageError, "no, fp16, bf16, fp8"),
        ({"use_port": "http"}, nbsync.UsageError, "http"),
        ({"use_port": 70000}, nbsync.UsageError, "70000"),
        ({"use_port": -1}, nbsync.UsageError, "-1"),
        ({"master_addr": ""}, nbsync.UsageError, "host"),
        ({"node_rank": 1}, nbsync.UsageError, "node_rank must be less than the number of nodes"),
        ({"node_rank": -1}, nbsync.UsageError, "node_rank"),
        ({"num_nodes": 2}, NotImplementedError, "torchrun engine"),
        ({"num_nodes": 2, "node_rank": 1}, NotImplementedError, "num_nodes=2"),
        ({"num_nodes": 0}, nbsync.UsageError, "nodes"),
        ({"rdzv_backend": "etcd"}, nbsync.UsageError, "'static' or 'c10d'"),
        ({"master_addr": 5}, nbsync.UsageError, "a host .* got 5"),
        ({"use_port": 29500.5}, nbsync.UsageError, "29500.5"),
        ({"rdzv_endpoint": "localhost"}, nbsync.UsageError, "rdzv_endpoint must be \"host:port\".* got 'localhost'"),
        ({"rdzv_endpoint": "localhost:port"}, nbsync.UsageError, "got 'localhost:port'"),
        ({"rdzv_endpoint": ":29500"}, nbsync.UsageError, "got ':29500'"),
        ({"rdzv_endpoint": 29500}, nbsync.UsageError, "got 29500"),
        ({"rdzv_conf": {"timeout": 3}}, nbsync.UsageError, "timeout"),
        ({"rdzv_conf": {"rank": 1}}, nbsync.UsageError, "rank"),
        ({"max_restarts": -1}, nbsync.UsageError, "max_restarts"),
        ({"max_restarts": 1.5}, nbsync.UsageError, "max_restarts"),
        ({"monitor_interval": 0}, nbsync.UsageError, "monitor_interval"),
        ({"log_line_prefix_template": 5}, nbsync.UsageError, "log_line_prefix_template"),
        ({"backend": "nonsense"}, nbsync.UsageError, "nonsense"),
        ({"start_method": "thread"}, nbsync.UsageError, "fork"),
        ({"timeout": 0}, nbsync.UsageError, "timeout"),
        ({"timeout": -3}, nbsync.UsageError, "timeout"),
        ({"timeout": "3"}, nbsync.UsageError, "positive number of seconds or None, got '3'"),
        ({"env": {"NUMBER": 5}}, nbsync.UsageError, "NUMBER"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refusals(
    arguments: dict[str, Any], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument that cannot be honoured is refused before anything starts, and the message says what is wrong."""
    monkeypatch.setattr(launcher, "_attempt", lambda *_: pytest.fail("workers were started"))
    with pytest.raises(error, match=said.replace("(", r"\(")):
        notebook_launcher(**{"function": print, "num_processes": 2} | arguments)  # type: ignore[arg-type]


def test_accepted_and_left_alone() -> None:
    """rdzv_conf is taken as Accelerate's users write it, and is not changed; 'c10d' and an endpoint are the same."""
    conf = {"rank": 0}
    found = notebook_launcher(
        lambda: os.environ["TORCHELASTIC_RUN_ID"], (), 2, rdzv_conf=conf, rdzv_backend="c10d", rdzv_id=7,  # type: ignore[arg-type]
        rdzv_endpoint="127.0.0.1:0", monitor_interval=0.01, start_method="fork",
    )  # fmt: skip
    assert found == ["7", "7"]
    assert conf == {"rank": 0}


# ---- the world inside ----


def test_init_process_group_inside() -> None:
    """`dist.init_process_group()` finds the world by itself."""
    assert notebook_launcher(_reduce, (), 2) == [3.0, 3.0]


def test_world_inside() -> None:
    """`World()` finds the world, with the backend that was asked for."""

    def train() -> tuple[Any, ...]:
        world = World()
        world.wait_for_everyone("start")
        return world.rank, world.size, world.gather_object([world.rank]), dist.get_backend()

    assert notebook_launcher(train, (), 2, backend="gloo") == [(0, 2, [0, 1], "gloo"), (1, 2, [0, 1], "gloo")]


def test_accelerate_inside() -> None:
    """`PartialState()` sees two processes on CPU, and mixed_precision reaches `Accelerator()` (defects a and b)."""

    def state() -> tuple[Any, ...]:
        from accelerate import PartialState

        state = PartialState()
        return state.num_processes, state.process_index, state.is_main_process, state.device.type

    def precision() -> tuple[Any, ...]:
        from accelerate import Accelerator

        accelerator = Accelerator()
        gathered = accelerator.gather(torch.tensor([accelerator.process_index]))
        return accelerator.mixed_precision, accelerator.num_processes, gathered.tolist()

    assert notebook_launcher(state, (), 2) == [(2, 0, True, "cpu"), (2, 1, False, "cpu")]
    assert notebook_launcher(precision, (), 2, mixed_precision="bf16") == [("bf16", 2, [0, 1])] * 2
    assert notebook_launcher(precision, (), 2, mixed_precision="BF16") == [("bf16", 2, [0, 1])] * 2
    assert notebook_launcher(precision, (), 2) == [("no", 2, [0, 1])] * 2


def test_worlds_made_in_the_notebook_do_no_harm(fresh_notebook: Notebook) -> None:
    """PartialState, Accelerator and a process group of the notebook are not inherited, and go on working in it."""
    fresh_notebook.run(
        "import torch, torch.distributed as dist\nfrom accelerate import Accelerator, PartialState\n"
        "from nbsync import World, notebook_launcher\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "own = Accelerator(cpu=True); state = PartialState()\n"
        "def inside():\n"
        "    a = Accelerator()\n"
        "    return a.num_processes, a.process_index, World().size, PartialState().num_processes"
    ).ok()
    for _ in range(2):
        outcome = fresh_notebook.run("notebook_launcher(inside, (), 2)").ok()
        assert "[(2, 0, 2, 2), (2, 1, 2, 2)]" in outcome.stdout + "".join(outcome.texts)
    after = (
        "t = torch.ones(1); dist.all_reduce(t); t.item(), dist.get_world_size(), own.num_processes, state.num_processes"
    )
    assert fresh_notebook.run(after).ok().texts == ["(1.0, 1, 1, 1)"]
    assert fresh_notebook.run("%%distributed\ndist.get_world_size()").ok().texts == ["[0-1] 2"]


def test_what_belongs_to_the_notebook_alone(fresh_notebook: Notebook) -> None:
    """Its fork server, whose children only it can wait for, and tqdm's thread and lock, are not the ranks'."""
    fresh_notebook.run(
        "import multiprocessing, nbsync, tqdm\ncontext = multiprocessing.get_context('forkserver')\n"
        "process = context.Process(target=print); process.start(); process.join()\n"
        "import tqdm.auto\nlist(tqdm.auto.tqdm(range(3)))\nlock = tqdm.tqdm.get_lock()"
    ).ok()
    inside = (
        "def inside():\n    process = context.Process(target=print); process.start(); process.join()\n"
        "    list(tqdm.auto.tqdm(range(3)))\n    alive = tqdm.auto.tqdm.monitor.is_alive()\n"
        "    return process.exitcode, alive, tqdm.tqdm.get_lock() is lock\nnbsync.notebook_launcher(inside, (), 2)"
    )
    outcome = fresh_notebook.run(inside).ok()
    assert "[(0, True, False), (0, True, False)]" in outcome.stdout + "".join(outcome.texts)
    fresh_notebook.run("import shutil; shutil.rmtree(multiprocessing.util.get_temp_dir())").ok()


def test_torchrun_environment_is_complete(tmp_path: Path) -> None:
    """Every variable that torchrun sets for a rank is set, with the same value where it does not name the run."""
    script = tmp_path / "environment.py"
    script.write_text(
        f"import json, os\nwith open(r'{tmp_path}/' + os.environ['RANK'], 'w') as f: json.dump(dict(os.environ), f)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=clean)
    ours = notebook_launcher(lambda: dict(os.environ), (), 2)
    of_the_run = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"}
    # What torchrun's agent says to itself: the signals it handles, and the file where it looks for a rank's error.
    not_ours = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE"}
    for rank in (0, 1):
        theirs = json.loads((tmp_path / str(rank)).read_text())
        names = {name for name, value in theirs.items() if clean.get(name) != value} - not_ours
        assert "RANK" in names
        assert names <= ours[rank].keys()
        assert {n: theirs[n] for n in names - of_the_run} == {n: ours[rank][n] for n in names - of_the_run}
        assert not set(os.environ) & {"RANK", "WORLD_SIZE"}


def test_one_process_runs_in_a_worker() -> None:
    """num_processes=1 means the same: a process of its own, with a world of one."""

    def inside() -> tuple[Any, ...]:
        return os.getpid(), World().size, _reduce() if not dist.is_initialized() else None

    ((pid, size, _),) = notebook_launcher(inside, (), 1)
    assert pid != os.getpid()
    assert size == 1


def test_env() -> None:
    """Variables go to the workers, over nbsync's own, and the notebook's environment stays as it was."""
    before = dict(os.environ)

    def read() -> tuple[Any, ...]:
        return os.environ["FLAVOUR"], os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

    found = notebook_launcher(read, (), 2, env={"FLAVOUR": "sweet", "OMP_NUM_THREADS": "2"})
    assert [value[:2] for value in found] == [("sweet", "2")] * 2
    assert dict(os.environ) == before
    assert [value[2] for value in found] == [2, 2]


def test_random_states() -> None:
    """Every rank draws numbers of its own, and the notebook's random state is left alone (defect g)."""
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    draws = notebook_launcher(lambda: (torch.rand(1).item(), random.random()), (), 2)
    draws += notebook_launcher(lambda: (torch.rand(1).item(), random.random()), (), 2)
    assert len(set(draws)) == 4
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


# ---- ports ----


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_port_given() -> None:
    """A port that is given is used, as a number or as text, also twice in a row."""
    port = _free_port()
    for given in (port, str(port)):
        found = notebook_launcher(lambda: (_reduce(), os.environ["MASTER_PORT"]), (), 2, use_port=given)
        assert found == [(3.0, str(port))] * 2
    endpoint = f"127.0.0.1:{port}"
    assert notebook_launcher(lambda: os.environ["MASTER_PORT"], (), 1, rdzv_endpoint=endpoint) == [str(port)]


@pytest.mark.parametrize("address", ["env://", "tcp://localhost:12356"])
def test_an_address_of_ones_own(address: str) -> None:
    """Code for `mp.spawn` sets one, where nobody listens: the ranks meet all the same, as often as they like."""

    def main() -> list[float]:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", "12355"
        world, sums = nbsync.World(), []
        for _ in range(3):
            dist.init_process_group("gloo", init_method=address, rank=world.rank, world_size=world.size)
            t = torch.ones(1)
            dist.all_reduce(t)
            sums.append(t.item())
            dist.destroy_process_group()
        return sums

    assert notebook_launcher(main, (), 2) == [[2.0] * 3] * 2


def test_busy_port() -> None:
    """A port in use is refused at once, by number, and a launch without one works."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(
            nbsync.StartError, match=rf"{port} cannot be used: Address already in use. Leave out the port"
        ):
            notebook_launcher(_reduce, (), 2, use_port=port)
        assert notebook_launcher(_reduce, (), 2) == [3.0, 3.0]


@pytest.mark.parametrize("address", ["no-such-host.invalid", "192.0.2.1"])
def test_wrong_host(address: str) -> None:
    """A host that is not this one is refused with advice for that, and not for a port."""
    with pytest.raises(nbsync.StartError, match=rf"{address}:0 cannot be used: .*\. The host must be"):
        notebook_launcher(_reduce, (), 2, master_addr=address)


def test_no_other_host_can_reach_it() -> None:
    """While ranks run, everything that this process and they listen on is on the loopback interface."""

    def look() -> list[str]:
        from notebooks import family, listeners, listening

        world = World()
        world.wait_for_everyone()
        everyone = {os.getppid()} | {p.pid for p in family(os.getppid())}
        found = [listening()[inode][0] for inode in listeners(everyone)]
        world.wait_for_everyone()
        return found

    for addresses in notebook_launcher(look, (), 2):
        assert addresses
        assert {address for address in addresses if not address.endswith("0100007F")} == set()


def test_two_kernels_at_once(notebook: Notebook, fresh_notebook: Notebook) -> None:
    """Two kernels of one host launch at the same time and do not meet (defect c)."""
    both = (notebook, fresh_notebook)
    for kernel in both:
        kernel.start(
            "import os, time\nfrom nbsync import World, notebook_launcher\n"
            "def inside():\n"
            "    world = World(); world.print('up')\n"
            "    while not os.path.exists('go'): time.sleep(0.01)\n"
            "    return sum(world.gather_object([os.getppid()])) == 2 * os.getppid()\n"
            "notebook_launcher(inside, (), 2)"
        )
    for kernel in both:
        kernel.wait_for_output("up", timeout=30)
    for kernel in both:
        (kernel.folder / "work" / "go").touch()
    for kernel in both:
        outcome = kernel.wait().ok()
        assert "[True, True]" in outcome.stdout + "".join(outcome.texts)


# ---- failing, and going on ----


def test_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """max_restarts starts all ranks anew when one fails, says so, and tells the ranks which attempt it is."""

    def flaky() -> tuple[str, ...]:
        world = World()
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        with open(tmp_path / f"rank{world.rank}", "a") as file:
            file.write(attempt)
        world.wait_for_everyone()
        if world.rank == 1 and attempt != "2":
            raise ValueError(f"attempt {attempt}")
        world.wait_for_everyone()
        return attempt, os.environ["TORCHELASTIC_MAX_RESTARTS"]

    assert notebook_launcher(flaky, (), 2, max_restarts=3) == [("2", "3"), ("2", "3")]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["012", "012"]
    said = capsys.readouterr().err
    assert "rank 1: ValueError: attempt 0; restart 1 of 3" in said
    assert "restart 2 of 3" in said


def test_restarts_run_out(tmp_path: Path) -> None:
    """When the last restart fails too, its error is raised; an error without restarts is raised at once."""

    def fail() -> None:
        with open(tmp_path / "tries", "a") as file:
            file.write(f"{_rank()}")
        raise KeyError("again")

    with pytest.raises(KeyError) as caught:
        notebook_launcher(fail, (), 2, max_restarts=2)
    assert isinstance(caught.value, nbsync.WorkerError)
    assert sorted((tmp_path / "tries").read_text()) == list("000111")


def test_restart_after_a_death(tmp_path: Path) -> None:
    """A rank that is killed is a failure like any other."""

    def die_once() -> str:
        if _rank() == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), 9)
        World().wait_for_everyone()
        return os.environ["TORCHELASTIC_RESTART_COUNT"]

    assert notebook_launcher(die_once, (), 2, max_restarts=1) == ["1", "1"]


def test_the_right_culprit() -> None:
    """The rank that raised is blamed, not the one that waited for it in a barrier (defect d)."""

    def inside() -> None:
        world = World()
        world.wait_for_everyone()
        if world.rank == 1:
            raise ValueError("boom")
        dist.barrier()

    with pytest.raises(ValueError, match="rank 1: ValueError: boom") as caught:
        notebook_launcher(inside, (), 2)
    error = caught.value
    assert isinstance(error, nbsync.WorkerError)
    assert error.ranks == (1,)
    assert 'raise ValueError("boom")' in without_colours("\n".join(error.traceback_lines))
    (line,) = error.others
    assert line.startswith("rank 0: waited in barrier")


def test_ten_failures_and_ten_good_launches(notebook: Notebook) -> None:
    """A launch after a failed one works, ten times in a row, although the errors are kept (defect c)."""
    notebook.run(
        "from nbsync import World, notebook_launcher\n"
        "def fail():\n    world = World(); world.wait_for_everyone()\n"
        "    if world.rank == 1: raise ValueError('boom')\n    world.wait_for_everyone()\n"
        "def succeed(): return World().gather_object([1])\n"
        "kept = []\ndef launch_both():\n"
        "    try: notebook_launcher(fail, (), 2)\n    except ValueError as error: kept.append(error)\n"
        "    return notebook_launcher(succeed, (), 2)"
    ).ok()
    for number in range(10):
        assert notebook.run("launch_both() == [[1, 1]] * 2, len(kept)").ok().texts == [f"(True, {number + 1})"]


def test_a_death_then_a_good_launch() -> None:
    """A rank that ends without a word is named with its exit code, and the next launch works."""
    with pytest.raises(nbsync.WorkerDied, match="rank 1: the process ended with exit code 3") as caught:
        notebook_launcher(lambda: os._exit(3) if _rank() else World().wait_for_everyone(), (), 2)
    assert caught.value.exit_code == 3
    assert "restart" not in str(caught.value)  # its workers have ended with it
    assert notebook_launcher(_reduce, (), 2) == [3.0, 3.0]


def test_functions_that_only_begin() -> None:
    """Nothing of a coroutine's or generator's body has run when it is returned: that is told, with what to write."""

    async def train() -> int:
        return 1

    def batches() -> Iterator[int]:
        yield 1

    with pytest.raises(
        nbsync.UsageError, match=r"train has not run yet, it gives a coroutine: return asyncio.run\(train\("
    ):
        notebook_launcher(train, (), 2)
    with pytest.raises(
        nbsync.UsageError, match=r"batches has not run yet, it gives a generator: return list\(...\) instead"
    ):
        notebook_launcher(batches, (), 2)


def test_timeout() -> None:
    """A launch that takes longer than its timeout ends, names the late rank, and the next one works."""
    begin = time.monotonic()
    with pytest.raises(nbsync.RunTimeout, match="rank 1"):
        notebook_launcher(lambda: time.sleep(60) if _rank() else None, (), 2, timeout=0.3)
    assert time.monotonic() - begin < 5
    assert notebook_launcher(_reduce, (), 2, timeout=30) == [3.0, 3.0]


@pytest.mark.parametrize("waiting", ["dist.barrier()", "time.sleep(60)", "torch.distributed.recv(torch.ones(1), 0)"])
def test_interrupted_then_a_good_launch(notebook: Notebook, waiting: str) -> None:
    """Jupyter's interrupt ends a launch with KeyboardInterrupt within seconds, and the next one works (c and e)."""
    notebook.run(
        "import time, torch\nimport torch.distributed as dist\nfrom nbsync import World, notebook_launcher"
    ).ok()
    notebook.start(
        "def inside():\n    world = World(); world.wait_for_everyone(); print('up')\n"
        f"    if world.rank: {waiting}\n    else: time.sleep(60)\n"
        "notebook_launcher(inside, (), 2)"
    )
    notebook.wait_for_output("[0-1] up", timeout=30)
    notebook.interrupt()
    outcome = notebook.wait(timeout=10)
    outcome.failed("KeyboardInterrupt")
    good = notebook.run("notebook_launcher(lambda: World().gather_object([1]), (), 2)", timeout=20).ok()
    assert "[[1, 1], [1, 1]]" in good.stdout + "".join(good.texts)


def test_unpicklable_values() -> None:
    """A value that cannot come back is named by rank, path and type; the function ran."""
    with pytest.raises(nbsync.TransferError, match=r"\['deep'\]\[1\] of type generator") as caught:
        notebook_launcher(lambda: {"deep": [1, (i for i in range(3))]}, (), 2)
    assert str(caught.value).startswith("rank")


def test_traceback_in_the_notebook(notebook: Notebook) -> None:
    """The error shows the function's source lines, and no frame of nbsync."""
    notebook.run("from nbsync import notebook_launcher\ndef train(x):\n    y = x\n    return y / 0  # divides").ok()
    outcome = notebook.run("notebook_launcher(train, (1,), 2)")
    error = outcome.failed("ZeroDivisionError")
    assert error.evalue == "ranks 0-1: ZeroDivisionError: division by zero"
    assert "----> 4     return y / 0  # divides" in error.traceback
    assert "nbsync/" not in error.traceback


_ODD_ERRORS = """
import dataclasses, nbsync, pickle
class Property(Exception):
    def __init__(self, text): self._text = text
    message = rank = after_interrupt = property(lambda self: self._text)
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    message: str
class New(Exception):
    def __new__(cls, *args): return super().__new__(cls, args[0])
    def __init__(self, message): super().__init__(message)
class Final(Exception):
    def __init_subclass__(cls): raise RuntimeError("no subclasses")
def launch(error):
    def fail(): raise error
    try: nbsync.notebook_launcher(fail, (), 2)
    except nbsync.WorkerError as caught:
        copy = pickle.loads(pickle.dumps(caught))
        return isinstance(caught, type(error)), str(caught).split(": ", 1)[1], caught.args == copy.args == error.args
"""


@pytest.mark.parametrize(
    ("error", "is_one"),
    [("Property('real')", True), ("Frozen('real')", True), ("New('real')", True), ("Final('real')", False)],
)
def test_errors_with_a_will_of_their_own(notebook: Notebook, error: str, is_one: bool) -> None:
    """A class that resists being copied or changed is told of all the same, and caught by its name where it can be."""
    notebook.run(_ODD_ERRORS).ok()
    name = error.partition("(")[0]
    assert notebook.run(f"launch({error})").ok().texts == [f"({is_one}, '{name}: real', True)"]


def test_traceback_of_what_cannot_be_sent(notebook: Notebook) -> None:
    """Of all the frames that pickle it, those of the user's code are shown."""
    notebook.run("from nbsync import notebook_launcher\nclass Bad:\n    def __reduce__(self): 1 / 0  # bad").ok()
    error = notebook.run("notebook_launcher(lambda: {'deep': [Bad()]}, (), 2)").failed("TransferError")
    assert "the value['deep'][0] of type Bad cannot be sent between processes: ZeroDivisionError" in error.evalue
    assert "----> 3     def __reduce__(self): 1 / 0  # bad" in error.traceback
    error = notebook.run("notebook_launcher(lambda: (i for i in range(3)), (), 2)").failed("TransferError")
    assert "the value of type generator cannot be sent" in error.traceback
    assert not re.search("File|dill|pickle.py", error.traceback)
    call = "notebook_launcher(print, ((i for i in range(3)),), 2, start_method='spawn')"
    error = notebook.run(call).failed("TransferError")
    assert error.evalue.startswith("args[0] of type generator cannot be sent")
    assert f"----> 1 {call}" in error.traceback
    assert not re.search("File|dill|pickle.py", error.traceback)


# ---- output ----


def test_output(capsys: pytest.CaptureFixture[str]) -> None:
    """What the function prints is labelled and folded."""
    notebook_launcher(lambda: print("same") or print("own", _rank()), (), 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[0-1] same"
    assert sorted(lines[1:]) == ["[0] own 0", "[1] own 1"]


def test_log_line_prefix_template(capsys: pytest.CaptureFixture[str]) -> None:
    """A template in torchrun's syntax stands before each line in place of the label."""
    template = "<${role_name}|${rank}|${local_rank}>: "
    notebook_launcher(lambda: print("hello\n\nblank"), (), 2, log_line_prefix_template=template)
    lines = capsys.readouterr().out.splitlines()
    for rank in (0, 1):
        mine = [line for line in lines if f"|{rank}|" in line]
        assert [line.rstrip() for line in mine] == [
            f"<default|{rank}|{rank}>:{text}" for text in (" hello", "", " blank")
        ]


# ---- threads ----


def test_openmp_and_autograd_in_the_kernel(notebook: Notebook) -> None:
    """Parallel torch code and autograd used in the kernel do not hang the workers' (defect f)."""
    notebook.run(
        "import torch\nfrom nbsync import notebook_launcher\n"
        "torch.set_num_threads(2)\n"
        "x = torch.rand(500, 500, requires_grad=True); (x @ x).sum().backward()\n"
        "def inside():\n"
        "    torch.set_num_threads(2)\n"
        "    y = torch.rand(500, 500, requires_grad=True); (y @ y).sum().backward()\n"
        "    layer = torch.nn.Linear(500, 500); layer(y).sum().backward()\n"
        "    return bool(y.grad.isfinite().all()), torch.get_num_threads()"
    ).ok()
    for _ in range(3):
        outcome = notebook.run("notebook_launcher(inside, (), 2)", timeout=20).ok()
        assert "[(True, 2), (True, 2)]" in outcome.stdout + "".join(outcome.texts)
        notebook.run("(x @ x).sum().backward()").ok()


def test_beside_a_session(notebook: Notebook) -> None:
    """A launch while a session runs is a world of its own; the session goes on after it."""
    notebook.run("%%distributed -n 2\nkept = rank").ok()
    outcome = notebook.run(
        "from nbsync import World, notebook_launcher\nnotebook_launcher(lambda: World().gather_object([7]), (), 3)"
    ).ok()
    assert "[[7, 7, 7], [7, 7, 7], [7, 7, 7]]" in outcome.stdout + "".join(outcome.texts)
    assert notebook.run("%%distributed\nworld.gather_object([kept])").ok().texts == ["[0-1] [0, 1]"]
    notebook.run("%nbsync stop").ok()


def test_nothing_is_left_in_the_kernel(notebook: Notebook) -> None:
    """After launches the kernel has no child processes and listens on no port that it did not before."""
    notebook.run("%nbsync stop\nfrom nbsync import World, notebook_launcher").ok()
    notebook.run("notebook_launcher(lambda: World().wait_for_everyone(), (), 2)").ok()
    before = notebook.belongings()
    for _ in range(3):
        notebook.run("notebook_launcher(lambda: World().wait_for_everyone(), (), 2)").ok()
    notebook.run("notebook_launcher(lambda: 1 / 0, (), 2)").failed("ZeroDivisionError")
    assert poll(lambda: len(notebook.belongings().listeners) <= len(before.listeners), 1.0)
    assert [p for p in notebook.belongings().processes if p.pid != notebook.pid] == []


def test_exit_codes() -> None:
    """As in a program, 0 is no failure; the rank that exits with another one is the one that failed."""
    assert notebook_launcher(lambda: sys.exit(0), (), 2) == [None, None]
    with pytest.raises(nbsync.WorkerError, match="rank 1: SystemExit: 3"):
        notebook_launcher(lambda: sys.exit(3 * _rank()), (), 2)


def test_a_failure_ends_the_ranks_that_go_on() -> None:
    """A launch ends soon after one rank's error, also if the others compute for long; the error is that rank's."""

    def main() -> None:
        if os.environ["RANK"] == "1":
            raise ValueError("boom")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(ValueError, match="rank 1: ValueError: boom") as caught:
        notebook_launcher(main, (), 2)
    assert time.monotonic() - began < 20
    assert isinstance(caught.value, nbsync.WorkerError)
    assert "rank 0" in "".join(caught.value.others)


def test_many_ranks_raise_the_same() -> None:
    """Describing an error takes its time, in which a rank is not one that goes on: all are named, none is given up."""

    def main() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="ranks 0-39: ValueError: boom") as caught:
        notebook_launcher(main, (), 40)
    assert isinstance(caught.value, nbsync.WorkerError)
    assert list(caught.value.others) == []


def test_an_error_whose_text_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch ends, and names the rank, also if no rank can tell what it raised."""
    monkeypatch.setattr(limit, "TELL_LIMIT", 0.5)
    monkeypatch.setattr(limit, "EVERY", 0.2)

    class Silent(Exception):
        def __str__(self) -> str:
            while True:
                with suppress(KeyboardInterrupt):
                    time.sleep(60)

    def main() -> None:
        raise Silent

    began = time.monotonic()
    with pytest.raises(nbsync.WorkerError) as caught:
        notebook_launcher(main, (), 2)
    assert str(caught.value) == "ranks 0-1: raised an error, but did not tell which in time"
    assert (caught.value.ranks, caught.value.type_name) == ((0, 1), "")
    assert time.monotonic() - began < 20
