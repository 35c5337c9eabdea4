"""Starting workers: how fast by each method, with warm pools of threads, many times over, and many at once.

    python benchmarks/start.py times       start times by method and number of ranks, beside other launchers
    python benchmarks/start.py pools       starts from a kernel in which every library has warmed its threads up
    python benchmarks/start.py cycles      start and stop, and what the kernel has grown by
    python benchmarks/start.py crowd       64 ranks and one all_reduce

Each runs in a real kernel. The exit status is 1 when something hung, grew or took too long (times are only shown).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernels import CellFailed, Kernel

METHODS = ("fork", "forkserver", "spawn")
MOST_GROWTH = 20.0  # megabytes
CROWD, CROWD_LIMIT = 64, 3.0  # ranks, seconds
LONG = 10.0  # seconds: a launch that takes more is not repeated
LAUNCH_LIMIT = 600.0  # seconds: 64 interpreters that load torch on two cores take minutes

_LAUNCHERS = """
import os, socket, sys, time
sys.path.insert(0, {folder!r})
import torch, torch.distributed as dist
import nbsync
from accelerate import notebook_launcher as accelerate_launcher
from launched import reduce_once, reduce_as_rank
def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
def spawn(ranks):
    torch.multiprocessing.spawn(reduce_as_rank, (ranks, free_port()), ranks)
def fork(ranks):
    # no launcher that forks can be faster
    port, pids = free_port(), []
    for rank in range(ranks):
        pids.append(os.fork())
        if not pids[-1]:
            try:
                reduce_as_rank(rank, ranks, port)
                os._exit(0)
            finally:
                os._exit(1)
    assert not any(os.waitpid(pid, 0)[1] for pid in pids)
"""
# In a module: torch.multiprocessing.spawn cannot start a function of the notebook.
_LAUNCHED = """
import os, torch, torch.distributed as dist
def reduce_once():
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    t = torch.ones(1)
    dist.all_reduce(t)
    assert t.item() == dist.get_world_size()
    dist.destroy_process_group()
