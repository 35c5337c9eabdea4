"""`started`: a kernel whose workers were started by each of the methods in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from notebooks import Notebook, Outcome

GUARD = 40.0  # seconds: only to tell a hang from a slow machine
METHODS = ("fork", "forkserver", "spawn")

#: What the notebook has before the workers start.
NOTEBOOK = """
import collections, math, os, sqlite3, threading, nbsync, torch
import helper_module
from dataclasses import dataclass
big = torch.arange(300_000, dtype=torch.float64)
tail = big[-3:]
counts = collections.Counter("abca")
database = sqlite3.connect(":memory:")
def numbers():
    yield 1
generator = numbers()
class NotNegative(Exception):
    pass
@dataclass
class Point:
    x: float
    y: float = 0.0
    def length(self):
        return math.hypot(self.x, self.y) * scale
scale = 2
point = Point(3.0, 4.0)
def check(value):
    if value < 0:
        raise NotNegative(f"{value} is negative")
    return value * scale
_private = "mine"
net = torch.nn.Linear(3, 1)
optimizer = torch.optim.Adam(net.parameters())
"""


@dataclass
class Started:
    """A kernel with two ranks that were started by `method`."""

    notebook: Notebook
    method: str
    said: str

    @property
    def is_copy(self) -> bool:
        """Whether the workers have everything of the notebook, also what cannot be sent."""
        return self.method == "fork"

    def run(self, code: str, timeout: float = GUARD) -> Outcome:
        """A cell on all ranks."""
        return self.notebook.run(f"%%distributed\n{code}", timeout)


@pytest.fixture(scope="module", params=METHODS)
def shared_start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The holder behind `started`."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    notebook = Notebook(folder, {"TORCHINDUCTOR_CACHE_DIR": str(folder)})
    try:
        (folder / "work" / "helper_module.py").write_text("state = []\ndef triple(x):\n    return 3 * x\n")
        notebook.run("%load_ext nbsync").ok()
        notebook.run(NOTEBOOK).ok()
        said = notebook.run(f"%nbsync start -n 2 --start-method {request.param}", GUARD).ok()
        yield Started(notebook, request.param, said.stdout + said.stderr)
    finally:
        notebook.shutdown()


@pytest.fixture
def started(shared_start: Started) -> Started:
    """A kernel with the variables of `NOTEBOOK` and two ranks that answer."""
    if shared_start.run("t = torch.ones(1); dist.all_reduce(t); t.item()").texts != ["[0-1] 2.0"]:
        shared_start.notebook.run("%nbsync restart", GUARD).ok()
    return shared_start


def shared_memory() -> set[str]:
    """The files in shared memory."""
    return set(os.listdir("/dev/shm"))
