"""Many starts leave nothing behind, warm pools of threads do not hang them, and a limit stops all ranks or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from started import GUARD

from notebooks import Notebook, alive, family, poll

USAGE = """
import gc, json
gc.collect()
with open("/proc/self/statm") as file:
    resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
targets = []
for fd in os.listdir("/proc/self/fd"):
    try: targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError: pass
# IPython's history comes and goes.
print(json.dumps([resident, len([t for t in targets if ".sqlite" not in t]), len(os.listdir("/proc/self/task"))]))
"""
SESSIONS = "for _ in range({count}):\n    with nbsync.Session(2, start_method={method!r}) as session: pass"
WARM = """
import numpy as np, torch, nbsync
import pyarrow as pa, pyarrow.compute as pc
from sklearn.cluster import KMeans
from tokenizers import Tokenizer, models
def compute():
    a = (torch.randn(400, 400) @ torch.randn(400, 400)).sum() + (torch.ones(1 << 20) + 1).sum()
    b = np.random.rand(400, 400) @ np.random.rand(400, 400)
    KMeans(2, n_init=1).fit(np.random.rand(2000, 4))
    pc.sort_indices(pa.array(b.ravel()))
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return torch.get_num_threads(), len(tokenizer.encode_batch(["a"] * 200))
compute()
"""


@pytest.fixture
def kernel(notebook: Notebook) -> Notebook:
    """The module's kernel, with what the cells here use."""
    notebook.run("import os, torch, nbsync\nimport torch.distributed as dist").ok()
    return notebook


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_many_sessions(kernel: Notebook, method: str) -> None:
    """Sessions that come and go leave the kernel as it was. `benchmarks/start.py cycles` does it a thousand times."""
    for _ in range(2):
        kernel.run(SESSIONS.format(count=5, method=method), GUARD).ok()
    resident, descriptors, threads = _usage(kernel)
    kernel.run(SESSIONS.format(count=20, method=method), GUARD).ok()
    assert _usage(kernel)[0] - resident < 5.0, "megabytes"
    # A front end's connections come and go; what 20 sessions leave behind would be 20.
    assert poll(
        lambda: all(now - then < 5 for now, then in zip(_usage(kernel)[1:], (descriptors, threads), strict=True)), 2.0
    )


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_warm_pools(kernel: Notebook, method: str) -> None:
    """Libraries whose threads the notebook has used work in the workers, with several threads."""
    kernel.run(WARM, GUARD).ok()
    cell = f"""
for _ in range({5 if method == "fork" else 1}):
    compute()
    with nbsync.Session(2, start_method={method!r}, threads_per_worker=2) as session:
        assert session.call(compute, timeout=20) == [(2, 200)] * 2"""
    kernel.run(cell, GUARD).ok()


def test_a_crowd(kernel: Notebook) -> None:
    """64 ranks come up and reduce together. `benchmarks/start.py crowd` takes the time."""
    cell = """
def total():
    t = torch.ones(1)
    dist.all_reduce(t)
    return t.item()
with nbsync.Session(64) as session:
    assert session.call(total) == [64.0] * 64"""
    kernel.run(cell, GUARD).ok()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_limit_of_descriptors(kernel: Notebook, method: str) -> None:
    """Too few descriptors for all ranks: none is started, the message says so, and later starts work."""
    before = family(kernel.pid)
    kernel.run(
        "import resource\n_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 30, most))"
    ).ok()
    error = kernel.run(f"nbsync.Session(16, start_method={method!r})", GUARD).failed("StartError")
    assert "no process for ranks 0-15: Too many open files, all " in error.evalue
    kernel.run("resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))").ok()
    assert poll(lambda: not alive(family(kernel.pid) - before), 2.0)
    kernel.run(f"nbsync.Session(2, start_method={method!r}).close()", GUARD).ok()