def reduce_as_rank(rank, size, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    reduce_once()
"""
_CALLS = {
    **{
        f"nbsync {m}": f"nbsync.notebook_launcher(reduce_once, num_processes={{n}}, start_method={m!r})"
        for m in METHODS
    },
    "accelerate (fork)": "accelerate_launcher(reduce_once, num_processes={n}, use_port=free_port())",
    "torch.multiprocessing.spawn": "spawn({n})",
    "os.fork": "fork({n})",
}

_WARM = '''
import importlib, os, time
import numpy as np, torch
warmed = []
def warm(name):
    def run(work):
        try:
            importlib.import_module(name)
        except ImportError:
            return
        work()
        warmed.append(name)
    return run
@warm("torch")
def _():
    (torch.randn(600, 600) @ torch.randn(600, 600)).sum(); (torch.ones(1 << 22) + 1).sum()
@warm("numpy")
def _():
    np.random.rand(600, 600) @ np.random.rand(600, 600)
@warm("sklearn")
def _():
    from sklearn.cluster import KMeans
    KMeans(3, n_init=1).fit(np.random.rand(20000, 8))
@warm("pyarrow")
def _():
    import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq
    table = pa.table({str(i): np.random.rand(200000) for i in range(4)})
    table.group_by("0").aggregate([("1", "sum")]); pc.sort_indices(table["2"])
@warm("tokenizers")
def _():
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.encode_batch(["a b " * 50] * 2000)
@warm("numexpr")
def _():
    import numexpr
    a = np.random.rand(2_000_000); numexpr.evaluate("sin(a) + a ** 2")
@warm("cv2")
def _():
    import cv2
    cv2.GaussianBlur(np.random.rand(1500, 1500).astype("float32"), (9, 9), 0)
@warm("faiss")
def _():
    import faiss
    index = faiss.IndexFlatL2(16); index.add(np.random.rand(20000, 16).astype("float32"))
    index.search(np.random.rand(500, 16).astype("float32"), 4)
@warm("mkl")
def _():
    pass
def compute():
    """In a worker: every pool again, with more than one thread where that is allowed."""
    torch.set_num_threads(2)
    a = (torch.randn(400, 400) @ torch.randn(400, 400)).sum() + (torch.ones(1 << 20) + 1).sum()
    b = np.random.rand(400, 400) @ np.random.rand(400, 400)
    if "sklearn" in warmed:
        from sklearn.cluster import KMeans
        KMeans(2, n_init=1).fit(np.random.rand(2000, 4))
    if "pyarrow" in warmed:
        import pyarrow as pa, pyarrow.compute as pc
        pc.sum(pa.array(b.ravel()))
    if "tokenizers" in warmed:
        from tokenizers import Tokenizer, models
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).encode_batch(["a"] * 50)
    if "numexpr" in warmed:
        import numexpr
        c = np.random.rand(200_000); numexpr.evaluate("c * 2")
    if "cv2" in warmed:
        import cv2
        cv2.GaussianBlur(b.astype("float32"), (5, 5), 0)
    if "faiss" in warmed:
        import faiss
        index = faiss.IndexFlatL2(8); index.add(np.random.rand(500, 8).astype("float32"))
        index.search(np.random.rand(50, 8).astype("float32"), 2)
    return os.getpid()
'''
_STARTS = """
import nbsync
for _ in range({count}):
    (torch.ones(1 << 20) + 1).sum()
    with nbsync.Session(2, start_method={method!r}) as session:
        assert len(set(session.call(compute, timeout=30))) == 2
"""
_USAGE = """
import gc, json
gc.collect()
with open("/proc/self/statm") as file:
    resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
counts = [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]
print(json.dumps([resident, *counts, len(os.listdir("/dev/shm"))]))
"""
_CYCLES = """
for _ in range({count}):
    with nbsync.Session(2, start_method={method!r}) as session:
        pass
"""
_CROWD = """
def total():
    t = torch.ones(1)
    dist.all_reduce(t)
    return t.item()
began = time.perf_counter()
with nbsync.Session({n}, start_method={method!r}) as session:
    assert session.call(total, timeout=60) == [{n}] * {n}
    print(time.perf_counter() - began)
"""


def times(options: argparse.Namespace) -> bool:
    """Seconds of a launch of one all_reduce, in a kernel that has launched before."""
    print(f"launch of one all_reduce, median of {options.count}; (only the first, where that took over {LONG:.0f} s)")
    print(f"{'':32}", *(f"{f'{n} ranks':>11}" for n in options.ranks))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "launched.py").write_text(_LAUNCHED)
        for name, call in _CALLS.items():
            print(f"{name:32}", end="", flush=True)
            for n in options.ranks:
                print(f"{_time(folder, call.format(n=n), options.count):>12}", end="", flush=True)
            print()
    return True


def _time(folder: str, call: str, count: int) -> str:
    with Kernel(_LAUNCHERS.format(folder=folder), limit=LAUNCH_LIMIT) as kernel:
        try:
            first = kernel.seconds(call)
            if first > LONG:
                return f"({first:.1f} s)"
            return f"{statistics.median(kernel.seconds(call) for _ in range(count)):.3f} s"
        except CellFailed as error:
            print(error, file=sys.stderr)
            return "-"


def pools(options: argparse.Namespace) -> bool:
    """Starts from a kernel with warm pools, in which each worker computes with its own."""
    with Kernel(_WARM) as kernel:
        print("warm in the kernel:", kernel.run("print(*warmed)").stdout.strip())
        for method in options.methods:
            began, done = time.perf_counter(), 0
            while done < options.count:
                step = min(10, options.count - done)
                try:
                    kernel.run(_STARTS.format(count=step, method=method))
                except CellFailed as error:
                    print(f"{method}: a hang or failure within starts {done}-{done + step}: {error}")
                    return False
                done += step
            print(f"{method}: 0 hangs in {done} starts ({time.perf_counter() - began:.0f} s)", flush=True)
    return True


def cycles(options: argparse.Namespace) -> bool:
    """What the kernel has grown by over many sessions of two ranks, after a tenth of them."""
    good = True
    for method in options.methods:
        with Kernel("import os, torch, nbsync") as kernel:
            kernel.run(_CYCLES.format(count=max(5, options.count // 10), method=method))
            before = _usage(kernel)
            done, began = 0, time.perf_counter()
            while done < options.count:
                step = min(20, options.count - done)
                kernel.run(_CYCLES.format(count=step, method=method))
                done += step
            grown = [after - earlier for after, earlier in zip(_usage(kernel), before, strict=True)]
        spent = (time.perf_counter() - began) / done
        print(
            f"{method}: {done} starts and stops, {spent * 1e3:.0f} ms each; growth: {grown[0]:+.1f} MB, "
            f"{grown[1]:+.0f} descriptors, {grown[2]:+.0f} threads, {grown[3]:+.0f} files in /dev/shm",
            flush=True,
        )
        good &= grown[0] < MOST_GROWTH and all(count < 5 for count in grown[1:])  # a front end comes and goes
    return good


def _usage(kernel: Kernel) -> list[float]:
    found: list[float] = json.loads(kernel.run(_USAGE).stdout)
    return found


def crowd(options: argparse.Namespace) -> bool:
    """Many ranks on few cores: start and one all_reduce."""
    good = True
    for method in options.methods:
        with Kernel("import time, torch, torch.distributed as dist, nbsync") as kernel:
            kernel.run(_CROWD.format(n=2, method=method))
            taken = min(float(kernel.run(_CROWD.format(n=CROWD, method=method)).stdout) for _ in range(3))
        print(f"{method}: {CROWD} ranks started and reduced in {taken:.2f} s", flush=True)
        good &= taken < CROWD_LIMIT or method == "spawn"
    return good


def main() -> None:
    """Run what was asked for."""
    jobs: dict[str, tuple[Any, int]] = {"times": (times, 5), "pools": (pools, 200), "cycles": (cycles, 1000)}
    jobs["crowd"] = (crowd, 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=jobs)
    parser.add_argument("--count", type=int, help="how often; default: times 5, pools 200, cycles 1000")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["fork", "forkserver"])
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[2, 8, 64])
    options = parser.parse_args()
    job, usual = jobs[options.job]
    options.count = options.count or usual
    sys.exit(0 if job(options) else 1)


if __name__ == "__main__":
    main()