#: Read by a new interpreter as it starts.
LIMITS = {
    "receiving": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))\n",
    "forking": """
import errno, os
fork, made = os.fork, []
def limited():
    made.append(1)
    if len(made) == 4: raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = limited
""",
}


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("receiving", "ranks 0-7: Too many open files"),
        ("forking", "ranks 2-7: Resource temporarily unavailable"),
    ],
)
def test_limit_of_the_fork_server(kernel: Notebook, tmp_path: Path, when: str, told: str) -> None:
    """The fork server itself meets a limit: the missing ranks are named, none is left, and the next start works."""
    (tmp_path / "sitecustomize.py").write_text(LIMITS[when])
    cell = f"""
from nbsync.kernel.engines import served
usual = os.environ.get("PYTHONPATH", "")
os.environ["PYTHONPATH"] = {str(tmp_path)!r} + os.pathsep + usual
served.close()
served.preload()
os.environ["PYTHONPATH"] = usual"""
    kernel.run(cell).ok()
    before = family(kernel.pid)
    error = kernel.run("nbsync.Session(8, start_method='forkserver')", GUARD).failed("StartError")
    assert f"no process for {told}" in error.evalue
    assert poll(lambda: not alive(family(kernel.pid) - before), 2.0)
    kernel.run("nbsync.Session(2, start_method='forkserver').close()", GUARD).ok()


def test_limit_of_memory_for_some_ranks(fresh_notebook: Notebook) -> None:
    """Forked ranks without memory for threads: they are named, none is left; `auto` has all from the fork server."""
    cell = """
import os, resource, nbsync
made, limited = [], True
def limit():
    if limited and len(made) % 2 == 0: resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
os.register_at_fork(before=lambda: made.append(1), after_in_child=limit)"""
    fresh_notebook.run(cell).ok()
    before = family(fresh_notebook.pid)
    error = fresh_notebook.run("nbsync.Session(4, start_method='fork')", GUARD).failed("StartError")
    assert error.evalue.startswith("ranks 1,3 "), error.evalue
    assert poll(lambda: not alive(family(fresh_notebook.pid) - before), 2.0)
    outcome = fresh_notebook.run("with nbsync.Session(4) as session: print(session.pull('rank'))", GUARD)
    assert outcome.ok().stdout == "[0, 1, 2, 3]\n"
    assert "the workers come from a fork server: ranks 1,3 " in outcome.stderr
    fresh_notebook.run("limited = False\nnbsync.Session(4, start_method='fork').close()", GUARD).ok()


@pytest.mark.parametrize(
    ("method", "told"), [("forkserver", "the fork server failed"), ("spawn", "ranks 0-1 ended with exit code")]
)
def test_limit_of_memory_for_torch(fresh_notebook: Notebook, tmp_path: Path, method: str, told: str) -> None:
    """No memory to load torch with: that is told with what the process wrote, and the next start works."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
    (tmp_path / "sitecustomize.py").write_text(limit)
    cell = f"import os, nbsync\nos.environ['PYTHONPATH'] = {str(tmp_path)!r} + os.pathsep + os.environ['PYTHONPATH']"
    fresh_notebook.run(f"import os\nusual = os.environ.setdefault('PYTHONPATH', '')\n{cell}").ok()
    error = fresh_notebook.run(f"nbsync.Session(2, start_method={method!r})", GUARD).failed("StartError")
    assert told in error.evalue
    assert "It said:\n" in error.evalue
    fresh_notebook.run("os.environ['PYTHONPATH'] = usual").ok()
    fresh_notebook.run(f"nbsync.Session(2, start_method={method!r}).close()", GUARD).ok()


def test_ranks_that_fail_together_are_named_together(fresh_notebook: Notebook) -> None:
    """Ranks that come alive and then cannot go on, as without room for a thread, are named with what they said."""
    cell = """
import os, threading, nbsync
start, kernel = threading.Thread.start, os.getpid()
def limited(self):
    if os.getpid() != kernel: raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = limited"""
    fresh_notebook.run(cell).ok()
    error = fresh_notebook.run("nbsync.Session(4)", GUARD).failed("StartError")
    assert "ranks 0-3 ended with exit code 70 during the start" in error.evalue
    assert "can't start new thread" in error.evalue


def _usage(kernel: Notebook) -> tuple[float, int, int]:
    """Megabytes, descriptors and threads of the kernel."""
    resident, descriptors, threads = json.loads(kernel.run(USAGE).ok().stdout)
    return resident, descriptors, threads
